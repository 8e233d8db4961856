//! What the store holds about services and instances, decoded, with the revisions that writers
//! need; and the making of the next view from the last one and what was touched.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use pillion_config::Resource;
use pillion_model::instance::Instance;
use pillion_model::name::{InstanceId, ServiceName, TrustDomain};

use super::holders::Holders;
use super::read::{ReadInstance, read_instances};
use super::record::{GoneRecord, IndexRecord, ServiceRecord, parse_instance, parse_service};
use super::view::{ByService, CatalogService, CatalogView, World};
use crate::federation::Imports;
use crate::lease::{Leases, RECONNECT_WINDOW};
use crate::resources::{RESOURCES, Resources, parse_key};
use crate::store::{Key, Space, State, StoreError};

/// Name of the value that tells since when the traces of departures are complete.
pub(super) const FLOOR: &str = "watch-floor";
/// In front of a replica's name: the hash of its operators' token.
pub(super) const OPERATOR: &str = "operator-";
/// Name of the value that holds the trust domain of the authority.
pub(super) const TRUST_DOMAIN: &str = "trust-domain";

#[derive(Default)]
pub(super) struct Table {
    pub(super) instances: HashMap<(ServiceName, InstanceId), (u64, Known)>,
    pub(super) services: BTreeMap<ServiceName, (u64, ServiceRecord)>,
    /// The last instance of each service that was written: what the next one has in common with it is
    /// in memory once.
    latest: HashMap<ServiceName, Arc<Instance>>,
    /// Who has which index.
    pub(super) indexes: HashMap<u16, ServiceName>,
    /// Indexes that services had: by whom until when, and the revision that wrote it.
    pub(super) quarantined: BTreeMap<u16, (u64, String, u64)>,
    pub(super) resources: Arc<Resources>,
    imports: Arc<Imports>,
    pub(super) holders: Holders,
    trust_domain: Option<Arc<str>>,
    operators: Arc<BTreeSet<String>>,
    departed: ByService<u64>,
    floor: u64,
    /// The revision that last moved the floor.
    pub(super) floor_written: Option<u64>,
    touched: BTreeMap<ServiceName, Touched>,
}

/// What is not yet in the view of a service.
#[derive(Default)]
struct Touched {
    /// Of the last change.
    revision: u64,
    /// As they are now; `None`: gone.
    instances: BTreeMap<InstanceId, Option<Arc<Instance>>>,
}

/// An instance as the store knows it.
#[derive(Clone, Debug)]
pub(super) enum Known {
    Present(Arc<Instance>),
    Gone(Box<GoneRecord>),
}

