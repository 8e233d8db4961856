//! Whether the store is away, looked at now and then.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pillion_dns::{Note, Reason};
use tokio::time::Instant;

use super::StoreAway;

/// Asks the store, which takes a lock for it, at most every [`INTERVAL`].
pub(super) struct Away {
    ask: StoreAway,
    last: AtomicBool,
    /// When to ask again, in milliseconds since `start`.
    next: AtomicU64,
    start: Instant,
}

impl Away {
    pub(super) fn new(ask: StoreAway) -> Self {
        Self { ask, last: AtomicBool::default(), next: AtomicU64::default(), start: Instant::now() }
    }

    /// Whether it is away, as of [`INTERVAL`] ago at most.
    pub(super) fn now(&self) -> bool {
        let elapsed = self.start.elapsed();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if millis(elapsed) >= self.next.load(Ordering::Relaxed) {
            self.next.store(millis(elapsed + INTERVAL), Ordering::Relaxed);
            self.last.store((self.ask)(), Ordering::Relaxed);
        }
        self.last.load(Ordering::Relaxed)
    }

    /// What an answer says meanwhile.
    pub(super) fn note() -> Note {
        Note::new(Reason::StaleAnswer, "the store is away; this is what was known before")
    }
}

const INTERVAL: Duration = Duration::from_millis(100);
