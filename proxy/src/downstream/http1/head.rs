//! Judges the head of one HTTP/1 request.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, Request, Uri, Version};

use crate::headers::framing::{Framing, Lengths, Unclear};
use crate::headers::hop;
use crate::http1::{HEADERS_MAX, headers};
use crate::local_reply::Cause;

/// A head that may be acted on.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) request: Request<()>,
    pub(super) then: Then,
    /// The client wants the connection closed after the answer.
    pub(super) close: bool,
    /// The client waits for a word before it sends the body (RFC 9110 section 10.1.1).
    pub(super) expects_continue: bool,
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// A body of so many bytes; with 0, the next head.
    Length(u64),
    /// A body in chunks.
    Chunks,
    /// Perhaps another protocol, and no further request in any case.
    Rest,
}

/// A head that is not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) cause: Cause,
    pub(crate) version: Version,
    pub(crate) method: Method,
    pub(crate) path: Option<PathAndQuery>,
}

impl Refused {
    /// The head is not complete after too long a time.
    pub(crate) fn too_slow() -> Self {
        Self::unread(Cause::HeadTimeout)
    }

    fn unread(cause: Cause) -> Self {
        // As the access log writes what is not there.
        let method = Method::from_bytes(b"-").unwrap_or_default();
        Self { cause, version: Version::HTTP_11, method, path: None }
    }
}

/// Judges a head that is complete: all of `bytes`.
pub(super) fn judge(bytes: &Bytes, bytes_max: usize) -> Result<Head, Refused> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(Refused::unread(Cause::BadRequest(CODEC_ERROR))),
        Err(error) => return Err(unreadable(bytes, error)),
    }
    check(&parsed, bytes, bytes_max).map_err(|cause| Refused {
        cause,
        version: if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 },
        method: parsed.method.and_then(|method| method.parse().ok()).unwrap_or_default(),
        path: parsed.path.and_then(|path| path.parse().ok()),
    })
}

/// Judges the beginning of a head: whether it can still become one.
pub(super) fn judge_part(bytes: &[u8], bytes_max: usize) -> Result<(), Refused> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(bytes, &mut fields) {
        Err(error) => Err(unreadable(bytes, error)),
        Ok(_) if bytes.len() > bytes_max => Err(Refused::unread(Cause::TooLarge(HEADERS_TOO_LARGE))),
        Ok(_) => Ok(()),
    }
}

/// Whether judging `length` bytes without an end, of which `judged` were judged before, can tell
/// anything new. A head that comes in crumbs is not read from its beginning for each of them.
pub(super) fn is_worth_judging(length: usize, judged: usize, max: usize) -> bool {
    judged == 0 || length > max || length >= judged * 2
}

fn unreadable(bytes: &[u8], error: httparse::Error) -> Refused {
    Refused::unread(match error {
        httparse::Error::TooManyHeaders => Cause::TooLarge("http1.too_many_headers"),
        _ if has_control_characters(bytes) => Cause::BadRequest("http1.invalid_characters"),
        _ if has_other_version(bytes) => Cause::LowVersion,
        _ => Cause::BadRequest(CODEC_ERROR),
    })
}

