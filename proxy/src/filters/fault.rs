//! Faults on purpose: a delay, then an abort.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use pillion_model::endpoint::Fraction;
use pillion_model::http::FaultPolicy;

use crate::chain::Step;
use crate::exchange::Exchange;
use crate::flags::Flags;
use crate::headers::names;
use crate::local_reply::{Cause, LocalReply};

/// What was done.
#[derive(Default)]
pub(crate) struct Counts {
    delays: AtomicU64,
    aborts: AtomicU64,
}

impl Counts {
    /// By Envoy's names.
    pub(crate) fn read(&self) -> [(&'static str, u64); 2] {
        [("delays_injected", self.delays.load(Relaxed)), ("aborts_injected", self.aborts.load(Relaxed))]
    }
}

/// What a request is answered with.
enum Abort {
    Http(StatusCode),
    Grpc(u32),
}

/// Delays and aborts the configured shares of requests; the route's policy replaces the filter's.
pub(super) async fn inject(x: &mut Exchange, policy: &FaultPolicy, counts: &Counts) -> Step {
    let routed = x.record.routed.clone();
    let policy = routed.as_ref().and_then(|routed| routed.overrides(x.choice).fault()).unwrap_or(policy);
    if !policy.headers.iter().all(|matcher| matcher.is_match(&x.head)) {
        return Ok(());
    }
    if let Some(delay) = delay(policy, &x.head.headers) {
        counts.delays.fetch_add(1, Relaxed);
        x.record.flags.add(Flags::DELAY_INJECTED);
        tokio::time::sleep(delay).await;
    }
    let Some(abort) = abort(policy, &x.head.headers) else { return Ok(()) };
    counts.aborts.fetch_add(1, Relaxed);
    Err(match abort {
        Abort::Http(status) => Cause::FaultAbort(status).into(),
        Abort::Grpc(status) => {
            let mut reply = LocalReply::from(Cause::FaultAbort(StatusCode::OK));
            reply.grpc_status = Some(status);
            reply
        }
    })
}

fn delay(policy: &FaultPolicy, headers: &HeaderMap) -> Option<Duration> {
    let by_header = || {
        let share = asked_share(policy.header_delay?, headers, &names::FAULT_DELAY_PERCENTAGE);
        Some((Duration::from_millis(number(headers, &names::FAULT_DELAY)?), share))
    };
    let (delay, share) = policy.delay.or_else(by_header)?;
    share.hits(fastrand::u64(..)).then_some(delay)
}

fn abort(policy: &FaultPolicy, headers: &HeaderMap) -> Option<Abort> {
    let http = |status| StatusCode::from_u16(status).ok().filter(|_| (200..600).contains(&status));
    let (abort, share) = match (policy.abort, policy.grpc_abort, policy.header_abort) {
        (Some((status, share)), ..) => (Abort::Http(http(status)?), share),
        (_, Some((status, share)), _) => (Abort::Grpc(status), share),
        (_, _, Some(share)) => {
            let asked =
                number(headers, &names::FAULT_ABORT).and_then(|status| http(u16::try_from(status).ok()?));
            let grpc = || number(headers, &names::FAULT_GRPC_ABORT);
            let abort = asked.map(Abort::Http);
            let abort = abort.or_else(|| Some(Abort::Grpc(u32::try_from(grpc()?).ok()?)))?;
            (abort, asked_share(share, headers, &names::FAULT_ABORT_PERCENTAGE))
        }
        (None, None, None) => return None,
    };
    share.hits(fastrand::u64(..)).then_some(abort)
}

/// The share that the client asks for, up to the one that is configured.
fn asked_share(share: Fraction, headers: &HeaderMap, name: &HeaderName) -> Fraction {
    let asked = number(headers, name).and_then(|asked| u32::try_from(asked).ok());
    Fraction { numerator: asked.map_or(share.numerator, |asked| asked.min(share.numerator)), ..share }
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}
