//! Authorization of requests.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pillion_model::rbac::Rbac;

use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::Cause;
use crate::metrics::{Family, Symbol};

/// What was decided.
#[derive(Default)]
pub(crate) struct Counts {
    allowed: AtomicU64,
    denied: AtomicU64,
    shadow_allowed: AtomicU64,
    shadow_denied: AtomicU64,
}

impl Counts {
    /// By Envoy's names.
    pub(crate) fn read(&self) -> [(&'static str, u64); 4] {
        [
            ("allowed", self.allowed.load(Relaxed)),
            ("denied", self.denied.load(Relaxed)),
            ("shadow_allowed", self.shadow_allowed.load(Relaxed)),
            ("shadow_denied", self.shadow_denied.load(Relaxed)),
        ]
    }
}

/// Enforces `rules`, unless the route has its own, and counts what `shadow` would decide.
pub(super) fn check(x: &Exchange, rules: Option<&Rbac>, shadow: Option<&Rbac>, counts: &Counts) -> Step {
    let overridden = x.record.routed.as_ref().and_then(|routed| routed.overrides(x.choice).rbac());
    let (rules, shadow) = match overridden {
        Some(of_route) => (of_route, None),
        None => (rules, shadow),
    };
    let peer = x.connection.peer(x.record.remote);
    if let Some(shadow) = shadow {
        let allowed = shadow.authorize(&peer, Some(&x.head)).allowed;
        if allowed { &counts.shadow_allowed } else { &counts.shadow_denied }.fetch_add(1, Relaxed);
        count(x, allowed, Symbol::SHADOW);
    }
    let Some(rules) = rules else { return Ok(()) };
    let decision = rules.authorize(&peer, Some(&x.head));
    if decision.allowed { &counts.allowed } else { &counts.denied }.fetch_add(1, Relaxed);
    count(x, decision.allowed, Symbol::ENFORCED);
    if decision.allowed {
        Ok(())
    } else {
        Err(Cause::AccessDenied(decision.policy.map(str::to_owned)).into())
    }
}

fn count(x: &Exchange, allowed: bool, mode: Symbol) {
    let outcome = if allowed { Symbol::ALLOWED } else { Symbol::DENIED };
    let metrics = &x.connection.worker.metrics;
    metrics.add(Family::Authorization, [x.connection.direction.into(), outcome, mode], 1);
}