fn check(parsed: &httparse::Request<'_, '_>, bytes: &Bytes, bytes_max: usize) -> Result<Head, Cause> {
    if bytes.len() > bytes_max {
        return Err(Cause::TooLarge(HEADERS_TOO_LARGE));
    }
    if parsed.version != Some(1) {
        return Err(Cause::LowVersion);
    }
    let mut lengths = Lengths::default();
    let (mut named, mut upgrade, mut close, mut expects_continue) = (false, None, false, false);
    for header in parsed.headers.iter() {
        lengths.header(header.name, header.value);
        let is = |name: &str| header.name.len() == name.len() && header.name.eq_ignore_ascii_case(name);
        if is("upgrade") {
            upgrade = upgrade.or(Some(header.value));
        } else if is("connection") {
            named |= hop::names(header.value, "upgrade");
            close |= hop::names(header.value, "close");
        } else if is("expect") {
            expects_continue = header.value.eq_ignore_ascii_case(b"100-continue");
        }
    }
    let framing = lengths.framing().map_err(|unclear| match unclear {
        Unclear::LengthAndCoding => Cause::BadRequest("http1.content_length_and_chunked_not_allowed"),
        Unclear::Length => Cause::BadRequest(CODEC_ERROR),
        Unclear::Coding => Cause::TransferCoding,
    })?;
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    if !is_plain(target) || method == "CONNECT" {
        check_target(method, target)?;
    }
    let other = named && upgrade.is_some_and(|to| !to.eq_ignore_ascii_case(b"h2c"));
    let then = match framing {
        _ if other || method == "CONNECT" => Then::Rest,
        Framing::Unsaid => Then::Length(0),
        Framing::Length(length) => Then::Length(length),
        Framing::Chunked => Then::Chunks,
    };
    let mut request = Request::new(());
    let broken = |_| Cause::BadRequest(CODEC_ERROR);
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(|_bad| broken(()))?;
    let uri = Uri::from_maybe_shared(bytes.slice_ref(target.as_bytes()));
    *request.uri_mut() = uri.map_err(|_bad| broken(()))?;
    *request.headers_mut() = headers(bytes, parsed.headers).ok_or(Cause::BadRequest(CODEC_ERROR))?;
    Ok(Head { request, then, close, expects_continue })
}

/// What stands between method and version is one that can be routed.
fn check_target(method: &str, target: &str) -> Result<(), Cause> {
    const INVALID: Cause = Cause::BadRequest("http1.invalid_url");
    if !target.is_ascii() {
        return Err(Cause::BadRequest(CODEC_ERROR));
    }
    if target.contains('#') {
        return Err(Cause::PathNormalization);
    }
    let invalid = match (method, target) {
        ("CONNECT", target) => target.starts_with('/'),
        ("OPTIONS", "*") => false,
        (_, target) => target == "*",
    };
    if invalid {
        return Err(INVALID);
    }
    if !target.starts_with('/')
        && method != "CONNECT"
        && let Some((scheme, rest)) = target.split_once(":/")
    {
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(Cause::BadRequest("http1.invalid_scheme"));
        }
        return if rest.starts_with('/') && target.parse::<Uri>().is_ok() { Ok(()) } else { Err(INVALID) };
    }
    target.parse::<Uri>().map(drop).map_err(|_error| Cause::BadRequest(CODEC_ERROR))
}

/// Whether what cannot be read has characters that no head may have.
fn has_control_characters(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\r' | b'\n'))
}

/// Whether what cannot be read is HTTP of another version: `GET /` of 0.9, or one that says so.
fn has_other_version(bytes: &[u8]) -> bool {
    let line = bytes.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.trim_ascii_end().split(|byte| *byte == b' ');
    let method = words.next().is_some_and(|method| Method::from_bytes(method).is_ok());
    let target = words.next().is_some_and(|target| !target.is_empty() && !target.contains(&b'\t'));
    let version = words.next().is_none_or(|version| {
        matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() && version != b"HTTP/1.1")
    });
    method && target && version && words.next().is_none()
}

/// Paths that need no second look: what [`Uri`] reads for sure.
fn is_plain(target: &str) -> bool {
    target.len() < TARGET_MAX
        && target.starts_with('/')
        && target.bytes().all(|byte| {
            byte.is_ascii_alphanumeric()
                || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~' | b'?' | b'=' | b'&' | b'%')
        })
}

