//! Listeners.

use pillion_model::listener::{
    Direction, FilterChain, FilterChainMatch, Listener, ProxyProtocol, TcpProxy, Terminal,
};
use proptest::prelude::*;

use super::http::{access_log, connection_manager};
use super::matchers::{cidr, downstream_tls, rbac};
use super::{duration, few, maybe, name, socket, time};

pub(crate) fn listener() -> BoxedStrategy<Listener> {
    let direction =
        prop_oneof![Just(Direction::Unspecified), Just(Direction::Inbound), Just(Direction::Outbound)];
    let protocol = any::<[bool; 3]>().prop_map(|[optional, v1, v2]| ProxyProtocol { optional, v1, v2 });
    let filters = (any::<bool>(), any::<bool>(), duration(), maybe(protocol));
    (
        name(),
        socket(),
        direction,
        filters,
        few(chain()),
        maybe(chain()),
        few(access_log()),
        maybe(connection_manager()),
    )
        .prop_map(|(name, address, direction, filters, chains, default, access_logs, api)| Listener {
            name,
            address: Some(address),
            direction,
            proxy_protocol: filters.3,
            tls_inspector: filters.0,
            original_dst: filters.1,
            listener_filters_timeout: filters.2,
            filter_chains: chains,
            default_filter_chain: default,
            access_logs,
            api_listener: api.map(Box::new),
        })
        .boxed()
}

fn chain() -> BoxedStrategy<FilterChain> {
    let terminal = prop_oneof![
        connection_manager().prop_map(|http| Terminal::Http(Box::new(http))),
        tcp().prop_map(Terminal::Tcp),
    ];
    (name(), matches(), maybe(downstream_tls()), few(rbac()), terminal)
        .prop_map(|(name, matches, tls, rbac, terminal)| FilterChain { name, matches, tls, rbac, terminal })
        .boxed()
}

fn matches() -> BoxedStrategy<FilterChainMatch> {
    let transport = prop_oneof![Just(String::new()), Just("tls".to_owned()), Just("raw_buffer".to_owned())];
    let server_name = prop_oneof![name(), name().prop_map(|name| format!("*.{name}"))];
    (
        maybe(any::<u16>()),
        few(cidr()),
        few(server_name),
        transport,
        few(name()),
        few(cidr()),
        few(any::<u16>()),
    )
        .prop_map(|(port, ranges, names, transport_protocol, alpn, sources, ports)| FilterChainMatch {
            destination_port: port,
            destination_ranges: ranges,
            server_names: names,
            transport_protocol,
            application_protocols: alpn,
            source_ranges: sources,
            source_ports: ports,
        })
        .boxed()
}

fn tcp() -> BoxedStrategy<TcpProxy> {
    let clusters = proptest::collection::vec((name(), 1_u32..100), 1..3);
    (name(), clusters, maybe(time()), 1_u32.., few(access_log()))
        .prop_map(|(stat_prefix, clusters, idle_timeout, connect_attempts, access_logs)| TcpProxy {
            stat_prefix,
            clusters,
            idle_timeout,
            connect_attempts,
            access_logs,
        })
        .boxed()
}
