//! What a request passes before the router: checks that are always made, and configured filters.

mod buffer;
pub(crate) mod cors;
pub(crate) mod ext_authz;
pub(crate) mod fault;
mod header_mutation;
mod health_check;
pub(crate) mod jwt;
pub(crate) mod local_rate_limit;
pub(crate) mod rbac;
pub(crate) mod route;
pub(crate) mod validate;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use pillion_xds::authz::How;

use crate::chain::Step;
use crate::exchange::Exchange;
use crate::snapshot::{Overrides, Switches, Work};

/// What filters remember of a request until there is an answer.
#[derive(Default)]
pub(crate) struct Marks {
    /// The health check filter takes the request for a health check.
    health_check: bool,
    /// The bucket that decided, if its state is to be told.
    limit: Option<Arc<local_rate_limit::Bucket>>,
    /// What the authorization server wants the client to have.
    answer_headers: Vec<(HeaderName, HeaderValue, How)>,
}

/// Runs the connection manager's filters in configured order.
pub(crate) async fn run(x: &mut Exchange) -> Step {
    let hcm = Arc::clone(&x.hcm);
    let switches = switches(x);
    for filter in hcm.filters.iter().filter(|filter| filter.is_on(switches)) {
        // What may wait is boxed: all requests would carry the size of the largest.
        match &filter.work {
            Work::Rbac { rules, shadow_rules, counts } => {
                rbac::check(x, rules.as_ref(), shadow_rules.as_ref(), counts)?;
            }
            Work::Fault { policy, counts } => Box::pin(fault::inject(x, policy, counts)).await?,
            Work::Cors => cors::check(x)?,
            Work::HeaderMutation { changes, most_specific_wins } => {
                header_mutation::request(x, changes, *most_specific_wins);
            }
            Work::Buffer { bytes_max } => Box::pin(buffer::hold(x, *bytes_max)).await?,
            Work::HealthCheck(filter) => Box::pin(health_check::answer(x, filter)).await?,
            Work::LocalRateLimit(limit) => local_rate_limit::check(x, limit)?,
            Work::Jwt(jwt) => Box::pin(jwt::check(x, jwt)).await?,
            Work::ExtAuthz(authz) => Box::pin(ext_authz::check(x, authz)).await?,
        }
    }
    Ok(())
}

/// Lets the filters see the answer, in reverse order, whoever made it.
pub(crate) fn respond(x: &Exchange, headers: &mut HeaderMap) {
    if !x.hcm.filters_answer {
        return;
    }
    let switches = switches(x);
    for filter in x.hcm.filters.iter().rev().filter(|filter| filter.is_on(switches)) {
        match &filter.work {
            Work::HeaderMutation { changes, most_specific_wins } => {
                header_mutation::response(x, changes, *most_specific_wins, headers);
            }
            Work::HealthCheck(_) => health_check::annotate(x, headers),
            Work::LocalRateLimit(_) => local_rate_limit::annotate(x, headers),
            Work::ExtAuthz(_) => ext_authz::annotate(x, headers),
            Work::Rbac { .. } | Work::Fault { .. } | Work::Cors | Work::Buffer { .. } | Work::Jwt(_) => {}
        }
    }
}

fn switches(x: &Exchange) -> Switches {
    x.record.routed.as_ref().map(|routed| routed.switches(x.choice)).unwrap_or_default()
}

/// What is said of filters where the request goes.
fn overrides<'a>(x: &Exchange, routed: Option<&'a crate::snapshot::Routed>) -> Option<Overrides<'a>> {
    routed.map(|routed| routed.overrides(x.choice))
}
