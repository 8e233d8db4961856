//! Clusters, endpoints and services.

use pillion_model::cluster::{
    CircuitBreakers, Cluster, Destination, Discovery, FailurePercentage, LoadBalancing, OutlierDetection,
    RetryBudget, SlowStart, SuccessRate, TransportMatch, UpstreamProtocol,
};
use pillion_model::endpoint::{Endpoint, HostAddress, LoadAssignment, Locality, LocalityEndpoints};
use pillion_model::health::Health;
use pillion_model::health_check::{HealthCheck, HealthChecker, HttpHealthCheck, Pace};
use pillion_model::instance::Protocol;
use pillion_model::mesh::{MeshPort, MeshService};
use pillion_model::name::ServiceName;
use pillion_model::subset::Subsets;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::matchers::upstream_tls;
use super::subsets::{other_fields, subsets};
use super::{few, fraction, free, maybe, name, socket, some, text, time};

pub(crate) fn cluster() -> BoxedStrategy<Cluster> {
    let protocol = prop_oneof![
        Just(UpstreamProtocol::Http1),
        Just(UpstreamProtocol::Http2),
        Just(UpstreamProtocol::Auto),
        Just(UpstreamProtocol::Downstream),
    ];
    let destination =
        (name(), free(), free()).prop_map(|(service, subset, port)| Destination { service, subset, port });
    let transport = (name(), btree_map(text(), free(), 0..3), maybe(upstream_tls()))
        .prop_map(|(name, criteria, tls)| TransportMatch { name, criteria, tls });
    (
        (
            name(),
            discovery(),
            time(),
            limits(),
            limits(),
            maybe(outlier()),
            maybe(health_check()),
            0_u32..=100,
        ),
        (protocol, maybe(time()), any::<u32>(), maybe(upstream_tls()), few(transport), maybe(destination)),
    )
        .prop_map(
            |(
                (
                    name,
                    (discovery, (load_balancing, slow_start), subsets),
                    connect_timeout,
                    limits,
                    limits_high,
                    outlier_detection,
                    health_check,
                    panic,
                ),
                (protocol, idle_timeout, requests, tls, transports, destination),
            )| Cluster {
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
                protocol,
                idle_timeout,
                requests_per_connection_max: requests,
                tls,
                transports,
                destination,
            },
        )
        .boxed()
}

/// Where endpoints come from, how one is chosen, and from among which.
type Chosen = (Discovery, (LoadBalancing, Option<SlowStart>), Option<Subsets>);

/// An original-destination cluster has its own balancing.
fn discovery() -> BoxedStrategy<Chosen> {
    let discovery = prop_oneof![
        assignment(socket_address().boxed()).prop_map(Discovery::Static),
        (assignment(dns_address().boxed()), time())
            .prop_map(|(assignment, refresh)| Discovery::StrictDns { assignment, refresh }),
        (dns_address(), time())
            .prop_map(|(address, refresh)| Discovery::LogicalDns { assignment: one(address), refresh }),
        free().prop_map(|service_name| Discovery::Eds { service_name }),
    ];
    let balancing = prop_oneof![
        Just(LoadBalancing::Ewma),
        Just(LoadBalancing::RoundRobin),
        (2_u32..10).prop_map(|choices| LoadBalancing::LeastRequest { choices }),
        Just(LoadBalancing::Random),
        any::<(u64, u64)>().prop_map(|(size_min, size_max)| LoadBalancing::RingHash { size_min, size_max }),
        any::<u64>().prop_map(|table_size| LoadBalancing::Maglev { table_size }),
    ];
    let slow = (time(), 0.1..9.0, 0.0..100.0).prop_map(|(window, aggression, min_percent)| SlowStart {
        window,
        aggression,
        min_percent,
    });
    let balancing = (balancing, maybe(slow)).prop_map(|(balancing, slow)| {
        let can = matches!(balancing, LoadBalancing::RoundRobin | LoadBalancing::LeastRequest { .. });
        (balancing, slow.filter(|_| can))
    });
    prop_oneof![
        5 => (discovery, balancing, maybe(subsets())),
        1 => Just((Discovery::OriginalDst, (LoadBalancing::Ewma, None), None)),
        1 => some(name()).prop_map(|names| (Discovery::Aggregate(names), (LoadBalancing::Ewma, None), None)),
    ]
    .boxed()
}

fn one(address: HostAddress) -> LoadAssignment {
    let endpoint = Endpoint {
        address,
        hostname: String::new(),
        weight: 1,
        health: Health::Serving,
        labels: Default::default(),
        other_labels: Default::default(),
        transport: Default::default(),
    };
    LoadAssignment {
        cluster: "one".to_owned(),
        localities: vec![LocalityEndpoints { endpoints: vec![endpoint], ..Default::default() }],
        drops: Vec::new(),
        overprovisioning: 140,
    }
}

fn socket_address() -> BoxedStrategy<HostAddress> {
    prop_oneof![socket().prop_map(HostAddress::Socket), text().prop_map(HostAddress::Pipe)].boxed()
}

fn dns_address() -> BoxedStrategy<HostAddress> {
    prop_oneof![
        socket().prop_map(HostAddress::Socket),
        (name(), any::<u16>()).prop_map(|(host, port)| HostAddress::Name { host, port }),
    ]
    .boxed()
}

/// Endpoints as EDS sends them.
pub(crate) fn endpoints() -> BoxedStrategy<LoadAssignment> {
    assignment(socket_address().boxed()).boxed()
}

