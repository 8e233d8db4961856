//! Everything, as a foreign Envoy runs it.

use std::net::SocketAddr;
use std::time::Duration;

use pillion_model::cluster::{Cluster, UpstreamProtocol};
use pillion_model::http::{FaultPolicy, HttpConnectionManager, HttpFilter, RouteSource, ServerHeader};
use pillion_model::instance::Instance;
use pillion_model::listener::{Direction, FilterChain, FilterChainMatch, Listener, TcpProxy, Terminal};
use pillion_model::mesh::{MeshPort, OUTBOUND_LISTENER, Resources};
use pillion_model::name::vip;
use pillion_model::route::{RouteConfiguration, VirtualHost};
use pillion_model::tls::{DataSource, Roots};

use super::inbound::{SERVER_NAME, UPGRADES, inbound};
use super::{MeshModel, ServiceModel};

/// What a foreign Envoy binds.
#[derive(Clone, Copy, Debug)]
pub struct EnvoyOptions {
    /// The outbound listener, which routes by Host.
    pub outbound: SocketAddr,
    /// The VIP slot for tcp services; `None`: they get no listener.
    pub vip_slot: Option<u8>,
}

/// Where the machine's root certificates are.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Everything a foreign Envoy runs: every service's clusters and endpoints, one listener that routes by
/// Host, one listener for each tcp port, and its own inbound side where `instance` has one.
pub fn envoy(model: &MeshModel, instance: Option<&Instance>, options: &EnvoyOptions) -> Resources {
    let mut resources = instance.map(|instance| inbound(model, instance)).unwrap_or_default();
    for service in told(model) {
        for cluster in &service.clusters {
            let cluster = with_system_roots(one_protocol(cluster.clone()));
            resources.clusters.insert(cluster.name.clone(), cluster);
        }
        for assignment in &service.endpoints {
            resources.endpoints.insert(assignment.cluster.clone(), assignment.clone());
        }
    }
    let routes = RouteConfiguration {
        name: OUTBOUND_LISTENER.to_owned(),
        virtual_hosts: told(model).flat_map(|service| virtual_hosts(model, service)).collect(),
        ..RouteConfiguration::default()
    };
    resources.routes.insert(routes.name.clone(), routes);
    let manager = manager(RouteSource::Rds(OUTBOUND_LISTENER.to_owned()));
    let http = listener(OUTBOUND_LISTENER.to_owned(), options.outbound, Terminal::Http(Box::new(manager)));
    resources.listeners.insert(http.name.clone(), http);
    if let Some(slot) = options.vip_slot {
        let tcp = told(model).flat_map(|service| tcp_listeners(service, slot));
        resources.listeners.extend(tcp.map(|listener| (listener.name.clone(), listener)));
    }
    resources
}

/// What an Envoy can call.
fn told(model: &MeshModel) -> impl Iterator<Item = &ServiceModel> {
    model.services.values().map(|service| &**service).filter(|service| !service.is_imported())
}

/// Envoy takes the HTTP version from ALPN only if every transport socket of the cluster offers it; where
/// some endpoints are plaintext, all speak HTTP/1.1.
fn one_protocol(mut cluster: Cluster) -> Cluster {
    let some_plain = cluster.transports.iter().any(|transport| transport.tls.is_none());
    if cluster.protocol == UpstreamProtocol::Auto && some_plain {
        cluster.protocol = UpstreamProtocol::Http1;
        let contexts = cluster.transports.iter_mut().filter_map(|transport| transport.tls.as_mut());
        for tls in contexts.chain(&mut cluster.tls) {
            tls.alpn = vec!["http/1.1".to_owned()];
        }
    }
    cluster
}

/// Envoy has no system roots of its own: they are a file, where Debian and Envoy's images have it.
fn with_system_roots(mut cluster: Cluster) -> Cluster {
    let validation = cluster.tls.as_mut().and_then(|tls| tls.validation.as_mut());
    if let Some(validation) = validation.filter(|validation| validation.roots == Roots::System) {
        validation.roots = Roots::Given(DataSource::File(SYSTEM_ROOTS.to_owned()));
    }
    cluster
}

/// One virtual host for each port that carries requests: all names with the port, and the names alone
/// for port 80, else for the first one.
fn virtual_hosts(model: &MeshModel, service: &ServiceModel) -> Vec<VirtualHost> {
    let ports: Vec<&MeshPort> = service.service.ports.iter().filter(|port| port.protocol.is_http()).collect();
    let bare = ports.iter().find(|port| port.port == 80).or_else(|| ports.first()).map(|port| port.port);
    let owned = |name: &&String| model.names.get(*name) == Some(&service.service.service);
    let names: Vec<&String> = service.service.names.iter().filter(owned).collect();
    let host = |port: &MeshPort| {
        let routes = service.routes.iter().find(|routes| routes.name == port.route_configuration)?;
        let with_port = names.iter().map(|name| format!("{name}:{}", port.port));
        let alone = names.iter().filter(|_| bare == Some(port.port)).map(|name| (*name).clone());
        let source = routes.virtual_hosts.first()?;
        Some(VirtualHost {
            name: routes.name.clone(),
            domains: alone.chain(with_port).collect(),
            ..source.clone()
        })
    };
    ports.into_iter().filter_map(host).collect()
}

fn manager(routes: RouteSource) -> HttpConnectionManager {
    let default = HttpConnectionManager::new(OUTBOUND_LISTENER, routes);
    let filters = [HttpFilter::Cors, HttpFilter::Fault(FaultPolicy::default())];
    HttpConnectionManager {
        filters: filters.into_iter().chain(default.filters.clone()).collect(),
        upgrades: UPGRADES[..1].iter().map(|&upgrade| upgrade.to_owned()).collect(),
        server_name: SERVER_NAME.to_owned(),
        server_header: ServerHeader::PassThrough,
        preserve_external_request_id: true,
        normalize_path: true,
        merge_slashes: true,
        ..default
    }
}

fn tcp_listeners(service: &ServiceModel, slot: u8) -> Vec<Listener> {
    let index = service.service.index;
    if index == 0 {
        return Vec::new();
    }
    let listener = |port: &MeshPort| {
        let name = format!("{OUTBOUND_LISTENER}|{}|{}", port.name, service.service.service);
        let proxy = TcpProxy {
            stat_prefix: name.clone(),
            clusters: port.clusters.iter().map(|cluster| (cluster.clone(), 1)).collect(),
            idle_timeout: Some(Duration::from_secs(3600)),
            connect_attempts: 3,
            access_logs: Vec::new(),
        };
        listener(name, SocketAddr::from((vip(slot, index), port.port)), Terminal::Tcp(proxy))
    };
    service.service.ports.iter().filter(|port| !port.protocol.is_http()).map(listener).collect()
}

fn listener(name: String, address: SocketAddr, terminal: Terminal) -> Listener {
    Listener {
        address: Some(address),
        direction: Direction::Outbound,
        proxy_protocol: None,
        tls_inspector: false,
        original_dst: false,
        listener_filters_timeout: Duration::from_secs(15),
        filter_chains: vec![FilterChain {
            name: name.clone(),
            matches: FilterChainMatch::default(),
            tls: None,
            rbac: Vec::new(),
            terminal,
        }],
        default_filter_chain: None,
        access_logs: Vec::new(),
        api_listener: None,
        name,
    }
}
