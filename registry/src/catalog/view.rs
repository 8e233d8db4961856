//! The immutable view readers hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pillion_model::instance::{Instance, Protocol};
use pillion_model::name::{InstanceId, ServiceName};

use super::changes::{ChangedServices, differing};
use crate::federation::Imports;
use crate::resources::Resources;
use crate::store::Position;

/// Something for each service, in the order of their names. A copy costs nothing, and one that is changed
/// shares with the first all but the way to what differs: the cost of a change does not follow the number
/// of services.
pub type ByService<V> = rpds::RedBlackTreeMapSync<ServiceName, V>;
/// The instances of a service, in the order of their ids; to copy and to change as [`ByService`].
pub type Instances = rpds::RedBlackTreeMapSync<InstanceId, Arc<Instance>>;

/// Everything the registry knows, as of one revision.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Name of the store's history.
    pub epoch: Arc<str>,
    /// The store revision this is as of.
    pub revision: u64,
    /// Services and instances that left at or before this revision may be unknown by now: who follows
    /// from an earlier one has to begin again.
    pub floor: u64,
    /// Services and instances.
    pub catalog: Arc<CatalogView>,
    /// Services that are not registered any more, and the revision that took them out, as long as that is
    /// known: until the floor has passed it.
    pub departed: ByService<u64>,
    /// The stable index of every known service.
    pub indexes: ByService<u16>,
    /// Which services changed on the way here.
    pub changes: ChangedServices,
    /// Resources as applied.
    pub resources: Arc<Resources>,
    /// What other meshes export to us.
    pub imports: Arc<Imports>,
    /// The registries that share the store.
    pub replicas: Arc<BTreeSet<Arc<str>>>,
    /// SHA-256 (hex) of the operators' tokens of all registries on the store.
    pub operators: Arc<BTreeSet<String>>,
    /// The trust domain the authority has issued for since its first start.
    pub trust_domain: Option<Arc<str>>,
}

impl World {
    /// When this is of.
    pub fn position(&self) -> Position {
        Position { epoch: Arc::clone(&self.epoch), revision: self.revision }
    }

    /// Services whose instances, ports or index may not be what they were in `earlier`. Where that one led
    /// here not too long ago, the cost is that of what changed since.
    pub fn changed_since(&self, earlier: &Self) -> BTreeSet<ServiceName> {
        if let Some(noted) = self.changes.since(&earlier.changes) {
            return noted.cloned().collect();
        }
        let mut changed = differing(&earlier.catalog.services, &self.catalog.services, Arc::ptr_eq);
        changed.extend(differing(&earlier.indexes, &self.indexes, |a, b| a == b));
        changed
    }
}

/// Everything registered, as of one revision.
#[derive(Clone, Debug, Default)]
pub struct CatalogView {
    /// The store revision of the last change. Rises; gaps mean nothing.
    pub revision: u64,
    /// Services that instances have registered, whether or not a Service resource exists.
    pub services: ByService<Arc<CatalogService>>,
}

/// One registered service: its instances, and the ports they have declared.
///
/// A service stays when its last instance has gone, so that its name and ports remain.
#[derive(Clone, Debug, Default)]
pub struct CatalogService {
    /// Revision of the last change to this service or to one of its instances.
    pub revision: u64,
    /// Instances by id.
    pub instances: Instances,
    /// Ports by name as instances declared them; stay when the last instance has gone.
    pub ports: BTreeMap<String, ServicePort>,
}

/// A port that instances of a service have declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port number.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
}

impl CatalogView {
    /// One instance, if it is registered.
    pub fn instance(&self, service: &ServiceName, id: &InstanceId) -> Option<&Arc<Instance>> {
        self.services.get(service)?.instances.get(id)
    }

    /// Number of registered instances.
    pub fn instance_count(&self) -> usize {
        self.services.values().map(|service| service.instances.size()).sum()
    }
}
