//! Listeners that the proxy makes itself.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pillion_model::http::{
    AccessLog, FaultPolicy, HttpConnectionManager, HttpFilter, RouteSource, ServerHeader,
};
use pillion_model::listener::{Direction, FilterChain, FilterChainMatch, Listener, TcpProxy, Terminal};
use pillion_model::mesh::{MeshPort, MeshService, OUTBOUND_LISTENER};

use super::{BY_HOST, OutboundOptions};

/// The Host-routed listener.
pub(crate) fn by_host(address: SocketAddr, options: &OutboundOptions) -> Listener {
    let mut manager = manager(BY_HOST, &options.access_logs);
    manager.upgrades.push("CONNECT".to_owned());
    listener(OUTBOUND_LISTENER.to_owned(), address, Terminal::Http(Box::new(manager)))
}

/// One listener per port of `service` at its virtual address.
pub(crate) fn vip_listeners(
    address: IpAddr,
    service: &MeshService,
    options: &OutboundOptions,
) -> Vec<Listener> {
    service
        .ports
        .iter()
        .map(|port| {
            let address = SocketAddr::new(address, port.port);
            listener(vip_listener(address), address, terminal(port, options))
        })
        .collect()
}

/// A listener for one port of one service; `None`: it is not known, and connections are closed.
pub(crate) fn upstream_listener(
    name: String,
    address: SocketAddr,
    port: Option<&MeshPort>,
    options: &OutboundOptions,
) -> Listener {
    match port {
        Some(port) => listener(name, address, terminal(port, options)),
        None => {
            Listener { filter_chains: Vec::new(), ..listener(name, address, Terminal::Tcp(no_cluster())) }
        }
    }
}

fn no_cluster() -> TcpProxy {
    TcpProxy {
        stat_prefix: "outbound".to_owned(),
        clusters: Vec::new(),
        idle_timeout: None,
        connect_attempts: 1,
        access_logs: Vec::new(),
    }
}

/// The name of the listener at a port of a virtual address.
pub(crate) fn vip_listener(address: SocketAddr) -> String {
    format!("{VIP_PREFIX}{address}")
}

/// What the names of these listeners begin with.
pub(crate) const VIP_PREFIX: &str = "vip|";

fn terminal(port: &MeshPort, options: &OutboundOptions) -> Terminal {
    if port.protocol.is_http() {
        return Terminal::Http(Box::new(manager(&port.route_configuration, &options.access_logs)));
    }
    Terminal::Tcp(TcpProxy {
        stat_prefix: "outbound".to_owned(),
        clusters: port.clusters.first().map(|cluster| (cluster.clone(), 1)).into_iter().collect(),
        idle_timeout: Some(Duration::from_secs(3600)),
        connect_attempts: CONNECT_ATTEMPTS,
        access_logs: options.access_logs.clone(),
    })
}

fn manager(routes: &str, access_logs: &[AccessLog]) -> HttpConnectionManager {
    let mut manager = HttpConnectionManager::new("outbound", RouteSource::Rds(routes.to_owned()));
    // Routes carry their own faults and CORS policies; these two give them effect.
    manager.filters.insert(0, HttpFilter::Cors);
    manager.filters.insert(1, HttpFilter::Fault(FaultPolicy::default()));
    manager.upgrades = vec!["websocket".to_owned()];
    manager.access_logs = access_logs.to_vec();
    manager.server_header = ServerHeader::PassThrough;
    manager.normalize_path = true;
    manager.merge_slashes = true;
    manager
}

fn listener(name: String, address: SocketAddr, terminal: Terminal) -> Listener {
    Listener {
        filter_chains: vec![FilterChain {
            name: name.clone(),
            matches: FilterChainMatch::default(),
            tls: None,
            rbac: Vec::new(),
            terminal,
        }],
        name,
        address: Some(address),
        direction: Direction::Outbound,
        proxy_protocol: None,
        tls_inspector: false,
        original_dst: false,
        listener_filters_timeout: Duration::from_secs(15),
        default_filter_chain: None,
        access_logs: Vec::new(),
        api_listener: None,
    }
}

/// A connection that carries nothing yet may be tried elsewhere.
const CONNECT_ATTEMPTS: u32 = 3;
