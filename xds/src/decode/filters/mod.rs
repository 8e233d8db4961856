//! HTTP filters, and what routes say of them.

mod authz;
mod fault;
mod health_check;
mod jwt;
mod mutation;
mod overrides;
mod rate_limit;

use std::mem::take;

use pillion_model::filter::FilterKind;
use pillion_model::http::HttpFilter;
use prost::Name;

use super::Context;
use super::context::{ignored, type_name};
use crate::pb;

pub(super) use overrides::overrides;

const SUPPORTED: &str =
    "router, rbac, fault, cors, header_mutation, buffer, health_check, local_ratelimit, jwt_authn, ext_authz";

pub(super) fn filters(cx: &mut Context, filters: Vec<pb::hcm::HttpFilter>) -> Vec<HttpFilter> {
    let filters: Vec<HttpFilter> = cx.each("http_filters", filters, filter).into_iter().flatten().collect();
    let routers = filters.iter().filter(|filter| matches!(filter, HttpFilter::Router { .. })).count();
    if routers != 1 || !matches!(filters.last(), Some(HttpFilter::Router { .. })) {
        cx.refuse_at("http_filters", "want exactly one envoy.filters.http.router, as the last");
    }
    filters
}

fn filter(cx: &mut Context, mut filter: pb::hcm::HttpFilter) -> Option<HttpFilter> {
    use pb::hcm::http_filter::ConfigType;
    let name = take(&mut filter.name);
    // An unknown filter is refused whether it calls itself optional or not.
    filter.is_optional = false;
    let off = take(&mut filter.disabled);
    let any = match filter.config_type.take() {
        Some(ConfigType::TypedConfig(any)) => any,
        Some(ConfigType::ConfigDiscovery(_)) => {
            cx.refuse_at("config_discovery", "is not supported; use typed_config");
            return None;
        }
        None => {
            cx.missing("typed_config");
            return None;
        }
    };
    cx.rest(&filter);
    let filter = cx.at("typed_config", |cx| typed_filter(cx, &any))?;
    let Some(kind) = filter.kind() else {
        if off {
            cx.refuse_at("disabled", "the router cannot be disabled");
        }
        return Some(filter);
    };
    let canonical = pb::names::of(kind);
    // Without settings of its own at a route there is nothing to be found by the name.
    if name != canonical && kind != FilterKind::HealthCheck {
        cx.refuse_at(
            "name",
            format!("got `{name}`, want `{canonical}`: settings of routes find the filter by it"),
        );
    }
    Some(if off { HttpFilter::OffByDefault(Box::new(filter)) } else { filter })
}

fn typed_filter(cx: &mut Context, any: &pb::Any) -> Option<HttpFilter> {
    if type_name(any) == "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" {
        cx.ignore("@type");
        return None;
    }
    let known = FILTERS.iter().find(|(name, _)| name() == type_name(any));
    let Some((_, read)) = known else {
        cx.unsupported_type(any, SUPPORTED);
        return None;
    };
    Some(read(cx, any))
}

type Read = fn(&mut Context, &pb::Any) -> HttpFilter;

/// Filters by their types.
static FILTERS: [(fn() -> String, Read); 10] = [
    (pb::router::Router::full_name, |cx, any| {
        let message = cx.unpack(any);
        router(cx, message)
    }),
    (pb::http_rbac::Rbac::full_name, |cx, any| {
        let message = cx.unpack(any);
        let (rules, shadow_rules) = rbac(cx, message);
        HttpFilter::Rbac { rules, shadow_rules }
    }),
    (pb::fault::HttpFault::full_name, |cx, any| {
        let message = cx.unpack(any);
        HttpFilter::Fault(fault::fault(cx, message))
    }),
    (pb::cors::Cors::full_name, |_, _| HttpFilter::Cors),
    (pb::header_mutation::HeaderMutation::full_name, |cx, any| {
        let message = cx.unpack(any);
        HttpFilter::HeaderMutation(mutation::filter(cx, message))
    }),
    (pb::buffer::Buffer::full_name, |cx, any| {
        let message = cx.unpack(any);
        HttpFilter::Buffer { bytes_max: buffer(cx, message) }
    }),
    (pb::health_check::HealthCheck::full_name, |cx, any| {
        let message = cx.unpack(any);
        HttpFilter::HealthCheck(health_check::filter(cx, message))
    }),
    (pb::local_ratelimit::LocalRateLimit::full_name, |cx, any| {
        let message = cx.unpack(any);
        HttpFilter::LocalRateLimit(Box::new(rate_limit::filter(cx, message)))
    }),
    (pb::jwt_authn::JwtAuthentication::full_name, |cx, any| {
        let message = cx.unpack(any);
        HttpFilter::JwtAuthn(Box::new(jwt::filter(cx, message)))
    }),
    (pb::ext_authz::ExtAuthz::full_name, |cx, any| {
        let message = cx.unpack(any);
        HttpFilter::ExtAuthz(Box::new(authz::filter(cx, message)))
    }),
];

fn router(cx: &mut Context, mut router: pb::router::Router) -> HttpFilter {
    ignored!(
        cx,
        router,
        dynamic_stats,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_grpc_request_failure_code_stats,
    );
    let suppress_envoy_headers = take(&mut router.suppress_envoy_headers);
    cx.rest(&router);
    HttpFilter::Router { suppress_envoy_headers }
}

pub(super) type Rules = Option<pillion_model::rbac::Rbac>;

pub(super) fn rbac(cx: &mut Context, mut rbac: pb::http_rbac::Rbac) -> (Rules, Rules) {
    ignored!(cx, rbac, rules_stat_prefix, shadow_rules_stat_prefix, shadow_matcher, track_per_rule_stats);
    let rules = cx.some("rules", rbac.rules.take(), crate::decode::rbac::rules);
    let shadow = cx.some("shadow_rules", rbac.shadow_rules.take(), crate::decode::rbac::rules);
    cx.rest(&rbac);
    (rules, shadow)
}

fn buffer(cx: &mut Context, mut m: pb::buffer::Buffer) -> u32 {
    let bytes = m.max_request_bytes.take().map_or(0, |bytes| bytes.value);
    if bytes == 0 {
        cx.refuse_at("max_request_bytes", "is missing or 0; want 1 or more");
    }
    bytes
}
