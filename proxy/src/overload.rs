//! What keeps a proxy alive when there is too much of everything: a limit of connections, and one of
//! memory, past which requests are refused rather than the process killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

/// How full the process is; shared by all workers.
pub(crate) struct Overload {
    connections: AtomicUsize,
    connections_max: usize,
    memory_max: Option<u64>,
    /// Memory is short: requests are refused.
    sheds: AtomicBool,
}

/// One downstream connection's place.
pub(crate) struct Admitted(Arc<Overload>);

impl Overload {
    /// With as many connections as descriptors allow, and so many bytes of memory, if that is limited.
    pub(crate) fn new(memory_max: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            connections: AtomicUsize::new(0),
            connections_max: connections_max(raise_descriptors()),
            memory_max,
            sheds: AtomicBool::new(false),
        })
    }

    /// A place for one more connection, if there is any.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Admitted> {
        if self.sheds() {
            return None;
        }
        let before = self.connections.fetch_add(1, Relaxed);
        // Dropped if there is no room.
        let admitted = Admitted(Arc::clone(self));
        (before < self.connections_max).then_some(admitted)
    }

    /// Whether requests are refused.
    pub(crate) fn sheds(&self) -> bool {
        self.sheds.load(Relaxed)
    }

    /// Looks at memory until `stop`.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let Some(max) = self.memory_max else { return };
        let mut ticks = tokio::time::interval(SAMPLED_EVERY);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let Some(used) = memory_used() else { continue };
            let sheds = is_short(used, max, self.sheds());
            if self.sheds.swap(sheds, Relaxed) != sheds {
                tracing::warn!(
                    used,
                    max,
                    "memory is {}",
                    if sheds { "short: requests are refused" } else { "there again" }
                );
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// Whether to shed; who sheds goes on until there is room again.
fn is_short(used: u64, max: u64, sheds: bool) -> bool {
    let percent = if sheds { SHED_UNTIL_PERCENT } else { SHED_FROM_PERCENT };
    used >= max / 100 * percent
}

/// A quarter of the descriptors is for upstreams, files and administration.
fn connections_max(descriptors: u64) -> usize {
    usize::try_from(descriptors / 4 * 3).unwrap_or(usize::MAX)
}

/// As many descriptors as the hard limit allows, rather than the 1024 that shells give; how many.
fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
        return limit.current.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}

/// Memory of this process that is no file's, in bytes.
fn memory_used() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split(' ').skip(1).map_while(|field| field.parse::<u64>().ok());
    let (resident, of_files) = (pages.next()?, pages.next()?);
    resident.saturating_sub(of_files).checked_mul(PAGE)
}

/// On x86-64.
const PAGE: u64 = 4096;
const SAMPLED_EVERY: Duration = Duration::from_millis(100);
/// Envoy's documentation sheds from here.
const SHED_FROM_PERCENT: u64 = 95;
const SHED_UNTIL_PERCENT: u64 = 90;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shedding_begins_near_the_limit_and_ends_below_it() {
        for (used, sheds, want) in
            [(94, false, false), (95, false, true), (91, true, true), (89, true, false), (100, true, true)]
        {
            assert_eq!(is_short(used, 100, sheds), want, "{used} {sheds}");
        }
    }

    #[test]
    fn places_are_given_back() {
        let overload = Arc::new(Overload {
            connections: AtomicUsize::new(0),
            connections_max: 2,
            memory_max: None,
            sheds: AtomicBool::new(false),
        });
        let held = [overload.admit(), overload.admit()];
        assert!(held.iter().all(Option::is_some));
        assert!(overload.admit().is_none());
        drop(held);
        assert!(overload.admit().is_some());
    }
}
