//! The router: does what the route says. Forwarding is `forward.rs`, its parts have a file each.

mod direct;
mod forward;
mod hash;
pub(crate) mod internal_redirect;
mod mirror;
pub(crate) mod retry;
pub(crate) mod rewrite;
pub(crate) mod timeout;
pub(crate) mod upgrade;

pub(crate) use forward::broken_request;
use http::Response;

use crate::body::Body;
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::Cause;
use crate::snapshot::Action;

/// Chooses the route's cluster, as far as there is one: whatever happens to the request from here on
/// is told of this cluster.
pub(crate) fn choose_cluster(x: &mut Exchange) {
    if let Some(routed) = x.record.routed.clone()
        && let Action::Forward(forward) = &routed.route().action
    {
        // That there is none is answered when it is needed.
        x.record.target = forward::choose(x, &forward.to, forward.cluster_missing_status).ok();
    }
}

/// Answers by the route's action.
pub(crate) async fn run(x: &mut Exchange) -> Step<Response<Body>> {
    let routed = x.record.routed.clone().ok_or(Cause::NoRoute)?;
    match &routed.route().action {
        Action::Forward(forward) => forward::run(x, &routed, forward).await,
        Action::Redirect { redirect, rewrite } => Err(direct::redirect(&x.head, redirect, rewrite.as_ref())),
        Action::Respond { status, body } => Err(direct::respond(*status, body)),
        Action::NonForwarding => Err(Cause::NoRoute.into()),
    }
}
