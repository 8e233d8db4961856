//! Limits of a proxy.

use std::time::Duration;

use pillion_model::rate_limit::{
    DescriptorLimit, HostActions, LocalRateLimit, RateLimitAction, RateLimitActions, TokenBucket,
};
use proptest::prelude::*;
use proptest::sample::select;

use super::filters::addition;
use super::matchers::{header, query};
use super::{few, fraction, maybe, name, some, text};

fn bucket() -> BoxedStrategy<TokenBucket> {
    (1_u32.., 1_u32.., 50_u64..1_000_000)
        .prop_map(|(max_tokens, tokens_per_fill, millis)| TokenBucket {
            max_tokens,
            tokens_per_fill,
            fill_interval: Duration::from_millis(millis),
        })
        .boxed()
}

fn descriptor() -> BoxedStrategy<DescriptorLimit> {
    (some((text(), name())), bucket(), any::<bool>())
        .prop_map(|(entries, bucket, shadow)| DescriptorLimit { entries, bucket, shadow })
        .boxed()
}

/// What a route or virtual host says of requests.
pub(crate) fn actions() -> BoxedStrategy<RateLimitActions> {
    let pair = || (text(), text());
    let ranges = select(vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()]);
    let action = prop_oneof![
        Just(RateLimitAction::SourceCluster),
        Just(RateLimitAction::DestinationCluster),
        Just(RateLimitAction::RemoteAddress),
        (name(), text(), any::<bool>()).prop_map(|(name, key, skip_if_absent)| RateLimitAction::Header {
            name,
            key,
            skip_if_absent
        }),
        (text(), text(), any::<bool>()).prop_map(|(name, key, skip_if_absent)| RateLimitAction::Query {
            name,
            key,
            skip_if_absent
        }),
        (0_u8..=32, 0_u8..=128)
            .prop_map(|(v4_bits, v6_bits)| RateLimitAction::MaskedRemoteAddress { v4_bits, v6_bits }),
        pair().prop_map(|(key, value)| RateLimitAction::Generic { key, value }),
        (pair(), any::<bool>(), some(header())).prop_map(|((key, value), expect, headers)| {
            RateLimitAction::HeaderMatch { key, value, expect, headers }
        }),
        (pair(), any::<bool>(), some(query())).prop_map(|((key, value), expect, parameters)| {
            RateLimitAction::QueryMatch { key, value, expect, parameters }
        }),
        (text(), name(), any::<bool>(), some(ranges)).prop_map(|(key, value, invert, ranges)| {
            RateLimitAction::RemoteAddressMatch { key, value, invert, ranges }
        }),
    ];
    (0_u32..=10, some(action)).prop_map(|(stage, actions)| RateLimitActions { stage, actions }).boxed()
}

/// `bucketed`: there is a bucket, as at routes.
pub(crate) fn rate_limit(bucketed: bool) -> BoxedStrategy<LocalRateLimit> {
    let own = few(actions().prop_map(|actions| RateLimitActions { stage: 0, ..actions }));
    let host_actions = select(vec![HostActions::Override, HostActions::Include, HostActions::Ignore]);
    let described = (few(descriptor()), own, 0_u32..=10, host_actions, 1_u32..);
    let shares = (fraction(), fraction());
    let changes = (few(addition()), few(addition()));
    (text(), 400_u16..=511, (maybe(bucket()), bucket()), described, shares, changes, any::<[bool; 4]>())
        .prop_map(move |(stat_prefix, status, (maybe, bucket), described, shares, changes, flags)| {
            let (mut descriptors, actions, stage, host_actions, dynamic_max) = described;
            let (mut enabled, enforced) = shares;
            let bucket = if bucketed { Some(bucket) } else { maybe };
            if bucket.is_none() {
                enabled.numerator = 0;
                descriptors.clear();
            }
            descriptors.sort_by(|a, b| a.entries.cmp(&b.entries));
            descriptors.dedup_by(|a, b| a.entries == b.entries);
            let [limit_headers, resource_exhausted, retry_after, always_take_default] = flags;
            LocalRateLimit {
                stat_prefix,
                status,
                bucket,
                descriptors,
                always_take_default,
                dynamic_max,
                actions,
                stage,
                host_actions,
                enabled,
                enforced,
                request_headers: changes.0,
                response_headers: changes.1,
                limit_headers,
                retry_after,
                resource_exhausted,
            }
        })
        .boxed()
}
