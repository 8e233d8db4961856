//! State of the world: each request names the whole subscription of a type, and a response holds
//! every listener or cluster there is. Resources of other types that are absent are unchanged.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::{Answer, Client, Decode, Interest, Rejected, Update};
use crate::type_url::{CLUSTER, LISTENER};

/// A resource that carries its own name and version: what one may come wrapped in.
const WRAPPED: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// The name of any resource: every type has it in its first field.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

/// The name that a resource of any type carries; empty if it cannot be read.
#[must_use]
pub fn resource_name(body: &[u8]) -> String {
    Named::decode(body).map(|named| named.name).unwrap_or_default()
}

impl Client {
    /// The next request to send on a state-of-the-world stream.
    pub fn next_full_request(&mut self) -> Option<DiscoveryRequest> {
        let next = self.types.iter_mut().find(|interest| interest.has_request());
        let mut request = match next {
            Some(interest) => interest.next_full_request(),
            None => {
                let stray = self.stray.pop_front()?;
                DiscoveryRequest {
                    type_url: stray.type_url,
                    response_nonce: stray.response_nonce,
                    error_detail: stray.error_detail,
                    ..DiscoveryRequest::default()
                }
            }
        };
        if !self.node_sent {
            self.node_sent = true;
            request.node = Some(self.node.to_proto());
        }
        Some(request)
    }

    /// Takes a response of a state-of-the-world stream in.
    pub fn on_full_response<T>(&mut self, response: DiscoveryResponse, decode: &Decode<T>) -> Update<T> {
        let known = self.types.iter_mut().find(|interest| interest.type_url == response.type_url);
        match known {
            Some(interest) => interest.on_full_response(response, decode),
            None => self.refuse_stray(response.nonce, response.type_url),
        }
    }
}

impl Interest {
    fn next_full_request(&mut self) -> DiscoveryRequest {
        self.is_open = true;
        self.subscribe.clear();
        self.unsubscribe.clear();
        let answer = self.answers.pop_front();
        if let Some(answer) = &answer {
            self.nonce.clone_from(&answer.nonce);
        }
        DiscoveryRequest {
            version_info: self.version.clone(),
            type_url: self.type_url.clone(),
            resource_names: self.names.iter().cloned().collect(),
            response_nonce: self.nonce.clone(),
            error_detail: answer.and_then(|answer| answer.error),
            ..DiscoveryRequest::default()
        }
    }

    fn on_full_response<T>(&mut self, response: DiscoveryResponse, decode: &Decode<T>) -> Update<T> {
        let DiscoveryResponse { version_info, resources, nonce, .. } = response;
        let mut update = Update::new(self.type_url.clone());
        match unpack(resources, &version_info) {
            Ok(resources) => {
                let removed = self.absent(&resources);
                self.apply(resources, removed, decode, &mut update);
            }
            Err(reason) => update.rejected.push(Rejected { name: String::new(), reason }),
        }
        let error = update.nack();
        if error.is_none() {
            self.version = version_info;
        }
        self.answers.push_back(Answer { nonce, error });
        update
    }

    /// What is held and not among everything there is.
    fn absent(&self, all: &[Resource]) -> Vec<String> {
        if !self.wildcard || !matches!(&*self.type_url, LISTENER | CLUSTER) {
            return Vec::new();
        }
        let present: BTreeSet<&String> = all.iter().map(|resource| &resource.name).collect();
        self.held.keys().filter(|name| !present.contains(name)).cloned().collect()
    }
}

fn unpack(resources: Vec<Any>, version: &str) -> Result<Vec<Resource>, String> {
    let mut seen = BTreeSet::new();
    let mut unpacked = Vec::with_capacity(resources.len());
    for (index, any) in resources.into_iter().enumerate() {
        let broken = |error: prost::DecodeError| format!("resources[{index}]: cannot be read: {error}");
        let resource = if any.type_url == WRAPPED {
            Resource::decode(&*any.value).map_err(broken)?
        } else {
            let Named { name } = Named::decode(&*any.value).map_err(broken)?;
            Resource { name, version: version.to_owned(), resource: Some(any), ..Resource::default() }
        };
        if !seen.insert(resource.name.clone()) {
            return Err(format!("{:?} is twice in one response", resource.name));
        }
        unpacked.push(resource);
    }
    Ok(unpacked)
}
