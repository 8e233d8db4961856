//! Active health: each endpoint of a cluster with a health check is asked by a task of its own, on the
//! control thread. Requests only read what these tasks found.

mod ask;
mod handshake;
mod streak;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use pillion_model::health_check::{HealthCheck, Pace};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::cluster::Cluster;
use super::state::EndpointState;
use super::tls::Transport;
use ask::{Asker, Found};
use streak::{Change, Streak};

/// What is known of an endpoint by asking it.
#[derive(Debug, Default)]
pub(super) struct Checked(AtomicU8);

impl Checked {
    const WELL: u8 = 1;
    const FAILED: u8 = 2;

    /// Whether it passed; one that was not asked yet has not.
    pub(super) fn is_well(&self) -> bool {
        self.0.load(Relaxed) == Self::WELL
    }

    /// Whether it was asked at all.
    pub(super) fn is_known(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    fn set(&self, well: bool) {
        self.0.store(if well { Self::WELL } else { Self::FAILED }, Relaxed);
    }
}

/// An endpoint that changed sides.
pub(super) struct Verdict {
    pub(super) cluster: Arc<Cluster>,
    pub(super) endpoint: Arc<EndpointState>,
    /// It passed, else it failed.
    pub(super) passed: bool,
}

/// The running checks, by cluster and endpoint. They end when this is dropped.
pub(super) struct Checks {
    tasks: JoinSet<()>,
    running: HashMap<(u64, u64), AbortHandle>,
    verdicts: mpsc::Sender<Verdict>,
}

impl Checks {
    /// None yet; what they find goes to the receiver.
    pub(super) fn new() -> (Self, mpsc::Receiver<Verdict>) {
        let (verdicts, receiver) = mpsc::channel(VERDICTS_MAX);
        (Self { tasks: JoinSet::new(), running: HashMap::new(), verdicts }, receiver)
    }

    /// Starts checks of endpoints that are new, ends those of endpoints that are gone.
    pub(super) fn follow<'a>(&mut self, clusters: impl Iterator<Item = &'a Arc<Cluster>>) {
        while self.tasks.try_join_next().is_some() {} // those that were ended
        let mut wanted = HashSet::new();
        for cluster in clusters {
            let Some(check) = &cluster.config.health_check else { continue };
            for host in &cluster.hosts().hosts {
                let key = (cluster.id, host.endpoint.id);
                wanted.insert(key);
                self.running.entry(key).or_insert_with(|| {
                    let (cluster, endpoint) = (Arc::clone(cluster), Arc::clone(&host.endpoint));
                    let (transport, verdicts) = (Arc::clone(&host.transport), self.verdicts.clone());
                    self.tasks.spawn_local(watch(cluster, endpoint, transport, check.clone(), verdicts))
                });
            }
        }
        self.running.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
    }
}

async fn watch(
    cluster: Arc<Cluster>,
    endpoint: Arc<EndpointState>,
    transport: Arc<Transport>,
    check: HealthCheck,
    verdicts: mpsc::Sender<Verdict>,
) {
    let stats = &cluster.state.stats;
    let mut streak = Streak::default();
    let mut asker = Asker::new(&cluster, &endpoint, transport, &check);
    sleep(up_to(check.pace.initial_jitter)).await;
    loop {
        stats.health_check_attempt.fetch_add(1, Relaxed);
        let found = asker.ask().await;
        match &found {
            Found::Well => stats.health_check_success.fetch_add(1, Relaxed),
            Found::No(_) => stats.health_check_failure.fetch_add(1, Relaxed),
            Found::Failure(_) => {
                stats.health_check_network_failure.fetch_add(1, Relaxed);
                stats.health_check_failure.fetch_add(1, Relaxed)
            }
        };
        let passed = matches!(found, Found::Well);
        let change = streak.count(endpoint.checked.is_well(), &found, &check);
        if change == Change::Now || !endpoint.checked.is_known() {
            endpoint.checked.set(passed);
            if passed {
                endpoint.is_well_again();
            }
            tell(&cluster, &endpoint, &found);
            let verdict = Verdict { cluster: Arc::clone(&cluster), endpoint: Arc::clone(&endpoint), passed };
            if verdicts.send(verdict).await.is_err() {
                return;
            }
        }
        let had_traffic = cluster.state.has_had_connections();
        sleep(check.pace.wait(passed, change == Change::Pending, had_traffic)).await;
    }
}

fn tell(cluster: &Cluster, endpoint: &EndpointState, found: &Found) {
    let (cluster, endpoint) = (cluster.name(), &endpoint.address);
    match found {
        Found::Well => tracing::info!(cluster, %endpoint, "an endpoint passes its health check"),
        Found::No(reason) | Found::Failure(reason) => {
            tracing::warn!(cluster, %endpoint, reason, "an endpoint fails its health check");
        }
    }
}

/// When a check is followed by the next one.
trait Waits {
    fn wait(&self, passed: bool, pending: bool, had_traffic: bool) -> Duration;
}

impl Waits for Pace {
    fn wait(&self, passed: bool, pending: bool, had_traffic: bool) -> Duration {
        let base = match (had_traffic, passed, pending) {
            (true, true, false) => self.interval,
            (true, true, true) => self.healthy_edge,
            (true, false, false) => self.unhealthy,
            (true, false, true) => self.unhealthy_edge,
            (false, true, _) => self.no_traffic_healthy,
            (false, false, _) => self.no_traffic,
        };
        let share = base.saturating_mul(self.jitter_percent) / 100;
        base.saturating_add(up_to(share)).saturating_add(up_to(self.jitter)).max(WAIT_MIN)
    }
}

/// A random time below `limit`.
fn up_to(limit: Duration) -> Duration {
    limit.mul_f64(fastrand::f64())
}

/// Changes of health under way to the control task; a check waits where there is no room.
const VERDICTS_MAX: usize = 1024;
/// Endpoints are not asked more often than this, whatever the configuration says.
const WAIT_MIN: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_the_result() {
        let seconds = Duration::from_secs;
        let mut pace = Pace {
            interval: seconds(1),
            unhealthy: seconds(2),
            unhealthy_edge: seconds(3),
            healthy_edge: seconds(4),
            no_traffic: seconds(5),
            no_traffic_healthy: seconds(6),
            initial_jitter: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_percent: 0,
        };
        for (passed, pending, had_traffic, want) in [
            (true, false, true, 1),
            (false, false, true, 2),
            (false, true, true, 3),
            (true, true, true, 4),
            (false, true, false, 5),
            (true, false, false, 6),
        ] {
            assert_eq!(pace.wait(passed, pending, had_traffic), seconds(want));
        }
        (pace.jitter, pace.jitter_percent) = (seconds(1), 50);
        for _ in 0..100 {
            let wait = pace.wait(true, false, true);
            assert!(wait >= seconds(1) && wait < Duration::from_millis(2500), "{wait:?}");
        }
    }
}
