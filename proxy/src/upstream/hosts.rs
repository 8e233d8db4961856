//! The endpoints of a cluster at one moment, arranged for choosing.

use std::sync::Arc;

use pillion_model::endpoint::{Endpoint, Fraction, HostAddress, LoadAssignment, Locality};
use pillion_model::health::Health;

use tokio::time::Instant;

use super::cluster::Cluster;
use super::send::Attempt;
use super::state::{Address, EndpointState};
use super::tls::Transport;

/// All endpoints of a cluster, and how load is shared among them. Never changed, only replaced.
#[derive(Default)]
pub struct HostSet {
    /// Every endpoint, whatever its health.
    pub hosts: Vec<Host>,
    /// Share of requests to drop, per category.
    pub drops: Vec<(String, Fraction)>,
    pub(super) usable: Vec<u32>,
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
    pub(super) transport: Arc<Transport>,
}

impl HostSet {
    pub(super) fn build(cluster: &Cluster, assignment: &LoadAssignment) -> Self {
        let hosts: Vec<Host> = assignment
            .localities
            .iter()
            .flat_map(|group| group.endpoints.iter().map(move |endpoint| (group, endpoint)))
            .filter_map(|(group, endpoint)| {
                let address = address(&endpoint.address)?;
                Some(Host {
                    endpoint: cluster.state.endpoint(&address),
                    weight: endpoint.weight.max(1),
                    health: endpoint.health,
                    hostname: endpoint.hostname.clone(),
                    locality: group.locality.clone(),
                    priority: group.priority,
                    transport: transport(cluster, endpoint),
                })
            })
            .collect();
        let usable = (0_u32..)
            .zip(&hosts)
            .filter(|(_, host)| host.health.takes_traffic() && !host.endpoint.is_ejected())
            .map(|(at, _)| at)
            .collect();
        Self { hosts, drops: assignment.drops.clone(), usable }
    }

    /// Chooses an endpoint: its place in `hosts`.
    pub(super) fn pick(&self, attempt: &Attempt, now: Instant) -> Option<usize> {
        let draw = || self.usable.get(fastrand::usize(..self.usable.len().max(1))).map(|&at| at as usize);
        let (one, other) = (draw()?, draw()?);
        let cost = |at: usize| {
            let endpoint = &self.hosts[at].endpoint;
            endpoint.ewma.cost(endpoint.active(), now)
        };
        let _ = attempt;
        Some(if cost(other) < cost(one) { other } else { one })
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.hosts.iter().any(|host| host.endpoint.id == id)
    }

    pub(super) fn is_other_membership(&self, other: &Self) -> bool {
        self.hosts.len() != other.hosts.len()
            || !self.hosts.iter().all(|host| other.contains(host.endpoint.id))
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
