//! An incremental response under construction.

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

use crate::ads::view::Encoded;

/// A response under construction, and how large it is.
pub(super) struct Builder {
    pub(super) response: DeltaDiscoveryResponse,
    bytes: usize,
    budget: usize,
}

impl Builder {
    /// Field tags and lengths around one resource, rounded up.
    const OVERHEAD: usize = 32;

    pub(super) fn new(type_url: &str, budget: usize) -> Self {
        let response =
            DeltaDiscoveryResponse { type_url: type_url.to_owned(), ..DeltaDiscoveryResponse::default() };
        Self { response, bytes: 0, budget }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.budget
    }

    pub(super) fn add(&mut self, resource: &Encoded) {
        let body = &resource.body;
        self.bytes += resource.name.len()
            + resource.version.len()
            + body.type_url.len()
            + body.value.len()
            + Self::OVERHEAD;
        self.response.resources.push(Resource {
            name: resource.name.clone(),
            version: resource.version.clone(),
            resource: Some(body.clone()),
            ..Resource::default()
        });
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.bytes += name.len() + Self::OVERHEAD;
        self.response.removed_resources.push(name.to_owned());
    }
}
