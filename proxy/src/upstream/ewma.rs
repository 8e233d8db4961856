//! Peak EWMA of the time to response headers, as in linkerd: a slower answer counts at once, a
//! faster one is worked in over ten seconds, and silence decays the estimate.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// The estimate of one endpoint. Concurrent updates may lose one another: it is an estimate.
#[derive(Default)]
pub(super) struct Ewma {
    /// Nanoseconds as `f64` bits; 0: nothing seen yet.
    estimate: AtomicU64,
    /// Nanoseconds since [`epoch`].
    at: AtomicU64,
    /// When the last attempt to connect failed, in nanoseconds since [`epoch`]; 0: it has answered since.
    unreachable: AtomicU64,
}

impl Ewma {
    pub(super) fn latency_ns(&self) -> u64 {
        f64::from_bits(self.estimate.load(Relaxed)) as u64
    }

    /// Works one latency in.
    pub(super) fn observe(&self, latency: Duration, now: Instant) {
        let now = nanos(now);
        let latency = latency.as_nanos() as f64;
        let old = f64::from_bits(self.estimate.load(Relaxed));
        let elapsed = now.saturating_sub(self.at.load(Relaxed));
        let next = if latency >= old {
            latency
        } else {
            let keep = decay(elapsed);
            old * keep + latency * (1.0 - keep)
        };
        self.estimate.store(next.to_bits(), Relaxed);
        self.at.store(now, Relaxed);
    }

    /// No connection could be made.
    pub(super) fn could_not_connect(&self, now: Instant) {
        self.unreachable.store(nanos(now), Relaxed);
    }

    /// It has answered.
    pub(super) fn answered(&self) {
        if self.unreachable.load(Relaxed) != 0 {
            self.unreachable.store(0, Relaxed);
        }
    }

    /// The estimate at `now`, in nanoseconds; 0: nothing seen yet.
    fn at(&self, now: Instant) -> f64 {
        let estimate = f64::from_bits(self.estimate.load(Relaxed));
        let elapsed = nanos(now).saturating_sub(self.at.load(Relaxed));
        if elapsed < DECAY_FROM_NS { estimate } else { estimate * decay(elapsed) }
    }

    /// What a further request there would cost: the estimate times the requests it would share with.
    ///
    /// Whoever has not answered yet is tried at once, with one request at a time: among fast endpoints
    /// any assumption about a new one would keep it from ever being asked. Where requests wait for a
    /// connection, others join them only if the other choice is no better: nobody knows yet whether there
    /// will be one, and all who wait would fail at once. Whoever could not be reached a moment ago is left
    /// alone likewise: with no load at all it would look better than those that have to do the work.
    pub(super) fn cost(&self, active: u32, waiting: u32, now: Instant) -> f64 {
        let estimate = self.at(now);
        let shared = if estimate == 0.0 {
            UNKNOWN_NS * f64::from(active)
        } else {
            estimate * (f64::from(active) + 1.0)
        };
        let failed = self.unreachable.load(Relaxed);
        let is_gone = failed != 0 && nanos(now).saturating_sub(failed) < UNREACHABLE_FOR_NS;
        shared + CONNECTING_NS * (f64::from(waiting) + f64::from(u8::from(is_gone)))
    }
}

/// What is left of an old estimate after `elapsed` nanoseconds.
fn decay(elapsed: u64) -> f64 {
    let share = elapsed as f64 / DECAY_NS;
    if share < 0.01 { 1.0 - share } else { (-share).exp() }
}

fn nanos(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch()).as_nanos()).unwrap_or(u64::MAX)
}

/// A moment before anything measured here, an hour back so that paused test clocks fit in.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
    })
}

/// Time constant.
const DECAY_NS: f64 = 10e9;
/// Below this, decay at reading is left out: it is under one percent.
const DECAY_FROM_NS: u64 = 100_000_000;
/// Assumed of an endpoint that has a request and has not answered yet.
const UNKNOWN_NS: f64 = 1e9;
/// How long one that could not be reached comes last.
const UNREACHABLE_FOR_NS: u64 = 2_000_000_000;
/// Assumed of an endpoint that is being connected: more than any load of a connected one.
const CONNECTING_NS: f64 = 1e13;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn peaks_count_at_once_and_fade_over_ten_seconds() {
        let ewma = Ewma::default();
        assert_eq!(ewma.cost(0, 0, Instant::now()), 0.0);
        assert_eq!(ewma.cost(1, 0, Instant::now()), UNKNOWN_NS);
        ewma.observe(MS, Instant::now());
        ewma.could_not_connect(Instant::now());
        assert!(ewma.cost(0, 0, Instant::now()) >= CONNECTING_NS, "with no load");
        tokio::time::advance(2000 * MS).await;
        assert!(ewma.cost(0, 0, Instant::now()) < CONNECTING_NS, "it is tried again");
        ewma.observe(100 * MS, Instant::now());
        assert_eq!(ewma.latency_ns(), 100_000_000);
        tokio::time::advance(Duration::from_secs(10)).await;
        let faded = ewma.at(Instant::now()) / 100e6;
        assert!((faded - (-1.0_f64).exp()).abs() < 1e-6, "{faded}");
        ewma.observe(MS, Instant::now());
        let mixed = ewma.latency_ns() as f64 / 1e6;
        assert!((mixed - (100.0 * 0.36788 + 0.63212)).abs() < 0.01, "{mixed}");
        assert!(ewma.cost(3, 0, Instant::now()) > 3.9 * mixed * 1e6);
        assert!(ewma.cost(0, 1, Instant::now()) > ewma.cost(10_000, 0, Instant::now()), "not connected");
    }
}
