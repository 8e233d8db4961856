//! What stands at routes and virtual hosts alike: retries, settings of filters, header changes.

use std::mem::take;

use pillion_model::retry::{RetryOn, RetryPolicy};
use pillion_model::route::{Append, HeaderChange};

use super::Context;
use super::context::is;
use super::matcher::header;
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

pub(super) fn addition(cx: &mut Context, mut m: pb::core::HeaderValueOption) -> HeaderChange {
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
