//! Clusters.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use pillion_model::cluster::{
    CircuitBreakers, Cluster, Destination, Discovery, OutlierDetection, TransportMatch, UpstreamProtocol,
};
use pillion_model::tls::UpstreamTls;

use super::{Dialect, ads, any, boolean, duration, limit, metadata, number, percent, text, texts};
use crate::decode::DNS_REFRESH;
use crate::pb;
use pb::cluster::cluster::{ClusterDiscoveryType, DiscoveryType};
use pb::upstream_http::http_protocol_options as options;

#[expect(deprecated, reason = "the DNS cluster extension that replaces these fields says the same")]
pub(crate) fn cluster(cluster: &Cluster, dialect: Dialect<'_>) -> pb::cluster::Cluster {
    let protocol = protocol(cluster, dialect);
    let tls = |context: &UpstreamTls| transport(context, protocol, dialect);
    let (kind, assignment, refresh) = discovery(&cluster.discovery, dialect);
    let (lb_policy, load_balancing_policy) = super::balancing::balancing(cluster, dialect);
    pb::cluster::Cluster {
        name: cluster.name.clone(),
        cluster_discovery_type: Some(match &cluster.discovery {
            Discovery::Aggregate(clusters) => ClusterDiscoveryType::ClusterType(aggregate(clusters)),
            _ => ClusterDiscoveryType::Type(kind.into()),
        }),
        eds_cluster_config: match &cluster.discovery {
            Discovery::Eds { service_name } => Some(pb::cluster::cluster::EdsClusterConfig {
                eds_config: Some(ads()),
                service_name: service_name.clone(),
            }),
            _ => None,
        },
        load_assignment: assignment,
        // gRPC says what it did to whom it asks for the cluster.
        lrs_server: matches!(dialect, Dialect::Grpc).then(super::the_same_server),
        dns_refresh_rate: refresh,
        connect_timeout: Some(duration(cluster.connect_timeout)),
        lb_policy: lb_policy.into(),
        load_balancing_policy,
        circuit_breakers: circuit_breakers(cluster),
        outlier_detection: cluster.outlier_detection.as_ref().map(outlier_detection),
        health_checks: cluster.health_check.iter().map(super::health_check::health_check).collect(),
        common_lb_config: Some(pb::cluster::cluster::CommonLbConfig {
            healthy_panic_threshold: Some(percent(cluster.panic_threshold_percent)),
            ..Default::default()
        }),
        typed_extension_protocol_options: HashMap::from([(
            pb::names::UPSTREAM_HTTP.to_owned(),
            any(&http_options(cluster, protocol)),
        )]),
        transport_socket: cluster.tls.as_ref().map(tls),
        transport_socket_matches: cluster.transports.iter().map(|one| transport_match(one, tls)).collect(),
        metadata: cluster.destination.as_ref().and_then(|destination| {
            metadata(BTreeMap::from([(pb::METADATA, self::destination(destination))]))
        }),
        ..Default::default()
    }
}

fn destination(destination: &Destination) -> pb::Struct {
    let fields =
        [("service", &destination.service), ("subset", &destination.subset), ("port", &destination.port)];
    pb::Struct { fields: fields.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect() }
}

fn discovery(
    discovery: &Discovery,
    dialect: Dialect<'_>,
) -> (DiscoveryType, Option<pb::endpoint::ClusterLoadAssignment>, Option<pb::Duration>) {
    let encode = |assignment| Some(super::endpoint::assignment(assignment, dialect));
    // The field is deprecated, and Envoy warns of it: it is left out where it says what holds anyway.
    let rate = |refresh: Duration| (refresh != DNS_REFRESH).then(|| duration(refresh));
    match discovery {
        Discovery::Static(assignment) => (DiscoveryType::Static, encode(assignment), None),
        Discovery::StrictDns { assignment, refresh } => {
            (DiscoveryType::StrictDns, encode(assignment), rate(*refresh))
        }
        Discovery::LogicalDns { assignment, refresh } => {
            (DiscoveryType::LogicalDns, encode(assignment), rate(*refresh))
        }
        Discovery::Eds { .. } => (DiscoveryType::Eds, None, None),
        // The type of an aggregate is no number.
        Discovery::OriginalDst | Discovery::Aggregate(_) => (DiscoveryType::OriginalDst, None, None),
    }
}

fn aggregate(clusters: &[String]) -> pb::cluster::cluster::CustomClusterType {
    pb::cluster::cluster::CustomClusterType {
        name: "envoy.clusters.aggregate".to_owned(),
        typed_config: Some(any(&pb::aggregate::ClusterConfig { clusters: clusters.to_vec() })),
    }
}

fn circuit_breakers(cluster: &Cluster) -> Option<pb::cluster::CircuitBreakers> {
    use pb::core::RoutingPriority::{Default as Normal, High};
    let standard = CircuitBreakers::default();
    let thresholds: Vec<_> = [(Normal, &cluster.limits), (High, &cluster.limits_high)]
        .into_iter()
        .filter(|(_, limits)| **limits != standard)
        .map(|(priority, limits)| pb::cluster::circuit_breakers::Thresholds {
            priority: priority.into(),
            max_connections: Some(number(limits.connections_max)),
            max_pending_requests: Some(number(limits.pending_max)),
            max_requests: Some(number(limits.requests_max)),
            max_retries: Some(number(limits.retries_max)),
            retry_budget: limits.retry_budget.map(|budget| {
                pb::cluster::circuit_breakers::thresholds::RetryBudget {
                    budget_percent: Some(pb::types::Percent { value: budget.percent }),
                    min_retry_concurrency: Some(number(budget.concurrency_min)),
                    budget_interval: None,
                }
            }),
            ..Default::default()
        })
        .collect();
    (!thresholds.is_empty())
        .then(|| pb::cluster::CircuitBreakers { thresholds, per_host_thresholds: Vec::new() })
}

