//! Limits of this proxy.

use std::mem::take;
use std::time::Duration;

use pillion_model::endpoint::Fraction;
use pillion_model::filter::{LocalRateLimit, TokenBucket};

use crate::decode::Context;
use crate::decode::context::inert;
use crate::decode::policy::addition;
use crate::pb;

/// Envoy's shortest.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

pub(super) fn filter(cx: &mut Context, mut m: pb::local_ratelimit::LocalRateLimit) -> LocalRateLimit {
    use pb::local_ratelimit::LocalRateLimit as M;
    let never = Fraction { numerator: 0, denominator: 100 };
    inert!(m, always_consume_default_token_bucket = Some(pb::BoolValue { value: true }));
    let share = |cx: &mut Context, field: &str, share| {
        cx.some(field, share, Context::runtime_fraction).unwrap_or(never)
    };
    let additions = |cx: &mut Context, field: &str, all| cx.each(field, all, addition);
    let filter = LocalRateLimit {
        stat_prefix: take(&mut m.stat_prefix),
        status: status(cx, m.status.take()),
        bucket: cx.some("token_bucket", m.token_bucket.take(), bucket),
        enabled: share(cx, "filter_enabled", m.filter_enabled.take()),
        enforced: share(cx, "filter_enforced", m.filter_enforced.take()),
        request_headers: additions(
            cx,
            "request_headers_to_add_when_not_enforced",
            take(&mut m.request_headers_to_add_when_not_enforced),
        ),
        response_headers: additions(cx, "response_headers_to_add", take(&mut m.response_headers_to_add)),
        limit_headers: match take(&mut m.enable_x_ratelimit_headers) {
            0 => false,
            1 => true,
            other => {
                cx.refuse_at("enable_x_ratelimit_headers", format!("got {other}, want a known value"));
                false
            }
        },
        resource_exhausted: take(&mut m.rate_limited_as_resource_exhausted),
    };
    if filter.stat_prefix.is_empty() {
        cx.missing("stat_prefix");
    }
    if filter.bucket.is_none() && filter.enabled.numerator > 0 {
        cx.missing("token_bucket");
    }
    // Of no effect without descriptors, which are refused.
    if m == (M { max_dynamic_descriptors: m.max_dynamic_descriptors, stage: m.stage, ..M::default() }) {
        (m.max_dynamic_descriptors, m.stage) = (None, 0);
    }
    cx.rest(&m);
    filter
}

/// As in Envoy, what is no error is 429.
fn status(cx: &mut Context, status: Option<pb::types::HttpStatus>) -> u16 {
    let Some(status) = status else { return 429 };
    if !(200..=511).contains(&status.code) {
        cx.refuse_at("status", format!("got {}, want 200 to 511", status.code));
    }
    u16::try_from(status.code).ok().filter(|code| *code >= 400).unwrap_or(429)
}

fn bucket(cx: &mut Context, mut m: pb::types::TokenBucket) -> TokenBucket {
    let interval = cx.duration("fill_interval", m.fill_interval.take());
    let bucket = TokenBucket {
        max_tokens: take(&mut m.max_tokens),
        tokens_per_fill: m.tokens_per_fill.take().map_or(1, |tokens| tokens.value),
        fill_interval: interval.unwrap_or_default(),
    };
    if bucket.max_tokens == 0 {
        cx.refuse_at("max_tokens", "got 0, want 1 or more");
    }
    if bucket.tokens_per_fill == 0 {
        cx.refuse_at("tokens_per_fill", "got 0, want 1 or more");
    }
    if bucket.fill_interval < INTERVAL_MIN {
        cx.refuse_at("fill_interval", format!("got {:?}, want 50ms or more", bucket.fill_interval));
    }
    cx.rest(&m);
    bucket
}
