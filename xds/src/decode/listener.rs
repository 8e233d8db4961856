//! Listeners and filter chains.

use std::mem::take;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use pillion_model::endpoint::HostAddress;
use pillion_model::http::HttpConnectionManager;
use pillion_model::listener::{
    Direction, FilterChain, FilterChainMatch, Listener, ProxyProtocol, TcpProxy, Terminal,
};
use pillion_model::rbac::Rbac;

use super::Context;
use super::context::{ignored, inert, is};
use super::http::{access_logs, connection_manager};
use super::matcher::{cidr, flag, our_metadata};
use crate::encode::MARK_LOCAL_REPLIES;
use crate::pb;

const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

pub(crate) fn listener(cx: &mut Context, mut message: pb::listener::Listener) -> Listener {
    let on = Some(pb::BoolValue { value: true });
    let off = Some(pb::BoolValue { value: false });
    inert!(
        message,
        bind_to_port = on,
        use_original_dst = off,
        transparent = off,
        freebind = off,
        reuse_port = true,
    );
    // Workers share the port in any case, and its buffers are the kernel's.
    message.enable_reuse_port = None;
    ignored!(
        cx,
        message,
        stat_prefix,
        stats_matcher,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        tcp_backlog_size,
        connection_balance_config,
        max_connections_to_accept_per_socket_event,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive,
        tcp_fast_open_queue_length,
    );
    let ours = our_metadata(cx, message.metadata.take());
    let name = take(&mut message.name);
    let address = cx.some("address", message.address.take(), socket_address);
    let direction = direction(cx, take(&mut message.traffic_direction));
    let mut filters = Filters::default();
    cx.each("listener_filters", take(&mut message.listener_filters), |cx, filter| filters.read(cx, filter));
    let timeout = message.listener_filters_timeout.take();
    let timeout = cx.duration("listener_filters_timeout", timeout).unwrap_or(LISTENER_FILTERS_TIMEOUT);
    let filter_chains = cx.each("filter_chains", take(&mut message.filter_chains), filter_chain);
    let default_filter_chain =
        cx.some("default_filter_chain", message.default_filter_chain.take(), filter_chain);
    let access_logs = access_logs(cx, take(&mut message.access_log));
    let mut api_listener =
        cx.some("api_listener", message.api_listener.take(), api_listener).flatten().map(Box::new);
    if let Some(http) = &mut api_listener {
        http.mark_local_replies |= flag(&ours, MARK_LOCAL_REPLIES);
    }
    cx.rest(&message);
    if address.is_none() && api_listener.is_none() {
        cx.missing("address");
    }
    Listener {
        name,
        address,
        direction,
        proxy_protocol: filters.proxy_protocol,
        tls_inspector: filters.tls_inspector,
        original_dst: filters.original_dst,
        listener_filters_timeout: timeout,
        filter_chains,
        default_filter_chain,
        access_logs,
        api_listener,
    }
}

fn direction(cx: &mut Context, value: i32) -> Direction {
    match pb::core::TrafficDirection::try_from(value) {
        Ok(pb::core::TrafficDirection::Unspecified) => Direction::Unspecified,
        Ok(pb::core::TrafficDirection::Inbound) => Direction::Inbound,
        Ok(pb::core::TrafficDirection::Outbound) => Direction::Outbound,
        Err(_) => {
            cx.refuse_at("traffic_direction", format!("got {value}, want INBOUND or OUTBOUND"));
            Direction::Unspecified
        }
    }
}

#[derive(Default)]
struct Filters {
    proxy_protocol: Option<ProxyProtocol>,
    /// One that reads what comes after a header of the PROXY protocol.
    inspects: bool,
    tls_inspector: bool,
    original_dst: bool,
}

