//! HTTP filters.

use pillion_model::filter::{HeaderMutation, HealthCheckFilter};
use pillion_model::http::HttpFilter;
use pillion_model::route::{Append, HeaderChange, HeaderChanges};
use proptest::collection::btree_map;
use proptest::prelude::*;

use super::http::fault;
use super::matchers::{header, rbac};
use super::{few, free, maybe, name};

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
        super::rate_limit::rate_limit(false).prop_map(|limit| HttpFilter::LocalRateLimit(Box::new(limit))),
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

pub(crate) fn addition() -> BoxedStrategy<HeaderChange> {
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
