//! Decides who is ejected and who returns: Envoy's rules, without clock or dice of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pillion_model::cluster::OutlierDetection;
use tokio::time::Instant;

use super::{Kind, OutlierStats};
use crate::upstream::state::EndpointState;

/// What is known about the ejections of one cluster. Only the control task has it.
#[derive(Default)]
pub(in crate::upstream) struct Detector {
    monitors: HashMap<u64, Monitor>,
}

#[derive(Default)]
struct Monitor {
    ejected_at: Option<Instant>,
    /// Ejections lately: how many base times the next one lasts.
    multiplier: u32,
}

/// What a decision depends on besides the counters.
pub(in crate::upstream) struct Round<'a> {
    pub(in crate::upstream) config: &'a OutlierDetection,
    /// Every endpoint of the cluster.
    pub(in crate::upstream) endpoints: &'a [Arc<EndpointState>],
    pub(in crate::upstream) stats: &'a OutlierStats,
    pub(in crate::upstream) now: Instant,
    /// A draw of 0 to 99.
    pub(in crate::upstream) roll: &'a dyn Fn() -> u32,
}

/// One endpoint's interval.
struct Sample<'a> {
    endpoint: &'a Arc<EndpointState>,
    total: u32,
    /// Percent.
    rate: f64,
}

impl Detector {
    /// An endpoint failed too often in a row. Whether it was ejected is told.
    pub(in crate::upstream) fn in_a_row(
        &mut self,
        round: &Round<'_>,
        endpoint: &Arc<EndpointState>,
        kind: Kind,
    ) -> bool {
        if endpoint.is_ejected() || !round.endpoints.iter().any(|it| it.id == endpoint.id) {
            return false;
        }
        let ejected = self.eject(round, endpoint, kind);
        endpoint.outlier.reset_kind(kind);
        ejected
    }

    /// The end of an interval: who may return, who stood out. Whether anybody's state changed is
    /// told.
    pub(in crate::upstream) fn tick(&mut self, round: &Round<'_>) -> bool {
        self.monitors.retain(|id, _| round.endpoints.iter().any(|it| it.id == *id));
        let mut changed = false;
        for endpoint in round.endpoints {
            changed |= self.let_return(round, endpoint);
        }
        let samples: Vec<Sample<'_>> = round.endpoints.iter().filter_map(Sample::take).collect();
        changed |= self.by_success_rate(round, &samples);
        changed |= self.by_failure_percentage(round, &samples);
        self.count_active(round);
        changed
    }

    /// An endpoint passed its active health check: it returns if it was ejected, which is told.
    pub(in crate::upstream) fn passed(&mut self, round: &Round<'_>, endpoint: &Arc<EndpointState>) -> bool {
        let ejected = self.monitors.get_mut(&endpoint.id).and_then(|monitor| monitor.ejected_at.take());
        if ejected.is_some() {
            endpoint.outlier.return_to_service();
            self.count_active(round);
        }
        ejected.is_some()
    }

    fn let_return(&mut self, round: &Round<'_>, endpoint: &Arc<EndpointState>) -> bool {
        let Some(monitor) = self.monitors.get_mut(&endpoint.id) else { return false };
        let Some(since) = monitor.ejected_at else {
            // A whole interval without ejection.
            monitor.multiplier = monitor.multiplier.saturating_sub(1);
            return false;
        };
        let duration = round.config.ejection(monitor.multiplier);
        if round.now.saturating_duration_since(since) < duration {
            return false;
        }
        monitor.ejected_at = None;
        endpoint.outlier.return_to_service();
        true
    }

