//! Changes that somebody asked for: register, report, leave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use pillion_config::{Kind, ResourceKey};
use pillion_model::health::{Administrative, HealthInputs, Lease as LeaseState, Probe, Reported};
use pillion_model::instance::{Instance, Protocol};
use pillion_model::name::{InstanceId, ServiceName};

use super::Catalog;
use super::index::{free_index, release_index, take_index};
use super::record::{
    GoneRecord, InstanceRecord, PortOfService, ProtocolRecord, ServiceRecord, Stored, encode, instance_key,
    service_key,
};
use super::registration::Registration;
use super::table::{Known, Table};
use crate::lease::Lease;
use crate::store::{Op, StoreError, Transaction};

/// How an instance that is not there is shown.
const NOT_YET: HealthInputs = HealthInputs {
    lease: LeaseState::Heard,
    reported: Reported::Starting,
    probe: Probe::Unknown,
    administrative: Administrative::Enabled,
};
/// Times a change is tried again because somebody else changed the same thing meanwhile.
const TRIES: usize = 16;
/// Instances of all services at most.
pub(super) const INSTANCES_MAX: usize = 500_000;

/// An accepted registration.
#[derive(Clone, Debug)]
pub struct Registered {
    /// As it is in the catalog now.
    pub instance: Arc<Instance>,
    /// Takes its beats.
    pub lease: Arc<Lease>,
}

/// Why a registration was refused.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// A newer one was registered, or this one was acknowledged as gone.
    #[error("generation {got} of {service}/{id} is not newer than {have}, which {}", if *gone { "has left" } else { "is registered" })]
    Older {
        /// The service.
        service: ServiceName,
        /// The instance.
        id: InstanceId,
        /// The generation offered.
        got: u64,
        /// The generation known.
        have: u64,
        /// Whether the known one has left.
        gone: bool,
    },
    /// The port is known with another protocol.
    #[error("port `{port}` of {service} is {have} {by}; this instance says {got}")]
    Protocol {
        /// The service.
        service: ServiceName,
        /// The port's name.
        port: String,
        /// The protocol in force.
        have: &'static str,
        /// The protocol offered.
        got: &'static str,
        /// Who says so.
        by: &'static str,
    },
    /// No room.
    #[error("{0}")]
    Full(&'static str),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What to change about an instance's health; `None` leaves as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// What the instance says of itself.
    pub reported: Option<Reported>,
    /// What its sidecar found.
    pub probe: Option<Probe>,
    /// What the operator says.
    pub administrative: Option<Administrative>,
}

