//! Small resources, and their form as text: `web` is a service whose route configuration `r-web`
//! names the cluster `c-web`.

use std::collections::BTreeMap;
use std::time::Duration;

use pillion_model::cluster::{CircuitBreakers, Cluster, Discovery, LoadBalancing, UpstreamProtocol};
use pillion_model::endpoint::LoadAssignment;
use pillion_model::instance::Protocol;
use pillion_model::listener::{Direction, Listener};
use pillion_model::mesh::{MeshPort, MeshService};
use pillion_model::name::ServiceName;
use pillion_model::route::{
    FilterOverrides, Forward, HeaderChanges, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use pillion_xds::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SERVICE};

use crate::control::state::Item;

/// Reads the text form: of a listener, cluster or assignment nothing, of routes the clusters, of
/// a service `<route configuration> <cluster> …`. `bad` is refused.
pub(in crate::control) fn read(type_url: &str, name: &str, body: &[u8]) -> Result<Item, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let words: Vec<&str> = text.split_whitespace().collect();
    match type_url {
        _ if text == "bad" => Err("port: got 0, want 1 to 65535".into()),
        LISTENER => Ok(Item::Listener(Box::new(listener(name)))),
        CLUSTER => Ok(Item::Cluster(Box::new(cluster(name)))),
        ENDPOINTS => Ok(Item::Endpoints(endpoints(name))),
        ROUTE => Ok(Item::Routes(routes(name, &words))),
        SERVICE => Ok(Item::Service(service(words[0], &words[1..]))),
        _ => Err(format!("unknown type {type_url}")),
    }
}

pub(in crate::control) fn listener(name: &str) -> Listener {
    Listener {
        name: name.into(),
        address: Some(([0, 0, 0, 0], 15006).into()),
        direction: Direction::Inbound,
        proxy_protocol: None,
        tls_inspector: true,
        original_dst: false,
        listener_filters_timeout: Duration::from_secs(15),
        filter_chains: Vec::new(),
        default_filter_chain: None,
        access_logs: Vec::new(),
        api_listener: None,
    }
}

/// EDS, unless its name begins with `inbound`.
pub(in crate::control) fn cluster(name: &str) -> Cluster {
    let discovery = if name.starts_with("inbound") {
        Discovery::Static(endpoints(name))
    } else {
        Discovery::Eds { service_name: String::new() }
    };
    Cluster {
        name: name.into(),
        discovery,
        connect_timeout: Duration::from_secs(5),
        load_balancing: LoadBalancing::default(),
        slow_start: None,
        subsets: None,
        limits: CircuitBreakers::default(),
        limits_high: CircuitBreakers::default(),
        outlier_detection: None,
        health_check: None,
        panic_threshold_percent: 50,
        protocol: UpstreamProtocol::Http1,
        idle_timeout: None,
        requests_per_connection_max: 0,
        tls: None,
        transports: Vec::new(),
        destination: None,
    }
}

pub(in crate::control) fn endpoints(name: &str) -> LoadAssignment {
    LoadAssignment { cluster: name.into(), localities: Vec::new(), drops: Vec::new(), overprovisioning: 140 }
}

pub(in crate::control) fn routes(name: &str, clusters: &[&str]) -> RouteConfiguration {
    let route = |cluster: &&str| Route {
        name: String::new(),
        matches: RouteMatch::default(),
        action: RouteAction::Forward(Box::new(Forward::to(*cluster))),
        headers: HeaderChanges::default(),
        filters: FilterOverrides::default(),
    };
    let host = VirtualHost {
        routes: clusters.iter().map(route).collect(),
        domains: vec!["*".into()],
        name: name.into(),
        ..VirtualHost::default()
    };
    RouteConfiguration { name: name.into(), virtual_hosts: vec![host], ..RouteConfiguration::default() }
}

pub(in crate::control) fn service(route_configuration: &str, clusters: &[&str]) -> MeshService {
    let port = MeshPort {
        name: "http".into(),
        port: 80,
        protocol: Protocol::Http,
        route_configuration: route_configuration.into(),
        clusters: clusters.iter().map(|name| (*name).to_owned()).collect(),
    };
    MeshService {
        service: ServiceName::new("shop", "web").expect("a name"),
        names: vec!["web.shop.mesh.internal".into()],
        index: 1,
        ports: vec![port],
    }
}

/// The resources of the services `names`, as texts, and the proxy's own.
pub(in crate::control) fn mesh(names: &[&str]) -> BTreeMap<(String, String), String> {
    let own = [(LISTENER, "inbound", ""), (CLUSTER, "inbound|http", "")];
    let mut all: BTreeMap<_, _> = own
        .iter()
        .map(|(url, name, text)| (((*url).to_owned(), (*name).to_owned()), (*text).to_owned()))
        .collect();
    for name in names {
        let (routes, cluster) = (format!("r-{name}"), format!("c-{name}"));
        all.insert((SERVICE.into(), (*name).into()), format!("{routes} {cluster}"));
        all.insert((ROUTE.into(), routes), cluster.clone());
        all.insert((CLUSTER.into(), cluster.clone()), String::new());
        all.insert((ENDPOINTS.into(), cluster), String::new());
    }
    all
}