    fn by_success_rate(&mut self, round: &Round<'_>, samples: &[Sample<'_>]) -> bool {
        let config = &round.config.success_rate;
        let valid: Vec<_> = samples.iter().filter(|it| it.total >= config.request_volume.max(1)).collect();
        if valid.is_empty() || valid.len() < config.minimum_hosts as usize {
            return false;
        }
        let count = valid.len() as f64;
        let mean = valid.iter().map(|it| it.rate).sum::<f64>() / count;
        let variance = valid.iter().map(|it| (it.rate - mean).powi(2)).sum::<f64>() / count;
        let threshold = mean - variance.sqrt() * f64::from(config.stdev_factor) / 1000.0;
        let mut changed = false;
        for sample in valid.into_iter().filter(|it| it.rate < threshold) {
            changed |= self.eject(round, sample.endpoint, Kind::SuccessRate);
        }
        changed
    }

    fn by_failure_percentage(&mut self, round: &Round<'_>, samples: &[Sample<'_>]) -> bool {
        let config = &round.config.failure_percentage;
        let valid: Vec<_> = samples.iter().filter(|it| it.total >= config.request_volume.max(1)).collect();
        if valid.is_empty() || valid.len() < config.minimum_hosts as usize {
            return false;
        }
        let mut changed = false;
        for sample in valid.into_iter().filter(|it| 100.0 - it.rate >= f64::from(config.threshold)) {
            changed |= self.eject(round, sample.endpoint, Kind::FailurePercentage);
        }
        changed
    }

    /// Ejects if the percentage allows it and the dice of `enforcing` do.
    fn eject(&mut self, round: &Round<'_>, endpoint: &Arc<EndpointState>, kind: Kind) -> bool {
        if endpoint.is_ejected() {
            return false;
        }
        let (detected, enforced) = round.stats.of(kind);
        detected.fetch_add(1, Relaxed);
        let ejected = round.endpoints.iter().filter(|it| it.is_ejected()).count();
        let within =
            100 * (ejected + 1) <= round.config.max_ejection_percent as usize * round.endpoints.len();
        let allowed = within || (round.config.always_eject_one && ejected == 0);
        if !allowed {
            round.stats.ejections_overflow.fetch_add(1, Relaxed);
            return false;
        }
        if (round.roll)() >= round.config.enforcing(kind) {
            return false;
        }
        enforced.fetch_add(1, Relaxed);
        round.stats.ejections_enforced_total.fetch_add(1, Relaxed);
        let monitor = self.monitors.entry(endpoint.id).or_default();
        monitor.ejected_at = Some(round.now);
        let (base, max) = (round.config.base_ejection, round.config.max_ejection());
        if base * monitor.multiplier < max + base {
            monitor.multiplier += 1;
        }
        endpoint.outlier.ejected.store(true, Relaxed);
        self.count_active(round);
        true
    }

    fn count_active(&self, round: &Round<'_>) {
        let active = round.endpoints.iter().filter(|it| it.is_ejected()).count();
        round.stats.ejections_active.store(active as u64, Relaxed);
    }
}

impl<'a> Sample<'a> {
    /// Takes an endpoint's counts of the interval; `None` for one that is ejected or was idle.
    fn take(endpoint: &'a Arc<EndpointState>) -> Option<Self> {
        let (total, success) = endpoint.outlier.take_interval();
        if endpoint.is_ejected() || total == 0 {
            return None;
        }
        Some(Self { endpoint, total, rate: f64::from(success.min(total)) * 100.0 / f64::from(total) })
    }
}

/// What the rules need of a configuration.
trait Rules {
    fn max_ejection(&self) -> Duration;
    fn ejection(&self, multiplier: u32) -> Duration;
    fn enforcing(&self, kind: Kind) -> u32;
}

impl Rules for OutlierDetection {
    fn max_ejection(&self) -> Duration {
        self.max_ejection.max(self.base_ejection)
    }

    fn ejection(&self, multiplier: u32) -> Duration {
        (self.base_ejection * multiplier).min(self.max_ejection())
    }

    fn enforcing(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Consecutive5xx => self.enforcing_consecutive_5xx,
            Kind::ConsecutiveGatewayFailure => self.enforcing_consecutive_gateway_failure,
            Kind::SuccessRate => self.success_rate.enforcing,
            Kind::FailurePercentage => self.failure_percentage.enforcing,
        }
    }
}
