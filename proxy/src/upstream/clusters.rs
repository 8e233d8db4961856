//! The process-wide set of clusters: applies configuration, keeps state across it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillion_model::cluster::{Cluster as Config, Discovery};
use pillion_model::endpoint::LoadAssignment;
use pillion_model::tls::ROOTS_SECRET;
use pillion_net::resolve::Resolver;
use pillion_net::revoked::Revoked;
use pillion_net::tls::{Secrets, TlsError};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::aggregate;
use super::cluster::Cluster;
use super::control::Control;
use super::dns::Names;
use super::hosts::Host;
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
    /// Peers that are trusted no more; changes only when they do.
    revoked: watch::Sender<Arc<Revoked>>,
    events: mpsc::Sender<outlier::Event>,
    pub(super) names: Arc<dyn Names>,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) clusters: ClusterMap,
    states: HashMap<String, Arc<ClusterState>>,
    /// What each cluster's endpoints were made from, names resolved.
    pub(super) assignments: HashMap<String, LoadAssignment>,
    pub(super) controls: HashMap<String, Control>,
    events: Option<mpsc::Receiver<outlier::Event>>,
}

impl Default for Clusters {
    fn default() -> Self {
        Self::new()
    }
}

impl Clusters {
    /// None yet; names are resolved as the system does.
    pub fn new() -> Self {
        Self::with_names(Arc::new(Resolver::system()))
    }

    /// None yet; names are resolved by `names`.
    pub fn with_names(names: Arc<dyn Names>) -> Self {
        let (events, receiver) = mpsc::channel(OUTLIER_EVENTS_MAX);
        let inner = Inner { events: Some(receiver), ..Inner::default() };
        let (changes, revoked) = (watch::Sender::new(0), watch::Sender::default());
        Self { inner: Mutex::new(inner), changes, revoked, events, names }
    }

    /// Makes `clusters` with `endpoints` (by EDS name) the ones there are. A cluster whose
    /// configuration is as before keeps its handle and its connections.
    pub fn apply(
        &self,
        clusters: &BTreeMap<String, Config>,
        endpoints: &BTreeMap<String, LoadAssignment>,
        secrets: &dyn Secrets,
    ) -> (Arc<ClusterMap>, Vec<Rejected>) {
        let mut inner = self.lock();
        let mut rejected = Vec::new();
        for (name, config) in clusters {
            if let Some(reason) = aggregate::wrong(config, clusters) {
                rejected.push(Rejected { name: name.clone(), reason });
                continue;
            }
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
        inner.controls.retain(|name, _| kept.contains(name));
        for cluster in inner.clusters.values() {
            cluster.gather(&inner.clusters);
        }
        let map = Arc::new(inner.clusters.clone());
        drop(inner);
        self.changes.send_modify(|generation| *generation += 1);
        (map, rejected)
    }

    /// Arranges endpoints for what routes have begun to ask for.
    pub fn settle(&self) {
        let inner = self.lock();
        for (name, cluster) in inner.clusters.iter().filter(|(_, cluster)| cluster.selections.have_grown()) {
            if let Some(assignment) = inner.assignments.get(name) {
                cluster.set_endpoints(assignment);
            }
        }
    }

    /// Takes new secrets: new connections use them, those made with the ones before are drained.
    /// Transports that name none are left alone. A cluster whose secrets have become unusable goes on with the ones before.
    pub fn rotate(&self, secrets: &dyn Secrets) -> Vec<Rejected> {
        if let Some(roots) = secrets.roots(ROOTS_SECRET) {
            self.revoked.send_if_modified(|revoked| {
                let differs = *revoked != *roots.revoked();
                *revoked = Arc::clone(roots.revoked());
                differs
            });
        }
        let inner = self.lock();
        let mut rejected = Vec::new();
        for (name, cluster) in &inner.clusters {
            for transport in cluster.transports.iter().filter(|it| it.names_secrets()) {
                match transport.rebuild(secrets) {
                    // Connections fail until it comes.
                    Ok(()) | Err(TlsError::MissingSecret { .. }) => {}
                    Err(error) => rejected.push(Rejected { name: name.clone(), reason: error.to_string() }),
                }
            }
        }
        drop(inner);
        self.changes.send_modify(|generation| *generation += 1);
        rejected
    }

    /// Peers that are trusted no more, and changes of that.
    pub(crate) fn revoked(&self) -> watch::Receiver<Arc<Revoked>> {
        self.revoked.subscribe()
    }

    /// The clusters of the moment.
    pub fn snapshot(&self) -> Vec<Arc<Cluster>> {
        self.with(|inner| inner.clusters.values().cloned().collect())
    }

    /// Waits until every endpoint that is to be asked whether it is well has been asked once.
    pub async fn first_checks(&self) {
        let awaits = |cluster: &Arc<Cluster>| cluster.hosts().hosts.iter().any(Host::awaits_check);
        while self.with(|inner| inner.clusters.values().any(awaits)) {
            tokio::time::sleep(CHECKS_POLL).await;
        }
    }

    /// Every address of a host outside the configuration; the error is for people.
    pub async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        self.names.addresses(host.to_owned()).await
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.lock())
    }

    pub(super) fn take_events(&self) -> Option<mpsc::Receiver<outlier::Event>> {
        self.with(|inner| inner.events.take())
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
        let cluster = Arc::new(Cluster::new(config.clone(), Arc::clone(state), transports));
        state.outlier.configure(config.outlier_detection.as_ref(), events);
        let control = self.controls.entry(name.to_owned()).or_default();
        control.configure(config, Instant::now());
        if let Some(old) = self.clusters.insert(name.to_owned(), Arc::clone(&cluster)) {
            old.retire();
            if config.outlier_detection.is_none() {
                old.return_ejected();
            }
            // Until told otherwise its endpoints are those it had.
            if std::mem::discriminant(&old.config.discovery) == std::mem::discriminant(&config.discovery)
                && let Some(assignment) = self.assignments.get(name)
            {
                cluster.set_endpoints(assignment);
                return Ok(());
            }
        }
        self.assignments.remove(name);
        Ok(())
    }

    fn assign(&mut self, name: &str, config: &Config, endpoints: &BTreeMap<String, LoadAssignment>) {
        let assignment = match &config.discovery {
            Discovery::Static(assignment) => Some(assignment),
            Discovery::Eds { service_name } => {
                endpoints.get(if service_name.is_empty() { name } else { service_name.as_str() })
            }
            // Found out by the control task, or by the request itself.
            Discovery::StrictDns { .. }
            | Discovery::LogicalDns { .. }
            | Discovery::OriginalDst
            | Discovery::Aggregate(_) => None,
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
/// How often it is looked whether all endpoints have been asked.
const CHECKS_POLL: Duration = Duration::from_millis(10);
