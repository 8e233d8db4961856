//! The incremental variant: only differences travel, each resource with its own version.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{ControlPlane, Node};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::time::Instant;

use super::order::Order;
use super::response::Builder;
use super::track::{Track, check, fingerprint, has_legacy_wildcard};
use super::{Machine, Refused, ResourceState, ResourceStatus, StreamOptions, TypeStatus};
use crate::ads::view::{Encoded, View};
use crate::ads::warming::endpoints_of;
use crate::type_url;

/// The name that subscribes to everything.
const WILDCARD: &str = "*";

/// One incremental stream.
#[derive(Debug)]
pub struct DeltaStream {
    options: StreamOptions,
    /// In push order.
    types: Vec<DeltaType>,
    order: Order,
    nonce: u64,
    wake_at: Option<Instant>,
}

#[derive(Debug)]
struct DeltaType {
    track: Track,
    /// What the client was told last about a name.
    told: HashMap<Arc<str>, Told>,
    /// Names to answer even if nothing changed: subscribed to (again), or left to the wildcard.
    asked: BTreeSet<Arc<str>>,
    /// The wildcard subscription itself is to be answered, even by an empty response.
    asked_all: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Version(u64),
    Absent,
}

/// Which differences a response may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Only answers to subscriptions.
    Asked,
    /// Also what is new, changed or, unless others may still use it, gone.
    News,
    /// What is gone.
    Removals,
}

impl Machine for DeltaStream {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn new(options: StreamOptions) -> Self {
        Self { options, types: Vec::new(), order: Order::default(), nonce: 0, wake_at: None }
    }

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn on_request(&mut self, request: Self::Request, view: &dyn View) -> Result<(), Refused> {
        if request.type_url.is_empty() {
            return Err(Refused::NoType);
        }
        let have = self.types.iter().map(|kind| kind.track.names.len()).sum();
        let known = self.types.iter().position(|kind| kind.track.type_url == request.type_url);
        let types = self.types.len() + usize::from(known.is_none());
        check(&self.options.limits, have, &request.resource_names_subscribe, types)?;
        if let Some(index) = known {
            if let Some(error) = &request.error_detail
                && request.type_url == type_url::CLUSTER
            {
                self.order.refused(&error.message);
            }
            self.types[index].on_request(&request);
        } else {
            let initial = request.initial_resource_versions.len();
            let limit = self.options.limits.names;
            if initial > limit {
                return Err(Refused::Limit {
                    what: "initial resource versions of one type",
                    got: initial,
                    limit,
                });
            }
            self.types.push(DeltaType::first(&request, view));
            self.types.sort_by_key(|kind| kind.track.rank);
        }
        Ok(())
    }

    fn asked_otherwise(&mut self) -> Option<(&str, &BTreeSet<Arc<str>>)> {
        self.types.iter_mut().find_map(|kind| kind.track.asked_otherwise())
    }

    fn on_view(&mut self, view: &dyn View) {
        for kind in &mut self.types {
            kind.track.on_view(view);
        }
    }

    fn next(&mut self, view: &dyn View, now: Instant) -> Option<Self::Response> {
        let (index, response) = self.compose(view, now)?;
        self.nonce += 1;
        self.types[index].sent(self.nonce, now, &response);
        match response.type_url.as_str() {
            type_url::CLUSTER => self.announce(&response),
            type_url::ENDPOINTS => {
                let told = response.resources.iter().map(|told| &told.name);
                self.order.told(told.chain(&response.removed_resources).map(String::as_str));
            }
            _ => {}
        }
        Some(DeltaDiscoveryResponse {
            nonce: self.nonce.to_string(),
            control_plane: Some(ControlPlane { identifier: self.options.control_plane.clone() }),
            ..response
        })
    }

    fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    fn status(&self) -> Vec<TypeStatus> {
        self.types.iter().map(|kind| kind.track.status()).collect()
    }

    fn resources(&self) -> Vec<ResourceStatus> {
        self.types.iter().flat_map(DeltaType::resources).collect()
    }
}

impl DeltaStream {
    fn compose(&mut self, view: &dyn View, now: Instant) -> Option<(usize, DeltaDiscoveryResponse)> {
        let budget = self.options.limits.response_bytes;
        let mut round = self.order.begin(now);
        for (index, kind) in self.types.iter_mut().enumerate() {
            // The first answer to a wildcard is one to a subscription, and waits for nothing.
            let waits = kind.track.is_waiting() || (round.holds(&kind.track) && !kind.asked_all);
            let part = if waits { Part::Asked } else { Part::News };
            if let Some(response) = kind.compose(view, part, budget) {
                self.wake_at = None;
                return Some((index, response));
            }
            round.pass(&kind.track);
        }
        let (wake_at, may_remove) =
            self.order.end(&round, self.types.iter().any(|kind| kind.track.may_remove()));
        self.wake_at = wake_at;
        if !may_remove {
            return None;
        }
        // One after the other: endpoints stay as long as their clusters.
        for (index, kind) in self.types.iter_mut().enumerate().filter(|(_, kind)| kind.track.is_used()) {
            if kind.track.is_waiting() {
                return None;
            }
            if let Some(response) = kind.compose(view, Part::Removals, budget) {
                return Some((index, response));
            }
        }
        None
    }

