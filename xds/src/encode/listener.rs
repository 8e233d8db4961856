//! Listeners and filter chains.

use std::net::SocketAddr;

use pillion_model::http::HttpConnectionManager;
use pillion_model::listener::{Direction, FilterChain, FilterChainMatch, Listener, TcpProxy, Terminal};
use prost::{Message, Name};

use super::http::{access_logs, connection_manager};
use super::matcher::cidr;
use super::{Dialect, any, duration, flag, limit, number};
use crate::pb;

/// Key of our metadata at a filter chain (or listener, for its `api_listener`).
pub(crate) const MARK_LOCAL_REPLIES: &str = "markLocalReplies";

pub(crate) fn listener(listener: &Listener, dialect: Dialect<'_>) -> pb::listener::Listener {
    let direction = match listener.direction {
        Direction::Unspecified => pb::core::TrafficDirection::Unspecified,
        Direction::Inbound => pb::core::TrafficDirection::Inbound,
        Direction::Outbound => pb::core::TrafficDirection::Outbound,
    };
    let api = listener.api_listener.as_deref();
    pb::listener::Listener {
        name: listener.name.clone(),
        address: listener.address.map(address),
        filter_chains: listener.filter_chains.iter().map(|chain| filter_chain(chain, dialect)).collect(),
        default_filter_chain: listener
            .default_filter_chain
            .as_ref()
            .map(|chain| filter_chain(chain, dialect)),
        metadata: flag(MARK_LOCAL_REPLIES, is_marked(api, dialect)),
        listener_filters: listener_filters(listener, dialect),
        listener_filters_timeout: Some(duration(listener.listener_filters_timeout)),
        traffic_direction: direction.into(),
        api_listener: api.map(|http| pb::listener::ApiListener {
            api_listener: Some(any(&connection_manager(http, dialect))),
        }),
        access_log: access_logs(&listener.access_logs),
        ..Default::default()
    }
}

fn is_marked(http: Option<&HttpConnectionManager>, dialect: Dialect<'_>) -> bool {
    matches!(dialect, Dialect::Pillion) && http.is_some_and(|http| http.mark_local_replies)
}

/// gRPC servers refuse listener filters; they need none.
fn listener_filters(listener: &Listener, dialect: Dialect<'_>) -> Vec<pb::listener::ListenerFilter> {
    let mut filters = Vec::new();
    if matches!(dialect, Dialect::Grpc) {
        return filters;
    }
    if listener.original_dst {
        filters
            .push(listener_filter("envoy.filters.listener.original_dst", &pb::original_dst::OriginalDst {}));
    }
    if let Some(protocol) = listener.proxy_protocol {
        use pb::core::proxy_protocol_config::Version;
        let versions = [(protocol.v1, Version::V1), (protocol.v2, Version::V2)];
        let config = pb::proxy_protocol::ProxyProtocol {
            allow_requests_without_proxy_protocol: protocol.optional,
            disallowed_versions: versions
                .into_iter()
                .filter(|(taken, _)| !taken)
                .map(|(_, version)| version.into())
                .collect(),
            ..Default::default()
        };
        filters.push(listener_filter("envoy.filters.listener.proxy_protocol", &config));
    }
    if listener.tls_inspector {
        filters.push(listener_filter(
            "envoy.filters.listener.tls_inspector",
            &pb::tls_inspector::TlsInspector::default(),
        ));
    }
    filters
}

fn listener_filter<M: Message + Name>(name: &str, config: &M) -> pb::listener::ListenerFilter {
    pb::listener::ListenerFilter {
        name: name.to_owned(),
        filter_disabled: None,
        config_type: Some(pb::listener::listener_filter::ConfigType::TypedConfig(any(config))),
    }
}

fn filter_chain(chain: &FilterChain, dialect: Dialect<'_>) -> pb::listener::FilterChain {
    let http = match &chain.terminal {
        Terminal::Http(http) => Some(&**http),
        Terminal::Tcp(_) => None,
    };
    let rbac = chain.rbac.iter().map(|rules| {
        let config = pb::network_rbac::Rbac {
            rules: Some(super::rbac::rules(rules)),
            stat_prefix: "rbac.".to_owned(),
            ..Default::default()
        };
        network_filter(pb::names::NETWORK_RBAC, &config)
    });
    let terminal = match &chain.terminal {
        Terminal::Http(http) => network_filter(pb::names::HTTP, &connection_manager(http, dialect)),
        Terminal::Tcp(tcp) => network_filter(pb::names::TCP, &tcp_proxy(tcp)),
    };
    pb::listener::FilterChain {
        name: chain.name.clone(),
        filter_chain_match: (chain.matches != FilterChainMatch::default()).then(|| matches(&chain.matches)),
        transport_socket: chain.tls.as_ref().map(|tls| super::tls::downstream(tls, dialect)),
        filters: rbac.chain([terminal]).collect(),
        metadata: flag(MARK_LOCAL_REPLIES, is_marked(http, dialect)),
        ..Default::default()
    }
}

fn network_filter<M: Message + Name>(name: &str, config: &M) -> pb::listener::Filter {
    pb::listener::Filter {
        name: name.to_owned(),
        config_type: Some(pb::listener::filter::ConfigType::TypedConfig(any(config))),
    }
}

fn matches(matches: &FilterChainMatch) -> pb::listener::FilterChainMatch {
    pb::listener::FilterChainMatch {
        destination_port: matches.destination_port.map(|port| number(port.into())),
        prefix_ranges: matches.destination_ranges.iter().map(cidr).collect(),
        server_names: matches.server_names.clone(),
        transport_protocol: matches.transport_protocol.clone(),
        application_protocols: matches.application_protocols.clone(),
        source_prefix_ranges: matches.source_ranges.iter().map(cidr).collect(),
        source_ports: matches.source_ports.iter().map(|&port| port.into()).collect(),
        ..Default::default()
    }
}

fn tcp_proxy(tcp: &TcpProxy) -> pb::tcp_proxy::TcpProxy {
    use pb::tcp_proxy::tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight};
    let clusters = match tcp.clusters.as_slice() {
        [(cluster, 1)] => ClusterSpecifier::Cluster(cluster.clone()),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|(name, weight)| ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    metadata_match: None,
                })
                .collect(),
        }),
    };
    pb::tcp_proxy::TcpProxy {
        stat_prefix: tcp.stat_prefix.clone(),
        cluster_specifier: Some(clusters),
        idle_timeout: Some(limit(tcp.idle_timeout)),
        max_connect_attempts: Some(number(tcp.connect_attempts)),
        access_log: access_logs(&tcp.access_logs),
        ..Default::default()
    }
}

pub(crate) fn address(address: SocketAddr) -> pb::core::Address {
    socket_address(address.ip().to_string(), address.port())
}

pub(crate) fn socket_address(host: String, port: u16) -> pb::core::Address {
    use pb::core::socket_address::PortSpecifier;
    pb::core::Address {
        address: Some(pb::core::address::Address::SocketAddress(pb::core::SocketAddress {
            address: host,
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}
