//! Looks at the heads of HTTP/1 responses on their way to hyper, which takes what names two lengths and
//! cannot tell an answer that was cut off from none.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::BytesMut;

use super::handshake::HEADERS_MAX;
use crate::headers::framing::{Lengths, Unclear};

/// Judges what one connection's upstream answers.
pub(super) struct Heads {
    expected: Expected,
    /// The part of a head that has come.
    part: BytesMut,
}

/// Whether an answer is expected; set with every request.
#[derive(Clone, Default)]
pub(super) struct Expected(Arc<AtomicBool>);

/// An answer nobody may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadHead {
    /// The connection ended within it.
    #[error("the response's head was cut off")]
    Cut,
    /// Nobody can tell where it ends.
    #[error("the response's length is not clear")]
    Unclear(Unclear),
}

impl Expected {
    /// What comes next is the head of a response.
    pub(super) fn set(&self) {
        self.0.store(true, Relaxed);
    }
}

impl Heads {
    pub(super) fn new(expected: Expected) -> Self {
        Self { expected, part: BytesMut::new() }
    }

    /// Judges what came; nothing means the connection's end.
    pub(super) fn judge(&mut self, came: &[u8]) -> Result<(), BadHead> {
        if !self.expected.0.load(Relaxed) {
            return Ok(());
        }
        if self.part.is_empty() {
            if let Some(rest) = self.heads(came)? {
                self.part.extend_from_slice(rest);
            }
            return Ok(());
        }
        if came.is_empty() {
            return Err(BadHead::Cut);
        }
        let mut part = std::mem::take(&mut self.part);
        part.extend_from_slice(came);
        if let Some(rest) = self.heads(&part)? {
            let whole = part.len() - rest.len();
            self.part = part.split_off(whole);
        }
        Ok(())
    }

    /// Judges the heads at the beginning of `bytes`, up to that of the final response; what is left of
    /// one that is not complete.
    fn heads<'a>(&self, mut bytes: &'a [u8]) -> Result<Option<&'a [u8]>, BadHead> {
        while !bytes.is_empty() {
            let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
            let mut response = httparse::Response::new(&mut []);
            let parser = httparse::ParserConfig::default();
            let parsed = parser.parse_response_with_uninit_headers(&mut response, bytes, &mut headers);
            match parsed {
                Ok(httparse::Status::Partial) => return Ok(Some(bytes)),
                Ok(httparse::Status::Complete(length)) => {
                    let mut lengths = Lengths::default();
                    for header in response.headers.iter() {
                        lengths.header(header.name, header.value);
                    }
                    lengths.framing().map_err(BadHead::Unclear)?;
                    let interim = response.code.is_some_and(|code| (100..200).contains(&code) && code != 101);
                    if !interim {
                        self.expected.0.store(false, Relaxed);
                        return Ok(None);
                    }
                    bytes = &bytes[length..];
                }
                // hyper says so too.
                Err(_) => {
                    self.expected.0.store(false, Relaxed);
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_and_have_one_length() {
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
        for (parts, want) in [
            (vec![good, "ok"], Ok(())),
            (vec!["HTTP/1.1 100 Continue\r\n\r\n", good, ""], Ok(())),
            (vec!["HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 2", "00 OK\r\n\r\n", ""], Ok(())),
            (vec![""], Ok(())),
            (vec!["HTTP/1.1 200 OK\r\n", ""], Err(BadHead::Cut)),
            (vec!["HTTP/1.1 100 Continue\r\n\r\nHTTP", "/", ""], Err(BadHead::Cut)),
            (
                vec!["HTTP/1.1 200 OK\r\ncontent-length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"],
                Err(BadHead::Unclear(Unclear::LengthAndCoding)),
            ),
            (
                vec!["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", "content-length: 2\r\n\r\n"],
                Err(BadHead::Unclear(Unclear::Length)),
            ),
            (vec!["nonsense\r\n\r\n", ""], Ok(())),
            (vec![good, good, "HTTP/1.1 2", ""], Ok(())),
        ] {
            let expected = Expected::default();
            expected.set();
            let mut heads = Heads::new(expected);
            let judged = parts.iter().try_for_each(|part| heads.judge(part.as_bytes()));
            assert_eq!(judged, want, "{parts:?}");
        }
    }
}
