//! All leases, and the judge that looks at them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use pillion_model::health::Lease as LeaseState;
use pillion_model::name::{InstanceId, ServiceName};

use super::agenda::{Agenda, NOT_PUT};
use super::brake::{Brake, BrakeState};
use super::{ASLEEP_AFTER, Lease, PROTECT_MAX, millis};

const SHARDS: usize = 64;

/// What the judge found about one instance.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Whose.
    pub lease: Arc<Lease>,
    /// What is to become of it.
    pub outcome: Outcome,
}

/// What is to become of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its lease is in another state now.
    Becomes(LeaseState),
    /// It was silent for its whole lease, and is to leave.
    Expires,
}

/// All leases.
#[derive(Debug)]
pub struct Leases {
    shards: Vec<Shard>,
    judge: Mutex<Judge>,
}

type Shard = RwLock<HashMap<(ServiceName, InstanceId), Arc<Lease>>>;

#[derive(Debug, Default)]
struct Judge {
    seen: Option<Duration>,
    brake: Brake,
    agenda: Agenda,
    /// How many leases each service has.
    alive: HashMap<ServiceName, usize>,
}

impl Default for Leases {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Self { shards, judge: Mutex::default() }
    }
}

impl Leases {
    /// Follows a write of the catalog: starts the lease of an instance that is new at `now`, or
    /// notes how long the lease is and in what state.
    pub fn insert(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        ttl: Duration,
        state: LeaseState,
        now: Duration,
    ) -> Arc<Lease> {
        self.put(service, id, ttl, state, now, true)
    }

    /// Takes over the lease of an instance that an earlier run of the registry knew: it runs from
    /// `armed`, and the instance stays in `state` until it is heard.
    pub fn adopt(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        ttl: Duration,
        state: LeaseState,
        armed: Duration,
    ) -> Arc<Lease> {
        self.put(service, id, ttl, state, armed, false)
    }

    fn put(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        ttl: Duration,
        state: LeaseState,
        heard: Duration,
        met: bool,
    ) -> Arc<Lease> {
        // Always the judge before a shard.
        let mut judge = self.judging();
        let key = (service.clone(), id.clone());
        let mut shard = self.shard(&key).write().unwrap_or_else(PoisonError::into_inner);
        let lease = match shard.get(&key) {
            Some(lease) => {
                lease.ttl.store(millis(ttl), Ordering::Relaxed);
                lease.settle(state);
                Arc::clone(lease)
            }
            None => {
                let lease = Arc::new(Lease {
                    service: service.clone(),
                    id: id.clone(),
                    ttl: AtomicU64::new(millis(ttl)),
                    heard: AtomicU64::new(millis(heard)),
                    met: AtomicBool::new(met),
                    protected_since: AtomicU64::new(millis(heard)),
                    state: AtomicU8::new(state as u8),
                    ours: AtomicBool::new(true),
                    held_back: AtomicBool::new(false),
                    ended: AtomicBool::new(false),
                    look: AtomicU64::new(NOT_PUT),
                });
                shard.insert(key, Arc::clone(&lease));
                *judge.alive.entry(service.clone()).or_default() += 1;
                lease
            }
        };
        judge.agenda.put(&lease, 0, heard);
        lease
    }

    /// Ends a lease; says whether there was one.
    pub fn remove(&self, service: &ServiceName, id: &InstanceId) -> bool {
        let mut judge = self.judging();
        let key = (service.clone(), id.clone());
        let ended = self.shard(&key).write().unwrap_or_else(PoisonError::into_inner).remove(&key);
        ended.inspect(|lease| judge.end(lease)).is_some()
    }

