//! Clusters.

use std::mem::take;
use std::time::Duration;

use pillion_model::cluster::{
    CircuitBreakers, Cluster, Destination, Discovery, OutlierDetection, RetryBudget, TransportMatch,
};
use pillion_model::endpoint::LoadAssignment;

use super::Context;
use super::balancing::{Balancing, balancing};
use super::context::{ignored, inert, is};
use super::matcher::{our_metadata, text};
use super::source::source;
use crate::pb;
use crate::type_url::ENDPOINTS;
use pb::cluster::cluster::common_lb_config::LocalityConfigSpecifier;
use pb::cluster::cluster::{ClusterDiscoveryType, DiscoveryType};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a DNS cluster's names are looked up where nothing else is said, as in Envoy.
pub(crate) const DNS_REFRESH: Duration = Duration::from_secs(5);
const PANIC_THRESHOLD: u32 = 50;

pub(crate) fn cluster(cx: &mut Context, mut m: pb::cluster::Cluster) -> Cluster {
    ignored!(
        cx,
        m,
        alt_stat_name,
        stats_matcher,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        track_cluster_stats,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        cleanup_interval,
        wait_for_warm_on_init,
        ignore_health_on_host_removal,
        preconnect_policy,
        upstream_connection_options,
    );
    let ours = our_metadata(cx, m.metadata.take());
    let name = take(&mut m.name);
    if name.is_empty() {
        cx.missing("name");
    }
    if !m.health_checks.is_empty() {
        own_checks(cx, m.load_assignment.as_ref());
    }
    let discovery = discovery(cx, &name, &mut m);
    let connect_timeout = cx.duration("connect_timeout", m.connect_timeout.take()).unwrap_or(CONNECT_TIMEOUT);
    let Balancing { policy: load_balancing, slow_start, subsets } = balancing(cx, &mut m, &discovery);
    let (limits, limits_high) =
        cx.some("circuit_breakers", m.circuit_breakers.take(), circuit_breakers).unwrap_or_default();
    let outlier_detection = cx.some("outlier_detection", m.outlier_detection.take(), outlier_detection);
    let panic = cx.some("common_lb_config", m.common_lb_config.take(), common_lb).unwrap_or(PANIC_THRESHOLD);
    let http = super::upstream::http(cx, &mut m);
    let tls = cx.some("transport_socket", m.transport_socket.take(), super::tls::upstream).flatten();
    let transports =
        cx.each("transport_socket_matches", take(&mut m.transport_socket_matches), transport_match);
    let health_check = super::health_check::one(cx, take(&mut m.health_checks));
    cx.rest(&m);
    Cluster {
        name,
        discovery,
        connect_timeout,
        load_balancing,
        slow_start,
        subsets,
        limits,
        limits_high,
        outlier_detection,
        health_check,
        panic_threshold_percent: panic,
        protocol: http.protocol,
        idle_timeout: http.idle_timeout,
        requests_per_connection_max: http.requests_max,
        tls,
        transports,
        destination: destination(&ours),
    }
}

/// Endpoints are all checked in the same way: what says otherwise is refused, where there are checks.
fn own_checks(cx: &mut Context, assignment: Option<&pb::endpoint::ClusterLoadAssignment>) {
    use pb::endpoint::lb_endpoint::HostIdentifier;
    for (group, locality) in assignment.iter().flat_map(|assignment| &assignment.endpoints).enumerate() {
        for (index, one) in locality.lb_endpoints.iter().enumerate() {
            let Some(HostIdentifier::Endpoint(endpoint)) = &one.host_identifier else { continue };
            if endpoint.health_check_config.is_some() {
                let at = format!(
                    "load_assignment.endpoints[{group}].lb_endpoints[{index}].endpoint.health_check_config"
                );
                cx.refuse_at(at, "is not supported");
            }
        }
    }
}

fn destination(ours: &pb::Struct) -> Option<Destination> {
    let part = |name| text(ours, name).unwrap_or_default().to_owned();
    text(ours, "service").map(|service| Destination {
        service: service.to_owned(),
        subset: part("subset"),
        port: part("port"),
    })
}

