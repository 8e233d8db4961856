//! Authorization of requests.

use pillion_model::rbac::Rbac;

use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::Cause;
use crate::metrics::{Family, Symbol};

/// Enforces `rules`, unless the route has its own, and counts what `shadow` would decide.
pub(super) fn check(x: &Exchange, rules: Option<&Rbac>, shadow: Option<&Rbac>) -> Step {
    let overridden = x.record.routed.as_ref().and_then(|routed| routed.overrides(x.choice).rbac());
    let (rules, shadow) = match overridden {
        Some(of_route) => (of_route, None),
        None => (rules, shadow),
    };
    let peer = x.connection.peer(x.record.remote);
    if let Some(shadow) = shadow {
        count(x, shadow.authorize(&peer, Some(&x.head)).allowed, Symbol::SHADOW);
    }
    let Some(rules) = rules else { return Ok(()) };
    let decision = rules.authorize(&peer, Some(&x.head));
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
