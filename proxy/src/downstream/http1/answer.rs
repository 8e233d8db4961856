//! Heads of responses, and the answer to a head that was refused.

use bytes::{BufMut as _, Bytes};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderValue, SERVER, TRAILER, TRANSFER_ENCODING};
use http::{Method, Response, StatusCode, response};
use pillion_model::http::ServerHeader;

use super::head::Refused;
use crate::body::Body;
use crate::chain;
use crate::http1::{Encoder, put_date, put_headers};
use crate::local_reply::LocalReply;
use crate::snapshot::Hcm;

/// Whether what follows the response is no HTTP.
pub(super) fn is_tunnel(method: &Method, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (method == Method::CONNECT && status.is_success())
}

/// Puts the head of a response, and tells how its body is to be sent; `close`: no other follows it.
pub(super) fn put_head(
    out: &mut Vec<u8>,
    method: &Method,
    parts: &mut response::Parts,
    body: &impl http_body::Body,
    close: bool,
) -> Encoder {
    let encoder = frame(method, parts, body);
    let (status, headers) = (parts.status, &mut parts.headers);
    if close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(chain::phrase(status));
    out.put_slice(b"\r\n");
    put_headers(out, headers);
    if !headers.contains_key(DATE) {
        put_date(out);
    }
    out.put_slice(b"\r\n");
    encoder
}

/// Says how long the body is (RFC 9112 section 6).
fn frame(method: &Method, parts: &mut response::Parts, body: &impl http_body::Body) -> Encoder {
    let (status, headers) = (parts.status, &mut parts.headers);
    headers.remove(TRANSFER_ENCODING);
    if is_tunnel(method, status) || status.is_informational() || status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRAILER);
        return Encoder::Done;
    }
    if method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        // What is said is what would be sent.
        headers.remove(TRAILER);
        return Encoder::Done;
    }
    let known = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
    let told = headers.get(CONTENT_LENGTH).and_then(|told| told.to_str().ok()?.parse::<u64>().ok());
    match (known, told) {
        (None, Some(told)) => Encoder::length(told),
        (Some(known), Some(told)) if known == told => Encoder::length(known),
        (Some(known), _) => {
            headers.insert(CONTENT_LENGTH, known.into());
            Encoder::length(known)
        }
        (None, None) => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            Encoder::chunked(headers)
        }
    }
}

/// What the client of a refused head reads before the connection ends.
pub(super) fn bytes(refused: &Refused, hcm: &Hcm) -> Bytes {
    let reply = LocalReply::from(refused.cause.clone());
    let response = reply.into_response(&refused.method, false, hcm.config.mark_local_replies);
    let (mut parts, body): (_, Body) = Response::into_parts(response);
    if hcm.config.server_header != ServerHeader::PassThrough {
        parts.headers.insert(SERVER, hcm.server_name.clone());
    }
    let mut out = Vec::new();
    put_head(&mut out, &refused.method, &mut parts, &body, true);
    if refused.version == http::Version::HTTP_10 {
        out[b"HTTP/1.".len()] = b'0';
    }
    if let Body::Full(body) = body {
        out.put_slice(&body);
    }
    out.into()
}