fn discovery(cx: &mut Context, name: &str, m: &mut pb::cluster::Cluster) -> Discovery {
    // Names are resolved at the refresh rate, into both address families.
    ignored!(cx, m, dns_lookup_family, dns_jitter, dns_failure_refresh_rate, respect_dns_ttl);
    let kind = match m.cluster_discovery_type.take() {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(kind).unwrap_or_else(|_| {
            cx.refuse_at("type", format!("got {kind}, want a known value"));
            DiscoveryType::Static
        }),
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let any = custom.typed_config.unwrap_or_default();
            return cx.at("cluster_type.typed_config", |cx| custom_type(cx, &any));
        }
        None => DiscoveryType::Static,
    };
    let is_dns = matches!(kind, DiscoveryType::StrictDns | DiscoveryType::LogicalDns);
    let mut assignment = |cx: &mut Context| match m.load_assignment.take() {
        Some(given) if is_dns => cx.at("load_assignment", |cx| super::endpoint::assignment(cx, given)),
        Some(given) => cx.at("load_assignment", |cx| super::endpoint::dialable(cx, given)),
        None => {
            cx.missing("load_assignment");
            LoadAssignment::default()
        }
    };
    let discovery = match kind {
        DiscoveryType::Static => Discovery::Static(assignment(cx)),
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
            let assignment = assignment(cx);
            let refresh = cx.duration("dns_refresh_rate", m.dns_refresh_rate.take()).unwrap_or(DNS_REFRESH);
            if refresh.is_zero() {
                cx.refuse_at("dns_refresh_rate", "got 0s, want more");
            }
            if kind == DiscoveryType::StrictDns {
                Discovery::StrictDns { assignment, refresh }
            } else {
                if assignment.localities.iter().map(|group| group.endpoints.len()).sum::<usize>() != 1 {
                    cx.refuse_at("load_assignment", "want exactly one endpoint in a LOGICAL_DNS cluster");
                }
                Discovery::LogicalDns { assignment, refresh }
            }
        }
        DiscoveryType::Eds => eds(cx, name, m.eds_cluster_config.take()),
        DiscoveryType::OriginalDst => Discovery::OriginalDst,
    };
    // What is left of these has no meaning for the type.
    ignored!(cx, m, dns_refresh_rate);
    discovery
}

fn custom_type(cx: &mut Context, any: &pb::Any) -> Discovery {
    if !is::<pb::aggregate::ClusterConfig>(any) {
        cx.unsupported_type(
            any,
            "aggregate, or a type: STATIC, STRICT_DNS, LOGICAL_DNS, EDS or ORIGINAL_DST",
        );
        return Discovery::Static(LoadAssignment::default());
    }
    let mut config: pb::aggregate::ClusterConfig = cx.unpack(any);
    let clusters = take(&mut config.clusters);
    if clusters.is_empty() {
        cx.missing("clusters");
    }
    cx.rest(&config);
    Discovery::Aggregate(clusters)
}

fn eds(cx: &mut Context, cluster: &str, config: Option<pb::cluster::cluster::EdsClusterConfig>) -> Discovery {
    let Some(config) = config else {
        cx.missing("eds_cluster_config");
        return Discovery::Eds { service_name: String::new() };
    };
    let from = cx.some("eds_cluster_config.eds_config", config.eds_config, source);
    if from.is_none() {
        cx.missing("eds_cluster_config.eds_config");
    }
    let asked = if config.service_name.is_empty() { cluster } else { &config.service_name };
    let key = cx.refer(ENDPOINTS, asked, from);
    let is_own = config.service_name.is_empty() && key == cluster;
    Discovery::Eds { service_name: if is_own { String::new() } else { key } }
}

fn common_lb(cx: &mut Context, mut m: pb::cluster::cluster::CommonLbConfig) -> u32 {
    ignored!(cx, m, update_merge_window, ignore_new_hosts_until_first_hc);
    let panic = m.healthy_panic_threshold.take();
    let panic = panic.map_or(PANIC_THRESHOLD, |share| cx.percent("healthy_panic_threshold", share));
    match m.locality_config_specifier.take() {
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => cx.ignore("zone_aware_lb_config"),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) | None => {}
    }
    cx.rest(&m);
    panic
}

fn circuit_breakers(
    cx: &mut Context,
    mut m: pb::cluster::CircuitBreakers,
) -> (CircuitBreakers, CircuitBreakers) {
    use pb::core::RoutingPriority;
    let mut limits = (CircuitBreakers::default(), CircuitBreakers::default());
    let mut seen = (false, false);
    cx.each("thresholds", take(&mut m.thresholds), |cx, mut one| {
        let priority = RoutingPriority::try_from(take(&mut one.priority));
        let given = thresholds(cx, one);
        let (target, seen) = match priority {
            Ok(RoutingPriority::Default) => (&mut limits.0, &mut seen.0),
            Ok(RoutingPriority::High) => (&mut limits.1, &mut seen.1),
            Err(_) => return cx.refuse_at("priority", "want DEFAULT or HIGH"),
        };
        // Of several for one priority Envoy takes the first.
        if !std::mem::replace(seen, true) {
            *target = given;
        }
    });
    cx.rest(&m);
    limits
}

