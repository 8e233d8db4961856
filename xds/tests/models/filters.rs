//! HTTP filters.

use std::time::Duration;

use pillion_model::filter::{HeaderMutation, HealthCheckFilter, LocalRateLimit, TokenBucket};
use pillion_model::http::HttpFilter;
use pillion_model::route::{Append, HeaderChange, HeaderChanges};
use proptest::collection::btree_map;
use proptest::prelude::*;

use super::http::fault;
use super::matchers::{header, rbac};
use super::{few, fraction, free, maybe, name, text};

pub(crate) fn filters() -> BoxedStrategy<Vec<HttpFilter>> {
    let filter = prop_oneof![
        (maybe(rbac()), maybe(rbac()))
            .prop_map(|(rules, shadow_rules)| HttpFilter::Rbac { rules, shadow_rules }),
        fault().prop_map(HttpFilter::Fault),
        Just(HttpFilter::Cors),
        (mutations(), any::<bool>()).prop_map(|(changes, most_specific_wins)| {
            HttpFilter::HeaderMutation(HeaderMutation { changes, most_specific_wins })
        }),
        (1_u32..).prop_map(|bytes_max| HttpFilter::Buffer { bytes_max }),
        health_check().prop_map(HttpFilter::HealthCheck),
        super::jwt::jwt().prop_map(|jwt| HttpFilter::JwtAuthn(Box::new(jwt))),
        super::authz::authz().prop_map(|authz| HttpFilter::ExtAuthz(Box::new(authz))),
        rate_limit(false).prop_map(|limit| HttpFilter::LocalRateLimit(Box::new(limit))),
    ];
    let filter = (filter, any::<bool>())
        .prop_map(|(filter, off)| if off { HttpFilter::OffByDefault(Box::new(filter)) } else { filter });
    (few(filter), any::<bool>())
        .prop_map(|(mut filters, suppress_envoy_headers)| {
            filters.push(HttpFilter::Router { suppress_envoy_headers });
            filters
        })
        .boxed()
}

/// Removals and additions in any order.
pub(crate) fn mutations() -> BoxedStrategy<HeaderChanges> {
    let side = || few(prop_oneof![name().prop_map(HeaderChange::Remove), addition()]);
    (side(), side()).prop_map(|(request, response)| HeaderChanges { request, response }).boxed()
}

fn addition() -> BoxedStrategy<HeaderChange> {
    let append = prop_oneof![Just(Append::AppendIfExistsOrAdd), Just(Append::OverwriteIfExists)];
    (name(), free(), append, any::<bool>())
        .prop_map(|(name, value, append, keep_empty)| HeaderChange::Add { name, value, append, keep_empty })
        .boxed()
}

fn health_check() -> BoxedStrategy<HealthCheckFilter> {
    (any::<bool>(), few(header()), btree_map(name(), 0_u32..=100, 0..3))
        .prop_map(|(pass_through, headers, mut min_healthy)| {
            if pass_through {
                min_healthy.clear();
            }
            HealthCheckFilter { pass_through, headers, min_healthy }
        })
        .boxed()
}

/// `bucketed`: there is a bucket, as at routes.
pub(crate) fn rate_limit(bucketed: bool) -> BoxedStrategy<LocalRateLimit> {
    let bucket = (1_u32.., 1_u32.., 50_u64..1_000_000).prop_map(|(max_tokens, tokens_per_fill, millis)| {
        TokenBucket { max_tokens, tokens_per_fill, fill_interval: Duration::from_millis(millis) }
    });
    let shares = (fraction(), fraction());
    let changes = (few(addition()), few(addition()));
    (text(), 400_u16..=511, maybe(bucket.clone()), bucket, shares, changes, any::<(bool, bool)>())
        .prop_map(move |(stat_prefix, status, maybe, bucket, (mut enabled, enforced), changes, flags)| {
            let bucket = if bucketed { Some(bucket) } else { maybe };
            if bucket.is_none() {
                enabled.numerator = 0;
            }
            LocalRateLimit {
                stat_prefix,
                status,
                bucket,
                enabled,
                enforced,
                request_headers: changes.0,
                response_headers: changes.1,
                limit_headers: flags.0,
                resource_exhausted: flags.1,
            }
        })
        .boxed()
}
