//! Clusters (CDS): endpoints under one policy.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::endpoint::LoadAssignment;
use crate::health_check::HealthCheck;
use crate::subset::Subsets;
use crate::tls::UpstreamTls;

/// A cluster. Envoy: `config.cluster.v3.Cluster`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its name; see [`crate::name::outbound_cluster`].
    pub name: String,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// Time to open a connection, TLS included. Default 5 s.
    pub connect_timeout: Duration,
    /// How one endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Endpoints that are new or well again get less at first; round robin and least request only.
    pub slow_start: Option<SlowStart>,
    /// How endpoints are divided by labels; `None`: not at all.
    pub subsets: Option<Subsets>,
    /// Limits at default priority.
    pub limits: CircuitBreakers,
    /// Limits at high priority.
    pub limits_high: CircuitBreakers,
    /// Passive health; `None`: no ejection.
    pub outlier_detection: Option<OutlierDetection>,
    /// Active health; `None`: endpoints are as healthy as whoever gave them says.
    pub health_check: Option<HealthCheck>,
    /// Share in percent of usable endpoints below which all are used. Default 50, 0: never.
    pub panic_threshold_percent: u32,
    /// HTTP version spoken to endpoints.
    pub protocol: UpstreamProtocol,
    /// Idle connections are closed after this; `None`: never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Requests on one connection; 0: no limit.
    pub requests_per_connection_max: u32,
    /// TLS to endpoints that match none of `transports`; `None`: plaintext.
    pub tls: Option<UpstreamTls>,
    /// Transport sockets picked by endpoint metadata, first match wins.
    pub transports: Vec<TransportMatch>,
    /// Who serves it, for metrics and for people: `None` in a foreign configuration.
    pub destination: Option<Destination>,
}

/// What a cluster stands for in the mesh. Travels as metadata under the key `pillion`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// `service.namespace`.
    pub service: String,
    /// Subset name; empty: all instances.
    pub subset: String,
    /// Port name.
    pub port: String,
}

/// Where endpoints come from. Envoy: `DiscoveryType`.
#[derive(Clone, Debug, PartialEq)]
pub enum Discovery {
    /// Given here.
    Static(LoadAssignment),
    /// Every name resolved, every address an endpoint.
    StrictDns {
        /// The names.
        assignment: LoadAssignment,
        /// How often names are resolved. Default 5 s.
        refresh: Duration,
    },
    /// One name, a new connection goes to its first address of the moment.
    LogicalDns {
        /// The name.
        assignment: LoadAssignment,
        /// How often it is resolved. Default 5 s.
        refresh: Duration,
    },
    /// Asked of the control plane, under `service_name` if not empty, else the cluster's name.
    Eds {
        /// EDS resource name if it differs from the cluster's.
        service_name: String,
    },
    /// The address the connection was redirected from.
    OriginalDst,
    /// Those of other clusters: their priorities one after the other, each cluster with its own policies.
    /// Envoy: `envoy.clusters.aggregate`.
    Aggregate(Vec<String>),
}

/// HTTP version spoken to endpoints. Envoy: `HttpProtocolOptions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, by prior knowledge where there is no ALPN.
    Http2,
    /// What ALPN says.
    Auto,
    /// What the downstream request came with.
    Downstream,
}

/// A transport socket for endpoints whose `transport` metadata contains all of `criteria`.
#[derive(Clone, Debug, PartialEq)]
pub struct TransportMatch {
    /// For people.
    pub name: String,
    /// Key and value pairs; empty matches every endpoint.
    pub criteria: BTreeMap<String, String>,
    /// TLS, or plaintext.
    pub tls: Option<UpstreamTls>,
}

/// How one endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum LoadBalancing {
    /// Two random choices, the lower `ewma latency × (active + 1)` wins. Envoy gets least request.
    #[default]
    Ewma,
    /// In turn, by weight.
    RoundRobin,
    /// `choices` random choices, the fewest active requests win. Default 2.
    LeastRequest {
        /// Choices, at least 2.
        choices: u32,
    },
    /// Uniform.
    Random,
    /// Consistent hashing by a ring.
    RingHash {
        /// Smallest ring. Default 1024.
        size_min: u64,
        /// Largest ring. Default 8 388 608.
        size_max: u64,
    },
    /// Consistent hashing by Maglev's table.
    Maglev {
        /// A prime. Default 65 537.
        table_size: u64,
    },
}

