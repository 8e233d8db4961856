//! Faults on purpose.

use std::mem::take;
use std::time::Duration;

use pillion_model::http::FaultPolicy;

use crate::decode::Context;
use crate::decode::context::ignored;
use crate::decode::matcher::header;
use crate::pb;

pub(super) fn fault(cx: &mut Context, mut fault: pb::fault::HttpFault) -> FaultPolicy {
    use pb::common_fault::fault_delay::FaultDelaySecifier;
    use pb::fault::fault_abort::ErrorType;
    ignored!(cx, fault, disable_downstream_cluster_stats, filter_metadata);
    let never = pillion_model::endpoint::Fraction { numerator: 0, denominator: 100 };
    let delay = cx.some("delay", fault.delay.take(), |cx, delay| {
        let share = cx.some("percentage", delay.percentage, Context::fraction).unwrap_or(never);
        let time = match delay.fault_delay_secifier {
            Some(FaultDelaySecifier::FixedDelay(time)) => cx.duration("fixed_delay", Some(time)),
            _ => {
                cx.refuse("is not supported; supported: fixed_delay");
                None
            }
        };
        (time.unwrap_or(Duration::ZERO), share)
    });
    let abort = cx.some("abort", fault.abort.take(), |cx, mut abort| {
        let share = cx.some("percentage", abort.percentage.take(), Context::fraction).unwrap_or(never);
        let status = match abort.error_type.take() {
            Some(ErrorType::HttpStatus(status)) => status,
            _ => {
                cx.refuse("is not supported; supported: http_status");
                503
            }
        };
        if !(200..600).contains(&status) {
            cx.refuse_at("http_status", format!("got {status}, want 200 to 599"));
        }
        cx.rest(&abort);
        (u16::try_from(status).unwrap_or(503), share)
    });
    let headers = cx.each("headers", take(&mut fault.headers), header);
    cx.rest(&fault);
    FaultPolicy { delay, abort, headers }
}
