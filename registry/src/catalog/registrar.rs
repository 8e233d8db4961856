//! Changes that somebody asked for: register, report, leave.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt as _, stream};
use pillion_config::{Kind, ResourceKey};
use pillion_model::health::{Administrative, HealthInputs, Lease as LeaseState, Probe, Reported};
use pillion_model::instance::Instance;
use pillion_model::name::{InstanceId, ServiceName};

use super::Catalog;
use super::index::{free_index, release_index, take_index};
use super::plan::{Plan, are_distinct};
use super::record::{GoneRecord, InstanceRecord, ServiceRecord, Stored, encode, instance_key, service_key};
use super::registration::Registration;
use super::table::Known;
use crate::lease::Lease;
use crate::store::{Op, StoreError, Transaction};

/// Times a change is tried again because somebody else changed the same thing meanwhile.
const TRIES: usize = 16;
/// The same for changes that are written together, before each is tried by itself.
const TRIES_TOGETHER: usize = 4;
/// Parts of what is registered with one call that are written at the same time.
const PARTS_AT_ONCE: usize = 8;
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
    #[error("instance {1} of service {0} is not registered")]
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
        let one = self.register_together(std::slice::from_ref(registration), TRIES).await?;
        one.into_iter().next().expect("one outcome for each registration")
    }

    /// Registers or replaces many instances, each with its own outcome, in their order; returns when every
    /// reader of the view sees them. They are written together, as many at a time as the store takes.
    pub async fn register_many(
        &self,
        registrations: &[Registration],
    ) -> Vec<Result<Registered, RegisterError>> {
        let parts = registrations.len().div_ceil(self.store.ops_max());
        if parts <= 1 {
            return self.register_part(registrations).await;
        }
        let each = registrations.len().div_ceil(parts);
        // Of two registrations of one instance the later one stands: they are not written at the same time.
        let at_once = if are_distinct(registrations) { PARTS_AT_ONCE } else { 1 };
        let parts: Vec<_> = registrations.chunks(each).map(|part| self.register_part(part)).collect();
        stream::iter(parts).buffered(at_once).concat().await
    }

    /// Registers what may fit into one transaction.
    async fn register_part(&self, registrations: &[Registration]) -> Vec<Result<Registered, RegisterError>> {
        let mut outcomes = Vec::with_capacity(registrations.len());
        while let rest @ [_, ..] = &registrations[outcomes.len()..] {
            match self.register_together(rest, TRIES_TOGETHER).await {
                Ok(some) => outcomes.extend(some),
                // One of them keeps changing, or all are too much: the others need not suffer.
                Err(StoreError::Conflict { .. } | StoreError::TooLarge(_)) => {
                    for registration in rest {
                        outcomes.push(self.register(registration).await);
                    }
                }
                Err(error) => outcomes.extend(rest.iter().map(|_| Err(error.clone().into()))),
            }
        }
        outcomes
    }

    /// Registers as many as fit into one transaction, from the first on.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: nothing was changed.
    async fn register_together(
        &self,
        registrations: &[Registration],
        tries: usize,
    ) -> Result<Vec<Result<Registered, RegisterError>>, StoreError> {
        let mut conflict = None;
        for _ in 0..tries {
            let (transaction, planned) = self.plan(registrations);
            if !transaction.ops.is_empty() {
                match self.commit(transaction).await {
                    Ok(_) => {}
                    Err(error @ StoreError::Conflict { .. }) => {
                        conflict = Some(error);
                        self.catch_up().await;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            // Somebody is gone again already: another message overtook this one, and it decides.
            let Some(outcomes) = planned.into_iter().map(|one| self.begin(one)).collect() else { continue };
            return Ok(outcomes);
        }
        let names =
            registrations.first().map_or_else(String::new, |first| format!("{}/{}", first.service, first.id));
        Err(conflict.unwrap_or_else(|| StoreError::Unavailable(format!("{names} keeps changing"))))
    }

    /// What to write for registrations, given what is known now, and what each becomes by it: at least the
    /// first, and those after it that fit.
    fn plan(
        &self,
        registrations: &[Registration],
    ) -> (Transaction, Vec<Result<Arc<Instance>, RegisterError>>) {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let room = INSTANCES_MAX.saturating_sub(self.leases.len());
        let mut plan = Plan::new(&table, &self.damping, room, self.now());
        let mut planned = Vec::with_capacity(registrations.len());
        for registration in registrations {
            if !planned.is_empty() && !plan.fits_another(self.store.ops_max()) {
                break;
            }
            planned.push(plan.register(registration));
        }
        (plan.transaction, planned)
    }

    /// Counts a registration as a beat; `None` if the instance is gone again.
    fn begin(
        &self,
        planned: Result<Arc<Instance>, RegisterError>,
    ) -> Option<Result<Registered, RegisterError>> {
        let instance = match planned {
            Ok(instance) => instance,
            Err(error) => return Some(Err(error)),
        };
        let lease = self.leases.find(&instance.service, &instance.id)?;
        lease.beat(self.now());
        lease.hold_back(self.damping.said(&instance.service, &instance.id).is_some());
        Some(Ok(Registered { instance, lease }))
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

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
