//! What a route configuration, virtual host, route or weighted cluster says of filters.

use std::collections::HashMap;
use std::mem::take;

use pillion_model::http::CorsPolicy;
use pillion_model::route::FilterOverrides;
use prost::Name;

use crate::decode::Context;
use crate::decode::context::{ignored, inert, is, type_name};
use crate::decode::matcher::string;
use crate::pb;

const SUPPORTED: &str = "RBACPerRoute, HTTPFault, CorsPolicy, HeaderMutationPerRoute, BufferPerRoute, \
                         LocalRateLimit, PerRouteConfig, ExtAuthzPerRoute, FilterConfig under their filters' names";

pub(in crate::decode) fn overrides(cx: &mut Context, all: HashMap<String, pb::Any>) -> FilterOverrides {
    let mut filters = FilterOverrides::default();
    // In the order of their names: what is refused is told in one order.
    let mut all: Vec<(String, pb::Any)> = all.into_iter().collect();
    all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    for (name, any) in all {
        cx.at(format_args!("typed_per_filter_config[\"{name}\"]"), |cx| one(cx, &name, any, &mut filters));
    }
    filters
}

fn one(cx: &mut Context, name: &str, any: pb::Any, filters: &mut FilterOverrides) {
    if !is::<pb::route::FilterConfig>(&any) {
        return settings(cx, name, &any, filters);
    }
    let Some(kind) = pb::names::kind(name) else {
        cx.refuse("is for no filter that runs here");
        return;
    };
    let mut config: pb::route::FilterConfig = cx.unpack(&any);
    config.is_optional = false;
    let (disabled, inner) = (take(&mut config.disabled), config.config.take());
    cx.rest(&config);
    match inner {
        _ if disabled => {
            filters.switched.insert(kind, false);
        }
        None => cx.missing("config"),
        Some(inner) if inner.type_url.is_empty() || type_name(&inner) == EMPTY => {
            filters.switched.insert(kind, true);
        }
        Some(inner) => cx.at("config", |cx| settings(cx, name, &inner, filters)),
    }
}

fn settings(cx: &mut Context, name: &str, any: &pb::Any, filters: &mut FilterOverrides) {
    let known = SETTINGS.iter().find(|(type_of, ..)| type_of() == type_name(any));
    let Some((_, expected, read)) = known else {
        cx.unsupported_type(any, SUPPORTED);
        return;
    };
    read(cx, any, filters);
    if name != *expected {
        cx.refuse(format!("is for no filter that runs here; want `{expected}`"));
    }
}

/// How files write that there is nothing.
const EMPTY: &str = "google.protobuf.Empty";

type Read = fn(&mut Context, &pb::Any, &mut FilterOverrides);

/// The name of a type, the filter it is for, and how it is read.
type Setting = (fn() -> String, &'static str, Read);

/// Settings by their types.
static SETTINGS: [Setting; 8] = [
    (pb::http_rbac::RbacPerRoute::full_name, pb::names::RBAC, |cx, any, filters| {
        let mut message: pb::http_rbac::RbacPerRoute = cx.unpack(any);
        filters.rbac = Some(message.rbac.take().and_then(|rbac| cx.at("rbac", |cx| rbac_rules(cx, rbac))));
    }),
    (pb::fault::HttpFault::full_name, pb::names::FAULT, |cx, any, filters| {
        let message = cx.unpack(any);
        filters.fault = Some(super::fault::fault(cx, message));
    }),
    (pb::cors::CorsPolicy::full_name, pb::names::CORS, |cx, any, filters| {
        let message = cx.unpack(any);
        filters.cors = Some(cors(cx, message));
    }),
    (
        pb::header_mutation::HeaderMutationPerRoute::full_name,
        pb::names::HEADER_MUTATION,
        |cx, any, filters| {
            let message: pb::header_mutation::HeaderMutationPerRoute = cx.unpack(any);
            let changes = cx.some("mutations", message.mutations, super::mutation::changes);
            filters.header_mutation = Some(changes.unwrap_or_default());
        },
    ),
    (pb::buffer::BufferPerRoute::full_name, pb::names::BUFFER, |cx, any, filters| {
        use pb::buffer::buffer_per_route::Override;
        let message: pb::buffer::BufferPerRoute = cx.unpack(any);
        match message.r#override {
            Some(Override::Disabled(true)) => filters.buffer = Some(None),
            Some(Override::Buffer(buffer)) => {
                filters.buffer = Some(Some(cx.at("buffer", |cx| super::buffer(cx, buffer))));
            }
            Some(Override::Disabled(false)) => cx.refuse_at("disabled", "want true, or buffer"),
            None => cx.refuse("says nothing; want disabled or buffer"),
        }
    }),
    (pb::local_ratelimit::LocalRateLimit::full_name, pb::names::LOCAL_RATE_LIMIT, |cx, any, filters| {
        let message: pb::local_ratelimit::LocalRateLimit = cx.unpack(any);
        if message.token_bucket.is_none() {
            cx.missing("token_bucket");
        }
        filters.local_rate_limit = Some(Box::new(super::rate_limit::filter(cx, message)));
    }),
    (pb::jwt_authn::PerRouteConfig::full_name, pb::names::JWT_AUTHN, |cx, any, filters| {
        let message = cx.unpack(any);
        filters.jwt = super::jwt::of_route(cx, message);
    }),
    (pb::ext_authz::ExtAuthzPerRoute::full_name, pb::names::EXT_AUTHZ, |cx, any, filters| {
        let message = cx.unpack(any);
        filters.authz = super::authz::of_route(cx, message);
    }),
];

fn rbac_rules(cx: &mut Context, rbac: pb::http_rbac::Rbac) -> super::Rules {
    let (rules, shadow) = super::rbac(cx, rbac);
    if shadow.is_some() {
        cx.ignore("shadow_rules");
    }
    rules
}

fn cors(cx: &mut Context, mut m: pb::cors::CorsPolicy) -> CorsPolicy {
    // On, for all, is what being there says.
    inert!(
        m,
        filter_enabled = Some(everything()),
        allow_private_network_access = Some(pb::BoolValue { value: false })
    );
    ignored!(cx, m, shadow_enabled);
    let policy = CorsPolicy {
        allow_origins: cx.each("allow_origin_string_match", take(&mut m.allow_origin_string_match), string),
        allow_methods: take(&mut m.allow_methods),
        allow_headers: take(&mut m.allow_headers),
        expose_headers: take(&mut m.expose_headers),
        max_age: take(&mut m.max_age),
        allow_credentials: m.allow_credentials.take().map(|on| on.value),
    };
    cx.rest(&m);
    policy
}

fn everything() -> pb::core::RuntimeFractionalPercent {
    pb::core::RuntimeFractionalPercent {
        default_value: Some(pb::types::FractionalPercent { numerator: 100, denominator: 0 }),
        runtime_key: String::new(),
    }
}