/// An endpoint's share grows with the time since it came or was well again. Envoy: `SlowStartConfig`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// After this it has its whole share; more than nothing.
    pub window: Duration,
    /// The time's part of the window is raised to the power of one by this. Default 1; more than 0.
    pub aggression: f64,
    /// The share it has at least, in percent. Default 10.
    pub min_percent: f64,
}

impl SlowStart {
    /// The factor of an endpoint's weight after `age`.
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        // Envoy counts whole milliseconds, and at least one.
        let part = (age.as_millis().max(1) as f64 / self.window.as_millis().max(1) as f64).min(1.0);
        part.powf(1.0 / self.aggression).max(self.min_percent / 100.0)
    }
}

/// Limits of one priority, shared by all workers. Envoy: `CircuitBreakers.Thresholds`.
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitBreakers {
    /// Connections. Default 1024.
    pub connections_max: u32,
    /// Requests waiting for a connection. Default 1024.
    pub pending_max: u32,
    /// Requests in flight. Default 1024.
    pub requests_max: u32,
    /// Retries in flight, unless a budget is set. Default 3.
    pub retries_max: u32,
    /// Retries as a share of requests; replaces `retries_max`.
    pub retry_budget: Option<RetryBudget>,
}

/// Retries as a share of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Share of active and pending requests, in percent. Default 20.
    pub percent: f64,
    /// Always allowed. Default 3.
    pub concurrency_min: u32,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            pending_max: 1024,
            requests_max: 1024,
            retries_max: 3,
            retry_budget: None,
        }
    }
}

/// Passive health: endpoints that keep failing are left out for a while. Envoy: `OutlierDetection`.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    /// Failures in a row that eject; 0 switches off. Default 5.
    pub consecutive_5xx: u32,
    /// Share of detections enforced, percent. Default 100.
    pub enforcing_consecutive_5xx: u32,
    /// 502, 503, 504 in a row that eject; 0 switches off. Default 5.
    pub consecutive_gateway_failure: u32,
    /// Share of detections enforced, percent. Default 0.
    pub enforcing_consecutive_gateway_failure: u32,
    /// How often ejected endpoints are looked at. Default 10 s.
    pub interval: Duration,
    /// First ejection; grows with each further one. Default 30 s.
    pub base_ejection: Duration,
    /// Longest ejection. Default 300 s, or `base_ejection` if that is longer.
    pub max_ejection: Duration,
    /// Share of endpoints that may be ejected, percent. Default 10.
    pub max_ejection_percent: u32,
    /// An ejected endpoint returns when it passes its active health check. Default true.
    pub uneject_on_health_check: bool,
    /// One endpoint may be ejected whatever the percentage.
    pub always_eject_one: bool,
    /// Success-rate detection (standard deviation).
    pub success_rate: SuccessRate,
    /// Failure-percentage detection.
    pub failure_percentage: FailurePercentage,
}

/// Ejects endpoints whose success rate is far below the others'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// Share of detections enforced, percent. Default 100.
    pub enforcing: u32,
    /// Endpoints with enough volume needed. Default 5.
    pub minimum_hosts: u32,
    /// Requests in an interval that make enough volume. Default 100.
    pub request_volume: u32,
    /// Allowed distance from the mean, in thousandths of a standard deviation. Default 1900.
    pub stdev_factor: u32,
}

/// Ejects endpoints whose failure percentage reaches a threshold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    /// Share of detections enforced, percent. Default 0.
    pub enforcing: u32,
    /// Failure percentage that ejects. Default 85.
    pub threshold: u32,
    /// Endpoints with enough volume needed. Default 5.
    pub minimum_hosts: u32,
    /// Requests in an interval that make enough volume. Default 50.
    pub request_volume: u32,
}

impl Default for OutlierDetection {
    /// Envoy's defaults.
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            enforcing_consecutive_5xx: 100,
            consecutive_gateway_failure: 5,
            enforcing_consecutive_gateway_failure: 0,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejection_percent: 10,
            uneject_on_health_check: true,
            always_eject_one: false,
            success_rate: SuccessRate {
                enforcing: 100,
                minimum_hosts: 5,
                request_volume: 100,
                stdev_factor: 1900,
            },
            failure_percentage: FailurePercentage {
                enforcing: 0,
                threshold: 85,
                minimum_hosts: 5,
                request_volume: 50,
            },
        }
    }
}
