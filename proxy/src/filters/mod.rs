//! What a request passes before the router: checks that are always made, and configured filters.

pub(crate) mod cors;
mod fault;
mod rbac;
pub(crate) mod route;
pub(crate) mod validate;

use std::sync::Arc;

use crate::chain::Step;
use crate::exchange::Exchange;
use crate::snapshot::Filter;

/// Runs the connection manager's filters in configured order.
pub(crate) async fn run(x: &mut Exchange) -> Step {
    let hcm = Arc::clone(&x.hcm);
    for filter in &hcm.filters {
        match filter {
            Filter::Rbac { rules, shadow_rules } => rbac::check(x, rules.as_ref(), shadow_rules.as_ref())?,
            Filter::Fault(policy) => fault::inject(x, policy).await?,
            Filter::Cors => cors::check(x)?,
        }
    }
    Ok(())
}