/// [`Uri`] reads less than 64 KiB.
const TARGET_MAX: usize = 32 << 10;
const CODEC_ERROR: &str = "http1.codec_error";
const HEADERS_TOO_LARGE: &str = "http1.headers_too_large";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::head_end;

    /// What follows, if the head is complete.
    fn judged(bytes: &str) -> Result<Option<(usize, Then)>, Cause> {
        let cause = |refused: Refused| refused.cause;
        let Some(length) = head_end(bytes.as_bytes(), 0) else {
            return judge_part(bytes.as_bytes(), 1024).map(|()| None).map_err(cause);
        };
        let head = Bytes::copy_from_slice(&bytes.as_bytes()[..length]);
        judge(&head, 1024).map(|head| Some((length, head.then))).map_err(cause)
    }

    #[test]
    fn heads_that_pass_tell_what_follows() {
        for (head, then) in [
            ("GET / HTTP/1.1\r\n\r\n", Then::Length(0)),
            ("GET / HTTP/1.1\nhost: a\n\n", Then::Length(0)),
            ("\r\n\r\nGET /a%20b?c=d HTTP/1.1\r\nhost: a\r\n\r\n", Then::Length(0)),
            ("POST / HTTP/1.1\r\ncontent-length: 7\r\n\r\n", Then::Length(7)),
            ("POST / HTTP/1.1\r\ntransfer-encoding: CHUNKED\r\n\r\n", Then::Chunks),
            ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", Then::Rest),
            ("GET / HTTP/1.1\r\nconnection: x, Upgrade\r\nupgrade: websocket\r\n\r\n", Then::Rest),
            ("GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n", Then::Length(0)),
            ("GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: H2C\r\n\r\n", Then::Length(0)),
        ] {
            let whole = (head.len(), then);
            assert_eq!(judged(head), Ok(Some(whole)), "{head:?}");
            assert_eq!(judged(&format!("{head}GET")), Ok(Some(whole)), "{head:?} and more");
            for length in 0..head.len() - 1 {
                assert_eq!(judged(&head[..length]), Ok(None), "{:?}", &head[..length]);
            }
        }
    }

    #[test]
    fn heads_that_do_not_pass() {
        let long = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(1024));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101));
        let bad = Cause::BadRequest(CODEC_ERROR);
        for (head, cause) in [
            ("GET / HTTP/1.0\r\n\r\n", Cause::LowVersion),
            ("GET / HTTP/1.2\r\n\r\n", Cause::LowVersion),
            ("GET / HTTP/2.0\r\n\r\n", Cause::LowVersion),
            ("GET /\r\n\r\n", Cause::LowVersion),
            ("nonsense\r\n\r\n", bad.clone()),
            ("GET  / HTTP/1.1\r\n\r\n", bad.clone()),
            ("GET / HTTP/1.10\r\n\r\n", bad.clone()),
            ("GET / http/1.1\r\n\r\n", bad.clone()),
            ("GET /a b HTTP/1.1\r\n\r\n", bad.clone()),
            ("GET /\u{e9} HTTP/1.1\r\n\r\n", bad.clone()),
            ("GET /<a> HTTP/1.1\r\n\r\n", bad.clone()),
            ("GET /#a HTTP/1.1\r\n\r\n", Cause::PathNormalization),
            ("GET * HTTP/1.1\r\n\r\n", Cause::BadRequest("http1.invalid_url")),
            ("GET http:/// HTTP/1.1\r\n\r\n", Cause::BadRequest("http1.invalid_url")),
            ("GET ftp://a/ HTTP/1.1\r\n\r\n", Cause::BadRequest("http1.invalid_scheme")),
            ("CONNECT / HTTP/1.1\r\n\r\n", Cause::BadRequest("http1.invalid_url")),
            ("GET / HTTP/1.1\r\nx : y\r\n\r\n", bad.clone()),
            ("GET / HTTP/1.1\r\nx: y\r\n z\r\n\r\n", bad.clone()),
            ("GET / HTTP/1.1\r\nx: y\0\r\n\r\n", Cause::BadRequest("http1.invalid_characters")),
            ("GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n", bad),
            ("GET / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", Cause::TransferCoding),
            (&long, Cause::TooLarge(HEADERS_TOO_LARGE)),
            (&many, Cause::TooLarge("http1.too_many_headers")),
        ] {
            assert_eq!(judged(head), Err(cause), "{head:?}");
        }
    }

    #[test]
    fn heads_say_how_the_connection_goes_on() {
        for (head, close, expects_continue) in [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", false, false),
            ("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", true, false),
            ("GET / HTTP/1.1\r\nconnection: keep-alive\r\nExpect: 100-Continue\r\n\r\n", false, true),
        ] {
            let judged = judge(&Bytes::from(head), 1024).expect("a head");
            assert_eq!((judged.close, judged.expects_continue), (close, expects_continue), "{head:?}");
        }
    }

    #[test]
    fn a_head_in_crumbs_is_judged_a_few_times() {
        let (mut judged, mut times) = (0, 0);
        for length in 1..=4000 {
            if is_worth_judging(length, judged, 60 << 10) {
                (judged, times) = (length, times + 1);
            }
        }
        assert!(judged >= 2000 && times < 16, "{judged} {times}");
    }
}
