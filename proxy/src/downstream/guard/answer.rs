//! The answer to a head that was refused, in bytes.

use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderValue, SERVER};
use http::{HeaderMap, Version};
use pillion_model::http::ServerHeader;

use super::head::Refused;
use crate::body::Body;
use crate::chain;
use crate::local_reply::LocalReply;
use crate::snapshot::Hcm;

/// What the client reads before the connection ends.
pub(super) fn bytes(refused: &Refused, hcm: &Hcm) -> Bytes {
    let reply = LocalReply::from(refused.cause.clone());
    let mut response = reply.into_response(&refused.method, false, hcm.config.mark_local_replies);
    if hcm.config.server_header != ServerHeader::PassThrough {
        response.headers_mut().insert(SERVER, hcm.server_name.clone());
    }
    if let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())) {
        response.headers_mut().insert(DATE, now);
    }
    response.headers_mut().entry(CONTENT_LENGTH).or_insert(HeaderValue::from_static("0"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let mut bytes = BytesMut::new();
    let version = if refused.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
    bytes.put_slice(version.as_bytes());
    bytes.put_slice(b" ");
    bytes.put_slice(response.status().as_str().as_bytes());
    bytes.put_slice(b" ");
    bytes.put_slice(chain::phrase_or_standard(response.status()));
    bytes.put_slice(b"\r\n");
    put_headers(&mut bytes, response.headers());
    bytes.put_slice(b"\r\n");
    if let Body::Full(body) = response.body() {
        bytes.put_slice(body);
    }
    bytes.freeze()
}

fn put_headers(bytes: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        bytes.put_slice(name.as_str().as_bytes());
        bytes.put_slice(b": ");
        bytes.put_slice(value.as_bytes());
        bytes.put_slice(b"\r\n");
    }
}
