//! A service as gRPC clients and servers without a proxy run it: what their xDS understands, and no more.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use pillion_config::service::Mtls;
use pillion_model::cluster::{Cluster, Discovery};
use pillion_model::endpoint::{LoadAssignment, LocalityEndpoints, TRANSPORT_MTLS};
use pillion_model::http::{FaultPolicy, HttpConnectionManager, HttpFilter, RouteSource};
use pillion_model::instance::{Instance, Protocol};
use pillion_model::listener::{Direction, FilterChain, FilterChainMatch, Listener, Terminal};
use pillion_model::matcher::{HeaderMatcher, HeaderValueMatch, Regex};
use pillion_model::mesh::MeshPort;
use pillion_model::name::ServiceName;
use pillion_model::route::{
    FilterOverrides, HeaderChanges, PathMatch, Route, RouteAction, RouteConfiguration, RouteMatch,
    VirtualHost,
};
use pillion_net::tls::mesh_server_context;

use super::inbound::InboundPort;
use super::route::literal;
use super::{MeshModel, ServiceModel};

/// Which credentials an application gives its channels and servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GrpcCredentials {
    /// Those that xDS describes: mutual TLS where the service wants it.
    #[default]
    Xds,
    /// None: whatever xDS says, bytes travel in plaintext.
    Plaintext,
}

/// What `xds:///<name>` leads to: `orders.shop`, any other name of the service, each also with a port.
/// Without one it is the first port for gRPC, else 80, else the first that carries requests.
///
/// `None`: no such service or port, or one outside the mesh, for whose endpoints gRPC has no type.
pub fn grpc_listener(model: &MeshModel, name: &str) -> Option<Listener> {
    let (host, number) = grpc_target(name);
    let service = grpc_service(model, host)?;
    if service.endpoints.is_empty() || service.is_imported() {
        return None;
    }
    let ports = || service.service.ports.iter().filter(|port| port.protocol.is_http());
    let port = match number {
        Some(number) => ports().find(|port| port.port == number),
        None => ports()
            .find(|port| port.protocol == Protocol::Grpc)
            .or_else(|| ports().find(|port| port.port == 80))
            .or_else(|| ports().next()),
    };
    Some(api_listener(name, port?))
}

/// Host and port of a target.
pub fn grpc_target(name: &str) -> (&str, Option<u16>) {
    match name.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (name, None),
        },
        None => (name, None),
    }
}

fn grpc_service<'a>(model: &'a MeshModel, host: &str) -> Option<&'a ServiceModel> {
    let host = host.to_ascii_lowercase();
    let named = model.names.get(&host).cloned().or_else(|| host.parse::<ServiceName>().ok())?;
    model.services.get(&named).map(|service| &**service)
}

fn api_listener(name: &str, port: &MeshPort) -> Listener {
    let default = HttpConnectionManager::new(name, RouteSource::Rds(port.route_configuration.clone()));
    let faults = HttpFilter::Fault(FaultPolicy::default());
    let manager = HttpConnectionManager {
        filters: std::iter::once(faults).chain(default.filters.clone()).collect(),
        ..default
    };
    Listener { api_listener: Some(Box::new(manager)), ..listener(name, Direction::Outbound) }
}

fn listener(name: &str, direction: Direction) -> Listener {
    Listener {
        name: name.to_owned(),
        address: None,
        direction,
        proxy_protocol: None,
        tls_inspector: false,
        original_dst: false,
        listener_filters_timeout: Duration::from_secs(15),
        filter_chains: Vec::new(),
        default_filter_chain: None,
        access_logs: Vec::new(),
        api_listener: None,
    }
}

/// The service's routes. Calls of gRPC are POSTs without a query: what wants anything else is left out.
pub fn grpc_routes(service: &ServiceModel) -> Vec<RouteConfiguration> {
    let mut all = service.routes.clone();
    for host in all.iter_mut().flat_map(|routes| &mut routes.virtual_hosts) {
        host.routes.retain_mut(|route| can_match(&mut route.matches));
    }
    all
}

/// Whether a call may match; what every call meets is no condition any more.
fn can_match(matches: &mut RouteMatch) -> bool {
    if let PathMatch::SegmentPrefix(path) = &matches.path {
        // gRPC has no prefixes that end at a segment.
        match Regex::new(&format!("{}(/.*)?", literal(path))) {
            Ok(regex) => matches.path = PathMatch::Regex(regex),
            Err(_) => return false, // too large for a proxy, too
        }
    }
    let is_post = |header: &HeaderMatcher| match &header.value {
        HeaderValueMatch::Text(text) => text.is_match("POST") != header.invert,
        HeaderValueMatch::Present(present) => *present != header.invert,
        HeaderValueMatch::Range { .. } => header.invert,
    };
    let (method, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut matches.headers).into_iter().partition(|header| header.name == ":method");
    matches.headers = others;
    matches.query.is_empty() && method.iter().all(is_post)
}