    /// The lease of an instance, if it is registered.
    pub fn find(&self, service: &ServiceName, id: &InstanceId) -> Option<Arc<Lease>> {
        let key = (service.clone(), id.clone());
        self.shard(&key).read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// Ends the leases of those that `keep` refuses.
    pub fn retain(&self, keep: impl Fn(&ServiceName, &InstanceId) -> bool) {
        let mut judge = self.judging();
        for shard in &self.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).retain(|(service, id), lease| {
                let kept = keep(service, id);
                if !kept {
                    judge.end(lease);
                }
                kept
            });
        }
    }

    /// Number of leases.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Whether there are no leases.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells the judge that time passes; says how much of it this process slept through. To be
    /// called at least every [`JUDGE_EVERY`], also while a judgement is being written.
    pub fn pulse(&self, now: Duration) -> Duration {
        self.wake(&mut self.judging(), now)
    }

    /// Judges the leases that may be due. The outcomes are proposals: a lease keeps its state until the
    /// caller has committed them and [`Leases::insert`] notes it.
    pub fn judge(&self, now: Duration) -> Vec<Verdict> {
        let mut judge = self.judging();
        self.wake(&mut judge, now);
        let (mut verdicts, mut silent) = (Vec::new(), Vec::new());
        for lease in judge.agenda.take(now) {
            let (state, next) = (lease.state(), lease.judge(now));
            // One that is not well is looked at each time: a beat may end that.
            let at = match state {
                LeaseState::Heard if !lease.is_ours() => u64::MAX,
                LeaseState::Heard if next == state => lease.late_at(),
                _ => 0,
            };
            judge.agenda.put(&lease, at.max(millis(now) + 1), now);
            match next {
                _ if !lease.is_ours() => {}
                LeaseState::Silent => silent.push(lease),
                next if next != state => verdicts.push(Verdict { lease, outcome: Outcome::Becomes(next) }),
                _ => {}
            }
        }
        // Leases are found in no order; what is written has one.
        verdicts.sort_by(|a, b| (a.lease.service(), a.lease.id()).cmp(&(b.lease.service(), b.lease.id())));
        if silent.is_empty() {
            return verdicts;
        }
        let Judge { alive, brake, .. } = &mut *judge;
        let mut overall: usize = alive.values().sum();
        let mut leaving: HashMap<ServiceName, usize> = HashMap::new();
        // The longest silent leave first; ties in a stable order.
        silent.sort_by(|a, b| {
            let key = |lease: &Arc<Lease>| std::cmp::Reverse(lease.silence(now).saturating_sub(lease.ttl()));
            (key(a), a.service(), a.id()).cmp(&(key(b), b.service(), b.id()))
        });
        for lease in silent {
            let left = leaving.get(&lease.service).copied().unwrap_or_default();
            let of_service = alive.get(&lease.service).map_or(0, |count| count.saturating_sub(left));
            let outcome = if lease.protected_for(now) >= PROTECT_MAX
                || brake.admit(&lease.service, of_service, overall, now)
            {
                *leaving.entry(lease.service.clone()).or_default() += 1;
                overall = overall.saturating_sub(1);
                Outcome::Expires
            } else if lease.state() == LeaseState::Protected {
                continue;
            } else {
                lease.protected_since.store(millis(now), Ordering::Relaxed);
                Outcome::Becomes(LeaseState::Protected)
            };
            verdicts.push(Verdict { lease, outcome });
        }
        verdicts
    }

    /// Notes that an instance left for silence by another registry's verdict: it counts for the brake.
    pub fn departed(&self, service: &ServiceName, now: Duration) {
        self.judging().brake.note(service, now);
    }

    /// The brake overall, and of each service from which instances left for silence or are held.
    pub fn brake(&self, now: Duration) -> (BrakeState, BTreeMap<ServiceName, BrakeState>) {
        let mut counts: BTreeMap<ServiceName, (usize, usize)> = BTreeMap::new();
        for shard in &self.shards {
            for lease in shard.read().unwrap_or_else(PoisonError::into_inner).values() {
                let (instances, protected) = counts.entry(lease.service.clone()).or_default();
                *instances += 1;
                *protected += usize::from(lease.state() == LeaseState::Protected);
            }
        }
        let judge = self.judging();
        let sum = counts.values().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        let overall = judge.brake.overall(sum.0, sum.1, now);
        let services = counts.into_iter().map(|(service, (instances, protected))| {
            let state = judge.brake.of_service(&service, instances, protected, now);
            (service, state)
        });
        (overall, services.filter(|(_, state)| state.departed + state.protected > 0).collect())
    }

    /// How many instances the brake holds.
    pub fn protected(&self) -> usize {
        let mut count = 0;
        for shard in &self.shards {
            for lease in shard.read().unwrap_or_else(PoisonError::into_inner).values() {
                count += usize::from(lease.state() == LeaseState::Protected);
            }
        }
        count
    }

    /// Gives everybody the time that this process slept through.
    fn wake(&self, judge: &mut Judge, now: Duration) -> Duration {
        let gap = now.saturating_sub(judge.seen.replace(now).unwrap_or(now));
        if gap <= ASLEEP_AFTER {
            return Duration::ZERO;
        }
        for shard in &self.shards {
            for lease in shard.read().unwrap_or_else(PoisonError::into_inner).values() {
                // A beat that comes in at the same moment may add to this: its lease then runs
                // longer by the gap, once.
                let heard = lease.heard.load(Ordering::Relaxed);
                if heard < millis(now) {
                    let moved = (heard + millis(gap)).min(millis(now));
                    lease.heard.fetch_max(moved, Ordering::Relaxed);
                }
                lease.protected_since.fetch_add(millis(gap), Ordering::Relaxed);
            }
        }
        gap
    }

    /// How many would be looked at.
    #[cfg(test)]
    pub(super) fn due(&self, now: Duration) -> usize {
        self.judging().agenda.due(now)
    }

    fn judging(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, key: &(ServiceName, InstanceId)) -> &Shard {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(key.0.namespace().as_bytes());
        hash.update(key.0.service().as_bytes());
        hash.update(key.1.as_str().as_bytes());
        &self.shards[(hash.digest() % SHARDS as u64) as usize]
    }
}

impl Judge {
    /// A lease is not there any more.
    fn end(&mut self, lease: &Lease) {
        lease.ended.store(true, Ordering::Release);
        if let Some(count) = self.alive.get_mut(&lease.service) {
            *count -= 1;
            if *count == 0 {
                self.alive.remove(&lease.service);
            }
        }
    }
}
