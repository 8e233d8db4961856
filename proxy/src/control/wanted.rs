//! Which resources follow from which: the subscriptions that a set of services needs.

use std::collections::BTreeSet;

use pillion_model::cluster::{Cluster, Discovery};
use pillion_model::http::RouteSource;
use pillion_model::listener::{Listener, Terminal};
use pillion_model::mesh::MeshService;
use pillion_model::route::{ClusterChoice, RouteAction, RouteConfiguration};

/// Names to subscribe to beside the wildcards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) routes: BTreeSet<String>,
    pub(super) clusters: BTreeSet<String>,
    pub(super) endpoints: BTreeSet<String>,
}

/// The route configurations of a service.
pub(super) fn routes_of_service(service: &MeshService) -> impl Iterator<Item = &String> {
    service.ports.iter().map(|port| &port.route_configuration).filter(|name| !name.is_empty())
}

/// The clusters of a service.
pub(super) fn clusters_of_service(service: &MeshService) -> impl Iterator<Item = &String> {
    service.ports.iter().flat_map(|port| &port.clusters)
}

/// The route configurations that a listener asks for by name.
pub(super) fn routes_of_listener(listener: &Listener) -> impl Iterator<Item = &String> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains.filter_map(|chain| match &chain.terminal {
        Terminal::Http(manager) => match &manager.routes {
            RouteSource::Rds(name) => Some(name),
            RouteSource::Inline(_) => None,
        },
        Terminal::Tcp(_) => None,
    })
}

/// The clusters that routes name.
pub(crate) fn clusters_of_routes(routes: &RouteConfiguration) -> impl Iterator<Item = &str> {
    let actions = routes.virtual_hosts.iter().flat_map(|host| &host.routes).map(|route| &route.action);
    let forwards = actions.filter_map(|action| match action {
        RouteAction::Forward(forward) => Some(forward),
        _ => None,
    });
    forwards.flat_map(|forward| {
        let chosen: Vec<&str> = match &forward.to {
            ClusterChoice::Cluster(name) => vec![name],
            ClusterChoice::Weighted(clusters) => clusters.iter().map(|it| it.cluster.as_str()).collect(),
            ClusterChoice::Header(_) => Vec::new(),
        };
        chosen.into_iter().chain(forward.mirrors.iter().map(|mirror| mirror.cluster.as_str()))
    })
}

/// The endpoints that a cluster asks for by name.
pub(super) fn endpoints_of(cluster: &Cluster) -> Option<&str> {
    match &cluster.discovery {
        Discovery::Eds { service_name } if service_name.is_empty() => Some(&cluster.name),
        Discovery::Eds { service_name } => Some(service_name),
        _ => None,
    }
}
