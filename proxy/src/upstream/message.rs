//! Puts a request into the form its connection's protocol wants.
//!
//! A caller gives requests in either form: HTTP/1 (`host`, `upgrade`) or HTTP/2 (authority in the
//! URI, extended CONNECT). Responses to upgrades come back in HTTP/1 form, 101 with `upgrade`.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::ext::Protocol;

/// Makes `request` one for an HTTP/1.1 connection; `from`: the version it came in.
pub(super) fn to_http1<B: http_body::Body>(request: &mut Request<B>, from: Version) {
    *request.version_mut() = Version::HTTP_11;
    if let Some(protocol) = request.extensions_mut().remove::<Protocol>() {
        *request.method_mut() = Method::GET;
        upgrade_headers(request.headers_mut(), protocol.as_str());
    }
    if !request.headers().contains_key(HOST)
        && let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
    if request.method() != Method::CONNECT && request.uri().authority().is_some() {
        *request.uri_mut() = origin_form(request.uri());
    }
    if wants_length(request) {
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    if wants_chunks(request) {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if from == Version::HTTP_2 {
        join_cookies(request.headers_mut());
    }
}

/// Whether there is no body where one is usual, so that a length of 0 says more than none (RFC 9110
/// section 8.6).
fn wants_length<B: http_body::Body>(request: &Request<B>) -> bool {
    let usual = !matches!(request.method().as_str(), "GET" | "HEAD" | "DELETE" | "TRACE" | "CONNECT");
    usual && request.body().is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH)
}

/// Whether there is a body where none is usual, of unknown length. hyper would leave it out.
fn wants_chunks<B: http_body::Body>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && !request.body().is_end_stream()
        && !request.headers().contains_key(CONTENT_LENGTH)
        && !request.headers().contains_key(UPGRADE)
        && http_body::Body::size_hint(request.body()).exact().is_none()
}

fn upgrade_headers(headers: &mut HeaderMap, protocol: &str) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Ok(value) = HeaderValue::from_str(protocol) {
        headers.insert(UPGRADE, value);
    }
    if protocol.eq_ignore_ascii_case("websocket") {
        // RFC 8441 leaves these out, HTTP/1 servers want them.
        headers.entry(SEC_WEBSOCKET_KEY).or_insert(HeaderValue::from_static("cGlsbGlvbi1zaWRlY2FyIQ=="));
        headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    }
}

fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from)
}

/// HTTP/2 may split cookies over several fields, which HTTP/1 has in one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut values = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (values.next(), values.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(value.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

/// Makes `request` one for an HTTP/2 connection. An HTTP/1 upgrade becomes an extended CONNECT
/// (RFC 8441); whether it is one is told.
pub(super) fn to_http2<B>(request: &mut Request<B>) -> bool {
    *request.version_mut() = Version::HTTP_2;
    if let Some(protocol) = request.headers_mut().remove(UPGRADE)
        && let Ok(protocol) = protocol.to_str()
        && request.method() != Method::CONNECT
    {
        let protocol = Protocol::from(protocol);
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(protocol);
    }
    for name in HOP_BY_HOP {
        request.headers_mut().remove(name);
    }
    let host = request.headers_mut().remove(HOST);
    let extended = request.extensions().get::<Protocol>().is_some();
    let plain_connect = request.method() == Method::CONNECT && !extended;
    if request.uri().authority().is_none() || (request.uri().scheme().is_none() && !plain_connect) {
        absolute_form(request, host.as_ref(), plain_connect);
    }
    extended
}

fn absolute_form<B>(request: &mut Request<B>, host: Option<&HeaderValue>, connect: bool) {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if parts.authority.is_none() {
        parts.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    }
    if !connect {
        parts.scheme = parts.scheme.or(Some(Scheme::HTTP));
        parts.path_and_query = parts.path_and_query.or(Some(PathAndQuery::from_static("/")));
    }
    if parts.authority.is_none() {
        // Only a request without any host comes here; it is sent with the path alone.
        parts.scheme = None;
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// Whether a request asks for a tunnel, in either form.
pub(super) fn is_tunnel<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE)
}

/// Gives the answer to an extended CONNECT in HTTP/1 form.
pub(super) fn tunnel_response<B>(response: &mut Response<B>, protocol: &HeaderValue) {
    if response.status().is_success() {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(UPGRADE, protocol.clone());
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Fields that speak about one HTTP/1 connection.
const HOP_BY_HOP: [HeaderName; 5] = [
    CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("http2-settings"),
    TRANSFER_ENCODING,
];