impl Table {
    /// # Errors
    ///
    /// [`StoreError::Unreadable`]: configuration that is not understood is not ignored.
    pub(super) fn load(state: State, replica: &str) -> Result<(Self, World), StoreError> {
        let mut table = Self { holders: Holders::new(replica), ..Self::default() };
        let State { at, entries } = state;
        let (instances, others): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|(key, _)| key.space == Space::Instance);
        for (key, entry) in others {
            table
                .put(entry.revision, &key, &entry.value)
                .map_err(|detail| StoreError::Unreadable { key, detail })?;
        }
        table.instances.reserve(instances.len());
        for part in read_instances(instances) {
            for (revision, read) in part? {
                table.take(revision, read);
            }
        }
        let empty = World { epoch: at.epoch, ..World::default() };
        let world = table.build(&empty, at.revision);
        Ok((table, world))
    }

    /// Starts the leases of everybody who is registered, running from `armed`.
    pub(super) fn adopt_all(&self, leases: &Leases, armed: Duration) {
        for ((service, id), (_, known)) in &self.instances {
            if let Known::Present(instance) = known {
                let lease = leases.adopt(service, id, instance.ttl, instance.health.lease, armed);
                lease.assign(self.holders.are_ours(service, id), armed);
            }
        }
    }

    /// Goes by who is there now: what nobody holds any more is taken over, and given until `armed`.
    fn reassign(&self, leases: &Leases, armed: Duration) {
        for ((service, id), (_, known)) in &self.instances {
            if let Known::Present(_) = known
                && let Some(lease) = leases.find(service, id)
            {
                lease.assign(self.holders.are_ours(service, id), armed);
            }
        }
    }

    pub(super) fn is_present(&self, service: &ServiceName, id: &InstanceId) -> bool {
        let key = (service.clone(), id.clone());
        matches!(self.instances.get(&key), Some((_, Known::Present(_))))
    }

    /// Takes in one write; leases follow it.
    pub(super) fn apply(
        &mut self,
        revision: u64,
        key: &Key,
        value: Option<&[u8]>,
        leases: &Leases,
        now: Duration,
    ) {
        let others = self.holders.changes();
        let instance = (key.space == Space::Instance).then(|| parse_instance(&key.name)).flatten();
        let before = instance.as_ref().and_then(|instance| self.generation(instance));
        match value {
            Some(value) => {
                if let Err(detail) = self.put(revision, key, value) {
                    tracing::error!(%key, detail, "catalog: an entry cannot be read, what it replaces stays");
                }
            }
            None => self.delete(revision, key),
        }
        if self.holders.changes() != others {
            self.reassign(leases, now + RECONNECT_WINDOW);
        }
        let Some(instance) = instance else { return };
        let (service, id) = (&instance.0, &instance.1);
        match self.instances.get(&instance) {
            Some((_, Known::Present(instance))) => {
                // Whoever beats for the one before does not beat for this one.
                if before.is_some_and(|before| before < instance.generation) {
                    leases.remove(service, id);
                }
                let (ttl, state) = (instance.ttl, instance.health.lease);
                let lease = leases.insert(&instance.service, &instance.id, ttl, state, now);
                let elsewhere = self.holders.holder(service, id) != self.holders.own();
                let armed = if elsewhere { now + RECONNECT_WINDOW } else { now };
                lease.assign(self.holders.are_ours(service, id), armed);
            }
            gone => {
                let was_here = leases.remove(service, id);
                if let Some((_, Known::Gone(gone))) = gone
                    && was_here
                    && !gone.deregistered
                    && self.holders.is_another(&gone.by)
                {
                    leases.departed(service, now);
                }
            }
        }
    }

    /// The generation of an instance, if it is there.
    fn generation(&self, instance: &(ServiceName, InstanceId)) -> Option<u64> {
        match self.instances.get(instance)? {
            (_, Known::Present(instance)) => Some(instance.generation),
            (_, Known::Gone(_)) => None,
        }
    }

    fn put(&mut self, revision: u64, key: &Key, value: &[u8]) -> Result<(), String> {
        let unknown_name = || format!("`{}` is not a name", key.name);
        match key.space {
            Space::Instance => {
                let (service, id) = parse_instance(&key.name).ok_or_else(unknown_name)?;
                let latest = self.latest.get(&service).map(|latest| &**latest);
                self.take(revision, ReadInstance::new(service, id, value, latest)?);
            }
            Space::Service => {
                let service = parse_service(&key.name).ok_or_else(unknown_name)?;
                let record: ServiceRecord =
                    serde_json::from_slice(value).map_err(|error| error.to_string())?;
                self.touch(&service, revision);
                self.indexes.insert(record.index, service.clone());
                self.services.insert(service, (revision, record));
            }
            Space::Resource => {
                let id = parse_key(&key.name).ok_or_else(unknown_name)?;
                let json = serde_json::from_slice(value).map_err(|error| error.to_string())?;
                let resource = Resource::from_json(&json).map_err(|errors| errors.to_string())?;
                if resource.key() != id {
                    return Err(format!("it holds {}", resource.key()));
                }
                Arc::make_mut(&mut self.resources).put(revision, resource);
            }
            Space::Meta => {
                let text = std::str::from_utf8(value).map_err(|error| error.to_string())?;
                match key.name.as_str() {
                    FLOOR => {
                        (self.floor, self.floor_written) = (text.parse().unwrap_or(revision), Some(revision));
                    }
                    name if name.starts_with(OPERATOR) => {
                        Arc::make_mut(&mut self.operators).insert(text.to_owned());
                    }
                    TRUST_DOMAIN => self.trust_domain = Some(text.into()),
                    RESOURCES => Arc::make_mut(&mut self.resources).revision = Some(revision),
                    _ => {}
                }
            }
            Space::Replica => self.holders.arrive(&key.name),
            Space::Index => {
                let index = key.name.parse().map_err(|_| unknown_name())?;
                let text = std::str::from_utf8(value).map_err(|error| error.to_string())?;
                self.rested(index);
                if let IndexRecord::Quarantined { service, until } = IndexRecord::parse(text) {
                    if let Ok(service) = service.parse() {
                        self.departed.insert_mut(service, revision);
                    }
                    self.quarantined.insert(index, (revision, service, until));
                }
            }
            Space::Federation => {
                let domain = TrustDomain::parse(&key.name).map_err(|error| error.to_string())?;
                let told = serde_json::from_slice(value).map_err(|error| error.to_string())?;
                Arc::make_mut(&mut self.imports).insert(domain, Arc::new(told));
            }
            Space::Ca | Space::Token => {}
        }
        Ok(())
    }

    fn delete(&mut self, revision: u64, key: &Key) {
        match key.space {
            Space::Instance => {
                if let Some((service, id)) = parse_instance(&key.name) {
                    self.holders.hold(&service, &id, "");
                    let key = (service, id);
                    if let Some((_, Known::Present(_))) = self.instances.remove(&key) {
                        self.touch(&key.0, revision).instances.insert(key.1, None);
                    }
                }
            }
            Space::Service => {
                let Some(service) = parse_service(&key.name) else { return };
                self.touch(&service, revision);
                self.latest.remove(&service);
                if let Some((_, record)) = self.services.remove(&service)
                    && self.indexes.get(&record.index) == Some(&service)
                {
                    self.indexes.remove(&record.index);
                }
            }
            Space::Resource => {
                if let Some(id) = parse_key(&key.name) {
                    Arc::make_mut(&mut self.resources).remove(&id);
                }
            }
            Space::Replica => self.holders.leave(&key.name),
            Space::Index => {
                if let Ok(index) = key.name.parse::<u16>() {
                    self.rested(index);
                }
            }
            Space::Federation => {
                if let Ok(domain) = TrustDomain::parse(&key.name) {
                    Arc::make_mut(&mut self.imports).remove(&domain);
                }
            }
            Space::Meta | Space::Ca | Space::Token => {}
        }
    }

    /// An index is not in quarantine any more, nor is known when the service left that had it.
    fn rested(&mut self, index: u16) {
        if let Some((_, service, _)) = self.quarantined.remove(&index)
            && let Ok(service) = service.parse::<ServiceName>()
        {
            self.departed.remove_mut(&service);
        }
    }

    /// Takes in what was written of an instance.
    fn take(&mut self, revision: u64, read: ReadInstance) {
        let ReadInstance { service, id, known, holder } = read;
        self.holders.hold(&service, &id, &holder);
        let present = match &known {
            Known::Present(instance) => Some(Arc::clone(instance)),
            Known::Gone(_) => None,
        };
        if let Some(instance) = &present {
            self.latest.insert(service.clone(), Arc::clone(instance));
        }
        self.touch(&service, revision).instances.insert(id.clone(), present);
        self.instances.insert((service, id), (revision, known));
    }

    fn touch(&mut self, service: &ServiceName, revision: u64) -> &mut Touched {
        let touched = self.touched.entry(service.clone()).or_default();
        touched.revision = revision.max(touched.revision);
        touched
    }

    /// The next view: what was touched since the last one is made anew, the rest is shared.
    pub(super) fn build(&mut self, last: &World, revision: u64) -> World {
        let mut world = World {
            revision,
            floor: self.floor,
            departed: self.departed.clone(),
            resources: Arc::clone(&self.resources),
            imports: Arc::clone(&self.imports),
            trust_domain: self.trust_domain.clone(),
            operators: Arc::clone(&self.operators),
            ..last.clone()
        };
        if *world.replicas != *self.holders.present() {
            world.replicas = Arc::new(self.holders.present().clone());
        }
        if self.touched.is_empty() {
            return world;
        }
        let mut catalog = CatalogView { revision, services: last.catalog.services.clone() };
        for (name, touched) in std::mem::take(&mut self.touched) {
            match self.services.get(&name) {
                Some((_, record)) if record.registered => {
                    let last = catalog.services.get(&name);
                    let mut service = last.map(|last| CatalogService::clone(last)).unwrap_or_default();
                    service.revision = touched.revision;
                    service.ports =
                        record.ports.iter().map(|(n, port)| (n.clone(), (*port).into())).collect();
                    for (id, present) in touched.instances {
                        match present {
                            Some(instance) => service.instances.insert_mut(id, instance),
                            None => drop(service.instances.remove_mut(&id)),
                        }
                    }
                    catalog.services.insert_mut(name.clone(), Arc::new(service));
                }
                _ => {
                    catalog.services.remove_mut(&name);
                }
            }
            match self.services.get(&name).map(|(_, record)| record.index) {
                index if index.as_ref() == world.indexes.get(&name) => {}
                Some(index) => world.indexes.insert_mut(name.clone(), index),
                None => drop(world.indexes.remove_mut(&name)),
            }
            world.changes.note(name);
        }
        world.catalog = Arc::new(catalog);
        world
    }
}
