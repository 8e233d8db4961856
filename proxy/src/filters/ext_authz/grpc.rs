//! A server of `envoy.service.auth.v3.Authorization`.

use std::collections::{BTreeMap, HashMap};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderValue, TE};
use http::{HeaderName, Method, Request, Response, StatusCode, Uri};
use pillion_model::authz::AuthzService;
use pillion_model::matcher::{RequestView, StringMatcher};
use pillion_xds::authz::{Answer, CHECK, Question, decode_answer, encode_question};

use super::shown::Shown;
use super::{Authz, Failed, read};
use crate::body::Body;
use crate::exchange::Exchange;
use crate::headers::names::{AUTH_PARTIAL_BODY, GRPC_STATUS, REQUEST_ID};
use crate::response::parse_grpc_status;

/// The question: everything about the request.
pub(super) fn question(
    x: &Exchange,
    authz: &Authz,
    shown: &Shown,
    extensions: &BTreeMap<String, String>,
) -> Option<Request<Body>> {
    let AuthzService::Grpc { cluster, authority, .. } = &authz.settings.service else { return None };
    let message = message(x, authz, shown, extensions);
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).ok()?);
    framed.extend_from_slice(&message);
    let mut request = Request::new(Body::full(framed.freeze()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(CHECK);
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    for (name, value) in &authz.headers {
        headers.insert(name, value.clone());
    }
    let host = if authority.is_empty() { cluster } else { authority };
    headers.insert(HOST, HeaderValue::from_str(host).ok()?);
    Some(request)
}

fn message(x: &Exchange, authz: &Authz, shown: &Shown, extensions: &BTreeMap<String, String>) -> Vec<u8> {
    let connection = &x.connection;
    let names = connection.tls.as_ref().and_then(|tls| tls.names.as_deref());
    let header = |name: &HeaderName| x.head.headers.get(name).and_then(|value| value.to_str().ok());
    let size = header(&http::header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    encode_question(&Question {
        source: x.record.remote,
        source_principal: names.and_then(<[String]>::first).map_or("", String::as_str),
        source_certificate: "",
        destination: connection.local,
        destination_principal: "",
        time: x.record.started_at,
        id: header(&REQUEST_ID).unwrap_or_default(),
        method: x.head.method.as_str(),
        path: x.head.uri.path_and_query().map_or("", |path| path.as_str()),
        host: x.head.authority(),
        scheme: x.head.scheme,
        protocol: x.record.protocol().unwrap_or_default(),
        headers: headers(x, authz, shown),
        body: &shown.bytes,
        body_as_bytes: shown.as_bytes,
        size: size.unwrap_or(-1),
        extensions,
        server_name: connection.server_name().filter(|_| authz.settings.tls_session),
    })
}

fn headers(x: &Exchange, authz: &Authz, shown: &Shown) -> HashMap<String, String> {
    let settings = &authz.settings;
    let fits = |matchers: &[StringMatcher], name: &str| matchers.iter().any(|matcher| matcher.is_match(name));
    let is_shown = |name: &str| {
        (settings.allowed_headers.is_empty() || fits(&settings.allowed_headers, name))
            && !fits(&settings.disallowed_headers, name)
    };
    let mut all: HashMap<String, String> = HashMap::new();
    let path = x.head.uri.path_and_query().map_or("", |path| path.as_str());
    for (name, value) in [
        (":method", x.head.method.as_str()),
        (":path", path),
        (":authority", x.head.authority()),
        (":scheme", x.head.scheme),
    ] {
        if is_shown(name) {
            all.insert(name.to_owned(), value.to_owned());
        }
    }
    for (name, value) in x.head.headers.iter().filter(|(name, _)| **name != HOST && is_shown(name.as_str())) {
        let value = String::from_utf8_lossy(value.as_bytes());
        all.entry(name.as_str().to_owned())
            .and_modify(|have| {
                have.push(',');
                have.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    if let Some(partial) = shown.partial {
        all.insert(AUTH_PARTIAL_BODY.as_str().to_owned(), partial.to_string());
    }
    all
}

/// What the server says: one message, then status 0.
pub(super) async fn answer(response: Response<Body>) -> Result<Answer, Failed> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK || head.headers.contains_key(&GRPC_STATUS) {
        return Err(Failed);
    }
    let (bytes, trailers) = read(body).await?;
    if trailers.as_ref().and_then(parse_grpc_status) != Some(0) {
        return Err(Failed);
    }
    decode_answer(&message_of(&bytes).ok_or(Failed)?).map_err(|_unusable| Failed)
}

/// The one message of a unary answer, not compressed.
fn message_of(bytes: &Bytes) -> Option<Bytes> {
    let (prefix, message) = (bytes.get(..5)?, bytes.slice(5..));
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    (prefix[0] == 0 && length as usize == message.len()).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_no_message_are_none() {
        for (bytes, want) in [
            (&b""[..], None),
            (b"\0\0\0\0", None),
            (b"\0\0\0\0\0", Some(&b""[..])),
            (b"\0\0\0\0\x02ab", Some(b"ab")),
            (b"\0\0\0\0\x03ab", None),
            (b"\0\0\0\0\x01ab", None),
            (b"\x01\0\0\0\x02ab", None),
            (b"\0\xff\xff\xff\xffab", None),
        ] {
            assert_eq!(message_of(&Bytes::from_static(bytes)).as_deref(), want, "{bytes:?}");
        }
    }
}
