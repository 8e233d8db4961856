//! What stands at routes and virtual hosts alike: retries, settings of filters, header changes.

use std::collections::HashMap;
use std::mem::take;

use pillion_model::http::CorsPolicy;
use pillion_model::retry::{RetryOn, RetryPolicy};
use pillion_model::route::{Append, FilterOverrides, HeaderChange};

use super::Context;
use super::context::{ignored, inert, is};
use super::matcher::{header, string};
use crate::pb;

pub(super) fn retry_policy(cx: &mut Context, mut m: pb::route::RetryPolicy) -> RetryPolicy {
    let standard = RetryPolicy::default();
    let mut on = RetryOn::empty();
    for token in take(&mut m.retry_on).split(',').map(str::trim).filter(|token| !token.is_empty()) {
        match RetryOn::parse_token(token) {
            Some(condition) => on = on.with(condition),
            // There is no HTTP/3 to fall back from.
            None if token == "http3-post-connect-failure" => cx.ignore("retry_on"),
            None => cx.refuse_at("retry_on", format!("`{token}` is not supported; {}", conditions())),
        }
    }
    let mut backoff = m.retry_back_off.take().unwrap_or_default();
    let (base, longest) = cx.at("retry_back_off", |cx| {
        (
            cx.duration("base_interval", backoff.base_interval.take()),
            cx.duration("max_interval", backoff.max_interval.take()),
        )
    });
    let backoff_base = base.unwrap_or(standard.backoff_base);
    let attempts = take(&mut m.host_selection_retry_max_attempts);
    let predicates = cx.each("retry_host_predicate", take(&mut m.retry_host_predicate), host_predicate);
    let policy = RetryPolicy {
        on,
        status_codes: cx.each("retriable_status_codes", take(&mut m.retriable_status_codes), |cx, code| {
            u16::try_from(code).unwrap_or_else(|_| {
                cx.refuse(format!("got {code}, want a status code"));
                0
            })
        }),
        headers: cx.each("retriable_headers", take(&mut m.retriable_headers), header),
        retries: m.num_retries.take().map_or(standard.retries, |retries| retries.value),
        per_try_timeout: cx.limit("per_try_timeout", m.per_try_timeout.take(), None),
        backoff_base,
        backoff_max: longest.unwrap_or_else(|| backoff_base.saturating_mul(10)),
        avoid_previous_hosts: predicates.contains(&true),
        host_selection_attempts: u32::try_from(attempts).unwrap_or(0).max(1),
        only_safe: false,
    };
    cx.rest(&m);
    policy
}

fn conditions() -> String {
    let tokens: Vec<&str> = RetryOn::ALL.iter().map(|&(_, token)| token).collect();
    format!("supported: {}", tokens.join(", "))
}

fn host_predicate(cx: &mut Context, predicate: pb::route::retry_policy::RetryHostPredicate) -> bool {
    use pb::route::retry_policy::retry_host_predicate::ConfigType;
    match predicate.config_type {
        Some(ConfigType::TypedConfig(any)) if !is::<pb::previous_hosts::PreviousHostsPredicate>(&any) => {
            cx.at("typed_config", |cx| cx.unsupported_type(&any, "previous_hosts"));
        }
        Some(ConfigType::TypedConfig(_)) => return true,
        None if predicate.name == "envoy.retry_host_predicates.previous_hosts" => return true,
        None => cx.missing("typed_config"),
    }
    false
}

const OVERRIDES: &str = "RBACPerRoute, HTTPFault, CorsPolicy under their filters' names";

pub(super) fn overrides(cx: &mut Context, all: HashMap<String, pb::Any>) -> FilterOverrides {
    let mut filters = FilterOverrides::default();
    for (name, any) in all {
        cx.at(format_args!("typed_per_filter_config[\"{name}\"]"), |cx| {
            let expected = if is::<pb::http_rbac::RbacPerRoute>(&any) {
                let mut message: pb::http_rbac::RbacPerRoute = cx.unpack(&any);
                filters.rbac =
                    Some(message.rbac.take().and_then(|rbac| cx.at("rbac", |cx| rbac_rules(cx, rbac))));
                pb::names::RBAC
            } else if is::<pb::fault::HttpFault>(&any) {
                let message = cx.unpack(&any);
                filters.fault = Some(super::http::fault(cx, message));
                pb::names::FAULT
            } else if is::<pb::cors::CorsPolicy>(&any) {
                let message = cx.unpack(&any);
                filters.cors = Some(cors(cx, message));
                pb::names::CORS
            } else {
                cx.unsupported_type(&any, OVERRIDES);
                return;
            };
            if name != expected {
                cx.refuse(format!("is for no filter that runs here; want `{expected}`"));
            }
        });
    }
    filters
}

fn rbac_rules(cx: &mut Context, rbac: pb::http_rbac::Rbac) -> super::http::Rules {
    let (rules, shadow) = super::http::rbac(cx, rbac);
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

/// Removals first: that is the order in which they are applied at each level.
pub(super) fn changes(
    cx: &mut Context,
    side: &str,
    removed: &mut Vec<String>,
    added: &mut Vec<pb::core::HeaderValueOption>,
) -> Vec<HeaderChange> {
    let mut all: Vec<HeaderChange> =
        take(removed).into_iter().map(|name| HeaderChange::Remove(name.to_ascii_lowercase())).collect();
    all.extend(cx.each(&format!("{side}_headers_to_add"), take(added), addition));
    all
}

fn addition(cx: &mut Context, mut m: pb::core::HeaderValueOption) -> HeaderChange {
    use pb::core::header_value_option::HeaderAppendAction as A;
    let mut header = m.header.take().unwrap_or_default();
    let action = take(&mut m.append_action);
    let append = match (m.append.take(), A::try_from(action)) {
        (Some(on), _) if on.value => Append::AppendIfExistsOrAdd,
        (Some(_), _) => Append::OverwriteIfExistsOrAdd,
        (None, Ok(A::AppendIfExistsOrAdd)) => Append::AppendIfExistsOrAdd,
        (None, Ok(A::AddIfAbsent)) => Append::AddIfAbsent,
        (None, Ok(A::OverwriteIfExistsOrAdd)) => Append::OverwriteIfExistsOrAdd,
        (None, Ok(A::OverwriteIfExists)) => Append::OverwriteIfExists,
        (None, Err(_)) => {
            cx.refuse_at("append_action", format!("got {action}, want a known value"));
            Append::default()
        }
    };
    let name = take(&mut header.key).to_ascii_lowercase();
    if name.is_empty() {
        cx.at("header", |cx| cx.missing("key"));
    }
    let mut value = take(&mut header.value);
    if let Ok(text) = String::from_utf8(take(&mut header.raw_value)) {
        if value.is_empty() {
            value = text;
        }
    } else {
        cx.refuse_at("header.raw_value", "is not UTF-8");
    }
    let keep_empty = take(&mut m.keep_empty_value);
    cx.rest(&m);
    HeaderChange::Add { name, value, append, keep_empty }
}
