//! Faults on purpose: a delay, then an abort.

use http::StatusCode;
use pillion_model::http::FaultPolicy;

use crate::chain::Step;
use crate::exchange::Exchange;
use crate::flags::Flags;
use crate::local_reply::Cause;

/// Delays and aborts the configured shares of requests; the route's policy replaces the filter's.
pub(super) async fn inject(x: &mut Exchange, policy: &FaultPolicy) -> Step {
    let routed = x.record.routed.clone();
    let policy = routed.as_ref().and_then(|routed| routed.overrides(x.choice).fault()).unwrap_or(policy);
    if !policy.headers.iter().all(|matcher| matcher.is_match(&x.head)) {
        return Ok(());
    }
    if let Some((delay, share)) = policy.delay
        && share.hits(fastrand::u64(..))
    {
        x.record.flags.add(Flags::DELAY_INJECTED);
        tokio::time::sleep(delay).await;
    }
    if let Some((status, share)) = policy.abort
        && share.hits(fastrand::u64(..))
    {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        return Err(Cause::FaultAbort(status).into());
    }
    Ok(())
}