impl Filters {
    fn read(&mut self, cx: &mut Context, mut filter: pb::listener::ListenerFilter) {
        use pb::listener::listener_filter::ConfigType;
        filter.name.clear();
        let config = filter.config_type.take();
        cx.rest(&filter);
        let Some(ConfigType::TypedConfig(any)) = config else {
            cx.missing("typed_config");
            return;
        };
        cx.at("typed_config", |cx| {
            if is::<pb::original_dst::OriginalDst>(&any) {
                self.original_dst = true;
                if self.proxy_protocol.is_some() {
                    cx.refuse(
                        "comes after proxy_protocol, whose header says what was dialled; want it before",
                    );
                }
            } else if is::<pb::proxy_protocol::ProxyProtocol>(&any) {
                if self.inspects {
                    cx.refuse("comes after a filter that reads what follows its header; want it before");
                }
                let message = cx.unpack(&any);
                self.proxy_protocol = Some(proxy_protocol(cx, message));
            } else if is::<pb::tls_inspector::TlsInspector>(&any) {
                (self.tls_inspector, self.inspects) = (true, true);
                let mut inspector: pb::tls_inspector::TlsInspector = cx.unpack(&any);
                ignored!(
                    cx,
                    inspector,
                    enable_ja3_fingerprinting,
                    enable_ja4_fingerprinting,
                    initial_read_buffer_size
                );
                cx.rest(&inspector);
            } else if is::<pb::http_inspector::HttpInspector>(&any) {
                self.inspects = true;
                // What it finds is only read by application_protocols, which want TLS here.
                cx.ignore("@type");
            } else {
                cx.unsupported_type(&any, "tls_inspector, original_dst, proxy_protocol, http_inspector");
            }
        });
    }
}

/// Extensions of a header are skipped.
fn proxy_protocol(cx: &mut Context, mut m: pb::proxy_protocol::ProxyProtocol) -> ProxyProtocol {
    use pb::core::proxy_protocol_config::Version;
    ignored!(cx, m, rules, pass_through_tlvs, stat_prefix, tlv_location);
    let refused = take(&mut m.disallowed_versions);
    let taken = |version: Version| !refused.contains(&(version as i32));
    let protocol = ProxyProtocol {
        optional: take(&mut m.allow_requests_without_proxy_protocol),
        v1: taken(Version::V1),
        v2: taken(Version::V2),
    };
    cx.rest(&m);
    protocol
}

fn api_listener(cx: &mut Context, message: pb::listener::ApiListener) -> Option<HttpConnectionManager> {
    let Some(any) = message.api_listener else {
        cx.missing("api_listener");
        return None;
    };
    cx.at("api_listener", |cx| {
        if is::<pb::hcm::HttpConnectionManager>(&any) {
            let message = cx.unpack(&any);
            Some(connection_manager(cx, message))
        } else {
            cx.unsupported_type(&any, "http_connection_manager");
            None
        }
    })
}

fn filter_chain(cx: &mut Context, mut chain: pb::listener::FilterChain) -> FilterChain {
    let name = take(&mut chain.name);
    let ours = our_metadata(cx, chain.metadata.take());
    let matches = cx.some("filter_chain_match", chain.filter_chain_match.take(), matches).unwrap_or_default();
    let tls = cx.some("transport_socket", chain.transport_socket.take(), super::tls::downstream).flatten();
    let mut rbac = Vec::new();
    let mut terminal = None;
    let filters = take(&mut chain.filters);
    cx.each("filters", filters, |cx, filter| {
        if terminal.is_some() {
            cx.refuse("comes after the filter that carries the connection; that one has to be the last");
        }
        match network_filter(cx, filter) {
            Some(NetworkFilter::Rbac(rules)) => rbac.push(rules),
            Some(NetworkFilter::Terminal(filter)) => terminal = Some(filter),
            None => {}
        }
    });
    cx.rest(&chain);
    if let Some(Terminal::Http(http)) = &mut terminal {
        http.mark_local_replies |= flag(&ours, MARK_LOCAL_REPLIES);
    }
    let terminal = terminal.unwrap_or_else(|| {
        cx.refuse_at(
            "filters",
            "nothing carries the connection; want http_connection_manager or tcp_proxy last",
        );
        Terminal::Tcp(nowhere())
    });
    FilterChain { name, matches, tls, rbac, terminal }
}

