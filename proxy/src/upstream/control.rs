//! The control task: ejects and returns endpoints, and keeps names resolved. One per process, off
//! the workers' threads.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use pillion_model::cluster::{Cluster as Config, OutlierDetection};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::check::{Checks, Verdict};
use super::clusters::{Clusters, Inner};
use super::dns::DnsCluster;
use super::outlier::{Detector, Event, Round};
use super::state::EndpointState;

/// What the control task keeps of one cluster.
#[derive(Default)]
pub(super) struct Control {
    detector: Detector,
    /// The end of the present outlier interval.
    interval_end: Option<Instant>,
    dns: Option<DnsCluster>,
}

impl Control {
    /// Follows a new configuration; what was ejected stays ejected while there is detection.
    pub(super) fn configure(&mut self, config: &Config, now: Instant) {
        let outlier = config.outlier_detection.as_ref();
        if outlier.is_none() {
            self.detector = Detector::default();
        }
        self.interval_end = outlier.map(|outlier| now + outlier.interval.max(INTERVAL_MIN));
        self.dns = DnsCluster::new(&config.discovery, now);
    }
}

/// Answers for one cluster's names.
struct Resolved {
    cluster: String,
    id: u64,
    found: Vec<(String, Result<Vec<IpAddr>, String>)>,
}

impl Clusters {
    /// Does what needs a clock, until `stop`. To be run once per process; without it nobody is
    /// ejected and no name is resolved.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(mut events) = self.take_events() else {
            tracing::error!("the control task of clusters was started twice");
            return;
        };
        let mut changes = self.changes();
        let mut lookups = JoinSet::new();
        let (mut checks, mut verdicts) = Checks::new();
        let mut endpoints_changed = true;
        loop {
            self.resolve_due(&mut lookups);
            if std::mem::take(&mut endpoints_changed) {
                self.with(|inner| checks.follow(inner.clusters.values()));
            }
            let due = self.with(|inner| inner.next_due()).unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                () = stop.cancelled() => return,
                Some(event) = events.recv() => self.with(|inner| inner.detected(&event)),
                Some(verdict) = verdicts.recv() => self.with(|inner| inner.checked(&verdict)),
                Some(Ok(resolved)) = lookups.join_next() => {
                    self.with(|inner| inner.resolved(resolved));
                    endpoints_changed = true;
                }
                _ = changes.changed() => endpoints_changed = true,
                () = tokio::time::sleep_until(due) => self.with(|inner| inner.end_intervals(Instant::now())),
            }
        }
    }

    fn resolve_due(&self, lookups: &mut JoinSet<Resolved>) {
        let due = self.with(|inner| inner.names_due(Instant::now()));
        for (cluster, id, hosts) in due {
            let names = Arc::clone(&self.names);
            lookups.spawn(async move {
                let mut found = Vec::with_capacity(hosts.len());
                for host in hosts {
                    let answer = names.addresses(host.clone()).await;
                    found.push((host, answer));
                }
                Resolved { cluster, id, found }
            });
        }
    }
}

impl Inner {
    fn next_due(&self) -> Option<Instant> {
        let of_control = |control: &Control| {
            let dns = control.dns.as_ref().and_then(|dns| dns.due);
            control.interval_end.into_iter().chain(dns).min()
        };
        self.controls.values().filter_map(of_control).min()
    }

    /// Clusters whose names are to be resolved now.
    fn names_due(&mut self, now: Instant) -> Vec<(String, u64, Vec<String>)> {
        let mut due = Vec::new();
        for (name, control) in &mut self.controls {
            let Some(dns) = &mut control.dns else { continue };
            if dns.due.take_if(|due| *due <= now).is_some() {
                due.push((name.clone(), dns.id, dns.names().into_iter().collect()));
            }
        }
        due
    }

    fn resolved(&mut self, resolved: Resolved) {
        // The cluster may have gone, or be another one by now, whose names are asked for anew.
        let Some(cluster) = self.clusters.get(&resolved.cluster) else { return };
        let dns = self.controls.get_mut(&resolved.cluster).and_then(|it| it.dns.as_mut());
        let Some(dns) = dns.filter(|dns| dns.id == resolved.id) else { return };
        dns.take(resolved.found, Instant::now());
        let assignment = dns.resolved();
        if self.assignments.get(&resolved.cluster) != Some(&assignment) {
            cluster.set_endpoints(&assignment);
            self.assignments.insert(resolved.cluster, assignment);
        }
    }

    fn detected(&mut self, event: &Event) {
        let name = event.endpoint.cluster.name.clone();
        self.judge(&name, Instant::now(), |detector, round| {
            detector.in_a_row(round, &event.endpoint, event.kind)
        });
    }

    /// An endpoint passed its health check, or failed it: the others share its load, or it takes part again.
    fn checked(&mut self, verdict: &Verdict) {
        let Verdict { cluster, endpoint, passed } = verdict;
        let name = cluster.name();
        if self.clusters.get(name).is_none_or(|present| present.id != cluster.id) {
            return;
        }
        let returns = |config: &OutlierDetection| *passed && config.uneject_on_health_check;
        if cluster.config.outlier_detection.as_ref().is_some_and(returns) {
            self.judge(name, Instant::now(), |detector, round| detector.passed(round, endpoint));
        }
        if let Some(assignment) = self.assignments.get(name) {
            cluster.set_endpoints(assignment);
        }
    }

    fn end_intervals(&mut self, now: Instant) {
        let ended = |control: &Control| control.interval_end.is_some_and(|end| end <= now);
        let names: Vec<String> = self
            .controls
            .iter()
            .filter(|(_, control)| ended(control))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.judge(&name, now, Detector::tick);
            let interval = self.clusters.get(&name).and_then(|it| it.config.outlier_detection.as_ref());
            let next = interval.map(|config| now + config.interval.max(INTERVAL_MIN));
            if let Some(control) = self.controls.get_mut(&name) {
                control.interval_end = next;
            }
        }
    }

    /// Lets a cluster's detector decide; rearranges its endpoints if somebody was ejected or
    /// returned.
    fn judge(&mut self, name: &str, now: Instant, decide: impl FnOnce(&mut Detector, &Round<'_>) -> bool) {
        let (Some(cluster), Some(control)) = (self.clusters.get(name), self.controls.get_mut(name)) else {
            return;
        };
        let Some(config) = &cluster.config.outlier_detection else { return };
        let endpoints: Vec<Arc<EndpointState>> =
            cluster.hosts().hosts.iter().map(|host| Arc::clone(&host.endpoint)).collect();
        let stats = &cluster.state.outlier.stats;
        let round = Round { config, endpoints: &endpoints, stats, now, roll: &|| fastrand::u32(..100) };
        if decide(&mut control.detector, &round)
            && let Some(assignment) = self.assignments.get(name)
        {
            cluster.set_endpoints(assignment);
        }
    }
}

/// How long the control task sleeps when nothing is due; changes wake it.
const IDLE: Duration = Duration::from_secs(3600);
/// Outlier intervals are not shorter, whatever the configuration says.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
