//! The process-wide set of clusters: applies configuration, keeps state across it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use pillion_model::cluster::{Cluster as Config, Discovery};
use pillion_model::endpoint::LoadAssignment;
use pillion_net::tls::Secrets;
use tokio::sync::{mpsc, watch};

use super::cluster::Cluster;
use super::outlier;
use super::state::ClusterState;
use super::tls;

/// Clusters by name, as one configuration has them.
pub type ClusterMap = HashMap<String, Arc<Cluster>>;

/// A cluster that was refused; the one of that name before, if any, stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The cluster's name.
    pub name: String,
    /// What is wrong, with the field.
    pub reason: String,
}

/// All clusters of this process.
pub struct Clusters {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
    events: mpsc::Sender<outlier::Event>,
}

#[derive(Default)]
struct Inner {
    clusters: ClusterMap,
    states: HashMap<String, Arc<ClusterState>>,
    assignments: HashMap<String, LoadAssignment>,
    events: Option<mpsc::Receiver<outlier::Event>>,
}

impl Default for Clusters {
    fn default() -> Self {
        Self::new()
    }
}

impl Clusters {
    /// None yet.
    pub fn new() -> Self {
        let (events, receiver) = mpsc::channel(OUTLIER_EVENTS_MAX);
        let inner = Inner { events: Some(receiver), ..Inner::default() };
        Self { inner: Mutex::new(inner), changes: watch::Sender::new(0), events }
    }

    /// Makes `clusters` with `endpoints` (by EDS name) the ones there are. A cluster whose
    /// configuration is as before keeps its handle and its connections.
    pub fn apply(
        &self,
        clusters: &BTreeMap<String, Config>,
        endpoints: &BTreeMap<String, LoadAssignment>,
        secrets: &dyn Secrets,
    ) -> (Arc<ClusterMap>, Vec<Rejected>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rejected = Vec::new();
        for (name, config) in clusters {
            match inner.compile(name, config, secrets, &self.events) {
                Ok(()) => inner.assign(name, config, endpoints),
                Err(reason) => rejected.push(Rejected { name: name.clone(), reason }),
            }
        }
        let kept: HashSet<&String> = clusters.keys().collect();
        inner.clusters.retain(|name, cluster| {
            let keep = kept.contains(name);
            if !keep {
                cluster.retire();
            }
            keep
        });
        inner.states.retain(|name, _| kept.contains(name));
        inner.assignments.retain(|name, _| kept.contains(name));
        let map = Arc::new(inner.clusters.clone());
        drop(inner);
        self.changes.send_modify(|generation| *generation += 1);
        (map, rejected)
    }

    /// Takes new secrets: new connections use them, those made with the ones before are drained.
    /// A cluster whose secrets have become unusable goes on with the ones before.
    pub fn rotate(&self, secrets: &dyn Secrets) -> Vec<Rejected> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rejected = Vec::new();
        for (name, cluster) in &inner.clusters {
            for transport in &cluster.transports {
                if let Err(error) = transport.rebuild(secrets) {
                    rejected.push(Rejected { name: name.clone(), reason: error.to_string() });
                }
            }
        }
        drop(inner);
        self.changes.send_modify(|generation| *generation += 1);
        rejected
    }

    /// Changes whenever pools may have something to drain.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Inner {
    /// Makes the handle of `name` if there is none for this configuration.
    fn compile(
        &mut self,
        name: &str,
        config: &Config,
        secrets: &dyn Secrets,
        events: &mpsc::Sender<outlier::Event>,
    ) -> Result<(), String> {
        if self.clusters.get(name).is_some_and(|cluster| cluster.config == *config) {
            return Ok(());
        }
        let transports = tls::compile(config, secrets)?;
        let state = self.states.entry(name.to_owned()).or_insert_with(|| Arc::new(ClusterState::new(name)));
        let cluster = Cluster::new(config.clone(), Arc::clone(state), transports);
        state.outlier.configure(config.outlier_detection.as_ref(), events);
        if let Some(old) = self.clusters.insert(name.to_owned(), Arc::new(cluster)) {
            old.retire();
        }
        self.assignments.remove(name);
        Ok(())
    }

    fn assign(&mut self, name: &str, config: &Config, endpoints: &BTreeMap<String, LoadAssignment>) {
        let assignment = match &config.discovery {
            Discovery::Static(assignment)
            | Discovery::StrictDns { assignment, .. }
            | Discovery::LogicalDns { assignment, .. } => Some(assignment),
            Discovery::Eds { service_name } => {
                endpoints.get(if service_name.is_empty() { name } else { service_name.as_str() })
            }
            Discovery::OriginalDst => None,
        };
        // Endpoints not told yet, or not told any more: the last ones stay.
        let Some(assignment) = assignment else { return };
        if self.assignments.get(name) == Some(assignment) {
            return;
        }
        self.clusters[name].set_endpoints(assignment);
        self.assignments.insert(name.to_owned(), assignment.clone());
    }
}

/// Detections waiting for the control task; further ones are dropped and found again.
const OUTLIER_EVENTS_MAX: usize = 1024;