fn assignment(address: BoxedStrategy<HostAddress>) -> BoxedStrategy<LoadAssignment> {
    let health = prop_oneof![
        Just(Health::Serving),
        Just(Health::Warning),
        Just(Health::Stale),
        Just(Health::Draining),
        Just(Health::Down),
    ];
    let labels = || btree_map(text(), free(), 0..3);
    let endpoint = (address, free(), 1_u32.., health, labels(), other_fields(), labels()).prop_map(
        |(address, hostname, weight, health, labels, mut other_labels, transport)| {
            other_labels.retain(|key, _| !labels.contains_key(key));
            Endpoint {
                address,
                hostname,
                weight,
                health,
                labels: labels.into(),
                other_labels,
                transport: transport.into(),
            }
        },
    );
    let place =
        (free(), free(), free()).prop_map(|(region, zone, sub_zone)| Locality { region, zone, sub_zone });
    let locality = (place, maybe(any::<u32>()), any::<u32>(), few(endpoint)).prop_map(
        |(locality, weight, priority, endpoints)| LocalityEndpoints { locality, weight, priority, endpoints },
    );
    (name(), few(locality), few((text(), fraction())), 1_u32..)
        .prop_map(|(cluster, localities, drops, overprovisioning)| LoadAssignment {
            cluster,
            localities,
            drops,
            overprovisioning,
        })
        .boxed()
}

fn limits() -> BoxedStrategy<CircuitBreakers> {
    let budget = (0.0..100.0_f64, any::<u32>())
        .prop_map(|(percent, concurrency_min)| RetryBudget { percent, concurrency_min });
    prop_oneof![
        Just(CircuitBreakers::default()),
        (any::<[u32; 4]>(), maybe(budget)).prop_map(
            |([connections, pending, requests, retries], retry_budget)| {
                CircuitBreakers {
                    connections_max: connections,
                    pending_max: pending,
                    requests_max: requests,
                    retries_max: retries,
                    retry_budget,
                }
            }
        ),
    ]
    .boxed()
}

fn health_check() -> BoxedStrategy<HealthCheck> {
    let codes = || vec((100_u16..300, 300_u16..=600).prop_map(|(start, end)| start..end), 1..3);
    let bytes = || vec(any::<u8>(), 1..4);
    let checker = prop_oneof![
        (name(), "/[a-z]{0,8}", any::<bool>(), codes(), codes(), vec((name(), "[a-z]{0,8}"), 0..3)).prop_map(
            |(host, path, http2, expected, retriable, headers)| {
                let method = if http2 { "HEAD" } else { "GET" }.to_owned();
                HealthChecker::Http(HttpHealthCheck {
                    host,
                    path,
                    method,
                    http2,
                    expected,
                    retriable,
                    headers,
                })
            }
        ),
        (bytes(), vec(bytes(), 0..3)).prop_map(|(send, receive)| HealthChecker::Tcp { send, receive }),
        (free(), free()).prop_map(|(service, authority)| HealthChecker::Grpc { service, authority }),
    ];
    let numbers = (any::<bool>(), 1_u32..9, 1_u32..9, any::<u32>());
    (checker, numbers, (time(), time(), time(), time(), time()), (time(), time(), time(), time()))
        .prop_map(|(checker, (reuse_connection, bad, good, jitter_percent), a, b)| HealthCheck {
            checker,
            timeout: a.0,
            reuse_connection,
            unhealthy_threshold: bad,
            healthy_threshold: good,
            pace: Pace {
                interval: a.1,
                unhealthy: a.2,
                unhealthy_edge: a.3,
                healthy_edge: a.4,
                no_traffic: b.0,
                no_traffic_healthy: b.1,
                initial_jitter: b.2,
                jitter: b.3,
                jitter_percent,
            },
        })
        .boxed()
}

fn outlier() -> BoxedStrategy<OutlierDetection> {
    (any::<[u32; 13]>(), any::<(bool, bool)>(), time(), time(), time())
        .prop_map(|(n, (always_eject_one, uneject), interval, base_ejection, max_ejection)| {
            OutlierDetection {
                consecutive_5xx: n[0],
                enforcing_consecutive_5xx: n[1],
                consecutive_gateway_failure: n[2],
                enforcing_consecutive_gateway_failure: n[3],
                interval,
                base_ejection,
                max_ejection,
                max_ejection_percent: n[4],
                uneject_on_health_check: uneject,
                always_eject_one,
                success_rate: SuccessRate {
                    enforcing: n[5],
                    minimum_hosts: n[6],
                    request_volume: n[7],
                    stdev_factor: n[8],
                },
                failure_percentage: FailurePercentage {
                    enforcing: n[9],
                    threshold: n[10],
                    minimum_hosts: n[11],
                    request_volume: n[12],
                },
            }
        })
        .boxed()
}

pub(crate) fn service() -> BoxedStrategy<MeshService> {
    let protocol =
        prop_oneof![Just(Protocol::Http), Just(Protocol::Http2), Just(Protocol::Grpc), Just(Protocol::Tcp)];
    let port = (name(), any::<u16>(), protocol, free(), few(name())).prop_map(
        |(name, port, protocol, route_configuration, clusters)| MeshPort {
            name,
            port,
            protocol,
            route_configuration,
            clusters,
        },
    );
    let label = || "[a-r][a-r0-9]{0,6}";
    (label(), label(), few(name()), any::<u16>(), few(port))
        .prop_filter_map("a reserved label", |(namespace, service, names, index, ports)| {
            let service = ServiceName::new(&namespace, &service).ok()?;
            Some(MeshService { service, names, index, ports })
        })
        .boxed()
}
