//! What a sidecar may see: its own inbound side, and whatever it asks for by name.

use std::sync::Arc;

use pillion_model::instance::Instance;
use pillion_model::mesh::EGRESS_ROUTES;
use pillion_model::name::{NodeId, ServiceName, parse_outbound_cluster};
use pillion_xds::ads::{Encoded, View};
use pillion_xds::encode::{encode_cluster, encode_listener};
use pillion_xds::type_url;

use super::encoded::{Encodings, Revisions, ServiceEncoded, Snapshot, by_name};
use super::instance_of;
use super::node::Client;
use crate::resolve::{ServiceModel, inbound};

/// A proxy's own part: the listener its callers reach, and the clusters of its application.
#[derive(Default)]
pub(super) struct Own {
    /// Rises when the part changes.
    number: u64,
    made_from: Option<(Arc<Instance>, Arc<ServiceModel>, String)>,
    listeners: Encodings,
    clusters: Encodings,
}

impl Own {
    pub(super) fn next(self: &Arc<Self>, snapshot: &Snapshot, id: &NodeId, client: &Client) -> Arc<Self> {
        let instance = instance_of(snapshot, id);
        let service = snapshot.model.services.get(&id.service);
        let Some((instance, service)) = instance.zip(service) else {
            // Between a departure and the next registration a proxy goes on as it is.
            return Arc::clone(self);
        };
        let zone = &snapshot.model.zone;
        if self.made_from.as_ref().is_some_and(|(of, with, zone_then)| {
            Arc::ptr_eq(of, &instance) && Arc::ptr_eq(with, service) && zone_then == zone
        }) {
            return Arc::clone(self);
        }
        let made_from = Some((Arc::clone(&instance), Arc::clone(service), zone.clone()));
        let Some(dialect) = client.dialect() else {
            // A gRPC server's listener is made when it asks, of the name that it asks for.
            return Arc::new(Self { number: self.number + 1, made_from, ..Self::default() });
        };
        let resources = inbound(&snapshot.model, &instance);
        let listeners =
            by_name(resources.listeners.values().map(|listener| encode_listener(listener, dialect)));
        let clusters = by_name(resources.clusters.values().map(|cluster| encode_cluster(cluster, dialect)));
        let same = listeners == self.listeners && clusters == self.clusters;
        Arc::new(Self { number: self.number + u64::from(!same), made_from, listeners, clusters })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The instance whose part it is, once that is registered.
    pub(super) fn instance(&self) -> Option<&Instance> {
        self.made_from.as_ref().map(|(instance, ..)| &**instance)
    }

    pub(super) fn of(&self, type_url: &str) -> Option<&Encodings> {
        match type_url {
            type_url::LISTENER => Some(&self.listeners),
            type_url::CLUSTER => Some(&self.clusters),
            _ => None,
        }
    }
}

/// A sidecar's view.
pub(super) struct SidecarView {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) own: Arc<Own>,
}

impl SidecarView {
    fn service(&self, name: &ServiceName) -> Option<&Arc<ServiceEncoded>> {
        self.snapshot.services.get(name)
    }
}

impl View for SidecarView {
    fn all(&self, type_url: &str) -> Vec<Arc<Encoded>> {
        self.own.of(type_url).map(|own| own.values().cloned().collect()).unwrap_or_default()
    }

    fn find(&self, type_url: &str, name: &str) -> Option<Arc<Encoded>> {
        if let Some(own) = self.own.of(type_url).and_then(|own| own.get(name)) {
            return Some(Arc::clone(own));
        }
        let part = match type_url {
            type_url::CLUSTER => self.service(&parse_outbound_cluster(name)?.2)?.clusters(),
            type_url::ENDPOINTS => self.service(&parse_outbound_cluster(name)?.2)?.endpoints(),
            type_url::ROUTE if name == EGRESS_ROUTES => &self.snapshot.egress,
            type_url::ROUTE => self.service(&name.split_once('.')?.1.parse().ok()?)?.routes(),
            type_url::SERVICE => self.service(self.snapshot.model.names.get(name)?)?.answers(),
            _ => return None,
        };
        part.get(name).cloned()
    }

    fn revision(&self, type_url: &str) -> Option<u64> {
        let Revisions { clusters, endpoints, routes, services } = self.snapshot.revisions;
        // Both parts only rise: the sum is another one whenever either is.
        Some(match type_url {
            type_url::LISTENER => self.own.number,
            type_url::CLUSTER => clusters + self.own.number,
            type_url::ENDPOINTS => endpoints,
            type_url::ROUTE => routes,
            type_url::SERVICE => services,
            _ => return None,
        })
    }
}
