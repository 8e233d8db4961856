//! What is known of each federation: for people, and for metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use pillion_model::name::TrustDomain;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// One federation, as of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FederationStatus {
    /// When its bundle was last fetched and found good by this registry.
    pub bundle_checked: Option<SystemTime>,
    /// When its exports were last told to this registry.
    pub services_checked: Option<SystemTime>,
    /// What was wrong with the bundle when it was looked at last.
    pub bundle_error: Option<String>,
    /// The same of its exports.
    pub services_error: Option<String>,
}

/// What is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Bundle,
    Services,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Services => "services",
        }
    }
}

pub(super) struct Book {
    status: Mutex<BTreeMap<TrustDomain, FederationStatus>>,
    checked: IntGaugeVec,
    sequence: IntGaugeVec,
    roots: IntGaugeVec,
    refused: IntCounterVec,
}

/// Every reason for which something is refused.
pub(super) const REASONS: [&str; 7] =
    ["unreachable", "untrusted", "malformed", "older", "conflicting", "expired", "store"];

impl Book {
    pub(super) fn new(registry: &Registry) -> Self {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let made = IntGaugeVec::new(Opts::new(name, help), labels).expect("a valid name and help");
            registry.register(Box::new(made.clone())).expect("each name is registered once");
            made
        };
        let refused = Opts::new(
            "pillion_federation_refused_total",
            "Bundles and exports of other meshes that could not be had or were refused, by reason.",
        );
        let refused = IntCounterVec::new(refused, &["trust_domain", "part", "reason"]);
        let refused = refused.expect("a valid name and help");
        registry.register(Box::new(refused.clone())).expect("each name is registered once");
        Self {
            status: Mutex::default(),
            checked: gauges(
                "pillion_federation_checked_timestamp_seconds",
                "When a bundle or exports of another mesh were last found good, Unix seconds.",
                &["trust_domain", "part"],
            ),
            sequence: gauges(
                "pillion_federation_bundle_sequence",
                "Sequence number of the bundle in force of another mesh.",
                &["trust_domain"],
            ),
            roots: gauges(
                "pillion_federation_bundle_roots",
                "Roots of another mesh that are trusted.",
                &["trust_domain"],
            ),
            refused,
        }
    }

    pub(super) fn status(&self, domain: &TrustDomain) -> FederationStatus {
        self.lock().get(domain).cloned().unwrap_or_default()
    }

    pub(super) fn good(&self, domain: &TrustDomain, part: Part) {
        let now = SystemTime::now();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let labels = [domain.as_str(), part.as_str()];
        self.checked.with_label_values(&labels).set(i64::try_from(seconds).unwrap_or(i64::MAX));
        let mut status = self.lock();
        let status = status.entry(domain.clone()).or_default();
        match part {
            Part::Bundle => (status.bundle_checked, status.bundle_error) = (Some(now), None),
            Part::Services => (status.services_checked, status.services_error) = (Some(now), None),
        }
    }

    pub(super) fn refused(&self, domain: &TrustDomain, part: Part, reason: &'static str, error: &str) {
        debug_assert!(REASONS.contains(&reason), "{reason}");
        self.refused.with_label_values(&[domain.as_str(), part.as_str(), reason]).inc();
        let part_name = part.as_str();
        tracing::warn!(
            trust_domain = %domain, part = part_name, reason, error,
            "refused what another mesh tells, or could not ask it; the last good stays"
        );
        let mut status = self.lock();
        let status = status.entry(domain.clone()).or_default();
        match part {
            Part::Bundle => status.bundle_error = Some(error.to_owned()),
            Part::Services => status.services_error = Some(error.to_owned()),
        }
    }

    /// The bundle in force.
    pub(super) fn in_force(&self, domain: &TrustDomain, sequence: Option<u64>, roots: usize) {
        let sequence = i64::try_from(sequence.unwrap_or(0)).unwrap_or(i64::MAX);
        self.sequence.with_label_values(&[domain.as_str()]).set(sequence);
        self.roots.with_label_values(&[domain.as_str()]).set(i64::try_from(roots).unwrap_or(i64::MAX));
    }

    /// A federation is over.
    pub(super) fn forget(&self, domain: &TrustDomain) {
        let name = domain.as_str();
        self.lock().remove(domain);
        // A series that never was is no trouble.
        drop(self.sequence.remove_label_values(&[name]));
        drop(self.roots.remove_label_values(&[name]));
        for part in [Part::Bundle, Part::Services] {
            drop(self.checked.remove_label_values(&[name, part.as_str()]));
            for reason in REASONS {
                drop(self.refused.remove_label_values(&[name, part.as_str(), reason]));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TrustDomain, FederationStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
