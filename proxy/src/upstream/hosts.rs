//! The endpoints of a cluster at one moment, arranged for choosing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pillion_model::cluster::Discovery;
use pillion_model::endpoint::{Endpoint, Fraction, HostAddress, LoadAssignment, Locality};
use pillion_model::health::Health;
use tokio::time::Instant;

use super::balance::{Balance, Counts, Draw, LocalityHosts, Rules, Turns};
use super::cluster::Cluster;
use super::failure::Cause;
use super::send::Attempt;
use super::state::{Address, ClusterState, EndpointState};
use super::subset::{Parts, SubsetHosts};
use super::tls::Transport;

/// All endpoints of a cluster, and how load is shared among them. Never changed, only replaced.
#[derive(Default)]
pub struct HostSet {
    /// Every endpoint, whatever its health.
    pub hosts: Vec<Host>,
    /// Share of requests to drop, per category.
    pub drops: Vec<(String, Fraction)>,
    /// Its priorities, counted.
    pub(super) levels: Vec<Counts>,
    balance: Balance,
    /// Instead of `balance`, where the cluster has any.
    subsets: Option<SubsetHosts>,
    /// Of clusters that follow the original destination: places by address.
    by_address: Option<HashMap<Address, usize>>,
}

/// One endpoint as configured at the moment.
pub struct Host {
    /// What survives configuration updates.
    pub endpoint: Arc<EndpointState>,
    /// Relative share.
    pub weight: u32,
    /// As the registry says.
    pub health: Health,
    /// Instance id.
    pub hostname: String,
    /// Where it is.
    pub locality: Locality,
    /// 0 is used first.
    pub priority: u32,
    /// Since when it is there and well, in clusters with slow start.
    pub(super) well_since: Option<Instant>,
    /// Its cluster asks it whether it is well.
    is_asked: bool,
    pub(super) transport: Arc<Transport>,
}

impl Host {
    /// Whether traffic is sent there in the first place.
    pub fn is_healthy(&self) -> bool {
        self.health.takes_traffic() && !self.is_out()
    }

    /// Whether traffic is sent there when healthy ones do not suffice.
    pub fn is_degraded(&self) -> bool {
        self.health == Health::Stale && !self.is_out()
    }

    /// Whether it did not pass its active health check, or has not been asked yet.
    pub fn fails_check(&self) -> bool {
        self.is_asked && !self.endpoint.checked.is_well()
    }

    /// Whether its first active health check is still to come.
    pub(super) fn awaits_check(&self) -> bool {
        self.is_asked && !self.endpoint.checked.is_known()
    }

    fn is_out(&self) -> bool {
        self.endpoint.is_ejected() || self.fails_check()
    }
}

impl HostSet {
    /// Arranges the addresses of `assignment`; names must have been resolved and are left out.
    pub(super) fn build(cluster: &Cluster, assignment: &LoadAssignment) -> Self {
        let (mut hosts, mut endpoints) = (Vec::new(), Vec::new());
        let mut localities = Vec::with_capacity(assignment.localities.len());
        for group in &assignment.localities {
            let first = hosts.len();
            for endpoint in &group.endpoints {
                let Some(address) = address(&endpoint.address) else { continue };
                endpoints.push(endpoint);
                hosts.push(Host {
                    endpoint: cluster.state.endpoint(&address),
                    weight: endpoint.weight.max(1),
                    health: endpoint.health,
                    hostname: endpoint.hostname.clone(),
                    locality: group.locality.clone(),
                    priority: group.priority,
                    well_since: None,
                    is_asked: cluster.config.health_check.is_some(),
                    transport: transport(cluster, endpoint),
                });
            }
            let members = (first..hosts.len()).filter_map(|at| u32::try_from(at).ok()).collect();
            localities.push(LocalityHosts { weight: group.weight, priority: group.priority, members });
        }
        let config = &cluster.config;
        let overprovisioning =
            if assignment.overprovisioning == 0 { 140 } else { assignment.overprovisioning };
        let now = Instant::now();
        if config.slow_start.is_some() {
            for host in &mut hosts {
                host.well_since = host.endpoint.well_since(host.is_healthy(), now);
            }
        }
        let rules = Rules {
            policy: &config.load_balancing,
            slow_start: config.slow_start,
            now,
            overprovisioning,
            panic_threshold: config.panic_threshold_percent,
        };
        let (mut balance, mut subset_hosts) = (Balance::default(), None);
        if let Some(subsets) = &config.subsets {
            let asked = cluster.selections.all();
            let parts = Parts { rules, hosts: &hosts, endpoints: &endpoints, localities: &localities };
            subset_hosts = Some(SubsetHosts::arrange(subsets, &asked, &parts));
        } else {
            balance = Balance::arrange(rules, &hosts, &localities, 0);
        }
        let by_address = matches!(config.discovery, Discovery::OriginalDst).then(|| {
            hosts.iter().enumerate().map(|(at, host)| (host.endpoint.address.clone(), at)).collect()
        });
        let levels = Counts::by_level(&hosts, &localities);
        Self { levels, hosts, drops: assignment.drops.clone(), balance, subsets: subset_hosts, by_address }
    }

    /// Chooses an endpoint: its place in `hosts`.
    pub(super) fn pick(
        &self,
        state: &ClusterState,
        turns: &mut Turns,
        attempt: &Attempt,
        now: Instant,
    ) -> Result<usize, Cause> {
        if self.drops.iter().any(|(_, share)| share.hits(fastrand::u64(..))) {
            state.stats.upstream_rq_drop_overload.fetch_add(1, Relaxed);
            return Err(Cause::Dropped);
        }
        let avoid = |host: &Host| attempt.has_tried(host.endpoint.id);
        let again = attempt.is_retry();
        let (hash, redraws, level) = (attempt.hash, attempt.redraws, attempt.level);
        let draw = Draw { hash, redraws, level, avoid: &avoid, again, now };
        let choice = match &self.subsets {
            None => self.balance.pick(&self.hosts, turns, &draw),
            Some(subsets) => subsets.pick(attempt.selection, &self.hosts, turns, &draw, &state.stats),
        };
        match choice {
            Some(choice) => {
                if choice.panic {
                    state.stats.lb_healthy_panic.fetch_add(1, Relaxed);
                }
                Ok(choice.at)
            }
            None => Err(Cause::NoHealthyUpstream),
        }
    }

    /// Counts subsets that came and went since `old`.
    pub(super) fn count_subsets(&self, old: &Self, state: &ClusterState) {
        if let Some(subsets) = &self.subsets {
            subsets.count(old.subsets.as_ref(), &state.stats);
        }
    }

    /// The place of an original destination.
    pub(super) fn place_of(&self, address: &Address) -> Option<usize> {
        self.by_address.as_ref()?.get(address).copied()
    }
}

fn address(address: &HostAddress) -> Option<Address> {
    match address {
        HostAddress::Socket(address) => Some(Address::Socket(*address)),
        HostAddress::Pipe(path) => Some(Address::Pipe(path.as_str().into())),
        HostAddress::Name { .. } => None,
    }
}

fn transport(cluster: &Cluster, endpoint: &Endpoint) -> Arc<Transport> {
    let found = cluster.transports.iter().find(|transport| transport.matches(&endpoint.transport));
    Arc::clone(found.expect("the last transport matches every endpoint"))
}
