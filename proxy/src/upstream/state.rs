//! What is known about clusters and endpoints process-wide, whatever the configuration of the
//! moment: counters that all workers add to, and what balancers and breakers read.
//!
//! Everything on the request path is a relaxed atomic: a small overshoot of a limit is normal.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use tokio::time::Instant;

use super::check::Checked;
use super::ewma::Ewma;
use super::outlier;

/// Where an endpoint is dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// By TCP.
    Socket(SocketAddr),
    /// A Unix domain socket's path.
    Pipe(Arc<str>),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Pipe(path) => f.write_str(path),
        }
    }
}

/// Routing priority: which limits apply. Envoy: `RoutingPriority`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// The usual one.
    #[default]
    Default,
    /// Its own limits.
    High,
}

/// State of one cluster, by name; survives configuration updates.
pub struct ClusterState {
    /// The cluster's name.
    pub name: String,
    /// What the limits count, at default and at high priority.
    pub(super) usage: [Usage; 2],
    /// Counters of the whole cluster.
    pub stats: ClusterStats,
    /// Outlier detection.
    pub(super) outlier: outlier::ClusterOutlier,
    endpoints: Mutex<HashMap<Address, Weak<EndpointState>>>,
}

/// What the limits of one priority count.
#[derive(Default)]
pub struct Usage {
    /// Open or opening connections.
    pub connections: CachePadded<AtomicU32>,
    /// Requests waiting for a connection.
    pub pending: CachePadded<AtomicU32>,
    /// Requests on a connection.
    pub requests: CachePadded<AtomicU32>,
    /// Retries in flight.
    pub retries: CachePadded<AtomicU32>,
}

/// Counters of one cluster; names are Envoy's `cluster.<name>.` statistics.
#[derive(Default)]
#[expect(missing_docs, reason = "each name is Envoy's statistic of the same name")]
pub struct ClusterStats {
    pub upstream_cx_overflow: AtomicU64,
    pub upstream_cx_none_healthy: AtomicU64,
    pub upstream_cx_idle_timeout: AtomicU64,
    pub upstream_cx_max_requests: AtomicU64,
    pub upstream_cx_connect_timeout: AtomicU64,
    pub upstream_rq_pending_overflow: AtomicU64,
    pub upstream_rq_active_overflow: AtomicU64,
    pub upstream_rq_pending_failure_eject: AtomicU64,
    pub upstream_rq_retry_overflow: AtomicU64,
    pub upstream_rq_drop_overload: AtomicU64,
    pub upstream_rq_stale_replay: AtomicU64,
    pub health_check_attempt: AtomicU64,
    pub health_check_success: AtomicU64,
    pub health_check_failure: AtomicU64,
    pub health_check_network_failure: AtomicU64,
    pub lb_healthy_panic: AtomicU64,
    pub lb_subsets_active: AtomicU64,
    pub lb_subsets_created: AtomicU64,
    pub lb_subsets_removed: AtomicU64,
    pub lb_subsets_selected: AtomicU64,
    pub lb_subsets_fallback: AtomicU64,
    pub lb_subsets_fallback_panic: AtomicU64,
    pub membership_change: AtomicU64,
    pub ssl_fail_verify_san: AtomicU64,
    pub ssl_fail_verify_error: AtomicU64,
    pub ssl_connection_error: AtomicU64,
    pub ssl_handshake: AtomicU64,
}

/// Since when an endpoint takes part.
#[derive(Default)]
struct Since {
    /// It was seen before.
    seen: bool,
    well: Option<Instant>,
}

/// State of one endpoint of one cluster, by address; survives updates.
pub struct EndpointState {
    /// Unique in the process.
    pub id: u64,
    /// Where it is dialled.
    pub address: Address,
    /// The address as text, for logs.
    pub label: Arc<str>,
    /// The cluster it belongs to.
    pub cluster: Arc<ClusterState>,
    /// Requests in flight.
    pub(super) active: CachePadded<AtomicU32>,
    /// Requests that wait for a connection to it.
    pub(super) waiting: CachePadded<AtomicU32>,
    pub(super) ewma: CachePadded<Ewma>,
    /// Active health, in clusters that have a check.
    pub(super) checked: Checked,
    /// Passive health.
    pub(super) outlier: CachePadded<outlier::EndpointOutlier>,
    since: Mutex<Since>,
    /// No longer part of the cluster: idle connections are closed, none are opened.
    pub(super) removed: AtomicBool,
    /// Counters.
    pub stats: CachePadded<EndpointStats>,
}

/// Counters of one endpoint; names are those of Envoy's `/clusters`.
#[derive(Default)]
#[expect(missing_docs, reason = "each name is Envoy's statistic of the same name")]
pub struct EndpointStats {
    pub cx_active: AtomicU32,
    pub cx_total: AtomicU64,
    pub cx_connect_fail: AtomicU64,
    pub rq_total: AtomicU64,
    pub rq_success: AtomicU64,
    pub rq_error: AtomicU64,
    pub rq_timeout: AtomicU64,
}

