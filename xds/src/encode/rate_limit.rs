//! Limits of a proxy, and how requests are described to them.

use pillion_model::rate_limit::{
    DescriptorLimit, HostActions, LocalRateLimit, RateLimitAction, RateLimitActions, TokenBucket,
};
use pillion_model::route::HeaderChange;

use super::matcher::{header, query};
use super::route::addition;
use super::{boolean, duration, number, runtime_fraction};
use crate::pb;

pub(super) fn filter(limit: &LocalRateLimit) -> pb::local_ratelimit::LocalRateLimit {
    use pb::ratelimit::VhRateLimitsOptions as O;
    let additions = |changes: &[HeaderChange]| changes.iter().filter_map(|one| addition(one).ok()).collect();
    let host_actions = match limit.host_actions {
        HostActions::Override => O::Override,
        HostActions::Include => O::Include,
        HostActions::Ignore => O::Ignore,
    };
    // What a filter reads by itself has no stage.
    let own = |rule| pb::route::RateLimit { stage: None, ..actions(rule) };
    pb::local_ratelimit::LocalRateLimit {
        stat_prefix: limit.stat_prefix.clone(),
        status: Some(pb::types::HttpStatus { code: limit.status.into() }),
        token_bucket: limit.bucket.map(bucket),
        descriptors: limit.descriptors.iter().map(descriptor).collect(),
        always_consume_default_token_bucket: (!limit.always_take_default).then(|| boolean(false)),
        max_dynamic_descriptors: Some(number(limit.dynamic_max)),
        rate_limits: limit.actions.iter().map(own).collect(),
        stage: limit.stage,
        vh_rate_limits: host_actions.into(),
        filter_enabled: Some(runtime_fraction(limit.enabled)),
        filter_enforced: Some(runtime_fraction(limit.enforced)),
        request_headers_to_add_when_not_enforced: additions(&limit.request_headers),
        response_headers_to_add: additions(&limit.response_headers),
        enable_x_ratelimit_headers: limit.limit_headers.into(),
        enable_retry_after_header: limit.retry_after,
        rate_limited_as_resource_exhausted: limit.resource_exhausted,
        ..Default::default()
    }
}

fn bucket(bucket: TokenBucket) -> pb::types::TokenBucket {
    pb::types::TokenBucket {
        max_tokens: bucket.max_tokens,
        tokens_per_fill: Some(number(bucket.tokens_per_fill)),
        fill_interval: Some(duration(bucket.fill_interval)),
    }
}

fn descriptor(limit: &DescriptorLimit) -> pb::ratelimit::LocalRateLimitDescriptor {
    use pb::ratelimit::rate_limit_descriptor::Entry;
    let entry = |(key, value): &(String, String)| Entry { key: key.clone(), value: value.clone() };
    pb::ratelimit::LocalRateLimitDescriptor {
        entries: limit.entries.iter().map(entry).collect(),
        token_bucket: Some(bucket(limit.bucket)),
        shadow_mode: limit.shadow,
    }
}

/// What one rule says of requests.
pub(super) fn actions(rule: &RateLimitActions) -> pb::route::RateLimit {
    pb::route::RateLimit {
        stage: Some(number(rule.stage)),
        actions: rule.actions.iter().map(action).collect(),
        ..Default::default()
    }
}

fn action(one: &RateLimitAction) -> pb::route::rate_limit::Action {
    use pb::route::rate_limit::{Action, action, action::ActionSpecifier as S};
    let specifier = match one.clone() {
        RateLimitAction::SourceCluster => S::SourceCluster(action::SourceCluster {}),
        RateLimitAction::DestinationCluster => S::DestinationCluster(action::DestinationCluster {}),
        RateLimitAction::RemoteAddress => S::RemoteAddress(action::RemoteAddress {}),
        RateLimitAction::Header { name, key, skip_if_absent } => S::RequestHeaders(action::RequestHeaders {
            header_name: name,
            descriptor_key: key,
            skip_if_absent,
        }),
        RateLimitAction::Query { name, key, skip_if_absent } => S::QueryParameters(action::QueryParameters {
            query_parameter_name: name,
            descriptor_key: key,
            skip_if_absent,
        }),
        RateLimitAction::MaskedRemoteAddress { v4_bits, v6_bits } => {
            S::MaskedRemoteAddress(action::MaskedRemoteAddress {
                v4_prefix_mask_len: Some(number(v4_bits.into())),
                v6_prefix_mask_len: Some(number(v6_bits.into())),
            })
        }
        RateLimitAction::Generic { key, value } => S::GenericKey(action::GenericKey {
            descriptor_key: key,
            descriptor_value: value,
            ..Default::default()
        }),
        RateLimitAction::HeaderMatch { key, value, expect, headers } => {
            S::HeaderValueMatch(action::HeaderValueMatch {
                descriptor_key: key,
                descriptor_value: value,
                expect_match: Some(boolean(expect)),
                headers: headers.iter().map(header).collect(),
                ..Default::default()
            })
        }
        RateLimitAction::QueryMatch { key, value, expect, parameters } => {
            S::QueryParameterValueMatch(action::QueryParameterValueMatch {
                descriptor_key: key,
                descriptor_value: value,
                expect_match: Some(boolean(expect)),
                query_parameters: parameters.iter().map(query).collect(),
                ..Default::default()
            })
        }
        RateLimitAction::RemoteAddressMatch { key, value, invert, ranges } => {
            let range = |range| {
                let pb::core::CidrRange { address_prefix, prefix_len } = super::matcher::cidr(range);
                pb::xds::CidrRange { address_prefix, prefix_len }
            };
            S::RemoteAddressMatch(action::RemoteAddressMatch {
                descriptor_key: key,
                descriptor_value: value,
                address_matcher: Some(pb::matcher::AddressMatcher {
                    ranges: ranges.iter().map(range).collect(),
                    invert_match: invert,
                }),
                ..Default::default()
            })
        }
    };
    Action { action_specifier: Some(specifier) }
}
