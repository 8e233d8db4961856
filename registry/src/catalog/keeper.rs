//! Changes that nobody asked for: what silence does, and forgetting what left long ago.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pillion_model::health::{HealthInputs, Lease as LeaseState};
use pillion_model::instance::Instance;
use pillion_model::name::ServiceName;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Catalog;
use super::index::release_index;
use super::record::{
    GoneRecord, InstanceRecord, ServiceRecord, Stored, encode, index_key, instance_key, service_key,
};
use super::registrar::unix_seconds;
use super::table::{FLOOR, Known};
use crate::lease::{JUDGE_EVERY, Outcome, Verdict};
use crate::store::{Key, Op, Space, StoreError, Transaction};

/// The trace of a departure is kept this long: late messages are refused meanwhile.
const TRACE_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// A registered service without instances is forgotten after this long.
const EMPTY_SERVICE_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// How often old traces are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(10 * 60);
/// Verdicts written at the same time.
const VERDICTS_AT_ONCE: usize = 512;
/// Traces removed in one transaction: etcd takes 128 operations.
const TRACES_AT_ONCE: usize = 100;

/// What the keeper has done, as counters.
#[derive(Debug, Default)]
pub struct KeeperStats {
    /// Instances that left because they were silent.
    pub expired: AtomicU64,
    /// Times the brake held an instance.
    pub protected: AtomicU64,
    /// Milliseconds this process slept through.
    pub asleep_ms: AtomicU64,
}

impl Catalog {
    /// Judges leases and forgets old traces until `stop`.
    pub async fn keep(&self, stop: CancellationToken) {
        let pulse = async {
            let mut ticks = tokio::time::interval(JUDGE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                self.pulse(self.now());
            }
        };
        let judge = async {
            let mut ticks = tokio::time::interval(JUDGE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                self.judge(self.now()).await;
            }
        };
        let forget = async {
            let mut ticks = tokio::time::interval(FORGET_EVERY);
            let mut empty_since = BTreeMap::new();
            loop {
                ticks.tick().await;
                self.damping.forget(self.now());
                self.forget(unix_seconds()).await;
                self.forget_empty_services(&mut empty_since).await;
            }
        };
        stop.run_until_cancelled(async { tokio::join!(pulse, judge, forget) }).await;
    }

    fn pulse(&self, now: Duration) {
        let asleep = self.leases.pulse(now);
        if asleep > Duration::ZERO {
            self.stats.asleep_ms.fetch_add(asleep.as_millis() as u64, Ordering::Relaxed);
            tracing::warn!(?asleep, "leases: this process was asleep; nobody expires for that time");
        }
    }

    /// Judges every lease once and commits what that changes.
    pub async fn judge(&self, now: Duration) {
        self.pulse(now);
        // Who cannot write judges nobody: what silence means then is for later, or for others.
        if self.store.trouble().is_some() {
            return;
        }
        let verdicts = self.leases.judge(now);
        for some in verdicts.chunks(VERDICTS_AT_ONCE) {
            let writes = some.iter().map(|verdict| self.execute(verdict));
            for (verdict, result) in some.iter().zip(futures_util::future::join_all(writes).await) {
                match result {
                    // A conflict means that the instance was heard of meanwhile: judged next time.
                    Ok(()) | Err(StoreError::Conflict { .. }) => {}
                    Err(error) => {
                        let (service, id) = (verdict.lease.service(), verdict.lease.id());
                        tracing::error!(%service, %id, %error, "leases: a transition was not written");
                    }
                }
            }
        }
    }

