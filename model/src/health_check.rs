//! Active health checks of a cluster's endpoints, made by the proxy that calls them.

use std::ops::Range;
use std::time::Duration;

/// An active health check. Envoy: `config.core.v3.HealthCheck`.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    /// What is asked.
    pub checker: HealthChecker,
    /// Time for an answer, the connection included.
    pub timeout: Duration,
    /// Keeps the connection between checks. Default true.
    pub reuse_connection: bool,
    /// Failures in a row that take an endpoint out, at least 1. An answer that says no takes it out at
    /// once.
    pub unhealthy_threshold: u32,
    /// Successes in a row that bring it back, at least 1. The first check of all needs only one.
    pub healthy_threshold: u32,
    /// When the next check is due.
    pub pace: Pace,
}

/// The time from the end of one check to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Of an endpoint that is well.
    pub interval: Duration,
    /// Of one that is not. Default `interval`.
    pub unhealthy: Duration,
    /// Of one that was well and failed, while the threshold is not reached. Default `unhealthy`.
    pub unhealthy_edge: Duration,
    /// Of one that failed and is well again, while the threshold is not reached. Default `interval`.
    pub healthy_edge: Duration,
    /// While the cluster has never had a connection. Default 60 s.
    pub no_traffic: Duration,
    /// The same, of an endpoint that is well. Default `no_traffic`.
    pub no_traffic_healthy: Duration,
    /// Added to the first wait, at random up to this. Default 0.
    pub initial_jitter: Duration,
    /// Added to every other wait, at random up to this. Default 0.
    pub jitter: Duration,
    /// The same, in percent of the wait. Default 0.
    pub jitter_percent: u32,
}

/// What is asked, and what counts as well.
#[derive(Clone, Debug, PartialEq)]
pub enum HealthChecker {
    /// A request.
    Http(HttpHealthCheck),
    /// A connection, and bytes on it.
    Tcp {
        /// Sent first; empty: nothing.
        send: Vec<u8>,
        /// To be found in what comes back, one behind the other. None: a connection is enough.
        receive: Vec<Vec<u8>>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// Name of the service; empty: the whole server.
        service: String,
        /// `:authority`; empty: the cluster's name.
        authority: String,
    },
}

/// A request, and what counts as well. Envoy: `HealthCheck.HttpHealthCheck`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpHealthCheck {
    /// `Host`; empty: the cluster's name.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// Method. Default GET.
    pub method: String,
    /// Speaks HTTP/2, by prior knowledge where there is no ALPN.
    pub http2: bool,
    /// Status codes that count as well. Default 200.
    pub expected: Vec<Range<u16>>,
    /// Status codes that count as a failure among others; any other takes the endpoint out at once.
    pub retriable: Vec<Range<u16>>,
    /// Added to the request.
    pub headers: Vec<(String, String)>,
}
