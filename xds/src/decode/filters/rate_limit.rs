//! Limits of this proxy.

use std::collections::HashSet;
use std::mem::take;

use pillion_model::endpoint::Fraction;
use pillion_model::rate_limit::{
    DYNAMIC_MAX, DescriptorLimit, HostActions, LocalRateLimit, RateLimitActions,
};

use crate::decode::Context;
use crate::decode::policy::addition;
use crate::decode::rate_limit::{actions, bucket, stage};
use crate::pb;

pub(super) fn filter(cx: &mut Context, mut m: pb::local_ratelimit::LocalRateLimit) -> LocalRateLimit {
    let never = Fraction { numerator: 0, denominator: 100 };
    let share = |cx: &mut Context, field: &str, share| {
        cx.some(field, share, Context::runtime_fraction).unwrap_or(never)
    };
    let additions = |cx: &mut Context, field: &str, all| cx.each(field, all, addition);
    let filter = LocalRateLimit {
        stat_prefix: take(&mut m.stat_prefix),
        status: status(cx, m.status.take()),
        bucket: cx.some("token_bucket", m.token_bucket.take(), bucket),
        descriptors: cx.each("descriptors", take(&mut m.descriptors), descriptor),
        always_take_default: m.always_consume_default_token_bucket.take().is_none_or(|on| on.value),
        dynamic_max: m.max_dynamic_descriptors.take().map_or(DYNAMIC_MAX, |max| max.value),
        actions: cx.each("rate_limits", take(&mut m.rate_limits), own_actions),
        stage: stage(cx, take(&mut m.stage)),
        host_actions: host_actions(cx, take(&mut m.vh_rate_limits)),
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
        retry_after: take(&mut m.enable_retry_after_header),
        resource_exhausted: take(&mut m.rate_limited_as_resource_exhausted),
    };
    check(cx, &filter);
    cx.rest(&m);
    filter
}

fn check(cx: &mut Context, filter: &LocalRateLimit) {
    if filter.stat_prefix.is_empty() {
        cx.missing("stat_prefix");
    }
    if filter.bucket.is_none() && (filter.enabled.numerator > 0 || !filter.descriptors.is_empty()) {
        cx.missing("token_bucket");
    }
    if filter.dynamic_max == 0 {
        cx.refuse_at("max_dynamic_descriptors", "got 0, want 1 or more");
    }
    let mut seen = HashSet::new();
    for (index, limit) in filter.descriptors.iter().enumerate() {
        if !seen.insert(&limit.entries) {
            cx.refuse_at(format_args!("descriptors[{index}]"), "has the entries of another descriptor");
        }
    }
}

fn descriptor(cx: &mut Context, mut m: pb::ratelimit::LocalRateLimitDescriptor) -> DescriptorLimit {
    let entries = cx.each("entries", take(&mut m.entries), |cx, entry| {
        if entry.key.is_empty() {
            cx.missing("key");
        }
        (entry.key, entry.value)
    });
    if entries.is_empty() {
        cx.missing("entries");
    }
    if m.token_bucket.is_none() {
        cx.missing("token_bucket");
    }
    let tokens = m.token_bucket.take().unwrap_or_default();
    let bucket = cx.at("token_bucket", |cx| bucket(cx, tokens));
    let shadow = take(&mut m.shadow_mode);
    cx.rest(&m);
    DescriptorLimit { entries, bucket, shadow }
}

/// A filter's own descriptions have no stages.
fn own_actions(cx: &mut Context, m: pb::route::RateLimit) -> RateLimitActions {
    if m.stage.is_some() {
        cx.refuse_at("stage", "is not supported here, for the filter reads all of these");
    }
    actions(cx, m)
}

fn host_actions(cx: &mut Context, given: i32) -> HostActions {
    use pb::ratelimit::VhRateLimitsOptions as O;
    match O::try_from(given) {
        Ok(O::Override) => HostActions::Override,
        Ok(O::Include) => HostActions::Include,
        Ok(O::Ignore) => HostActions::Ignore,
        Err(_) => {
            cx.refuse_at("vh_rate_limits", format!("got {given}, want a known value"));
            HostActions::Override
        }
    }
}

/// As in Envoy, what is no error is 429.
fn status(cx: &mut Context, status: Option<pb::types::HttpStatus>) -> u16 {
    let Some(status) = status else { return 429 };
    if !(200..=511).contains(&status.code) {
        cx.refuse_at("status", format!("got {}, want 200 to 511", status.code));
    }
    u16::try_from(status.code).ok().filter(|code| *code >= 400).unwrap_or(429)
}
