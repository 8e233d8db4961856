//! Judges the head of one HTTP/1 request, with the parser that hyper uses.

use std::mem::MaybeUninit;

use http::uri::PathAndQuery;
use http::{Method, Uri, Version};

use crate::headers::framing::{Framing, Lengths, Unclear};
use crate::headers::hop;
use crate::local_reply::Cause;

/// Headers of one request at most. Envoy: `max_headers_count`.
pub(crate) const HEADERS_MAX: usize = 100;

/// A head that is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    /// Its length.
    pub(super) bytes: usize,
    pub(super) then: Then,
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

/// Judges the head at the beginning of `bytes`; `None`: it is not complete.
pub(super) fn judge(bytes: &[u8], bytes_max: usize) -> Result<Option<Whole>, Refused> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let parsed = match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(parsed) => parsed,
        Err(error) => {
            return Err(Refused::unread(match error {
                httparse::Error::TooManyHeaders => Cause::TooLarge("http1.too_many_headers"),
                _ if has_control_characters(bytes) => Cause::BadRequest("http1.invalid_characters"),
                _ if has_other_version(bytes) => Cause::LowVersion,
                _ => Cause::BadRequest(CODEC_ERROR),
            }));
        }
    };
    let httparse::Status::Complete(length) = parsed else {
        let too_large = bytes.len() > bytes_max;
        return if too_large { Err(Refused::unread(Cause::TooLarge(HEADERS_TOO_LARGE))) } else { Ok(None) };
    };
    match check(&request, length, bytes_max) {
        Ok(then) => Ok(Some(Whole { bytes: length, then })),
        Err(cause) => Err(Refused {
            cause,
            version: if request.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 },
            method: request.method.and_then(|method| method.parse().ok()).unwrap_or_default(),
            path: request.path.and_then(|path| path.parse().ok()),
        }),
    }
}

fn check(request: &httparse::Request<'_, '_>, length: usize, bytes_max: usize) -> Result<Then, Cause> {
    if length > bytes_max {
        return Err(Cause::TooLarge(HEADERS_TOO_LARGE));
    }
    if request.version != Some(1) {
        return Err(Cause::LowVersion);
    }
    let mut lengths = Lengths::default();
    let (mut named, mut upgrade) = (false, None);
    for header in request.headers.iter() {
        lengths.header(header.name, header.value);
        if header.name.eq_ignore_ascii_case("upgrade") {
            upgrade = upgrade.or(Some(header.value));
        } else if header.name.eq_ignore_ascii_case("connection") {
            named |= hop::names(header.value, "upgrade");
        }
    }
    let framing = lengths.framing().map_err(|unclear| match unclear {
        Unclear::LengthAndCoding => Cause::BadRequest("http1.content_length_and_chunked_not_allowed"),
        Unclear::Length => Cause::BadRequest(CODEC_ERROR),
        Unclear::Coding => Cause::TransferCoding,
    })?;
    let target = request.path.unwrap_or_default();
    if !is_plain(target) || request.method == Some("CONNECT") {
        check_target(request.method.unwrap_or_default(), target)?;
    }
    let other = named && upgrade.is_some_and(|to| !to.eq_ignore_ascii_case(b"h2c"));
    if other || request.method == Some("CONNECT") {
        return Ok(Then::Rest);
    }
    Ok(match framing {
        Framing::Unsaid => Then::Length(0),
        Framing::Length(length) => Then::Length(length),
        Framing::Chunked => Then::Chunks,
    })
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

    fn check(bytes: &str) -> Result<Option<Whole>, Cause> {
        judge(bytes.as_bytes(), 1024).map_err(|refused| refused.cause)
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
            let whole = Whole { bytes: head.len(), then };
            assert_eq!(check(head), Ok(Some(whole)), "{head:?}");
            assert_eq!(check(&format!("{head}GET")), Ok(Some(whole)), "{head:?} and more");
            for length in 0..head.len() - 1 {
                assert_eq!(check(&head[..length]), Ok(None), "{:?}", &head[..length]);
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
            assert_eq!(check(head), Err(cause), "{head:?}");
        }
    }
}
