//! What to write for registrations: several in one transaction, each seeing those before it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use pillion_model::health::{Administrative, HealthInputs, Lease as LeaseState, Probe, Reported};
use pillion_model::instance::{Instance, Protocol};
use pillion_model::name::{InstanceId, ServiceName};

use super::index::{free_index, take_index};
use super::record::{
    InstanceRecord, PortOfService, ProtocolRecord, ServiceRecord, Stored, encode, instance_key, service_key,
};
use super::registrar::RegisterError;
use super::registration::Registration;
use super::table::{FLOOR, Known, Table};
use crate::lease::Damping;
use crate::store::{Key, Op, Space, Transaction};

/// Writes, and conditions, of one registration at most: the instance, its service, the service's index,
/// and that no service was forgotten.
const OPS_EACH: usize = 4;

/// How an instance that is not there is shown.
const NOT_YET: HealthInputs = HealthInputs {
    lease: LeaseState::Heard,
    reported: Reported::Starting,
    probe: Probe::Unknown,
    administrative: Administrative::Enabled,
};

/// A transaction in the making.
pub(super) struct Plan<'a> {
    table: &'a Table,
    damping: &'a Damping,
    now: Duration,
    /// New instances that there is room for.
    room: usize,
    /// As they will be; the transaction demands that they are still as the table has them.
    services: HashMap<ServiceName, ServiceRecord>,
    instances: HashMap<(ServiceName, InstanceId), Arc<Instance>>,
    indexes: BTreeSet<u16>,
    /// Whether it demands already that no service is forgotten meanwhile.
    all_stay: bool,
    /// What is to be written so far.
    pub(super) transaction: Transaction,
}

impl<'a> Plan<'a> {
    pub(super) fn new(table: &'a Table, damping: &'a Damping, room: usize, now: Duration) -> Self {
        Self {
            table,
            damping,
            now,
            room,
            services: HashMap::new(),
            instances: HashMap::new(),
            indexes: BTreeSet::new(),
            all_stay: false,
            transaction: Transaction::default(),
        }
    }

    /// Whether another registration fits into a transaction of so many writes, and conditions.
    pub(super) fn fits_another(&self, ops_max: usize) -> bool {
        self.transaction.ops.len().max(self.transaction.preconditions.len()) + OPS_EACH <= ops_max
    }

    /// Adds a registration, and says what it makes of the instance.
    pub(super) fn register(&mut self, registration: &Registration) -> Result<Arc<Instance>, RegisterError> {
        let key = (registration.service.clone(), registration.id.clone());
        let planned = self.instances.get(&key).map(|instance| Known::Present(Arc::clone(instance)));
        let stored = self.table.instances.get(&key);
        let known = planned.as_ref().or_else(|| stored.map(|(_, known)| known));
        let present = match known {
            Some(Known::Present(instance)) => Some(instance),
            _ => None,
        };
        if present.is_none() && self.room == 0 {
            return Err(RegisterError::Full(
                "this registry holds 500000 instances, which is the most it takes",
            ));
        }
        let (service, id) = (&key.0, &key.1);
        let mut instance = next_instance(registration, known)?;
        let record = self.service_record(&instance)?;
        let shown = present.map_or(NOT_YET, |have| have.health);
        instance.health = self.damping.judge(service, id, shown, instance.health, self.now);
        let instance = Arc::new(instance);
        let holders = &self.table.holders;
        let moves = present.is_some() && holders.holder(service, id) != holders.own();
        let writes = moves || present.is_none_or(|have| **have != *instance);
        self.room -= usize::from(present.is_none());
        self.put_service(service, record, writes);
        if writes {
            let name = instance_key(service, id);
            if planned.is_none() {
                self.transaction.require(name.clone(), stored.map(|(revision, _)| *revision));
            }
            let record = InstanceRecord::new(&instance, holders.own());
            self.transaction.push(Op::put(name, encode(&Stored::Instance(record))));
            self.instances.insert(key, Arc::clone(&instance));
        }
        Ok(instance)
    }

    /// Writes the service's record if it is another one than before. With `needed` it must at least still be
    /// there, or an instance would belong to nothing.
    fn put_service(&mut self, service: &ServiceName, record: ServiceRecord, needed: bool) {
        let stored = self.table.services.get(service);
        let planned = self.services.get(service);
        if planned.or_else(|| stored.map(|(_, have)| have)) == Some(&record) {
            if needed && planned.is_none() && !self.all_stay {
                // Whoever forgets a service moves the floor: one condition for all services.
                self.transaction.require(Key::new(Space::Meta, FLOOR), self.table.floor_written);
                self.all_stay = true;
            }
            return;
        }
        let key = service_key(service);
        if planned.is_none() {
            self.transaction.require(key.clone(), stored.map(|(revision, _)| *revision));
        }
        self.transaction.push(Op::put(key, encode(&record)));
        if stored.is_none() && planned.is_none() {
            take_index(&mut self.transaction, self.table, record.index, service);
            self.indexes.insert(record.index);
        }
        self.services.insert(service.clone(), record);
    }