impl ClusterState {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            usage: Default::default(),
            stats: ClusterStats::default(),
            outlier: outlier::ClusterOutlier::default(),
            endpoints: Mutex::default(),
        }
    }

    /// What the limits of `priority` count.
    pub fn usage(&self, priority: Priority) -> &Usage {
        &self.usage[priority as usize]
    }

    /// Counters of outlier detection.
    pub fn outlier_stats(&self) -> &outlier::OutlierStats {
        &self.outlier.stats
    }

    /// Whether a request ever needed a connection to an endpoint that is still there.
    pub(super) fn has_had_connections(&self) -> bool {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.values().filter_map(Weak::upgrade).any(|one| one.stats.cx_total.load(Relaxed) > 0)
    }

    /// Requests in flight and waiting, over both priorities.
    pub fn active_and_pending(&self) -> u64 {
        self.usage
            .iter()
            .map(|usage| u64::from(usage.requests.load(Relaxed)) + u64::from(usage.pending.load(Relaxed)))
            .sum()
    }

    /// The endpoint's state: the one there is, else a new one.
    pub(super) fn endpoint(self: &Arc<Self>, address: &Address) -> Arc<EndpointState> {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = endpoints.get(address).and_then(Weak::upgrade) {
            return endpoint;
        }
        endpoints.retain(|_, endpoint| endpoint.strong_count() > 0);
        let endpoint = Arc::new(EndpointState {
            id: next_id(),
            address: address.clone(),
            label: address.to_string().into(),
            cluster: Arc::clone(self),
            active: CachePadded::default(),
            waiting: CachePadded::default(),
            ewma: CachePadded::default(),
            checked: Checked::default(),
            outlier: CachePadded::default(),
            since: Mutex::default(),
            removed: AtomicBool::new(false),
            stats: CachePadded::default(),
        });
        endpoints.insert(address.clone(), Arc::downgrade(&endpoint));
        endpoint
    }
}

impl EndpointState {
    /// Requests in flight.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// What a further request there would cost at `now`: see [`Ewma::cost`].
    pub(super) fn cost(&self, now: Instant) -> f64 {
        self.ewma.cost(self.active(), self.waiting.load(Relaxed), now)
    }

    /// Whether outlier detection has taken it out.
    pub fn is_ejected(&self) -> bool {
        self.outlier.is_ejected()
    }

    /// Whether it still belongs to its cluster.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    /// It passed its active health check after it had not.
    pub(super) fn is_well_again(&self) {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).well = Some(Instant::now());
    }

    /// Since when it takes part: since it came, if it was well then, or passed its health check. As in
    /// Envoy, one that came unwell and has no health check has its whole share at once.
    pub(super) fn well_since(&self, is_well: bool, now: Instant) -> Option<Instant> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_removed() {
            *since = Since::default();
        }
        if !std::mem::replace(&mut since.seen, true) && is_well && since.well.is_none() {
            since.well = Some(now);
        }
        since.well
    }

    /// Smoothed time to response headers.
    pub fn latency(&self) -> Duration {
        Duration::from_nanos(self.ewma.latency_ns())
    }

    /// Records how a try that began at `since` ended: feeds the counters, the latency estimate and outlier detection.
    ///
    /// `Pools::send` reports what it sees itself; the caller reports timeouts.
    pub fn report(self: &Arc<Self>, outcome: Outcome, since: Instant) {
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(since);
        let code = match outcome {
            Outcome::Response(code) => {
                let counter = if code < 500 { &self.stats.rq_success } else { &self.stats.rq_error };
                counter.fetch_add(1, Relaxed);
                let is_gateway_failure = (502..=504).contains(&code);
                let latency = if is_gateway_failure { elapsed.max(FAILURE_LATENCY) } else { elapsed };
                self.ewma.observe(latency, now);
                self.ewma.answered();
                code
            }
            Outcome::Timeout => {
                self.stats.rq_timeout.fetch_add(1, Relaxed);
                self.stats.rq_error.fetch_add(1, Relaxed);
                self.ewma.observe(elapsed, now);
                504
            }
            Outcome::Failure | Outcome::Unreachable => {
                if outcome == Outcome::Unreachable {
                    self.ewma.could_not_connect(now);
                }
                self.stats.rq_error.fetch_add(1, Relaxed);
                self.ewma.observe(elapsed.max(FAILURE_LATENCY), now);
                503
            }
        };
        self.outlier.observe(&self.cluster.outlier, self, code);
    }
}

impl std::fmt::Debug for EndpointState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EndpointState({} of {})", self.address, self.cluster.name)
    }
}

/// How a try ended, as passive health counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Response headers with this status; a gRPC status in them is mapped to a status code first.
    Response(u16),
    /// No connection.
    Unreachable,
    /// No response headers in time.
    Timeout,
    /// Connection refused, reset, ended.
    Failure,
}

/// Ids unique in this process; 0 is never given.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// A failure counts as a slow answer, or an endpoint that fails fast would attract requests: so does
/// a sidecar's word that its application is not there.
const FAILURE_LATENCY: Duration = Duration::from_secs(1);
