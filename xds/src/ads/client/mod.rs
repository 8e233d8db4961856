//! The client's side of ADS, without I/O: subscriptions in, requests out; responses in, accepted
//! resources and an ACK or NACK out. Incremental, or state of the world ([`Client::next_full_request`]).
//!
//! A response is never all or nothing: its good resources apply, and the NACK lists the bad ones
//! by name. What was refused keeps its last good version, and after a reconnect the client says
//! what it holds, so that only differences travel.

mod backoff;
mod driver;
mod sotw;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use envoy_types::pb::google::rpc::Status;

pub use backoff::Backoff;
pub use driver::{Handler, Link, run, run_variant};
pub use sotw::resource_name;

use super::NodeInfo;
use crate::type_url::rank;

/// Reads one resource: its type URL, its name and the encoded message. The error names the JSON
/// path and what would be right there.
pub type Decode<T> = Arc<dyn Fn(&str, &str, &[u8]) -> Result<T, String> + Send + Sync>;

/// The subscriptions of one proxy and what it holds, across streams.
#[derive(Debug)]
pub struct Client {
    node: NodeInfo,
    node_sent: bool,
    /// In push order.
    types: Vec<Interest>,
    /// Answers to responses of types never asked for.
    stray: VecDeque<DeltaDiscoveryRequest>,
}

/// One type.
#[derive(Debug)]
struct Interest {
    type_url: String,
    wildcard: bool,
    names: BTreeSet<String>,
    /// Name and version of what was accepted and is still wanted.
    held: BTreeMap<String, String>,
    /// Whether this stream has had the type's first request.
    is_open: bool,
    subscribe: BTreeSet<String>,
    unsubscribe: BTreeSet<String>,
    answers: VecDeque<Answer>,
    /// Of the state of the world: the version accepted last, over all resources of the type.
    version: String,
    /// Of the state of the world: the last response on this stream.
    nonce: String,
}

#[derive(Debug)]
struct Answer {
    nonce: String,
    error: Option<Status>,
}

/// What one response changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update<T> {
    /// The type.
    pub type_url: String,
    /// Accepted resources.
    pub changed: Vec<Changed<T>>,
    /// Names that do not exist, or no longer.
    pub removed: Vec<String>,
    /// Refused resources: the last good version stays.
    pub rejected: Vec<Rejected>,
}

/// An accepted resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<T> {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// As received.
    pub body: Bytes,
    /// As read.
    pub value: T,
}

/// A refused resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name; empty when the whole response was refused.
    pub name: String,
    /// What is wrong, and where.
    pub reason: String,
}

/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;
/// Bytes of a NACK's message.
const NACK_BYTES_MAX: usize = 4096;

impl Client {
    /// A client without subscriptions.
    #[must_use]
    pub fn new(node: NodeInfo) -> Self {
        Self { node, node_sent: false, types: Vec::new(), stray: VecDeque::new() }
    }

    /// Subscribes to everything of a type that the server has for this node.
    pub fn subscribe_all(&mut self, type_url: &str) {
        self.interest(type_url).wildcard = true;
    }

    /// Subscribes to a name. A name subscribed to already is asked for again, and answered again.
    pub fn subscribe(&mut self, type_url: &str, name: &str) {
        let interest = self.interest(type_url);
        interest.names.insert(name.to_owned());
        interest.unsubscribe.remove(name);
        interest.subscribe.insert(name.to_owned());
    }

    /// Ends the subscription to a name and forgets the resource.
    pub fn unsubscribe(&mut self, type_url: &str, name: &str) {
        let interest = self.interest(type_url);
        if interest.names.remove(name) {
            interest.subscribe.remove(name);
            interest.unsubscribe.insert(name.to_owned());
            interest.held.remove(name);
        }
    }

    /// Whether a name is subscribed to.
    #[must_use]
    pub fn is_subscribed(&self, type_url: &str, name: &str) -> bool {
        self.types.iter().any(|interest| interest.type_url == type_url && interest.names.contains(name))
    }

    /// Takes over a resource from an earlier run, to be named in the first request of its type.
    pub fn restore(&mut self, type_url: &str, name: &str, version: &str) {
        self.interest(type_url).held.insert(name.to_owned(), version.to_owned());
    }

    /// A new stream: everything is to be said again.
    pub fn connected(&mut self) {
        self.node_sent = false;
        self.stray.clear();
        for interest in &mut self.types {
            interest.is_open = false;
            interest.subscribe.clear();
            interest.unsubscribe.clear();
            interest.answers.clear();
            interest.nonce.clear();
        }
    }

    /// Whether there is something to send.
    #[must_use]
    pub fn has_request(&self) -> bool {
        !self.stray.is_empty() || self.types.iter().any(Interest::has_request)
    }

