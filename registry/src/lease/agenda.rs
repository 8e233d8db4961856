//! Which lease is to be looked at when: the judge's cost is that of the leases that may be due.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Lease, millis};

/// Every lease is looked at this often at least, so that one that has ended does not stay in memory for
/// as long as it would have run.
const AHEAD_MAX: Duration = Duration::from_secs(30);

/// Leases by the time, in milliseconds, at which they are to be looked at. Each has one entry that counts:
/// that of [`Lease::look`]; others are left where they are, and passed over.
#[derive(Debug, Default)]
pub(super) struct Agenda(BTreeMap<u64, Vec<Arc<Lease>>>);

impl Agenda {
    /// Looks at a lease at `at`, or `AHEAD_MAX` after `now`, unless it is looked at before.
    pub(super) fn put(&mut self, lease: &Arc<Lease>, at: u64, now: Duration) {
        let at = at.min(millis(now + AHEAD_MAX));
        if lease.look.fetch_min(at, Ordering::Relaxed) > at {
            self.0.entry(at).or_default().push(Arc::clone(lease));
        }
    }

    /// The leases to be looked at now. Those that are still there have to be put again.
    pub(super) fn take(&mut self, now: Duration) -> Vec<Arc<Lease>> {
        let later = self.0.split_off(&(millis(now) + 1));
        let mut due = Vec::new();
        for (at, leases) in std::mem::replace(&mut self.0, later) {
            let counts = |lease: &Arc<Lease>| {
                !lease.has_ended()
                    && lease.look.compare_exchange(at, NOT_PUT, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            };
            due.extend(leases.into_iter().filter(counts));
        }
        due
    }
}

#[cfg(test)]
impl Agenda {
    /// How many entries there are up to now.
    pub(super) fn due(&self, now: Duration) -> usize {
        self.0.range(..=millis(now)).map(|(_, leases)| leases.len()).sum()
    }
}

/// [`Lease::look`] of a lease that is not on the agenda.
pub(super) const NOT_PUT: u64 = u64::MAX;