    /// A cluster announced anew is warmed, and for that the client waits for endpoints: for new ones, and
    /// (if it is one that forgets them) for those it already has.
    fn announce(&mut self, clusters: &DeltaDiscoveryResponse) {
        self.order.told(clusters.removed_resources.iter().map(String::as_str));
        let Some(kind) = self.types.iter_mut().find(|kind| kind.track.type_url == type_url::ENDPOINTS) else {
            return;
        };
        let bodies = clusters.resources.iter().filter_map(|resource| resource.resource.as_ref());
        for endpoints in bodies.filter_map(|body| endpoints_of(&body.value)) {
            let asked = kind.track.names.get(endpoints.as_str()).cloned();
            if asked.is_none() || self.options.endpoints_follow_clusters {
                self.order.announced([endpoints]);
            }
            kind.asked.extend(asked.filter(|_| self.options.endpoints_follow_clusters));
        }
    }
}

impl DeltaType {
    /// The first request of a type on the stream: it may also say what the client already holds.
    fn first(request: &DeltaDiscoveryRequest, view: &dyn View) -> Self {
        let mut kind = Self {
            track: Track::new(&request.type_url, true),
            told: HashMap::new(),
            asked: BTreeSet::new(),
            asked_all: false,
        };
        kind.track.on_view(view);
        kind.track.touch();
        kind.subscribe(&request.resource_names_subscribe);
        let is_bare =
            request.resource_names_subscribe.is_empty() && request.resource_names_unsubscribe.is_empty();
        if is_bare && has_legacy_wildcard(&request.type_url) {
            kind.track.wildcard = true;
            kind.asked_all = true;
        }
        for (name, version) in &request.initial_resource_versions {
            let named = kind.track.names.get(name.as_str()).cloned();
            let held = Told::Version(fingerprint(version));
            if named.is_some() && view.find(&request.type_url, name).is_some_and(|now| Told::of(&now) == held)
            {
                kind.asked.remove(name.as_str());
            }
            if named.is_some() || kind.track.wildcard {
                kind.told.insert(named.unwrap_or_else(|| Arc::from(name.as_str())), held);
            }
        }
        kind.unsubscribe(&request.resource_names_unsubscribe);
        kind
    }

    fn on_request(&mut self, request: &DeltaDiscoveryRequest) {
        if !request.response_nonce.is_empty() {
            // Subscriptions in a message with an outdated nonce count all the same.
            self.track.answered(&request.response_nonce, request.error_detail.as_ref());
        }
        self.subscribe(&request.resource_names_subscribe);
        self.unsubscribe(&request.resource_names_unsubscribe);
        if !request.resource_names_unsubscribe.is_empty() {
            self.track.wants(|name| self.told.contains_key(name));
        }
    }