fn thresholds(cx: &mut Context, mut m: pb::cluster::circuit_breakers::Thresholds) -> CircuitBreakers {
    ignored!(cx, m, track_remaining, max_connection_pools);
    let standard = CircuitBreakers::default();
    let value = |field: Option<pb::UInt32Value>, default| field.map_or(default, |field| field.value);
    let limits = CircuitBreakers {
        connections_max: value(m.max_connections.take(), standard.connections_max),
        pending_max: value(m.max_pending_requests.take(), standard.pending_max),
        requests_max: value(m.max_requests.take(), standard.requests_max),
        retries_max: value(m.max_retries.take(), standard.retries_max),
        retry_budget: cx.some("retry_budget", m.retry_budget.take(), |cx, mut budget| {
            let given = RetryBudget {
                percent: budget.budget_percent.take().map_or(20.0, |share| share.value),
                concurrency_min: value(budget.min_retry_concurrency.take(), 3),
            };
            if !(0.0..=100.0).contains(&given.percent) {
                cx.refuse_at("budget_percent", format!("got {}, want 0 to 100", given.percent));
            }
            cx.rest(&budget);
            given
        }),
    };
    cx.rest(&m);
    limits
}

fn outlier_detection(cx: &mut Context, mut m: pb::cluster::OutlierDetection) -> OutlierDetection {
    // Errors of our own are not counted apart.
    ignored!(
        cx,
        m,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        enforcing_failure_percentage_local_origin,
    );
    inert!(m, detect_degraded_hosts = Some(pb::BoolValue { value: false }));
    let mut outlier = OutlierDetection::default();
    let set = |field: &mut u32, value: Option<pb::UInt32Value>| {
        if let Some(value) = value {
            *field = value.value;
        }
    };
    set(&mut outlier.consecutive_5xx, m.consecutive_5xx.take());
    set(&mut outlier.enforcing_consecutive_5xx, m.enforcing_consecutive_5xx.take());
    set(&mut outlier.consecutive_gateway_failure, m.consecutive_gateway_failure.take());
    set(&mut outlier.enforcing_consecutive_gateway_failure, m.enforcing_consecutive_gateway_failure.take());
    set(&mut outlier.max_ejection_percent, m.max_ejection_percent.take());
    let rate = &mut outlier.success_rate;
    set(&mut rate.enforcing, m.enforcing_success_rate.take());
    set(&mut rate.minimum_hosts, m.success_rate_minimum_hosts.take());
    set(&mut rate.request_volume, m.success_rate_request_volume.take());
    set(&mut rate.stdev_factor, m.success_rate_stdev_factor.take());
    let share = &mut outlier.failure_percentage;
    set(&mut share.enforcing, m.enforcing_failure_percentage.take());
    set(&mut share.threshold, m.failure_percentage_threshold.take());
    set(&mut share.minimum_hosts, m.failure_percentage_minimum_hosts.take());
    set(&mut share.request_volume, m.failure_percentage_request_volume.take());
    let uneject = m.successful_active_health_check_uneject_host.take();
    outlier.uneject_on_health_check = uneject.is_none_or(|on| on.value);
    outlier.always_eject_one = m.always_eject_one_host.take().is_some_and(|on| on.value);
    let mut time = |field, value: Option<pb::Duration>, default| {
        let given = cx.duration(field, value).unwrap_or(default);
        if given.is_zero() {
            cx.refuse_at(field, "got 0s, want more");
        }
        given
    };
    outlier.interval = time("interval", m.interval.take(), outlier.interval);
    outlier.base_ejection = time("base_ejection_time", m.base_ejection_time.take(), outlier.base_ejection);
    let longest = outlier.max_ejection.max(outlier.base_ejection);
    outlier.max_ejection = time("max_ejection_time", m.max_ejection_time.take(), longest);
    cx.rest(&m);
    outlier
}

fn transport_match(cx: &mut Context, mut m: pb::cluster::cluster::TransportSocketMatch) -> TransportMatch {
    let name = take(&mut m.name);
    let criteria = cx.some("match", m.r#match.take(), super::endpoint::texts).unwrap_or_default();
    if m.transport_socket.is_none() {
        cx.missing("transport_socket");
    }
    let tls = cx.some("transport_socket", m.transport_socket.take(), super::tls::upstream).flatten();
    TransportMatch { name, criteria, tls }
}