    /// The service's record once `instance` is in it.
    fn service_record(&self, instance: &Instance) -> Result<ServiceRecord, RegisterError> {
        let service = &instance.service;
        let stored = self.table.services.get(service).map(|(_, record)| record);
        let mut record = match self.services.get(service).or(stored) {
            Some(record) => record.clone(),
            None => {
                let index = free_index(self.table, service, &self.indexes)?;
                ServiceRecord { index, ..ServiceRecord::default() }
            }
        };
        record.registered = true;
        self.check_protocols(instance)?;
        let mut others: Option<BTreeMap<String, Protocol>> = None;
        for (name, port) in instance.ports.iter() {
            let declared = PortOfService { port: port.port, protocol: ProtocolRecord(port.protocol) };
            if let Some(have) = record.ports.get(name) {
                if have.protocol == declared.protocol {
                    continue;
                }
                // The word of instances that are still there counts; that of the departed does not.
                let others = others.get_or_insert_with(|| self.ports_of_others(instance));
                if let Some(have) = others.get(name).filter(|have| **have != port.protocol) {
                    return Err(protocol_error(
                        service,
                        name,
                        *have,
                        port.protocol,
                        "by its other instances",
                    ));
                }
            }
            record.ports.insert(name.clone(), declared);
        }
        Ok(record)
    }

    /// What a Service resource says of the ports' protocols holds.
    fn check_protocols(&self, instance: &Instance) -> Result<(), RegisterError> {
        let Some(explicit) = self.table.resources.set.service(&instance.service) else { return Ok(()) };
        for (name, port) in instance.ports.iter() {
            let have = explicit.ports.iter().find(|have| have.name == *name).map(|have| have.protocol);
            if let Some(have) = have.filter(|have| *have != port.protocol) {
                return Err(protocol_error(
                    &instance.service,
                    name,
                    have,
                    port.protocol,
                    "in its Service resource",
                ));
            }
        }
        Ok(())
    }

    fn ports_of_others(&self, instance: &Instance) -> BTreeMap<String, Protocol> {
        let mut ports = BTreeMap::new();
        let stored = self.table.instances.iter().filter_map(|(key, (_, known))| match known {
            Known::Present(other) if !self.instances.contains_key(key) => Some(other),
            _ => None,
        });
        for other in stored.chain(self.instances.values()) {
            if other.service == instance.service && other.id != instance.id {
                ports.extend(other.ports.iter().map(|(name, port)| (name.clone(), port.protocol)));
            }
        }
        ports
    }
}

/// Whether no instance is there twice.
pub(super) fn are_distinct(registrations: &[Registration]) -> bool {
    let mut seen = HashSet::with_capacity(registrations.len());
    registrations.iter().all(|registration| seen.insert((&registration.service, &registration.id)))
}

fn protocol_error(
    service: &ServiceName,
    port: &str,
    have: Protocol,
    got: Protocol,
    by: &'static str,
) -> RegisterError {
    RegisterError::Protocol {
        service: service.clone(),
        port: port.to_owned(),
        have: have.as_str(),
        got: got.as_str(),
        by,
    }
}

/// The instance a registration makes of what is known.
fn next_instance(registration: &Registration, known: Option<&Known>) -> Result<Instance, RegisterError> {
    let older = |got, have, gone| RegisterError::Older {
        service: registration.service.clone(),
        id: registration.id.clone(),
        got,
        have,
        gone,
    };
    let mut next = Instance {
        service: registration.service.clone(),
        id: registration.id.clone(),
        address: registration.address,
        ports: registration.ports.clone().into(),
        inbound_port: registration.inbound_port,
        metrics_port: registration.metrics_port,
        labels: registration.labels.clone().into(),
        metadata: registration.metadata.clone().into(),
        weight: registration.weight,
        zone: registration.zone.clone(),
        ttl: registration.ttl,
        generation: registration.generation.unwrap_or(1),
        health: HealthInputs {
            reported: registration.reported.unwrap_or_default(),
            probe: registration.probe.unwrap_or_default(),
            ..HealthInputs::default()
        },
    };
    match (known, registration.generation) {
        (None, _) => {}
        (Some(Known::Present(have)), got) => {
            if let Some(got) = got.filter(|got| *got < have.generation) {
                return Err(older(got, have.generation, false));
            }
            next.health.administrative = have.health.administrative;
            if got.is_none_or(|got| got == have.generation) {
                next.generation = have.generation;
                next.health.probe = registration.probe.unwrap_or(have.health.probe);
                next.health.reported = registration.reported.unwrap_or(have.health.reported);
            }
            let same = Instance { health: next.health, ..Instance::clone(have) } == next;
            if got.is_none() && !same {
                next.generation = have.generation + 1;
            }
        }
        (Some(Known::Gone(gone)), Some(got)) => {
            if got < gone.generation || (got == gone.generation && gone.deregistered) {
                return Err(older(got, gone.generation, true));
            }
        }
        (Some(Known::Gone(gone)), None) => next.generation = gone.generation + 1,
    }
    Ok(next)
}
