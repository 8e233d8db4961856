//! Cross-origin requests: preflights are answered, others annotated on the way back.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pillion_model::http::CorsPolicy;

use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::LocalReply;

/// Answers a preflight of an allowed origin; remembers an allowed origin for the response.
pub(super) fn check(x: &mut Exchange) -> Step {
    let Some(origin) = x.head.headers.get(ORIGIN).cloned() else { return Ok(()) };
    let Some(routed) = x.record.routed.clone() else { return Ok(()) };
    let Some(policy) = routed.overrides().cors() else { return Ok(()) };
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
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, &policy.allow_methods),
        (ACCESS_CONTROL_ALLOW_HEADERS, &policy.allow_headers),
        (ACCESS_CONTROL_MAX_AGE, &policy.max_age),
    ] {
        reply.headers.extend(header(name, value));
    }
    Err(reply)
}

/// Adds what an allowed origin needs to see.
pub(crate) fn annotate(x: &Exchange, headers: &mut HeaderMap) {
    let Some(origin) = &x.cors_origin else { return };
    let Some(policy) = x.record.routed.as_ref().and_then(|routed| routed.overrides().cors()) else { return };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if policy.allow_credentials == Some(true) {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    headers.extend(exposed(policy));
}

fn exposed(policy: &CorsPolicy) -> Option<(HeaderName, HeaderValue)> {
    header(ACCESS_CONTROL_EXPOSE_HEADERS, &policy.expose_headers)
}

fn header(name: HeaderName, value: &str) -> Option<(HeaderName, HeaderValue)> {
    if value.is_empty() {
        return None;
    }
    Some((name, HeaderValue::from_str(value).ok()?))
}
