//! Cross-origin requests: preflights are answered, others annotated on the way back.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pillion_model::http::CorsPolicy;

use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::LocalReply;
use crate::snapshot::Overrides;

/// Answers a preflight of an allowed origin; remembers an allowed origin for the response.
pub(super) fn check(x: &mut Exchange) -> Step {
    let Some(origin) = x.head.headers.get(ORIGIN).cloned() else { return Ok(()) };
    let Some(routed) = x.record.routed.clone() else { return Ok(()) };
    let allowed = routed.overrides(x.choice).cors().find(|policy| !policy.allow_origins.is_empty());
    let Some(policy) = allowed else { return Ok(()) };
    if !policy.allow_origins.iter().any(|matcher| matcher.is_match_bytes(origin.as_bytes())) {
        return Ok(());
    }
    let preflight =
        x.head.method == Method::OPTIONS && x.head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    x.cors_origin = Some(origin);
    if !preflight {
        return Ok(());
    }
    let mut reply = LocalReply::direct(StatusCode::OK, Bytes::new(), "cors_response");
    let said = |field| said(routed.overrides(x.choice), field);
    let value = |text: Option<&str>| text.and_then(|text| HeaderValue::from_str(text).ok());
    // Browsers take no asterisk from whoever wants credentials.
    let any_of = |text: Option<&str>, asked: HeaderName| match text {
        Some("*") => x.head.headers.get(asked).cloned(),
        text => value(text),
    };
    let methods = any_of(said(|policy| &policy.allow_methods), ACCESS_CONTROL_REQUEST_METHOD);
    let headers = any_of(said(|policy| &policy.allow_headers), ACCESS_CONTROL_REQUEST_HEADERS);
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, methods),
        (ACCESS_CONTROL_ALLOW_HEADERS, headers),
        (ACCESS_CONTROL_MAX_AGE, value(said(|policy| &policy.max_age))),
    ] {
        reply.headers.extend(value.map(|value| (name, value)));
    }
    Err(reply)
}

/// Adds what an allowed origin needs to see.
pub(crate) fn annotate(x: &Exchange, headers: &mut HeaderMap) {
    let Some(origin) = &x.cors_origin else { return };
    let Some(routed) = &x.record.routed else { return };
    let policies = routed.overrides(x.choice);
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if policies.cors().find_map(|policy| policy.allow_credentials) == Some(true) {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    let exposed = said(policies, |policy| &policy.expose_headers);
    if let Some(exposed) = exposed.and_then(|names| HeaderValue::from_str(names).ok()) {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

/// What the first policy says that says anything.
fn said<'a>(policies: Overrides<'a>, field: fn(&CorsPolicy) -> &String) -> Option<&'a str> {
    policies.cors().map(|policy| field(policy).as_str()).find(|text| !text.is_empty())
}
