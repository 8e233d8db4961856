//! The router: does what the route says. Forwarding is `forward.rs`, its parts have a file each.

mod direct;
mod forward;
mod hash;
mod mirror;
pub(crate) mod retry;
pub(crate) mod rewrite;
pub(crate) mod timeout;
pub(crate) mod upgrade;

use http::Response;

use crate::body::Body;
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::Cause;
use crate::snapshot::Action;

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
