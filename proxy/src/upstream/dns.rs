//! Clusters whose endpoints are names: what to resolve, and endpoints from what was resolved.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use pillion_model::cluster::Discovery;
use pillion_model::endpoint::{Endpoint, HostAddress, LoadAssignment};
use pillion_net::resolve::Resolver;
use tokio::time::Instant;

use super::state::next_id;

/// Turns names into addresses.
pub trait Names: Send + Sync + 'static {
    /// Every address of `host`, in order of preference; the error is for people.
    fn addresses(
        &self,
        host: String,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, String>> + Send + '_>>;
}

impl Names for Resolver {
    fn addresses(
        &self,
        host: String,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, String>> + Send + '_>> {
        Box::pin(async move { Self::addresses(self, &host).await.map_err(|error| error.to_string()) })
    }
}

/// The names of one cluster and their last good addresses.
pub(super) struct DnsCluster {
    /// Tells answers for this configuration from those for the one before.
    pub(super) id: u64,
    assignment: LoadAssignment,
    choice: Choice,
    refresh: Duration,
    /// When names are to be resolved; `None` while they are being resolved.
    pub(super) due: Option<Instant>,
    answers: HashMap<String, Vec<IpAddr>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// Every address is an endpoint.
    All,
    /// The first one; while it is still among the answers, the one before stays.
    One,
}

impl DnsCluster {
    /// `None` if the cluster's endpoints are no names.
    pub(super) fn new(discovery: &Discovery, now: Instant) -> Option<Self> {
        let (assignment, refresh, choice) = match discovery {
            Discovery::StrictDns { assignment, refresh } => (assignment, refresh, Choice::All),
            Discovery::LogicalDns { assignment, refresh } => (assignment, refresh, Choice::One),
            Discovery::Static(_)
            | Discovery::Eds { .. }
            | Discovery::OriginalDst
            | Discovery::Aggregate(_) => return None,
        };
        let refresh = (*refresh).max(REFRESH_MIN);
        let (id, assignment) = (next_id(), assignment.clone());
        Some(Self { id, assignment, choice, refresh, due: Some(now), answers: HashMap::new() })
    }

    /// The names to resolve.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.endpoints().filter_map(|endpoint| name_of(endpoint).map(|(host, _)| host.to_owned())).collect()
    }

    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.assignment.localities.iter().flat_map(|group| &group.endpoints)
    }

    /// Takes what was found; a name that failed keeps its last good addresses.
    pub(super) fn take(&mut self, found: Vec<(String, Result<Vec<IpAddr>, String>)>, now: Instant) {
        self.due = Some(now + self.refresh);
        for (host, answer) in found {
            match answer {
                Ok(addresses) if !addresses.is_empty() => self.note(host, addresses),
                Ok(_) => tracing::warn!(%host, "the name has no address, keeping the last ones"),
                Err(error) => tracing::warn!(%host, %error, "cannot resolve, keeping the last addresses"),
            }
        }
    }

    fn note(&mut self, host: String, mut addresses: Vec<IpAddr>) {
        if self.choice == Choice::One {
            let present = self.answers.get(&host).and_then(|present| present.first().copied());
            let keep = present.filter(|present| addresses.contains(present));
            addresses = vec![keep.unwrap_or(addresses[0])];
        }
        addresses.sort_unstable();
        addresses.dedup();
        self.answers.insert(host, addresses);
    }

    /// The endpoints as addresses.
    pub(super) fn resolved(&self) -> LoadAssignment {
        let mut resolved = self.assignment.clone();
        for group in &mut resolved.localities {
            group.endpoints = std::mem::take(&mut group.endpoints)
                .into_iter()
                .flat_map(|endpoint| self.expand(endpoint))
                .collect();
        }
        resolved
    }

    fn expand(&self, endpoint: Endpoint) -> Vec<Endpoint> {
        let Some((host, port)) = name_of(&endpoint) else { return vec![endpoint] };
        let addresses = self.answers.get(host).map(Vec::as_slice).unwrap_or_default();
        let hostname = if endpoint.hostname.is_empty() { host.to_owned() } else { endpoint.hostname.clone() };
        let at = |ip: &IpAddr| Endpoint {
            address: HostAddress::Socket(SocketAddr::new(*ip, port)),
            hostname: hostname.clone(),
            ..endpoint.clone()
        };
        addresses.iter().map(at).collect()
    }
}

fn name_of(endpoint: &Endpoint) -> Option<(&str, u16)> {
    match &endpoint.address {
        HostAddress::Name { host, port } => Some((host, *port)),
        HostAddress::Socket(_) | HostAddress::Pipe(_) => None,
    }
}

/// Names are not resolved more often, whatever the configuration says.
const REFRESH_MIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::tests::support::{assignment, endpoint};

    fn cluster(logical: bool) -> DnsCluster {
        let mut assignment = assignment(&[]);
        let mut named = endpoint("0.0.0.0:1".parse().unwrap());
        named.address = HostAddress::Name { host: "db.test".to_owned(), port: 5432 };
        assignment.localities[0].endpoints.push(named);
        let refresh = Duration::from_secs(5);
        let discovery = if logical {
            Discovery::LogicalDns { assignment, refresh }
        } else {
            Discovery::StrictDns { assignment, refresh }
        };
        DnsCluster::new(&discovery, Instant::now()).unwrap()
    }

    fn answer(cluster: &mut DnsCluster, addresses: Result<&[u8], &str>) -> Vec<String> {
        let addresses = addresses
            .map(|list| list.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect())
            .map_err(str::to_owned);
        cluster.take(vec![("db.test".to_owned(), addresses)], Instant::now());
        let resolved = cluster.resolved();
        resolved.localities[0]
            .endpoints
            .iter()
            .map(|endpoint| match &endpoint.address {
                HostAddress::Socket(address) => address.to_string(),
                other => panic!("{other:?} is not resolved"),
            })
            .collect()
    }

    #[tokio::test]
    async fn strict_clusters_have_every_address_and_keep_the_last_good_ones() {
        let mut cluster = cluster(false);
        assert_eq!(cluster.resolved().localities[0].endpoints, []);
        let both = ["10.0.0.1:5432", "10.0.0.2:5432"];
        assert_eq!(answer(&mut cluster, Ok(&[2, 1])), both);
        assert_eq!(answer(&mut cluster, Err("SERVFAIL")), both);
        assert_eq!(answer(&mut cluster, Ok(&[])), both);
        assert_eq!(answer(&mut cluster, Ok(&[3])), ["10.0.0.3:5432"]);
    }

    #[tokio::test]
    async fn logical_clusters_have_one_address_that_stays_while_it_is_answered() {
        let mut cluster = cluster(true);
        assert_eq!(answer(&mut cluster, Ok(&[2, 1])), ["10.0.0.2:5432"]);
        assert_eq!(answer(&mut cluster, Ok(&[1, 2])), ["10.0.0.2:5432"]);
        assert_eq!(answer(&mut cluster, Ok(&[1, 3])), ["10.0.0.1:5432"]);
    }
}