    async fn execute(&self, verdict: &Verdict) -> Result<(), StoreError> {
        let (service, id) = (verdict.lease.service(), verdict.lease.id());
        let Ok((revision, have)) = self.present(service, id, None) else {
            self.leases.remove(service, id);
            return Ok(());
        };
        let stored = match verdict.outcome {
            Outcome::Expires => Stored::Gone(GoneRecord {
                generation: have.generation,
                deregistered: false,
                at: unix_seconds(),
                by: self.store.replica().to_owned(),
            }),
            Outcome::Becomes(lease) => {
                let health = HealthInputs { lease, ..have.health };
                let next = Instance { health, ..Instance::clone(&have) };
                Stored::Instance(InstanceRecord::new(&next, self.store.replica()))
            }
        };
        let key = instance_key(service, id);
        let mut transaction = Transaction::default();
        transaction.require(key.clone(), Some(revision)).push(Op::put(key, encode(&stored)));
        self.commit(transaction).await?;
        match verdict.outcome {
            Outcome::Expires => {
                self.damping.depart(service, id, self.now());
                self.stats.expired.fetch_add(1, Ordering::Relaxed);
                tracing::info!(%service, %id, "leases: silent for its whole lease, expired");
            }
            Outcome::Becomes(LeaseState::Protected) => {
                self.stats.protected.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%service, %id, "leases: silent with many others, held by the brake");
            }
            Outcome::Becomes(_) => {}
        }
        Ok(())
    }

    /// Removes the traces of departures that are older than a day: of instances, and of services, whose
    /// indexes are free then.
    pub(super) async fn forget(&self, now_unix: u64) {
        let old: Vec<(Key, u64)> = {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            let old = |known: &Known| matches!(known, Known::Gone(gone) if gone.at + TRACE_KEPT.as_secs() <= now_unix);
            let traces = table.instances.iter().filter(|(_, (_, known))| old(known));
            let traces = traces.map(|((service, id), (revision, _))| (instance_key(service, id), *revision));
            let rested = table.quarantined.iter().filter(|(_, (.., until))| *until <= now_unix);
            traces.chain(rested.map(|(index, (revision, ..))| (index_key(*index), *revision))).collect()
        };
        for some in old.chunks(TRACES_AT_ONCE) {
            let mut transaction = Transaction::default();
            for (key, revision) in some {
                transaction.require(key.clone(), Some(*revision)).push(Op::delete(key.clone()));
            }
            let last = some.iter().map(|(_, revision)| *revision).max().unwrap_or_default();
            let floor = last.max(self.world().floor);
            transaction.push(Op::put(Key::new(Space::Meta, FLOOR), floor.to_string().into_bytes()));
            if let Err(error) = self.commit(transaction).await {
                tracing::warn!(%error, "catalog: old traces stay for now");
            }
        }
    }

    async fn forget_empty_services(&self, empty_since: &mut BTreeMap<ServiceName, Duration>) {
        let now = self.now();
        let world = self.world();
        let is_empty = |name: &ServiceName| {
            world.catalog.services.get(name).is_some_and(|service| service.instances.is_empty())
        };
        empty_since.retain(|name, _| is_empty(name));
        for name in world.catalog.services.keys().filter(|name| is_empty(name)) {
            let since = *empty_since.entry(name.clone()).or_insert(now);
            if now.saturating_sub(since) >= EMPTY_SERVICE_KEPT
                && let Err(error) = self.forget_service(name).await
            {
                tracing::warn!(service = %name, %error, "catalog: an empty service stays for now");
            }
        }
    }

    /// Forgets a registered service that has no instances. Its index becomes free, unless a Service
    /// resource still names it. Returns whether there was one to forget.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store refuses.
    pub async fn forget_service(&self, service: &ServiceName) -> Result<bool, StoreError> {
        let (revision, record, floor_written) = {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            match table.services.get(service) {
                Some((revision, record)) if record.registered => {
                    (*revision, record.clone(), table.floor_written)
                }
                _ => return Ok(false),
            }
        };
        let world = self.world();
        if world.catalog.services.get(service).is_some_and(|service| !service.instances.is_empty()) {
            return Ok(false);
        }
        let mut transaction = Transaction::default();
        let key = service_key(service);
        let floor = Key::new(Space::Meta, FLOOR);
        transaction.require(key.clone(), Some(revision)).require(floor.clone(), floor_written);
        if world.resources.set.service(service).is_some() {
            let record = ServiceRecord { index: record.index, ..ServiceRecord::default() };
            transaction.push(Op::put(key, encode(&record)));
            // No trace is left of it. Without a number the floor is the revision of this very transaction.
            transaction.push(Op::put(floor, Vec::new()));
        } else {
            transaction.push(Op::delete(key)).push(release_index(record.index, service));
            // It stays where it is: the index tells when the service left. But it is written, for whoever
            // registers instances meanwhile on the condition that no service goes.
            transaction.push(Op::put(floor, world.floor.to_string().into_bytes()));
        }
        self.commit(transaction).await?;
        Ok(true)
    }
}