/// The service's clusters. gRPC has one transport for all endpoints of a cluster.
pub fn grpc_clusters(service: &ServiceModel, credentials: GrpcCredentials) -> Vec<Cluster> {
    let ours = service.clusters.iter().filter(|_| !service.is_imported());
    let meshed = ours.filter(|cluster| matches!(cluster.discovery, Discovery::Eds { .. }));
    let one = |cluster: &Cluster| {
        let mut transports = cluster.transports.iter();
        let secure = cluster.tls.clone().or_else(|| transports.find_map(|transport| transport.tls.clone()));
        let tls = secure.filter(|_| credentials == GrpcCredentials::Xds);
        Cluster { tls, transports: Vec::new(), ..cluster.clone() }
    };
    meshed.map(one).collect()
}

/// The endpoints of these clusters: those that the credentials fit, each address once.
pub fn grpc_endpoints(service: &ServiceModel, credentials: GrpcCredentials) -> Vec<LoadAssignment> {
    let cluster_of = |assignment: &LoadAssignment| {
        service.clusters.iter().find(|cluster| cluster.name == assignment.cluster)
    };
    let one = |assignment: &LoadAssignment| {
        let cluster = cluster_of(assignment);
        let permits_mtls =
            cluster.is_some_and(|cluster| cluster.tls.is_some() || !cluster.transports.is_empty());
        let demands_mtls = cluster.is_none_or(|cluster| cluster.tls.is_some());
        let mut seen = BTreeSet::new();
        let mut group = |group: &LocalityEndpoints| {
            let mut group = group.clone();
            group.endpoints.retain(|endpoint| {
                let is_meshed = endpoint.transport.contains_key(TRANSPORT_MTLS.0);
                let fits = match credentials {
                    GrpcCredentials::Xds => is_meshed == permits_mtls,
                    GrpcCredentials::Plaintext => !is_meshed && !demands_mtls,
                };
                fits && seen.insert(endpoint.address.clone())
            });
            (!group.endpoints.is_empty()).then_some(group)
        };
        let mut localities: Vec<_> = assignment.localities.iter().filter_map(&mut group).collect();
        // Priorities begin at 0, without gaps.
        let lowest = localities.iter().map(|group| group.priority).min().unwrap_or_default();
        localities.iter_mut().for_each(|group| group.priority -= lowest);
        LoadAssignment { localities, ..assignment.clone() }
    };
    service.endpoints.iter().map(one).collect()
}

/// What a gRPC server at `address` runs that is the application of `instance`: mutual TLS and the
/// service's policies. `None`: the instance has no such port, or the service does not take what the
/// server's credentials give.
pub fn grpc_server(
    model: &MeshModel,
    instance: &Instance,
    name: &str,
    address: SocketAddr,
    credentials: GrpcCredentials,
) -> Option<Listener> {
    let service = model.services.get(&instance.service)?;
    let port = service.inbound.ports.iter().find(|port| {
        let own = port.port.of(instance);
        port.port.protocol.is_http() && own.is_some_and(|own| own.port == address.port())
    })?;
    let is_secure = credentials == GrpcCredentials::Xds && port.port.mtls != Mtls::Disabled;
    if !is_secure && port.port.mtls == Mtls::Strict {
        return None;
    }
    Some(Listener {
        address: Some(address),
        default_filter_chain: Some(server_chain(name, port, is_secure)),
        ..listener(name, Direction::Inbound)
    })
}

fn server_chain(name: &str, port: &InboundPort, is_secure: bool) -> FilterChain {
    let filters = if is_secure { &port.filters } else { &port.plaintext_filters };
    let routes = RouteConfiguration {
        name: port.port.name.clone(),
        virtual_hosts: vec![VirtualHost {
            name: port.port.name.clone(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                name: port.port.name.clone(),
                matches: RouteMatch::default(),
                action: RouteAction::NonForwarding,
                headers: HeaderChanges::default(),
                filters: FilterOverrides::default(),
            }],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    let default = HttpConnectionManager::new(name, RouteSource::Inline(routes));
    let manager = HttpConnectionManager {
        filters: filters.iter().cloned().chain(default.filters.clone()).collect(),
        ..default
    };
    FilterChain {
        name: name.to_owned(),
        matches: FilterChainMatch::default(),
        tls: is_secure.then(|| mesh_server_context(&["h2"])),
        rbac: Vec::new(),
        terminal: Terminal::Http(Box::new(manager)),
    }
}
