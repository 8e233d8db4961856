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
    let mut policy = FaultPolicy::default();
    cx.some("delay", fault.delay.take(), |cx, delay| {
        let share = cx.some("percentage", delay.percentage, Context::fraction).unwrap_or(never);
        match delay.fault_delay_secifier {
            Some(FaultDelaySecifier::FixedDelay(time)) => {
                let time = cx.duration("fixed_delay", Some(time)).unwrap_or(Duration::ZERO);
                policy.delay = Some((time, share));
            }
            Some(FaultDelaySecifier::HeaderDelay(_)) => policy.header_delay = Some(share),
            None => cx.refuse("says nothing; want fixed_delay or header_delay"),
        }
    });
    cx.some("abort", fault.abort.take(), |cx, mut abort| {
        let share = cx.some("percentage", abort.percentage.take(), Context::fraction).unwrap_or(never);
        match abort.error_type.take() {
            Some(ErrorType::HttpStatus(status)) => {
                if !(200..600).contains(&status) {
                    cx.refuse_at("http_status", format!("got {status}, want 200 to 599"));
                }
                policy.abort = Some((u16::try_from(status).unwrap_or(503), share));
            }
            Some(ErrorType::GrpcStatus(status)) => policy.grpc_abort = Some((status, share)),
            Some(ErrorType::HeaderAbort(_)) => policy.header_abort = Some(share),
            None => cx.refuse("says nothing; want http_status, grpc_status or header_abort"),
        }
        cx.rest(&abort);
    });
    policy.headers = cx.each("headers", take(&mut fault.headers), header);
    cx.rest(&fault);
    policy
}