    /// The next request to send on the stream.
    pub fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        let next = self.types.iter_mut().find(|interest| interest.has_request()).map(Interest::next_request);
        let mut request = next.or_else(|| self.stray.pop_front())?;
        if !self.node_sent {
            self.node_sent = true;
            request.node = Some(self.node.to_proto());
        }
        Some(request)
    }

    /// Takes a response in. It is answered by one of the next requests.
    pub fn on_response<T>(&mut self, response: DeltaDiscoveryResponse, decode: &Decode<T>) -> Update<T> {
        let known = self.types.iter_mut().find(|interest| interest.type_url == response.type_url);
        let Some(interest) = known else {
            return self.refuse_stray(response.nonce, response.type_url);
        };
        interest.on_response(response, decode)
    }

    fn refuse_stray<T>(&mut self, nonce: String, type_url: String) -> Update<T> {
        let reason = format!("resources of type {type_url:?} were not asked for");
        self.stray.push_back(DeltaDiscoveryRequest {
            response_nonce: nonce,
            type_url: type_url.clone(),
            error_detail: Some(Status {
                code: INVALID_ARGUMENT,
                message: reason.clone(),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        });
        Update::refused(type_url, reason)
    }

    fn interest(&mut self, type_url: &str) -> &mut Interest {
        let index = match self.types.iter().position(|interest| interest.type_url == type_url) {
            Some(index) => index,
            None => {
                let order = |interest: &Interest| (rank(&interest.type_url), interest.type_url.clone());
                let new = Interest::new(type_url);
                let index = self.types.partition_point(|have| order(have) < order(&new));
                self.types.insert(index, new);
                index
            }
        };
        &mut self.types[index]
    }
}

impl Interest {
    fn new(type_url: &str) -> Self {
        Self {
            type_url: type_url.to_owned(),
            wildcard: false,
            names: BTreeSet::new(),
            held: BTreeMap::new(),
            is_open: false,
            subscribe: BTreeSet::new(),
            unsubscribe: BTreeSet::new(),
            answers: VecDeque::new(),
            version: String::new(),
            nonce: String::new(),
        }
    }

    fn has_request(&self) -> bool {
        if self.is_open {
            return !(self.answers.is_empty() && self.subscribe.is_empty() && self.unsubscribe.is_empty());
        }
        self.wildcard || !self.names.is_empty()
    }

    fn next_request(&mut self) -> DeltaDiscoveryRequest {
        let mut request =
            DeltaDiscoveryRequest { type_url: self.type_url.clone(), ..DeltaDiscoveryRequest::default() };
        if !self.is_open {
            self.is_open = true;
            self.subscribe.clear();
            self.unsubscribe.clear();
            self.held.retain(|name, _| self.wildcard || self.names.contains(name));
            request.resource_names_subscribe = self.names.iter().cloned().collect();
            request.resource_names_subscribe.extend(self.wildcard.then(|| "*".to_owned()));
            request.initial_resource_versions = self.held.clone().into_iter().collect();
            return request;
        }
        request.resource_names_subscribe = std::mem::take(&mut self.subscribe).into_iter().collect();
        request.resource_names_unsubscribe = std::mem::take(&mut self.unsubscribe).into_iter().collect();
        if let Some(answer) = self.answers.pop_front() {
            request.response_nonce = answer.nonce;
            request.error_detail = answer.error;
        }
        request
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn on_response<T>(&mut self, response: DeltaDiscoveryResponse, decode: &Decode<T>) -> Update<T> {
        let mut update = Update::new(response.type_url.clone());
        match first_duplicate(&response) {
            Some(name) => {
                let reason = format!("{name:?} is twice in one response");
                update.rejected.push(Rejected { name: String::new(), reason });
            }
            None => self.apply(response.resources, response.removed_resources, decode, &mut update),
        }
        self.answers.push_back(Answer { nonce: response.nonce, error: update.nack() });
        update
    }

    fn apply<T>(
        &mut self,
        resources: Vec<Resource>,
        removed: Vec<String>,
        decode: &Decode<T>,
        update: &mut Update<T>,
    ) {
        for resource in resources {
            if !self.is_wanted(&resource.name) {
                continue; // crossed with our unsubscription
            }
            let held = self.held.get(&resource.name);
            if resource.resource.is_none() && held == Some(&resource.version) {
                continue; // a heartbeat: what is held is still valid
            }
            match read(&self.type_url, resource, decode) {
                Ok(changed) => {
                    self.held.insert(changed.name.clone(), changed.version.clone());
                    update.changed.push(changed);
                }
                Err(rejected) => update.rejected.push(rejected),
            }
        }
        for name in removed {
            if self.is_wanted(&name) {
                self.held.remove(&name);
                update.removed.push(name);
            }
        }
    }
}

impl<T> Update<T> {
    fn new(type_url: String) -> Self {
        Self { type_url, changed: Vec::new(), removed: Vec::new(), rejected: Vec::new() }
    }

    fn refused(type_url: String, reason: String) -> Self {
        Self { rejected: vec![Rejected { name: String::new(), reason }], ..Self::new(type_url) }
    }

    fn nack(&self) -> Option<Status> {
        if self.rejected.is_empty() {
            return None;
        }
        let lines: Vec<String> = self.rejected.iter().map(ToString::to_string).collect();
        let mut message = lines.join("; ");
        if message.len() > NACK_BYTES_MAX {
            message.truncate(message.floor_char_boundary(NACK_BYTES_MAX));
            message.push_str(" …");
        }
        Some(Status { code: INVALID_ARGUMENT, message, details: Vec::new() })
    }
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.name, self.reason)
        }
    }
}

fn read<T>(type_url: &str, resource: Resource, decode: &Decode<T>) -> Result<Changed<T>, Rejected> {
    let Resource { name, version, resource: body, .. } = resource;
    let value = match &body {
        None => Err("the resource has no body".to_owned()),
        Some(body) if body.type_url != type_url => {
            Err(format!("the body is of type {:?}, want {type_url:?}", body.type_url))
        }
        Some(body) => decode(type_url, &name, &body.value),
    };
    match value {
        Ok(value) => {
            Ok(Changed { name, version, body: body.map(|body| body.value.into()).unwrap_or_default(), value })
        }
        Err(reason) => Err(Rejected { name, reason }),
    }
}

fn first_duplicate(response: &DeltaDiscoveryResponse) -> Option<&str> {
    let mut seen = HashSet::new();
    let changed = response.resources.iter().map(|resource| resource.name.as_str());
    changed.chain(response.removed_resources.iter().map(String::as_str)).find(|name| !seen.insert(*name))
}