    fn subscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                if self.track.wildcard {
                    // Asked again: everything is answered again.
                    self.told.retain(|name, _| self.track.names.contains(name));
                }
                self.track.wildcard = true;
                self.asked_all = true;
                self.track.touch();
            } else {
                let name: Arc<str> = Arc::from(name.as_str());
                self.track.asks_otherwise |= self.track.names.insert(Arc::clone(&name));
                self.asked.insert(name);
            }
        }
    }

    fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.track.wildcard = false;
                self.asked_all = false;
                self.told.retain(|name, _| self.track.names.contains(name));
                self.asked.retain(|name| self.track.names.contains(name));
                continue;
            }
            let subscribed = self.track.names.remove(name.as_str());
            self.track.asks_otherwise |= subscribed;
            if !self.track.wildcard {
                self.told.remove(name.as_str());
                self.asked.remove(name.as_str());
            } else if subscribed || self.told.contains_key(name.as_str()) {
                // A client forgets what it unsubscribes from, even from a name that it never got to
                // ask for: what the wildcard covers is told again.
                self.asked.insert(Arc::from(name.as_str()));
            }
        }
    }

    fn sent(&mut self, nonce: u64, now: Instant, response: &DeltaDiscoveryResponse) {
        let known = |name: &str| self.told.get_key_value(name).map(|(name, _)| Arc::clone(name));
        let names = response.resources.iter().filter_map(|sent| known(&sent.name)).collect();
        self.track.sent(nonce, now, names, &response.removed_resources);
    }

    fn resources(&self) -> impl Iterator<Item = ResourceStatus> {
        self.told.iter().map(|(name, told)| ResourceStatus {
            type_url: self.track.type_url.clone(),
            name: name.to_string(),
            version: None,
            state: match told {
                Told::Version(_) => self.track.state(name),
                Told::Absent => ResourceState::Absent,
            },
        })
    }

    fn differs(&self, now: &Encoded) -> bool {
        self.told.get(now.name.as_str()) != Some(&Told::of(now))
    }

    /// Everything subscribed to that exists; a name covered twice comes twice.
    fn current(&self, view: &dyn View) -> Vec<Arc<Encoded>> {
        let url = &self.track.type_url;
        let mut current = if self.track.wildcard { view.all(url) } else { Vec::new() };
        current.extend(self.track.names.iter().filter_map(|name| view.find(url, name)));
        current
    }

    fn compose(&mut self, view: &dyn View, part: Part, budget: usize) -> Option<DeltaDiscoveryResponse> {
        let mut response = Builder::new(&self.track.type_url, budget);
        if part == Part::News && self.track.has_suspects() && self.asked.is_empty() {
            self.add_suspect(view, &mut response);
            if !response.is_empty() {
                return Some(response.response);
            }
        }
        if part != Part::Removals {
            self.answer(view, &mut response);
        }
        if part == Part::News && self.track.dirty {
            self.add_news(view, &mut response);
        }
        let removes = part == Part::Removals || (part == Part::News && !self.track.is_used());
        if removes && self.track.dirty_removals {
            self.add_removals(view, &mut response);
        }
        let answers_all = self.asked_all && part == Part::News;
        if answers_all {
            self.asked_all = false;
        }
        (answers_all || !response.is_empty()).then_some(response.response)
    }

    /// Names asked for: the resource, or that there is none.
    fn answer(&mut self, view: &dyn View, response: &mut Builder) {
        let wildcard = self
            .asked
            .iter()
            .any(|name| !self.track.names.contains(name))
            .then(|| view.all(&self.track.type_url));
        while let Some(name) = self.asked.first().cloned() {
            if response.is_full() {
                return;
            }
            self.asked.remove(&name);
            let subscribed = self.track.names.contains(&name);
            let found = if subscribed {
                view.find(&self.track.type_url, &name)
            } else {
                wildcard.iter().flatten().find(|resource| resource.name == *name).cloned()
            };
            match found {
                Some(resource) => {
                    self.told.insert(name, Told::of(&resource));
                    response.add(&resource);
                }
                None => {
                    response.remove(&name);
                    if subscribed {
                        self.told.insert(name, Told::Absent);
                    } else {
                        self.told.remove(&name);
                    }
                }
            }
        }
    }

    /// The next resource to be sent alone that the client still wants and that exists.
    fn add_suspect(&mut self, view: &dyn View, response: &mut Builder) {
        while let Some(name) = self.track.next_suspect() {
            let wanted = self.told.contains_key(&name);
            if let Some(resource) = view.find(&self.track.type_url, &name).filter(|_| wanted) {
                self.told.insert(name, Told::of(&resource));
                response.add(&resource);
                return;
            }
        }
    }

    fn add_news(&mut self, view: &dyn View, response: &mut Builder) {
        for resource in self.current(view) {
            if !self.differs(&resource) {
                continue;
            }
            if response.is_full() {
                return;
            }
            let name = self.track.names.get(resource.name.as_str()).cloned();
            self.told.insert(name.unwrap_or_else(|| Arc::from(resource.name.as_str())), Told::of(&resource));
            response.add(&resource);
        }
        self.track.dirty = false;
    }

    fn add_removals(&mut self, view: &dyn View, response: &mut Builder) {
        let current = self.current(view);
        let exists: HashSet<&str> = current.iter().map(|resource| resource.name.as_str()).collect();
        let is_gone =
            |(name, told): &(&Arc<str>, &Told)| **told != Told::Absent && !exists.contains(&***name);
        let gone: Vec<Arc<str>> =
            self.told.iter().filter(is_gone).map(|(name, _)| Arc::clone(name)).collect();
        for name in gone {
            if response.is_full() {
                return;
            }
            response.remove(&name);
            if self.track.names.contains(&name) {
                self.told.insert(name, Told::Absent);
            } else {
                self.told.remove(&name);
            }
        }
        self.track.dirty_removals = false;
    }
}

impl Told {
    fn of(resource: &Encoded) -> Self {
        Self::Version(fingerprint(&resource.version))
    }
}
