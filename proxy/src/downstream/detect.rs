//! Reading ahead: is it TLS, is it HTTP/2?

use std::io;

use bytes::{Bytes, BytesMut};
use pillion_model::listener::ProxyProtocol;
use pillion_net::proxy_protocol::{self, Ends, Parsed, Version};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::io::Prefixed;

/// What HTTP/2 connections begin with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A TLS record of the handshake type: its first three bytes.
fn is_tls(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [] => None,
        [0x16] | [0x16, 3] => None,
        [0x16, 3, version, ..] => Some(*version <= 4),
        _ => Some(false),
    }
}

fn is_http2(bytes: &[u8]) -> Option<bool> {
    let count = bytes.len().min(PREFACE.len());
    if bytes[..count] != PREFACE[..count] {
        return Some(false);
    }
    (count == PREFACE.len()).then_some(true)
}

/// Whether a TLS handshake begins, and what was read. A stream that ends first is not TLS.
pub(crate) async fn tls(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(bool, Bytes)> {
    read_until(stream, is_tls).await
}

/// Whether HTTP/2 is spoken with prior knowledge, and what was read.
pub(crate) async fn http2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(bool, Bytes)> {
    read_until(stream, is_http2).await
}

/// Reads a header of the PROXY protocol: what it says of the connection's ends, if anything.
///
/// # Errors
///
/// The header is wrong, of a version that is not taken, or missing where it may not be.
pub(crate) async fn proxy_protocol(stream: &mut Prefixed, taken: ProxyProtocol) -> io::Result<Option<Ends>> {
    let refused = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    let mut bytes = BytesMut::with_capacity(READ_AHEAD);
    let is_taken = |version| match version {
        Version::V1 => taken.v1,
        Version::V2 => taken.v2,
    };
    loop {
        match proxy_protocol::parse(&bytes) {
            Parsed::Partial(Some(version)) | Parsed::Wrong(version, _) if !is_taken(version) => break,
            Parsed::Header(header) if !is_taken(header.version) => break,
            Parsed::Absent => break,
            Parsed::Wrong(_, reason) => return refused(reason),
            Parsed::Header(header) => {
                let rest = bytes.split_off(header.bytes);
                stream.unread(rest.freeze());
                return Ok(header.ends);
            }
            Parsed::Partial(_) if stream.read_buf(&mut bytes).await? > 0 => {}
            Parsed::Partial(_) => return refused("the header does not end"),
        }
    }
    if !taken.optional {
        return refused("there is none of a version that is taken");
    }
    stream.unread(bytes.freeze());
    Ok(None)
}

async fn read_until(
    stream: &mut (impl AsyncRead + Unpin),
    decide: impl Fn(&[u8]) -> Option<bool>,
) -> io::Result<(bool, Bytes)> {
    let mut bytes = BytesMut::with_capacity(READ_AHEAD);
    loop {
        if let Some(answer) = decide(&bytes) {
            return Ok((answer, bytes.freeze()));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok((false, bytes.freeze()));
        }
    }
}

/// Usually the whole first flight.
const READ_AHEAD: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_decide() {
        for (bytes, tls, http2) in [
            (&b""[..], None, None),
            (b"\x16", None, Some(false)),
            (b"\x16\x03\x01\x00", Some(true), Some(false)),
            (b"\x16\x09\x01", Some(false), Some(false)),
            (b"P", Some(false), None),
            (b"POST / HTTP/1.1\r\n", Some(false), Some(false)),
            (b"PRI * HTTP/2.0\r\n\r\nSM", Some(false), None),
            (PREFACE, Some(false), Some(true)),
        ] {
            assert_eq!(is_tls(bytes), tls, "{bytes:?}");
            if !bytes.is_empty() {
                assert_eq!(is_http2(bytes), http2, "{bytes:?}");
            }
        }
    }
}
