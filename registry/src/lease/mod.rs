//! Leases: who was heard when, and what silence means.
//!
//! A beat is one atomic store; no lock is shared by beats of different instances, and nothing is
//! written to disk. A judge looks a few times a second at the leases that may be due, and says what
//! changed: late after two missed beats, silent after three. Silence alone takes only so many instances per
//! minute ([`brake`]); the others are protected. Time is monotonic and passed in; time that this
//! process slept through counts against nobody.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use pillion_model::health::Lease as LeaseState;
pub use pillion_model::instance::TTL_NEVER;
use pillion_model::name::{InstanceId, ServiceName};

mod agenda;
mod brake;
mod damping;
mod leases;

#[cfg(test)]
mod tests;

pub use brake::{Brake, BrakeState};
pub use damping::{Damped, Damping, HOLD};
pub use leases::{Leases, Outcome, Verdict};

/// Shortest lease an instance may ask for.
pub const TTL_MIN: Duration = Duration::from_secs(2);
/// Longest lease an instance may ask for.
pub const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The lease of an instance that asks for none: beats every 10 s, late at 20 s, silent at 30 s.
pub const TTL_DEFAULT: Duration = Duration::from_secs(30);
/// After a start of the registry, instances have this long to find it again before their leases
/// begin to run.
pub const RECONNECT_WINDOW: Duration = Duration::from_secs(30);
/// A silent instance that the brake holds is kept this long at most.
pub const PROTECT_MAX: Duration = Duration::from_secs(10 * 60);
/// How often leases are judged.
pub const JUDGE_EVERY: Duration = Duration::from_millis(250);
/// A judge that comes this much later than its last visit was asleep, and so may everybody's beats
/// have been.
const ASLEEP_AFTER: Duration = Duration::from_secs(1);

/// How often an instance with this lease is to be heard: a third of it, or never.
pub fn beat_interval(ttl: Duration) -> Duration {
    if ttl == TTL_NEVER { TTL_NEVER } else { ttl / 3 }
}

/// One instance's lease. Whoever carries its beats holds it.
#[derive(Debug)]
pub struct Lease {
    service: ServiceName,
    id: InstanceId,
    /// Milliseconds.
    ttl: AtomicU64,
    /// Milliseconds on the registry's clock.
    heard: AtomicU64,
    /// Whether it was really heard, rather than given time to reconnect.
    met: AtomicBool,
    /// Since when the brake holds it; meaningful only while the state is protected.
    protected_since: AtomicU64,
    /// As last committed.
    state: AtomicU8,
    /// Whether its silence is for this process to judge.
    ours: AtomicBool,
    /// Whether it is held back for flapping.
    held_back: AtomicBool,
    ended: AtomicBool,
    /// When the judge looks at it next, in milliseconds.
    look: AtomicU64,
}

impl Lease {
    /// The instance's service.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The instance's id.
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// How long the lease lives unrenewed.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl.load(Ordering::Relaxed))
    }

    /// Whether the instance has left: whoever still sends its beats has to register it again.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether its silence is for this process to judge, rather than for another registry.
    pub fn is_ours(&self) -> bool {
        self.ours.load(Ordering::Relaxed)
    }

    /// Whether it is held back for flapping: its beats are looked at, since one of them ends that.
    pub fn is_held_back(&self) -> bool {
        self.held_back.load(Ordering::Relaxed)
    }

    /// Notes whether it is held back.
    pub fn hold_back(&self, held: bool) {
        self.held_back.store(held, Ordering::Relaxed);
    }

    /// Says whose it is. Whoever takes it over gives it time until `armed`, and then a whole lease.
    pub fn assign(&self, ours: bool, armed: Duration) {
        if self.ours.swap(ours, Ordering::Relaxed) != ours && ours {
            self.heard.fetch_max(millis(armed), Ordering::Relaxed);
        }
    }

    /// Notes that the instance was heard.
    pub fn beat(&self, now: Duration) {
        self.heard.fetch_max(millis(now), Ordering::Relaxed);
        if !self.met.load(Ordering::Relaxed) {
            self.met.store(true, Ordering::Relaxed);
        }
    }

    /// How long ago it was heard.
    pub fn silence(&self, now: Duration) -> Duration {
        Duration::from_millis(millis(now).saturating_sub(self.heard.load(Ordering::Relaxed)))
    }

    fn state(&self) -> LeaseState {
        match self.state.load(Ordering::Relaxed) {
            1 => LeaseState::Late,
            2 => LeaseState::Silent,
            3 => LeaseState::Protected,
            _ => LeaseState::Heard,
        }
    }

    fn settle(&self, state: LeaseState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// What its silence amounts to, before the brake.
    fn judge(&self, now: Duration) -> LeaseState {
        let silence = self.silence(now);
        if silence >= self.ttl() {
            return LeaseState::Silent;
        }
        if silence >= beat_interval(self.ttl()) * 2 {
            return LeaseState::Late;
        }
        // Nobody is better than it was for having been given time to reconnect.
        if self.met.load(Ordering::Relaxed) { LeaseState::Heard } else { self.state() }
    }
}

impl Lease {
    /// When it is late if it is not heard, in milliseconds.
    fn late_at(&self) -> u64 {
        self.heard.load(Ordering::Relaxed).saturating_add(millis(beat_interval(self.ttl()) * 2))
    }

    fn protected_for(&self, now: Duration) -> Duration {
        match self.state() {
            LeaseState::Protected => Duration::from_millis(
                millis(now).saturating_sub(self.protected_since.load(Ordering::Relaxed)),
            ),
            _ => Duration::ZERO,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