/// Why a report was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Nobody of that name is registered.
    #[error("{0}/{1} is not registered; register it first")]
    Unknown(ServiceName, InstanceId),
    /// A newer instance is registered under that id.
    #[error("generation {got} is not the registered one, {have}")]
    Older {
        /// The generation of the message.
        got: u64,
        /// The generation registered.
        have: u64,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why somebody could not leave.
pub type DeregisterError = ReportError;

impl Catalog {
    /// Registers or replaces an instance; returns when every reader of the view sees it.
    ///
    /// The same registration again costs a beat and no write.
    ///
    /// # Errors
    ///
    /// [`RegisterError`]: nothing was changed.
    pub async fn register(&self, registration: &Registration) -> Result<Registered, RegisterError> {
        let (service, id) = (&registration.service, &registration.id);
        let mut conflict = None;
        for _ in 0..TRIES {
            let (transaction, instance) = self.plan(registration)?;
            if !transaction.ops.is_empty() {
                match self.commit(transaction).await {
                    Ok(_) => {}
                    Err(error @ StoreError::Conflict { .. }) => {
                        conflict = Some(error);
                        self.catch_up().await;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            // Gone again already: another message overtook this one, and it decides.
            let Some(lease) = self.leases.find(service, id) else { continue };
            lease.beat(self.now());
            lease.hold_back(self.damping.said(service, id).is_some());
            return Ok(Registered { instance, lease });
        }
        let contended = || StoreError::Unavailable(format!("{service}/{id} keeps changing"));
        Err(conflict.unwrap_or_else(contended).into())
    }

    /// What to write for a registration, given what is known now.
    fn plan(&self, registration: &Registration) -> Result<(Transaction, Arc<Instance>), RegisterError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let (service, id) = (&registration.service, &registration.id);
        let known = table.instances.get(&(service.clone(), id.clone()));
        let present = match known {
            Some((_, Known::Present(instance))) => Some(instance),
            _ => None,
        };
        if present.is_none() && self.leases.len() >= INSTANCES_MAX {
            return Err(RegisterError::Full(
                "this registry holds 500000 instances, which is the most it takes",
            ));
        }
        let mut instance = next_instance(registration, known.map(|(_, known)| known))?;
        let shown = present.map_or(NOT_YET, |have| have.health);
        instance.health = self.damping.judge(service, id, shown, instance.health, self.now());
        let instance = Arc::new(instance);
        let mut transaction = Transaction::default();
        let record = service_record(&table, &instance)?;
        let registered = table.services.get(service);
        if registered.is_none_or(|(_, have)| *have != record) {
            let key = service_key(service);
            transaction.require(key.clone(), registered.map(|(revision, _)| *revision));
            transaction.push(Op::put(key, encode(&record)));
            if registered.is_none() {
                take_index(&mut transaction, &table, record.index, service);
            }
        }
        let moves = present.is_some() && table.holders.holder(service, id) != table.holders.own();
        if moves || present.is_none_or(|have| **have != *instance) {
            if transaction.ops.is_empty() {
                // The service must still be there, or the instance would belong to nothing.
                transaction.require(service_key(service), registered.map(|(revision, _)| *revision));
            }
            let key = instance_key(service, id);
            transaction.require(key.clone(), known.map(|(revision, _)| *revision));
            transaction.push(Op::put(
                key,
                encode(&Stored::Instance(InstanceRecord::new(&instance, table.holders.own()))),
            ));
        }
        Ok((transaction, instance))
    }

    /// Notes what an instance, its sidecar or an operator says of its health. Counts as a beat,
    /// unless it is the operator who speaks.
    ///
    /// # Errors
    ///
    /// [`ReportError`]: nothing was changed.
    pub async fn report(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        generation: Option<u64>,
        changes: Changes,
    ) -> Result<Arc<Instance>, ReportError> {
        let mut conflict = None;
        for _ in 0..TRIES {
            let (revision, have) = self.present(service, id, generation)?;
            let heard = changes.administrative.is_none();
            let mut moves = false;
            if heard && let Some(lease) = self.leases.find(service, id) {
                lease.beat(self.now());
                moves = !lease.is_ours();
            }
            let said = self.damping.said(service, id);
            let (reported, probe) = said.unwrap_or((have.health.reported, have.health.probe));
            let wished = HealthInputs {
                lease: if heard { LeaseState::Heard } else { have.health.lease },
                reported: changes.reported.unwrap_or(reported),
                probe: changes.probe.unwrap_or(probe),
                administrative: changes.administrative.unwrap_or(have.health.administrative),
            };
            let health = self.damping.judge(service, id, have.health, wished, self.now());
            if let Some(lease) = self.leases.find(service, id) {
                lease.hold_back(health != wished);
            }
            // An instance that is heard here, and is another replica's: it moves, if that can be written.
            if health == have.health && (!moves || self.store.trouble().is_some()) {
                return Ok(have);
            }
            let next = Instance { health, ..Instance::clone(&have) };
            let key = instance_key(service, id);
            let mut transaction = Transaction::default();
            transaction.require(key.clone(), Some(revision));
            let holder = match heard {
                true => self.store.replica().to_owned(),
                false => self.holder(service, id),
            };
            transaction.push(Op::put(key, encode(&Stored::Instance(InstanceRecord::new(&next, &holder)))));
            match self.commit(transaction).await {
                Ok(_) => return Ok(Arc::new(next)),
                Err(error @ StoreError::Conflict { .. }) => {
                    conflict = Some(error);
                    self.catch_up().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let contended = || StoreError::Unavailable(format!("{service}/{id} keeps changing"));
        Err(conflict.unwrap_or_else(contended).into())
    }

    /// Takes an instance out, for good: when this returns, nobody sees it and no late message of
    /// the same generation brings it back.
    ///
    /// # Errors
    ///
    /// [`ReportError::Unknown`] if it was never here; leaving twice is no error.
    pub async fn deregister(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        generation: Option<u64>,
    ) -> Result<(), DeregisterError> {
        let mut conflict = None;
        for _ in 0..TRIES {
            let (revision, known) = self.known(service, id)?;
            let have = match &known {
                Known::Present(instance) => instance.generation,
                Known::Gone(gone) => gone.generation,
            };
            if let Some(got) = generation.filter(|got| *got < have) {
                return Err(ReportError::Older { got, have });
            }
            let generation = generation.unwrap_or(have).max(have);
            if matches!(&known, Known::Gone(gone) if gone.deregistered && gone.generation == generation) {
                return Ok(());
            }
            let gone = GoneRecord { generation, deregistered: true, at: unix_seconds(), by: String::new() };
            let key = instance_key(service, id);
            let mut transaction = Transaction::default();
            transaction.require(key.clone(), Some(revision));
            transaction.push(Op::put(key, encode(&Stored::Gone(gone))));
            match self.commit(transaction).await {
                Ok(_) => {
                    if matches!(known, Known::Present(_)) {
                        self.damping.depart(service, id, self.now());
                    }
                    return Ok(());
                }
                Err(error @ StoreError::Conflict { .. }) => {
                    conflict = Some(error);
                    self.catch_up().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let contended = || StoreError::Unavailable(format!("{service}/{id} keeps changing"));
        Err(conflict.unwrap_or_else(contended).into())
    }

    /// Adds to a change of resources what it does to the records of services: a Service resource
    /// has an index, and one that goes leaves it, unless instances have registered the service.
    pub(crate) fn plan_service_records(
        &self,
        transaction: &mut Transaction,
        put: &[ServiceName],
        delete: &[ResourceKey],
    ) -> Result<(), String> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut taken = BTreeSet::new();
        for service in put.iter().filter(|service| !table.services.contains_key(*service)) {
            let index = free_index(&table, service, &taken).map_err(|error| error.to_string())?;
            taken.insert(index);
            let record = ServiceRecord { index, ..ServiceRecord::default() };
            let key = service_key(service);
            transaction.require(key.clone(), None).push(Op::put(key, encode(&record)));
            take_index(transaction, &table, index, service);
        }
        for key in delete.iter().filter(|key| key.kind == Kind::Service) {
            let Ok(service) = ServiceName::new(&key.namespace, &key.name) else { continue };
            if let Some((revision, record)) = table.services.get(&service)
                && !record.registered
            {
                let key = service_key(&service);
                transaction.require(key.clone(), Some(*revision)).push(Op::delete(key));
                transaction.push(release_index(record.index, &service));
            }
        }
        Ok(())
    }

    pub(super) fn present(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        generation: Option<u64>,
    ) -> Result<(u64, Arc<Instance>), ReportError> {
        match self.known(service, id)? {
            (revision, Known::Present(instance)) => match generation {
                Some(got) if got != instance.generation => {
                    Err(ReportError::Older { got, have: instance.generation })
                }
                _ => Ok((revision, instance)),
            },
            (_, Known::Gone(_)) => Err(ReportError::Unknown(service.clone(), id.clone())),
        }
    }

    fn holder(&self, service: &ServiceName, id: &InstanceId) -> String {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.holders.holder(service, id).to_owned()
    }

    fn known(&self, service: &ServiceName, id: &InstanceId) -> Result<(u64, Known), ReportError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let unknown = || ReportError::Unknown(service.clone(), id.clone());
        table.instances.get(&(service.clone(), id.clone())).cloned().ok_or_else(unknown)
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
        ports: registration.ports.clone(),
        inbound_port: registration.inbound_port,
        metrics_port: registration.metrics_port,
        labels: registration.labels.clone(),
        metadata: registration.metadata.clone(),
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

/// The service's record once `instance` is in it.
fn service_record(table: &Table, instance: &Instance) -> Result<ServiceRecord, RegisterError> {
    let service = &instance.service;
    let mut record = match table.services.get(service) {
        Some((_, record)) => record.clone(),
        None => {
            ServiceRecord { index: free_index(table, service, &BTreeSet::new())?, ..ServiceRecord::default() }
        }
    };
    record.registered = true;
    if let Some(explicit) = table.resources.set.service(service) {
        for (name, port) in &instance.ports {
            let have = explicit.ports.iter().find(|have| have.name == *name).map(|have| have.protocol);
            if let Some(have) = have.filter(|have| *have != port.protocol) {
                return Err(RegisterError::Protocol {
                    service: service.clone(),
                    port: name.clone(),
                    have: have.as_str(),
                    got: port.protocol.as_str(),
                    by: "in its Service resource",
                });
            }
        }
    }
    let mut others: Option<BTreeMap<String, Protocol>> = None;
    for (name, port) in &instance.ports {
        let declared = PortOfService { port: port.port, protocol: ProtocolRecord(port.protocol) };
        match record.ports.get(name) {
            Some(have) if have.protocol == declared.protocol => {}
            Some(_) => {
                // The word of instances that are still there counts; that of the departed does not.
                let others = others.get_or_insert_with(|| ports_of_others(table, instance));
                match others.get(name) {
                    Some(have) if *have != port.protocol => {
                        return Err(RegisterError::Protocol {
                            service: service.clone(),
                            port: name.clone(),
                            have: have.as_str(),
                            got: port.protocol.as_str(),
                            by: "by its other instances",
                        });
                    }
                    _ => {
                        record.ports.insert(name.clone(), declared);
                    }
                }
            }
            None => {
                record.ports.insert(name.clone(), declared);
            }
        }
    }
    Ok(record)
}

fn ports_of_others(table: &Table, instance: &Instance) -> BTreeMap<String, Protocol> {
    let mut ports = BTreeMap::new();
    for ((service, id), (_, known)) in &table.instances {
        if let Known::Present(other) = known
            && *service == instance.service
            && *id != instance.id
        {
            ports.extend(other.ports.iter().map(|(name, port)| (name.clone(), port.protocol)));
        }
    }
    ports
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