fn nowhere() -> TcpProxy {
    TcpProxy {
        stat_prefix: String::new(),
        clusters: Vec::new(),
        idle_timeout: None,
        connect_attempts: 1,
        access_logs: Vec::new(),
    }
}

enum NetworkFilter {
    Rbac(Rbac),
    Terminal(Terminal),
}

fn network_filter(cx: &mut Context, filter: pb::listener::Filter) -> Option<NetworkFilter> {
    use pb::listener::filter::ConfigType;
    let any = match filter.config_type {
        Some(ConfigType::TypedConfig(any)) => any,
        Some(ConfigType::ConfigDiscovery(_)) => {
            cx.refuse_at("config_discovery", "is not supported; use typed_config");
            return None;
        }
        None => {
            cx.missing("typed_config");
            return None;
        }
    };
    cx.at("typed_config", |cx| {
        if is::<pb::hcm::HttpConnectionManager>(&any) {
            let message = cx.unpack(&any);
            Some(NetworkFilter::Terminal(Terminal::Http(Box::new(connection_manager(cx, message)))))
        } else if is::<pb::tcp_proxy::TcpProxy>(&any) {
            let message = cx.unpack(&any);
            Some(NetworkFilter::Terminal(Terminal::Tcp(tcp_proxy(cx, message))))
        } else if is::<pb::network_rbac::Rbac>(&any) {
            let message = cx.unpack(&any);
            network_rbac(cx, message).map(NetworkFilter::Rbac)
        } else {
            cx.unsupported_type(&any, "http_connection_manager, tcp_proxy, rbac");
            None
        }
    })
}

fn network_rbac(cx: &mut Context, mut filter: pb::network_rbac::Rbac) -> Option<Rbac> {
    filter.stat_prefix.clear();
    ignored!(cx, filter, shadow_rules, shadow_matcher, shadow_rules_stat_prefix);
    let rules = cx.some("rules", filter.rules.take(), super::rbac::rules);
    cx.rest(&filter);
    rules
}

fn tcp_proxy(cx: &mut Context, mut tcp: pb::tcp_proxy::TcpProxy) -> TcpProxy {
    use pb::tcp_proxy::tcp_proxy::ClusterSpecifier;
    ignored!(cx, tcp, access_log_options);
    ignored_log_flushes(cx, &mut tcp);
    let stat_prefix = take(&mut tcp.stat_prefix);
    let clusters = match tcp.cluster_specifier.take() {
        Some(ClusterSpecifier::Cluster(name)) => vec![(name, 1)],
        Some(ClusterSpecifier::WeightedClusters(several)) => cx.at("weighted_clusters", |cx| {
            cx.each("clusters", several.clusters, |cx, mut one| {
                let pair = (take(&mut one.name), take(&mut one.weight));
                cx.rest(&one);
                pair
            })
        }),
        None => {
            cx.missing("cluster");
            Vec::new()
        }
    };
    let idle_timeout = cx.limit("idle_timeout", tcp.idle_timeout.take(), Some(TCP_IDLE_TIMEOUT));
    let connect_attempts = tcp.max_connect_attempts.take().map_or(1, |attempts| attempts.value);
    if connect_attempts == 0 {
        cx.refuse_at("max_connect_attempts", "got 0, want at least 1");
    }
    let access_logs = access_logs(cx, take(&mut tcp.access_log));
    cx.rest(&tcp);
    TcpProxy { stat_prefix, clusters, idle_timeout, connect_attempts, access_logs }
}

fn ignored_log_flushes(cx: &mut Context, tcp: &mut pb::tcp_proxy::TcpProxy) {
    ignored!(cx, tcp, access_log_flush_interval, flush_access_log_on_connected);
}

