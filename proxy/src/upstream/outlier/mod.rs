//! Passive health: endpoints that keep failing are left out for a while (Envoy's outlier
//! detection).
//!
//! The request path only counts. What it finds by counting in a row goes as an event to the control
//! task, which alone ejects and returns endpoints.

mod detector;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use pillion_model::cluster::OutlierDetection;
use tokio::sync::mpsc;

pub(super) use detector::{Detector, Round};

use super::state::EndpointState;

/// What the request path needs of a cluster's configuration, and the cluster's counters.
#[derive(Default)]
pub(super) struct ClusterOutlier {
    /// 0: off.
    consecutive_5xx: AtomicU32,
    /// 0: off.
    consecutive_gateway: AtomicU32,
    events: OnceLock<mpsc::Sender<Event>>,
    pub(super) stats: OutlierStats,
}

/// Counters; names are Envoy's `outlier_detection.` statistics.
#[derive(Default)]
#[expect(missing_docs, reason = "each name is Envoy's statistic of the same name")]
pub struct OutlierStats {
    pub ejections_active: AtomicU64,
    pub ejections_overflow: AtomicU64,
    pub ejections_enforced_total: AtomicU64,
    pub ejections_detected_consecutive_5xx: AtomicU64,
    pub ejections_enforced_consecutive_5xx: AtomicU64,
    pub ejections_detected_consecutive_gateway_failure: AtomicU64,
    pub ejections_enforced_consecutive_gateway_failure: AtomicU64,
    pub ejections_detected_success_rate: AtomicU64,
    pub ejections_enforced_success_rate: AtomicU64,
    pub ejections_detected_failure_percentage: AtomicU64,
    pub ejections_enforced_failure_percentage: AtomicU64,
}

/// What is counted per endpoint.
#[derive(Default)]
pub(super) struct EndpointOutlier {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    /// In the present interval.
    total: AtomicU32,
    success: AtomicU32,
    ejected: AtomicBool,
}

/// A detection made by counting in a row.
pub(super) struct Event {
    pub(super) endpoint: Arc<EndpointState>,
    pub(super) kind: Kind,
}

/// How an endpoint was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Consecutive5xx,
    ConsecutiveGatewayFailure,
    SuccessRate,
    FailurePercentage,
}

impl OutlierStats {
    /// The counters of detections and ejections of one kind.
    fn of(&self, kind: Kind) -> (&AtomicU64, &AtomicU64) {
        match kind {
            Kind::Consecutive5xx => {
                (&self.ejections_detected_consecutive_5xx, &self.ejections_enforced_consecutive_5xx)
            }
            Kind::ConsecutiveGatewayFailure => (
                &self.ejections_detected_consecutive_gateway_failure,
                &self.ejections_enforced_consecutive_gateway_failure,
            ),
            Kind::SuccessRate => {
                (&self.ejections_detected_success_rate, &self.ejections_enforced_success_rate)
            }
            Kind::FailurePercentage => {
                (&self.ejections_detected_failure_percentage, &self.ejections_enforced_failure_percentage)
            }
        }
    }
}

impl ClusterOutlier {
    pub(super) fn configure(&self, config: Option<&OutlierDetection>, events: &mpsc::Sender<Event>) {
        let _ = self.events.set(events.clone());
        self.consecutive_5xx.store(config.map_or(0, |config| config.consecutive_5xx), Relaxed);
        self.consecutive_gateway
            .store(config.map_or(0, |config| config.consecutive_gateway_failure), Relaxed);
    }

    /// A full queue drops the event: the endpoint goes on failing and is found again.
    fn send(&self, endpoint: &Arc<EndpointState>, kind: Kind) {
        if let Some(events) = self.events.get() {
            let _ = events.try_send(Event { endpoint: Arc::clone(endpoint), kind });
        }
    }
}

impl EndpointOutlier {
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed)
    }

    /// Counts one outcome, as a status code.
    pub(super) fn observe(&self, cluster: &ClusterOutlier, endpoint: &Arc<EndpointState>, code: u16) {
        self.total.fetch_add(1, Relaxed);
        if code < 500 {
            self.success.fetch_add(1, Relaxed);
            self.reset();
            return;
        }
        if !(502..=504).contains(&code) {
            self.consecutive_gateway.store(0, Relaxed);
        } else if self.consecutive_gateway.fetch_add(1, Relaxed) + 1
            == cluster.consecutive_gateway.load(Relaxed)
        {
            cluster.send(endpoint, Kind::ConsecutiveGatewayFailure);
        }
        if self.consecutive_5xx.fetch_add(1, Relaxed) + 1 == cluster.consecutive_5xx.load(Relaxed) {
            cluster.send(endpoint, Kind::Consecutive5xx);
        }
    }

    /// Requests and successes of the interval that ends now.
    fn take_interval(&self) -> (u32, u32) {
        (self.total.swap(0, Relaxed), self.success.swap(0, Relaxed))
    }

    fn reset_kind(&self, kind: Kind) {
        match kind {
            Kind::Consecutive5xx => self.consecutive_5xx.store(0, Relaxed),
            Kind::ConsecutiveGatewayFailure => self.consecutive_gateway.store(0, Relaxed),
            Kind::SuccessRate | Kind::FailurePercentage => {}
        }
    }

    /// Takes part again.
    pub(super) fn return_to_service(&self) {
        self.reset();
        self.ejected.store(false, Relaxed);
    }

    /// Starts counting in a row afresh.
    pub(super) fn reset(&self) {
        // Mostly zero already: a load is cheaper than a store to a shared line.
        if self.consecutive_5xx.load(Relaxed) != 0 {
            self.consecutive_5xx.store(0, Relaxed);
        }
        if self.consecutive_gateway.load(Relaxed) != 0 {
            self.consecutive_gateway.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