fn outlier_detection(outlier: &OutlierDetection) -> pb::cluster::OutlierDetection {
    let (rate, share) = (&outlier.success_rate, &outlier.failure_percentage);
    pb::cluster::OutlierDetection {
        consecutive_5xx: Some(number(outlier.consecutive_5xx)),
        enforcing_consecutive_5xx: Some(number(outlier.enforcing_consecutive_5xx)),
        consecutive_gateway_failure: Some(number(outlier.consecutive_gateway_failure)),
        enforcing_consecutive_gateway_failure: Some(number(outlier.enforcing_consecutive_gateway_failure)),
        interval: Some(duration(outlier.interval)),
        base_ejection_time: Some(duration(outlier.base_ejection)),
        max_ejection_time: Some(duration(outlier.max_ejection)),
        max_ejection_percent: Some(number(outlier.max_ejection_percent)),
        // Left out where it is the default: older Envoys do not know it.
        successful_active_health_check_uneject_host: (!outlier.uneject_on_health_check)
            .then(|| boolean(false)),
        always_eject_one_host: Some(boolean(outlier.always_eject_one)),
        enforcing_success_rate: Some(number(rate.enforcing)),
        success_rate_minimum_hosts: Some(number(rate.minimum_hosts)),
        success_rate_request_volume: Some(number(rate.request_volume)),
        success_rate_stdev_factor: Some(number(rate.stdev_factor)),
        enforcing_failure_percentage: Some(number(share.enforcing)),
        failure_percentage_threshold: Some(number(share.threshold)),
        failure_percentage_minimum_hosts: Some(number(share.minimum_hosts)),
        failure_percentage_request_volume: Some(number(share.request_volume)),
        ..Default::default()
    }
}

/// Envoy refuses ALPN's choice where a connection may be plaintext: there it speaks HTTP/1.1,
/// which every inbound side takes.
fn protocol(cluster: &Cluster, dialect: Dialect<'_>) -> UpstreamProtocol {
    let plaintext = cluster.tls.is_none() || cluster.transports.iter().any(|one| one.tls.is_none());
    match (cluster.protocol, dialect) {
        (UpstreamProtocol::Auto, Dialect::Envoy(_) | Dialect::Grpc) if plaintext => UpstreamProtocol::Http1,
        (protocol, _) => protocol,
    }
}

/// Envoy offers what its context says, whatever it then speaks: the two have to agree.
fn transport(
    tls: &UpstreamTls,
    protocol: UpstreamProtocol,
    dialect: Dialect<'_>,
) -> pb::core::TransportSocket {
    if !matches!(dialect, Dialect::Envoy(_)) || tls.alpn.is_empty() {
        return super::tls::upstream(tls, dialect);
    }
    let alpn: &[&str] = match protocol {
        UpstreamProtocol::Http1 => &["http/1.1"],
        UpstreamProtocol::Http2 => &["h2"],
        UpstreamProtocol::Auto | UpstreamProtocol::Downstream => &["h2", "http/1.1"],
    };
    let alpn = alpn.iter().map(|&one| one.to_owned()).collect();
    super::tls::upstream(&UpstreamTls { alpn, ..tls.clone() }, dialect)
}

fn transport_match(
    transport: &TransportMatch,
    tls: impl Fn(&UpstreamTls) -> pb::core::TransportSocket,
) -> pb::cluster::cluster::TransportSocketMatch {
    pb::cluster::cluster::TransportSocketMatch {
        name: transport.name.clone(),
        r#match: Some(texts(&transport.criteria)),
        transport_socket: Some(transport.tls.as_ref().map_or_else(super::tls::plaintext, tls)),
    }
}

fn http_options(cluster: &Cluster, protocol: UpstreamProtocol) -> pb::upstream_http::HttpProtocolOptions {
    use options::UpstreamProtocolOptions as Options;
    use options::explicit_http_config::ProtocolConfig;
    let http1 = pb::core::Http1ProtocolOptions::default();
    // Upgrades travel over HTTP/2 as RFC 8441 has it.
    let http2 = pb::core::Http2ProtocolOptions { allow_connect: true, ..Default::default() };
    let explicit =
        |config| Options::ExplicitHttpConfig(options::ExplicitHttpConfig { protocol_config: Some(config) });
    pb::upstream_http::HttpProtocolOptions {
        common_http_protocol_options: Some(pb::core::HttpProtocolOptions {
            idle_timeout: Some(limit(cluster.idle_timeout)),
            max_requests_per_connection: (cluster.requests_per_connection_max > 0)
                .then(|| number(cluster.requests_per_connection_max)),
            ..Default::default()
        }),
        upstream_protocol_options: Some(match protocol {
            UpstreamProtocol::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(http1)),
            UpstreamProtocol::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
            UpstreamProtocol::Auto => Options::AutoConfig(options::AutoHttpConfig {
                http_protocol_options: Some(http1),
                http2_protocol_options: Some(http2),
                ..Default::default()
            }),
            UpstreamProtocol::Downstream => {
                Options::UseDownstreamProtocolConfig(options::UseDownstreamHttpConfig {
                    http_protocol_options: Some(http1),
                    http2_protocol_options: Some(http2),
                    ..Default::default()
                })
            }
        }),
        ..Default::default()
    }
}
