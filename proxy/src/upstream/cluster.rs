//! One cluster as the request path holds it.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use pillion_model::cluster::{CircuitBreakers, Cluster as Config, Discovery};
use pillion_model::endpoint::{Endpoint, HostAddress, LoadAssignment, LocalityEndpoints};
use pillion_model::health::Health;
use pillion_model::metadata::Fields;
use pillion_model::retry;

use super::clusters::ClusterMap;
use super::hosts::HostSet;
use super::state::{ClusterState, Priority, next_id};
use super::subset::{Selection, Selections};
use super::tls::Transport;

/// A cluster under one configuration. Routes hold it by `Arc`; endpoints are swapped inside.
pub struct Cluster {
    /// Unique in the process, another one for each configuration.
    pub(super) id: u64,
    /// What it was made from.
    pub config: Config,
    /// What outlives this configuration.
    pub state: Arc<ClusterState>,
    /// In order of choice; the last one matches every endpoint.
    pub(super) transports: Vec<Arc<Transport>>,
    /// What routes ask for, in clusters with subsets.
    pub(super) selections: Selections,
    /// Of an aggregate: its clusters, as far as they exist.
    members: Option<Box<ArcSwap<Vec<Arc<Self>>>>>,
    hosts: ArcSwap<HostSet>,
    version: AtomicU64,
    retired: AtomicBool,
    /// Of a cluster that follows original destinations: those met, oldest first.
    destinations: Mutex<VecDeque<SocketAddr>>,
}

impl Cluster {
    pub(super) fn new(config: Config, state: Arc<ClusterState>, transports: Vec<Arc<Transport>>) -> Self {
        let is_aggregate = matches!(config.discovery, Discovery::Aggregate(_));
        Self {
            members: is_aggregate.then(Box::default),
            id: next_id(),
            config,
            state,
            transports,
            selections: Selections::default(),
            hosts: ArcSwap::from_pointee(HostSet::default()),
            version: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            destinations: Mutex::default(),
        }
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The limits at `priority`.
    pub fn limits(&self, priority: Priority) -> &CircuitBreakers {
        match priority {
            Priority::Default => &self.config.limits,
            Priority::High => &self.config.limits_high,
        }
    }

    /// What routes that ask for endpoints with these labels have to say when they send. One that is
    /// new is in force after [`Clusters::settle`](super::Clusters::settle).
    pub fn select(&self, labels: &Fields) -> Selection {
        if self.config.subsets.is_none() { Selection::default() } else { self.selections.add(labels) }
    }

    /// As [`Self::select`], for labels that were selected before.
    pub fn selection(&self, labels: &Fields) -> Selection {
        self.selections.find(labels).unwrap_or_default()
    }

    /// Whether it is made of other clusters.
    pub(crate) fn is_aggregate(&self) -> bool {
        self.members.is_some()
    }

    /// Of an aggregate: its clusters, as far as they exist.
    pub(super) fn members(&self) -> Option<Arc<Vec<Arc<Self>>>> {
        self.members.as_ref().map(|members| members.load_full())
    }

    /// Finds the clusters of an aggregate.
    pub(super) fn gather(&self, all: &ClusterMap) {
        if let (Some(members), Discovery::Aggregate(names)) = (&self.members, &self.config.discovery) {
            members.store(Arc::new(names.iter().filter_map(|name| all.get(name)).cloned().collect()));
        }
    }

    /// The present endpoints.
    pub fn hosts(&self) -> Arc<HostSet> {
        self.hosts.load_full()
    }

    /// Changes with every new set of endpoints.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Puts the endpoints of `assignment` in place; addresses only, names must have been resolved.
    pub(super) fn set_endpoints(&self, assignment: &LoadAssignment) {
        let old = self.hosts.load_full();
        let new = HostSet::build(self, assignment);
        let present: HashSet<u64> = new.hosts.iter().map(|host| host.endpoint.id).collect();
        let mut changed = old.hosts.len() != new.hosts.len();
        for host in &new.hosts {
            host.endpoint.removed.store(false, Ordering::Relaxed);
        }
        for host in old.hosts.iter().filter(|host| !present.contains(&host.endpoint.id)) {
            host.endpoint.removed.store(true, Ordering::Relaxed);
            changed = true;
        }
        if changed {
            self.state.stats.membership_change.fetch_add(1, Ordering::Relaxed);
        }
        new.count_subsets(&old, &self.state);
        self.hosts.store(Arc::new(new));
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Makes an original destination an endpoint; the oldest one leaves when there are too many.
    pub(super) fn admit_destination(&self, address: SocketAddr) {
        let mut known = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&address) {
            return;
        }
        if known.len() >= DESTINATIONS_MAX {
            known.pop_front();
        }
        known.push_back(address);
        let endpoints = known.iter().map(|&address| Endpoint {
            address: HostAddress::Socket(address),
            hostname: String::new(),
            weight: 1,
            health: Health::Serving,
            labels: Arc::default(),
            other_labels: Default::default(),
            transport: Arc::default(),
        });
        let locality = LocalityEndpoints { endpoints: endpoints.collect(), ..LocalityEndpoints::default() };
        self.set_endpoints(&LoadAssignment { localities: vec![locality], ..LoadAssignment::default() });
    }

    /// Without detection nobody would ever return.
    pub(super) fn return_ejected(&self) {
        for host in &self.hosts.load().hosts {
            host.endpoint.outlier.return_to_service();
        }
    }

    /// No longer in the configuration: its pools are drained.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// Takes a place among the retries in flight, if there is one: under a budget its share of
    /// active and pending requests, else `max_retries`.
    ///
    /// A budget keeps retries from adding load to a service that has too much. A try that `reached`
    /// no upstream has added none, and whoever waited for the same dead endpoint fails at the same
    /// moment: under a budget, another try of theirs takes no place.
    pub fn retry_permit(self: &Arc<Self>, priority: Priority, reached: bool) -> Option<RetryPermit> {
        let limits = self.limits(priority);
        let max = match limits.retry_budget {
            Some(_) if !reached => return Some(RetryPermit(None)),
            Some(budget) => retry::budget_limit(budget, self.state.active_and_pending()),
            None => u64::from(limits.retries_max),
        };
        let retries = &self.state.usage(priority).retries;
        if u64::from(retries.fetch_add(1, Ordering::Relaxed)) >= max {
            retries.fetch_sub(1, Ordering::Relaxed);
            self.state.stats.upstream_rq_retry_overflow.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(RetryPermit(Some((Arc::clone(&self.state), priority))))
    }
}

/// A place among the retries in flight, if it takes one, until dropped.
pub struct RetryPermit(Option<(Arc<ClusterState>, Priority)>);

impl Drop for RetryPermit {
    fn drop(&mut self) {
        if let Some((state, priority)) = &self.0 {
            state.usage(*priority).retries.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Original destinations of one cluster known at once.
const DESTINATIONS_MAX: usize = 1024;

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cluster").field(&self.state.name).finish()
    }
}