fn matches(cx: &mut Context, mut matches: pb::listener::FilterChainMatch) -> FilterChainMatch {
    let destination_port =
        matches.destination_port.take().map(|port| cx.port("destination_port", port.value));
    let destination_ranges = cx.each("prefix_ranges", take(&mut matches.prefix_ranges), cidr);
    let source_ranges = cx.each("source_prefix_ranges", take(&mut matches.source_prefix_ranges), cidr);
    let source_ports = cx.each("source_ports", take(&mut matches.source_ports), number);
    let server_names = cx.each("server_names", take(&mut matches.server_names), |cx, name| {
        let inner = name.strip_prefix("*.").unwrap_or(&name);
        if inner.is_empty() || inner.contains('*') {
            cx.refuse(format!("got `{name}`, want a DNS name, or one with `*.` in front"));
        }
        name.to_ascii_lowercase()
    });
    let transport_protocol = take(&mut matches.transport_protocol);
    if !matches!(transport_protocol.as_str(), "" | "tls" | "raw_buffer") {
        cx.refuse_at("transport_protocol", format!("got `{transport_protocol}`, want tls or raw_buffer"));
    }
    let application_protocols = take(&mut matches.application_protocols);
    cx.rest(&matches);
    FilterChainMatch {
        destination_port,
        destination_ranges,
        server_names,
        transport_protocol,
        application_protocols,
        source_ranges,
        source_ports,
    }
}

/// An address to bind.
pub(crate) fn socket_address(cx: &mut Context, address: pb::core::Address) -> SocketAddr {
    let unspecified = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    match host_address(cx, address) {
        HostAddress::Socket(address) => address,
        HostAddress::Name { host, .. } => {
            cx.refuse_at("socket_address.address", format!("got `{host}`, want an IP address"));
            unspecified
        }
        HostAddress::Pipe(_) => {
            cx.refuse_at("pipe", "is not supported; supported: socket_address");
            unspecified
        }
    }
}

/// An address to dial.
pub(super) fn host_address(cx: &mut Context, address: pb::core::Address) -> HostAddress {
    use pb::core::address::Address;
    match address.address {
        Some(Address::SocketAddress(socket)) => cx.at("socket_address", |cx| socket_parts(cx, socket)),
        Some(Address::Pipe(pipe)) => HostAddress::Pipe(pipe.path),
        Some(Address::EnvoyInternalAddress(_)) => {
            cx.refuse_at("envoy_internal_address", "is not supported; supported: socket_address, pipe");
            HostAddress::Pipe(String::new())
        }
        None => {
            cx.missing("socket_address");
            HostAddress::Pipe(String::new())
        }
    }
}

fn socket_parts(cx: &mut Context, mut socket: pb::core::SocketAddress) -> HostAddress {
    use pb::core::socket_address::PortSpecifier;
    let host = take(&mut socket.address);
    // Sockets for IPv6 take IPv4 where the kernel has it so.
    ignored!(cx, socket, ipv4_compat);
    let port = match socket.port_specifier.take() {
        Some(PortSpecifier::PortValue(port)) => cx.port("port_value", port),
        Some(PortSpecifier::NamedPort(_)) => {
            cx.refuse_at("named_port", "is not supported; use port_value");
            0
        }
        None => {
            cx.missing("port_value");
            0
        }
    };
    cx.rest(&socket);
    match host.parse() {
        Ok(ip) => HostAddress::Socket(SocketAddr::new(ip, port)),
        Err(_) if host.is_empty() => {
            cx.missing("address");
            HostAddress::Name { host, port }
        }
        Err(_) => HostAddress::Name { host, port },
    }
}

fn number(cx: &mut Context, port: u32) -> u16 {
    u16::try_from(port).unwrap_or_else(|_| {
        cx.refuse(format!("got {port}, want a port from 0 to 65535"));
        0
    })
}
