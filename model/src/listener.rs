//! Listeners (LDS), filter chains, and the choice between them.

use std::net::SocketAddr;
use std::time::Duration;

use crate::http::{AccessLog, HttpConnectionManager};
use crate::matcher::Cidr;
use crate::rbac::Rbac;
use crate::tls::DownstreamTls;

/// A listener. Envoy: `config.listener.v3.Listener`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Where it accepts; `None` for a gRPC client's `api_listener`.
    pub address: Option<SocketAddr>,
    /// Inbound or outbound.
    pub direction: Direction,
    /// Connections begin with a header that says who calls; `None`: they do not.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Read the TLS client hello (server name, ALPN) before choosing a filter chain.
    pub tls_inspector: bool,
    /// Recover the address a connection was redirected from.
    pub original_dst: bool,
    /// Time for listener filters. Default 15 s.
    pub listener_filters_timeout: Duration,
    /// Chosen by their matches; see [`choose`].
    pub filter_chains: Vec<FilterChain>,
    /// When none matches; `None`: the connection is closed.
    pub default_filter_chain: Option<FilterChain>,
    /// For connections that found no filter chain.
    pub access_logs: Vec<AccessLog>,
    /// For gRPC clients: the connection manager itself.
    pub api_listener: Option<Box<HttpConnectionManager>>,
}

/// Which headers of the PROXY protocol are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Connections may come without one.
    pub optional: bool,
    /// Version 1 is taken.
    pub v1: bool,
    /// Version 2 is taken.
    pub v2: bool,
}

/// Inbound or outbound. Envoy: `TrafficDirection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Not said.
    #[default]
    Unspecified,
    /// To the application beside the proxy.
    Inbound,
    /// From the application beside the proxy.
    Outbound,
}

impl Direction {
    /// The word used in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// A filter chain. Envoy: `FilterChain`.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterChain {
    /// For people and updates.
    pub name: String,
    /// Which connections.
    pub matches: FilterChainMatch,
    /// TLS; `None`: plaintext.
    pub tls: Option<DownstreamTls>,
    /// Network RBAC rules checked before anything else, in order.
    pub rbac: Vec<Rbac>,
    /// What carries the connection.
    pub terminal: Terminal,
}

/// What carries the connection: the last network filter.
#[derive(Clone, Debug, PartialEq)]
pub enum Terminal {
    /// Requests. Boxed: it is much larger than the other.
    Http(Box<HttpConnectionManager>),
    /// Bytes.
    Tcp(TcpProxy),
}

/// Carries bytes. Envoy: `TcpProxy`.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpProxy {
    /// Prefix of statistics.
    pub stat_prefix: String,
    /// Clusters by weight; one entry for a single cluster.
    pub clusters: Vec<(String, u32)>,
    /// No byte in either direction. Default 1 h; `None`: no limit.
    pub idle_timeout: Option<Duration>,
    /// Tries to connect. Default 1.
    pub connect_attempts: u32,
    /// Access logs.
    pub access_logs: Vec<AccessLog>,
}

/// Which connections a filter chain takes. Empty lists match all. Envoy: `FilterChainMatch`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterChainMatch {
    /// Original destination port.
    pub destination_port: Option<u16>,
    /// Original destination address.
    pub destination_ranges: Vec<Cidr>,
    /// `name.example.com` or `*.example.com`, lower case.
    pub server_names: Vec<String>,
    /// `tls`, `raw_buffer`, or empty.
    pub transport_protocol: String,
    /// Any of these ALPN protocols was offered.
    pub application_protocols: Vec<String>,
    /// The socket's other end.
    pub source_ranges: Vec<Cidr>,
    /// The socket's other port.
    pub source_ports: Vec<u16>,
}

/// What is known of a connection when its filter chain is chosen.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFacts<'a> {
    /// The address dialled, or the one the connection was redirected from.
    pub destination: SocketAddr,
    /// The socket's other end.
    pub source: SocketAddr,
    /// The server name the client asked for.
    pub server_name: Option<&'a str>,
    /// Whether a TLS client hello was seen.
    pub is_tls: bool,
    /// ALPN protocols offered.
    pub alpn: &'a [&'a str],
}

/// Chooses a filter chain: most specific first, one criterion after the other, without going
/// back. The order is Envoy's: destination port, destination address, server name, transport
/// protocol, ALPN, source address, source port.
pub fn choose<'a, T>(
    chains: &'a [T],
    matches: impl Fn(&T) -> &FilterChainMatch,
    facts: &ConnectionFacts<'_>,
) -> Option<&'a T> {
    let mut left: Vec<&'a T> = chains.iter().collect();
    keep_best(&mut left, |chain| match matches(chain).destination_port {
        Some(port) if port == facts.destination.port() => Some(1),
        Some(_) => None,
        None => Some(0),
    });
    keep_best(&mut left, |chain| range_rank(&matches(chain).destination_ranges, facts.destination));
    keep_best(&mut left, |chain| name_rank(&matches(chain).server_names, facts.server_name));
    keep_best(&mut left, |chain| match matches(chain).transport_protocol.as_str() {
        "" => Some(0),
        "tls" if facts.is_tls => Some(1),
        "raw_buffer" if !facts.is_tls => Some(1),
        _ => None,
    });
    keep_best(&mut left, |chain| {
        let wanted = &matches(chain).application_protocols;
        if wanted.is_empty() {
            return Some(0);
        }
        facts.alpn.iter().any(|offered| wanted.iter().any(|want| want == offered)).then_some(1)
    });
    keep_best(&mut left, |chain| range_rank(&matches(chain).source_ranges, facts.source));
    keep_best(&mut left, |chain| {
        let wanted = &matches(chain).source_ports;
        if wanted.is_empty() {
            return Some(0);
        }
        wanted.contains(&facts.source.port()).then_some(1)
    });
    left.first().copied()
}

/// Keeps those with the highest rank; `None` does not match at all.
fn keep_best<T>(left: &mut Vec<&T>, rank: impl Fn(&T) -> Option<usize>) {
    let best = left.iter().filter_map(|chain| rank(chain)).max();
    left.retain(|chain| best.is_some() && rank(chain) == best);
}

/// 0 for no ranges, 1 + prefix length for the longest range that holds the address.
fn range_rank(ranges: &[Cidr], address: SocketAddr) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges
        .iter()
        .filter(|range| crate::matcher::cidr_contains(range, address.ip()))
        .map(|range| 1 + usize::from(range.prefix_len()))
        .max()
}

/// 0 for no names, length for a wildcard, `usize::MAX` for an exact name.
fn name_rank(names: &[String], server_name: Option<&str>) -> Option<usize> {
    if names.is_empty() {
        return Some(0);
    }
    let server_name = server_name?.to_ascii_lowercase();
    names
        .iter()
        .filter_map(|name| match name.strip_prefix('*') {
            None => (*name == server_name).then_some(usize::MAX),
            Some(suffix) => (server_name.len() > suffix.len() && server_name.ends_with(suffix))
                .then_some(suffix.len().max(1)),
        })
        .max()
}
