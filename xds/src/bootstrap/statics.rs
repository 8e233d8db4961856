//! Everything a proxy runs, as one static Envoy bootstrap.

use pillion_model::cluster::{Cluster, Discovery};
use pillion_model::endpoint::LoadAssignment;
use pillion_model::http::{HttpConnectionManager, RouteSource};
use pillion_model::listener::{FilterChain, Listener, Terminal};
use pillion_model::mesh::Resources;
use pillion_model::route::RouteConfiguration;
use prost::Name;
use serde_json::Value;

use crate::encode::{self, Dialect, EnvoyOptions};
use crate::json::{JsonError, message_to_json};
use crate::pb;

/// Everything of `resources` in Envoy's dialect, routes and endpoints put into the listeners and
/// clusters that name them: what `envoy --mode validate` can judge.
///
/// A name without its resource becomes an empty one, as it is for an Envoy that waits for it.
///
/// # Errors
///
/// Envoy's API has no JSON form of a part: none that the encoder makes.
pub fn to_static_bootstrap(resources: &Resources, options: &EnvoyOptions) -> Result<Value, JsonError> {
    let dialect = Dialect::Envoy(options);
    let listeners = resources.listeners.values().filter(|listener| listener.address.is_some());
    let message = pb::bootstrap::Bootstrap {
        node: Some(pb::core::Node {
            id: "static".to_owned(),
            cluster: "static".to_owned(),
            ..Default::default()
        }),
        static_resources: Some(pb::bootstrap::bootstrap::StaticResources {
            listeners: listeners
                .map(|listener| encode::messages::listener(&inline_routes(listener, resources), dialect))
                .collect(),
            clusters: resources
                .clusters
                .values()
                .map(|cluster| encode::messages::cluster(&inline_endpoints(cluster, resources), dialect))
                .collect(),
            secrets: Vec::new(),
        }),
        ..Default::default()
    };
    message_to_json(&pb::bootstrap::Bootstrap::full_name(), &encode::bytes(&message))
}

fn inline_routes(listener: &Listener, resources: &Resources) -> Listener {
    let mut listener = listener.clone();
    let chains = listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain);
    for FilterChain { terminal, .. } in chains {
        if let Terminal::Http(http) = terminal {
            inline(http, resources);
        }
    }
    listener
}

fn inline(http: &mut HttpConnectionManager, resources: &Resources) {
    if let RouteSource::Rds(name) = &http.routes {
        let routes = resources.routes.get(name).cloned();
        let empty = || RouteConfiguration { name: name.clone(), ..RouteConfiguration::default() };
        http.routes = RouteSource::Inline(routes.unwrap_or_else(empty));
    }
}

fn inline_endpoints(cluster: &Cluster, resources: &Resources) -> Cluster {
    let mut cluster = cluster.clone();
    if let Discovery::Eds { service_name } = &cluster.discovery {
        let name = if service_name.is_empty() { &cluster.name } else { service_name };
        let empty =
            || LoadAssignment { cluster: name.clone(), overprovisioning: 140, ..LoadAssignment::default() };
        cluster.discovery = Discovery::Static(resources.endpoints.get(name).cloned().unwrap_or_else(empty));
    }
    cluster
}
