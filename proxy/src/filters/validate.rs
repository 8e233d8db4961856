//! Checks that every request passes, in Envoy's order.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Uri, Version};
use pillion_model::matcher::RequestView;
use pillion_model::path::{Normalized, normalize};

use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::Cause;
use crate::snapshot::Action;

/// QUERY says what it asks with (RFC 10008 section 2.1).
pub(crate) fn query_type(x: &Exchange) -> Step {
    if x.head.method.as_str() == "QUERY" && !x.head.headers.contains_key(CONTENT_TYPE) {
        return Err(Cause::QueryWithoutType.into());
    }
    Ok(())
}

/// There is one length at most. Of HTTP/1 that is known before; `h2` compares lengths with the body, but
/// takes one that is given twice, which would be two in HTTP/1.
pub(crate) fn lengths(x: &Exchange) -> Step {
    match x.head.headers.get_all(CONTENT_LENGTH).iter().nth(1) {
        Some(_second) => Err(Cause::BadRequest("http2.violation.of.messaging.rule").into()),
        None => Ok(()),
    }
}

/// A request to change protocol has no body: bytes that follow belong to the new protocol and are
/// held back until both sides agreed (CVE-2026-73548).
pub(crate) fn upgrade_form(x: &Exchange) -> Step {
    let headers = &x.head.headers;
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if x.head.upgrade.is_some() && has_body {
        return Err(Cause::BadRequest("http1.upgrade_with_body").into());
    }
    Ok(())
}

/// There is one host, it can be one, and all places that name it agree.
pub(crate) fn host(x: &mut Exchange) -> Step {
    let uri = &x.head.uri;
    if uri.authority().is_some() && uri.scheme().is_none() && x.head.method != Method::CONNECT {
        // `GET a`: neither a path nor a URI.
        return Err(Cause::BadRequest("http1.codec_error").into());
    }
    let headers = &mut x.head.headers;
    let mut hosts = headers.get_all(HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Cause::MissingHost.into());
    }
    match (x.head.uri.authority(), first) {
        (None, None) => return Err(Cause::MissingHost.into()),
        (None, Some(host)) => {
            if !is_host(host.as_bytes()) {
                return Err(Cause::BadRequest("http.invalid_authority").into());
            }
        }
        (Some(authority), host) => {
            if !is_host(authority.as_str().as_bytes()) {
                return Err(Cause::BadRequest("http.invalid_authority").into());
            }
            if host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())) {
                return Err(Cause::BadRequest("host_and_authority_differ").into());
            }
            headers.remove(HOST);
        }
    }
    if x.head.uri.authority().is_some() && x.version < Version::HTTP_2 && x.head.method != Method::CONNECT {
        to_origin_form(x);
    }
    if x.record.wants_head() {
        let authority = x.head.authority();
        x.record.authority = HeaderValue::from_str(authority).ok();
    }
    Ok(())
}

/// HTTP/1.1 in absolute form: the authority moves to `Host`.
fn to_origin_form(x: &mut Exchange) {
    let uri = std::mem::take(&mut x.head.uri);
    if let Some(Ok(host)) = uri.authority().map(|authority| HeaderValue::from_str(authority.as_str())) {
        x.head.headers.insert(HOST, host);
    }
    x.head.uri = uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
}

/// Whether this may stand in `Host`: RFC 3986's `host [ ":" port ]` by its characters, without
/// userinfo.
fn is_host(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|byte| {
            byte.is_ascii_alphanumeric()
                || matches!(
                    byte,
                    b'-' | b'.'
                        | b'_'
                        | b'~'
                        | b':'
                        | b'['
                        | b']'
                        | b'!'
                        | b'$'
                        | b'&'
                        | b'\''
                        | b'('
                        | b')'
                        | b'*'
                        | b'+'
                        | b','
                        | b';'
                        | b'='
                )
        })
}

/// The path is there, begins with `/`, and is brought into its normal form.
pub(crate) fn path(x: &mut Exchange) -> Step {
    if x.head.method == Method::CONNECT {
        return Ok(());
    }
    let Some(path_and_query) = x.head.uri.path_and_query() else {
        return Err(Cause::MissingPath.into());
    };
    if !path_and_query.path().starts_with('/') {
        return Err(Cause::AbsolutePath.into());
    }
    let with_query = |path: &str| match path_and_query.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let normal = match normalize(path_and_query.path(), x.hcm.path_rules) {
        Normalized::Path(Cow::Borrowed(_)) => return Ok(()),
        Normalized::Path(Cow::Owned(path)) => with_query(&path),
        Normalized::Redirect(_) if x.head.grpc => return Err(Cause::PathNormalization.into()),
        Normalized::Redirect(path) => return Err(Cause::PathRedirect(with_query(&path)).into()),
        Normalized::Reject => return Err(Cause::PathNormalization.into()),
    };
    x.head.set_path(&normal).map_err(|_error| Cause::PathNormalization)?;
    x.record.path = x.head.uri.path_and_query().cloned();
    Ok(())
}

/// The connection manager and the route allow the protocol asked for.
pub(crate) fn upgrade_allowed(x: &Exchange) -> Step {
    let Some(protocol) = &x.head.upgrade else { return Ok(()) };
    let named = |name: &String| name.eq_ignore_ascii_case(protocol);
    let mut allowed = x.hcm.config.upgrades.iter().any(named);
    if let Some(routed) = &x.record.routed
        && let Action::Forward(forward) = &routed.route().action
        && let Some((_, enabled)) = forward.upgrades.iter().find(|(name, _)| named(name))
    {
        allowed = *enabled;
    }
    if allowed { Ok(()) } else { Err(Cause::UpgradeFailed.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_by_their_characters() {
        for (text, want) in [
            ("a.example:80", true),
            ("[::1]:80", true),
            ("a_b", true),
            ("", false),
            ("user@a", false),
            ("a b", false),
            ("a/b", false),
            ("[::1%25eth0]", false),
        ] {
            assert_eq!(is_host(text.as_bytes()), want, "{text}");
        }
    }
}
