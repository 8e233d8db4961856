//! What a worker reads: listeners, routes and clusters, compiled once and replaced as a whole.
//!
//! Compiling is pure apart from reading certificates: a resource that does not compile is left out
//! and reported by name, the others apply. Listeners, chains and route configurations that did not
//! change keep their compiled form, and with it their connections.

mod filters;
mod hcm;
mod listener;
mod local_replies;
mod routes;

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use pillion_model::listener as model;
use pillion_model::mesh::{MeshService, Resources};
use pillion_model::route::RouteConfiguration;

pub(crate) use filters::{Filter, Overrides, Switches, Work};
pub(crate) use hcm::{Hcm, Routes};
pub(crate) use listener::{Chain, Listener, TcpProxy, Terminal};
pub(crate) use routes::{Action, ClusterRef, ForwardTo, RouteConfig, Routed, Target};

use crate::access_log::Writers;
use crate::metrics::Symbols;
use crate::upstream::{ClusterMap, Clusters};
use pillion_net::tls::Secrets;

/// Everything one generation of configuration holds.
pub(crate) struct Snapshot {
    /// Rises with every publication.
    pub(crate) generation: u64,
    /// By name.
    pub(crate) listeners: HashMap<String, Arc<Listener>>,
    /// Route configurations by name.
    pub(crate) routes: HashMap<String, Arc<RouteConfig>>,
    /// Clusters by name.
    pub(crate) clusters: Arc<ClusterMap>,
    /// Mesh services by every name they are called by.
    pub(crate) services: BTreeMap<String, Arc<MeshService>>,
    /// As given.
    pub(crate) resources: Arc<Resources>,
}

/// A resource that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} `{name}`: {reason}")]
pub struct Rejected {
    /// `listener`, `route configuration`, `cluster`.
    pub kind: &'static str,
    /// The resource's name.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What compiling needs besides the resources.
pub(crate) struct Compiler<'a> {
    pub(crate) clusters: &'a Clusters,
    pub(crate) secrets: Arc<dyn Secrets>,
    /// Rises when the proxy's certificate or the roots change.
    pub(crate) identity_generation: u64,
    pub(crate) symbols: &'a Symbols,
    pub(crate) writers: &'a Writers,
    /// Label of the proxy's own service.
    pub(crate) own_service: &'a str,
}

impl Snapshot {
    /// Nothing yet.
    pub(crate) fn empty() -> Self {
        Self {
            generation: 0,
            listeners: HashMap::new(),
            routes: HashMap::new(),
            clusters: Arc::default(),
            services: BTreeMap::new(),
            resources: Arc::default(),
        }
    }

    /// Compiles `resources` as the successor of `previous`.
    pub(crate) fn compile(
        compiler: &Compiler<'_>,
        resources: Arc<Resources>,
        previous: &Self,
    ) -> (Self, Vec<Rejected>) {
        let mut rejected = Vec::new();
        let (clusters, refused) =
            compiler.clusters.apply(&resources.clusters, &resources.endpoints, &*compiler.secrets);
        rejected.extend(refused.into_iter().map(|refused| Rejected {
            kind: "cluster",
            name: refused.name,
            reason: refused.reason,
        }));
        let mut routes = HashMap::with_capacity(resources.routes.len());
        for (name, configuration) in &resources.routes {
            let old = previous.routes.get(name);
            match RouteConfig::compile(compiler, configuration, &clusters, old) {
                Ok(compiled) => {
                    routes.insert(name.clone(), compiled);
                }
                Err(reason) => {
                    rejected.push(Rejected { kind: "route configuration", name: name.clone(), reason });
                    if let Some(old) = old {
                        routes.insert(name.clone(), Arc::clone(old));
                    }
                }
            }
        }
        let mut listeners = HashMap::with_capacity(resources.listeners.len());
        for (name, listener) in &resources.listeners {
            let old = previous.listeners.get(name);
            match Listener::compile(compiler, listener, &clusters, old) {
                Ok(compiled) => {
                    listeners.insert(name.clone(), compiled);
                }
                Err(reason) => {
                    rejected.push(Rejected { kind: "listener", name: name.clone(), reason });
                    if let Some(old) = old {
                        listeners.insert(name.clone(), Arc::clone(old));
                    }
                }
            }
        }
        compiler.clusters.settle();
        let mut services = BTreeMap::new();
        for (asked, service) in &resources.services {
            let service = Arc::new(service.clone());
            for name in &service.names {
                services.insert(name.clone(), Arc::clone(&service));
            }
            services.insert(asked.clone(), service);
        }
        let generation = previous.generation + 1;
        let snapshot = Self { generation, listeners, routes, clusters, services, resources };
        (snapshot, rejected)
    }

    /// Whether a listener compiles. TLS from secrets is left out: they may come later.
    pub(crate) fn check_listener(
        &self,
        compiler: &Compiler<'_>,
        listener: &model::Listener,
    ) -> Result<(), String> {
        let mut listener = listener.clone();
        for chain in listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain) {
            chain.tls.take_if(|tls| tls.names_secrets());
        }
        let old = self.listeners.get(&listener.name);
        Listener::compile(compiler, &listener, &self.clusters, old).map(drop)
    }

    /// Whether a route configuration compiles.
    pub(crate) fn check_routes(
        &self,
        compiler: &Compiler<'_>,
        routes: &RouteConfiguration,
    ) -> Result<(), String> {
        let old = self.routes.get(&routes.name);
        RouteConfig::compile(compiler, routes, &self.clusters, old).map(drop)
    }
}
