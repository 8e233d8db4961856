//! How requests are described to filters that limit them, and buckets.

use std::mem::take;
use std::time::Duration;

use pillion_model::matcher::Cidr;
use pillion_model::rate_limit::{RateLimitAction, RateLimitActions, STAGE_MAX, TokenBucket};

use super::Context;
use super::matcher::{header, query};
use crate::pb;
use pb::route::rate_limit::{Action, action, action::ActionSpecifier};

/// Envoy's shortest.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// What one rule of a route, virtual host or filter says of requests.
pub(super) fn actions(cx: &mut Context, mut m: pb::route::RateLimit) -> RateLimitActions {
    let rule = RateLimitActions {
        stage: stage(cx, m.stage.take().map_or(0, |stage| stage.value)),
        actions: cx.each("actions", take(&mut m.actions), action).into_iter().flatten().collect(),
    };
    if rule.actions.is_empty() {
        cx.refuse_at("actions", "is empty; want at least one that is supported");
    }
    cx.rest(&m);
    rule
}

/// Which rules and filters belong together.
pub(super) fn stage(cx: &mut Context, stage: u32) -> u32 {
    if stage > STAGE_MAX {
        cx.refuse_at("stage", format!("got {stage}, want 0 to {STAGE_MAX}"));
    }
    stage
}

fn action(cx: &mut Context, action: Action) -> Option<RateLimitAction> {
    use ActionSpecifier as S;
    Some(match action.action_specifier {
        Some(S::SourceCluster(_)) => RateLimitAction::SourceCluster,
        Some(S::DestinationCluster(_)) => RateLimitAction::DestinationCluster,
        Some(S::RemoteAddress(_)) => RateLimitAction::RemoteAddress,
        Some(S::RequestHeaders(m)) => cx.at("request_headers", |cx| RateLimitAction::Header {
            name: wanted(cx, "header_name", m.header_name).to_ascii_lowercase(),
            key: wanted(cx, "descriptor_key", m.descriptor_key),
            skip_if_absent: m.skip_if_absent,
        }),
        Some(S::QueryParameters(m)) => cx.at("query_parameters", |cx| RateLimitAction::Query {
            name: wanted(cx, "query_parameter_name", m.query_parameter_name),
            key: wanted(cx, "descriptor_key", m.descriptor_key),
            skip_if_absent: m.skip_if_absent,
        }),
        Some(S::MaskedRemoteAddress(m)) => cx.at("masked_remote_address", |cx| masked(cx, m)),
        Some(S::GenericKey(m)) => cx.at("generic_key", |cx| generic(cx, m)),
        Some(S::HeaderValueMatch(m)) => cx.at("header_value_match", |cx| header_match(cx, m)),
        Some(S::QueryParameterValueMatch(m)) => cx.at("query_parameter_value_match", |cx| query_match(cx, m)),
        Some(S::RemoteAddressMatch(m)) => cx.at("remote_address_match", |cx| address_match(cx, m)),
        Some(S::DynamicMetadata(_)) => return unsupported(cx, "dynamic_metadata"),
        Some(S::Metadata(_)) => return unsupported(cx, "metadata"),
        Some(S::Extension(_)) => return unsupported(cx, "extension"),
        None => return unsupported(cx, "action_specifier"),
    })
}

fn unsupported(cx: &mut Context, field: &str) -> Option<RateLimitAction> {
    cx.refuse_at(
        field,
        "is not supported or missing; supported: source_cluster, destination_cluster, request_headers, \
         query_parameters, remote_address, masked_remote_address, generic_key, header_value_match, \
         query_parameter_value_match, remote_address_match",
    );
    None
}

fn wanted(cx: &mut Context, field: &str, text: String) -> String {
    if text.is_empty() {
        cx.missing(field);
    }
    text
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

fn masked(cx: &mut Context, m: action::MaskedRemoteAddress) -> RateLimitAction {
    let mut bits = |field: &str, given: Option<pb::UInt32Value>, max: u8| {
        let bits = given.map_or_else(|| max.into(), |bits| bits.value);
        u8::try_from(bits).ok().filter(|bits| *bits <= max).unwrap_or_else(|| {
            cx.refuse_at(field, format!("got {bits}, want 0 to {max}"));
            max
        })
    };
    RateLimitAction::MaskedRemoteAddress {
        v4_bits: bits("v4_prefix_mask_len", m.v4_prefix_mask_len, 32),
        v6_bits: bits("v6_prefix_mask_len", m.v6_prefix_mask_len, 128),
    }
}

// The default of a value is read only under a flag of Envoy's runtime that is off, and a value's format
// operators with it.
fn generic(cx: &mut Context, mut m: action::GenericKey) -> RateLimitAction {
    let key = or(take(&mut m.descriptor_key), "generic_key");
    let value = wanted(cx, "descriptor_value", take(&mut m.descriptor_value));
    cx.rest(&m);
    RateLimitAction::Generic { key, value }
}

fn header_match(cx: &mut Context, mut m: action::HeaderValueMatch) -> RateLimitAction {
    let key = or(take(&mut m.descriptor_key), "header_match");
    let value = wanted(cx, "descriptor_value", take(&mut m.descriptor_value));
    let expect = m.expect_match.take().is_none_or(|on| on.value);
    let headers = cx.each("headers", take(&mut m.headers), header);
    if headers.is_empty() {
        cx.missing("headers");
    }
    cx.rest(&m);
    RateLimitAction::HeaderMatch { key, value, expect, headers }
}

fn query_match(cx: &mut Context, mut m: action::QueryParameterValueMatch) -> RateLimitAction {
    let key = or(take(&mut m.descriptor_key), "query_match");
    let value = wanted(cx, "descriptor_value", take(&mut m.descriptor_value));
    let expect = m.expect_match.take().is_none_or(|on| on.value);
    let parameters = cx.each("query_parameters", take(&mut m.query_parameters), query);
    if parameters.is_empty() {
        cx.missing("query_parameters");
    }
    cx.rest(&m);
    RateLimitAction::QueryMatch { key, value, expect, parameters }
}

fn address_match(cx: &mut Context, mut m: action::RemoteAddressMatch) -> RateLimitAction {
    let key = or(take(&mut m.descriptor_key), "remote_address_match");
    let value = wanted(cx, "descriptor_value", take(&mut m.descriptor_value));
    if value.contains('%') {
        cx.refuse_at("descriptor_value", "format operators are not supported; want a text without `%`");
    }
    let matcher = m.address_matcher.take().unwrap_or_default();
    let ranges = cx.at("address_matcher", |cx| {
        if matcher.ranges.is_empty() {
            cx.missing("ranges");
        }
        cx.each("ranges", matcher.ranges, cidr)
    });
    cx.rest(&m);
    RateLimitAction::RemoteAddressMatch { key, value, invert: matcher.invert_match, ranges }
}

fn cidr(cx: &mut Context, range: pb::xds::CidrRange) -> Cidr {
    let range = pb::core::CidrRange {
        address_prefix: range.address_prefix,
        prefix_len: range.prefix_len.map(|length| pb::UInt32Value { value: length.value }),
    };
    super::matcher::cidr(cx, range)
}

/// A bucket of tokens.
pub(super) fn bucket(cx: &mut Context, mut m: pb::types::TokenBucket) -> TokenBucket {
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
