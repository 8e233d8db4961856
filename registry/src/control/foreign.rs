//! What a foreign Envoy sees: everything, and its own inbound side if it announced an instance.

use std::sync::Arc;

use pillion_model::mesh::Resources;
use pillion_xds::ads::{Encoded, View};
use pillion_xds::encode::{Dialect, encode_cluster, encode_endpoints, encode_listener, encode_routes};
use pillion_xds::type_url;

use super::encoded::{Encodings, Snapshot};
use super::node::EnvoyNode;
use super::view::Own;
use crate::resolve::envoy;

/// What foreign Envoys with the same settings share.
pub(super) struct Foreign {
    /// Rises with every snapshot that differs.
    number: u64,
    model: Arc<crate::resolve::MeshModel>,
    resources: Resources,
    listeners: Encodings,
    clusters: Encodings,
    endpoints: Encodings,
    routes: Encodings,
}

impl Foreign {
    pub(super) fn first(key: &EnvoyNode, snapshot: &Snapshot) -> Self {
        let nothing = Self {
            number: 0,
            model: Arc::default(),
            resources: Resources::default(),
            listeners: Arc::default(),
            clusters: Arc::default(),
            endpoints: Arc::default(),
            routes: Arc::default(),
        };
        nothing.made(key, snapshot)
    }

    /// As of the next snapshot: what is the same is not encoded again.
    pub(super) fn next(self: &Arc<Self>, key: &EnvoyNode, snapshot: &Snapshot) -> Arc<Self> {
        if Arc::ptr_eq(&self.model, &snapshot.model) {
            Arc::clone(self)
        } else {
            Arc::new(self.made(key, snapshot))
        }
    }

    fn made(&self, key: &EnvoyNode, snapshot: &Snapshot) -> Self {
        let resources = envoy(&snapshot.model, None, &key.options());
        let dialect = Dialect::Envoy(&key.envoy);
        let last = &self.resources;
        Self {
            number: self.number + 1,
            model: Arc::clone(&snapshot.model),
            listeners: again(&resources.listeners, &last.listeners, &self.listeners, |it| {
                encode_listener(it, dialect)
            }),
            clusters: again(&resources.clusters, &last.clusters, &self.clusters, |it| {
                encode_cluster(it, dialect)
            }),
            endpoints: again(&resources.endpoints, &last.endpoints, &self.endpoints, |it| {
                encode_endpoints(it, dialect)
            }),
            routes: again(&resources.routes, &last.routes, &self.routes, |it| encode_routes(it, dialect)),
            resources,
        }
    }

    fn of(&self, type_url: &str) -> Option<&Encodings> {
        match type_url {
            type_url::LISTENER => Some(&self.listeners),
            type_url::CLUSTER => Some(&self.clusters),
            type_url::ENDPOINTS => Some(&self.endpoints),
            type_url::ROUTE => Some(&self.routes),
            _ => None,
        }
    }
}

/// Encodes what is new or different, and shares the rest.
fn again<T: PartialEq>(
    next: &std::collections::BTreeMap<String, T>,
    last: &std::collections::BTreeMap<String, T>,
    encoded: &Encodings,
    encode: impl Fn(&T) -> Encoded,
) -> Encodings {
    let one = |(name, value): (&String, &T)| {
        let kept = encoded.get(name).filter(|_| last.get(name) == Some(value));
        let encoded = kept.cloned().unwrap_or_else(|| Arc::new(encode(value)));
        (encoded.name.clone(), encoded)
    };
    Arc::new(next.iter().map(one).collect())
}

/// A foreign Envoy's view.
pub(super) struct ForeignView {
    pub(super) shared: Arc<Foreign>,
    pub(super) own: Arc<Own>,
}

impl View for ForeignView {
    fn all(&self, type_url: &str) -> Vec<Arc<Encoded>> {
        let own = self.own.of(type_url).into_iter().flat_map(|own| own.values());
        let shared = self.shared.of(type_url).into_iter().flat_map(|shared| shared.values());
        own.chain(shared).cloned().collect()
    }

    fn find(&self, type_url: &str, name: &str) -> Option<Arc<Encoded>> {
        let own = self.own.of(type_url).and_then(|own| own.get(name));
        own.or_else(|| self.shared.of(type_url).and_then(|shared| shared.get(name))).cloned()
    }

    fn revision(&self, _: &str) -> Option<u64> {
        // Both parts only rise: the sum is another one whenever either is.
        Some(self.shared.number + self.own.number())
    }
}
