//! Hop-by-hop headers: what must not cross a proxy.

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HeaderName, TE};
use http::{HeaderMap, HeaderValue};

use super::names::HTTP2_SETTINGS;

/// The request's `connection` header nominates what must not be removed, or too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadConnectionHeader;

/// Headers a `connection` header may name at most.
const NOMINATED_MAX: usize = 10;
/// Longest `te`.
const TE_MAX: usize = 256;

/// Removes hop-by-hop headers and those that `connection` names from a request.
///
/// # Errors
///
/// [`BadConnectionHeader`] when 10 or more are named, or one that proxies rely on.
pub(crate) fn strip_request(headers: &mut HeaderMap) -> Result<(), BadConnectionHeader> {
    // Most requests have none of them, which one look at the names tells.
    if !headers.keys().any(may_be_of_the_hop) {
        return Ok(());
    }
    if headers.contains_key(CONNECTION) {
        remove_nominated(headers)?;
    }
    if let Some(te) = headers.get(TE) {
        if te.len() >= TE_MAX {
            return Err(BadConnectionHeader);
        }
        let trailers = mentions(headers, &TE, "trailers");
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    strip_common(headers);
    headers.remove(&HTTP2_SETTINGS);
    // Answered by ourselves.
    if headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        headers.remove(EXPECT);
    }
    Ok(())
}

/// Removes hop-by-hop headers from a response.
pub(crate) fn strip_response(headers: &mut HeaderMap) {
    if !headers.keys().any(may_be_of_the_hop) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        // A bad list only means that nothing further is removed.
        let _ = remove_nominated(headers);
    }
    strip_common(headers);
}

/// Whether a comma-separated header holds `token` (without regard to case).
pub(crate) fn mentions(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| names(value.as_bytes(), token))
}

/// Whether a list holds `token`, perhaps with parameters (without regard to case).
pub(crate) fn names(list: &[u8], token: &str) -> bool {
    list.split(|byte| *byte == b',').any(|part| {
        part.split(|byte| *byte == b';')
            .next()
            .unwrap_or_default()
            .trim_ascii()
            .eq_ignore_ascii_case(token.as_bytes())
    })
}

/// Whether a header says something of the connection it comes on.
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    // By the text: comparing names costs more.
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
    )
}

/// Whether this is looked at here at all.
fn may_be_of_the_hop(name: &HeaderName) -> bool {
    is_hop_by_hop(name) || matches!(name.as_str(), "te" | "http2-settings" | "expect")
}

fn strip_common(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| is_hop_by_hop(name)).cloned() {
        headers.remove(name);
    }
}

fn remove_nominated(headers: &mut HeaderMap) -> Result<(), BadConnectionHeader> {
    let mut nominated: Vec<HeaderName> = Vec::new();
    let mut count = 0_usize;
    for value in headers.get_all(CONNECTION) {
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let part = part.trim_ascii();
            if part.is_empty() {
                continue;
            }
            count += 1;
            if count >= NOMINATED_MAX || part.starts_with(b":") {
                return Err(BadConnectionHeader);
            }
            if is_of_the_connection(part) {
                continue;
            }
            let name = HeaderName::from_bytes(part).map_err(|_| BadConnectionHeader)?;
            if is_relied_upon(&name) {
                return Err(BadConnectionHeader);
            }
            nominated.push(name);
        }
    }
    for name in nominated {
        headers.remove(name);
    }
    Ok(())
}

fn is_of_the_connection(token: &[u8]) -> bool {
    ["close", "keep-alive", "upgrade", "te", "http2-settings"]
        .iter()
        .any(|known| token.eq_ignore_ascii_case(known.as_bytes()))
}

/// Nobody may have these taken away by naming them.
fn is_relied_upon(name: &HeaderName) -> bool {
    let text = name.as_str();
    text.starts_with("x-forwarded-")
        || text.starts_with("x-envoy-")
        || text.starts_with("x-pillion-")
        || *name == http::header::HOST
        || *name == http::header::AUTHORIZATION
        || *name == CONTENT_LENGTH
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn hop_by_hop_headers_stay_behind() {
        let mut map = headers(&[
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers;q=1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-other", "2"),
        ]);
        strip_request(&mut map).unwrap();
        assert_eq!(map, headers(&[("te", "trailers"), ("x-other", "2")]));
    }

    #[test]
    fn headers_proxies_rely_on_cannot_be_nominated() {
        for value in ["x-forwarded-for", "Host", ":path", "authorization", "a,b,c,d,e,f,g,h,i,j", "x y"] {
            let mut map = headers(&[]);
            map.insert(CONNECTION, HeaderValue::from_static(value));
            assert_eq!(strip_request(&mut map), Err(BadConnectionHeader), "{value}");
        }
    }
}
