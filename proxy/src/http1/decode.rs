//! Heads and bodies as they come.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};

use super::chunks::{Chunks, Found};

/// Takes a message's body from what has come.
#[derive(Debug)]
pub(crate) enum Decoder {
    /// All of it was taken.
    Done,
    /// So many bytes are still to come.
    Length(u64),
    /// Chunks, with the bytes of trailers so far.
    Chunked(Chunks, Vec<u8>),
    /// Everything up to the connection's end.
    UntilClose,
}

/// A body that is not what its head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// The connection ended within it.
    #[error("the connection ended within a body")]
    Cut,
    /// This is no chunked body.
    #[error("this is no chunked body")]
    Chunks,
    /// Trailers that are no header fields.
    #[error("the trailers are no header fields")]
    Trailers,
}

impl Decoder {
    /// A body of so many bytes.
    pub(crate) fn length(length: u64) -> Self {
        if length == 0 { Self::Done } else { Self::Length(length) }
    }

    /// A body in chunks.
    pub(crate) fn chunked() -> Self {
        Self::Chunked(Chunks::new(), Vec::new())
    }

    /// Whether nothing more belongs to it.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// What is known of the length of the rest.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Done => SizeHint::with_exact(0),
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Chunked(..) | Self::UntilClose => SizeHint::new(),
        }
    }

    /// The next frame in `bytes`, if one has come.
    ///
    /// # Errors
    ///
    /// [`BadBody`]: where the body ends is not known.
    pub(crate) fn take(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame<Bytes>>, BadBody> {
        if bytes.is_empty() {
            return Ok(None);
        }
        match self {
            Self::Done => Ok(None),
            Self::UntilClose => Ok(Some(Frame::data(bytes.split().freeze()))),
            Self::Length(left) => {
                let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= taken as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Some(Frame::data(bytes.split_to(taken).freeze())))
            }
            Self::Chunked(chunks, trailer) => {
                let (framing, found) = chunks.next(bytes, |byte| trailer.push(byte));
                drop(bytes.split_to(framing));
                match found {
                    Found::More => Ok(None),
                    Found::Broken => Err(BadBody::Chunks),
                    Found::Data(length) => Ok(Some(Frame::data(bytes.split_to(length).freeze()))),
                    Found::End => {
                        let trailer = std::mem::take(trailer);
                        *self = Self::Done;
                        if trailer.is_empty() { Ok(None) } else { trailers(trailer).map(Some) }
                    }
                }
            }
        }
    }

    /// The connection has ended.
    ///
    /// # Errors
    ///
    /// [`BadBody::Cut`] unless the body ends with it.
    pub(crate) fn end(&mut self) -> Result<(), BadBody> {
        match self {
            Self::Done => Ok(()),
            Self::UntilClose => {
                *self = Self::Done;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(..) => Err(BadBody::Cut),
        }
    }
}

fn trailers(mut bytes: Vec<u8>) -> Result<Frame<Bytes>, BadBody> {
    bytes.extend_from_slice(b"\r\n");
    let bytes = Bytes::from(bytes);
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&bytes, &mut fields) else {
        return Err(BadBody::Trailers);
    };
    headers(&bytes, fields).map(Frame::trailers).ok_or(BadBody::Trailers)
}

/// The length of the head at the beginning of `bytes`, if its end has come. Empty lines before it count
/// as its own (RFC 9112 section 2.2).
/// The first `known` bytes are known not to hold it.
pub(crate) fn head_end(bytes: &[u8], known: usize) -> Option<usize> {
    let begin = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?.max(known.saturating_sub(2));
    memchr::memchr_iter(b'\n', &bytes[begin..]).find_map(|line| {
        let next = begin + line + 1;
        match (bytes.get(next)?, bytes.get(next + 1)) {
            (b'\n', _) => Some(next + 1),
            (b'\r', Some(b'\n')) => Some(next + 2),
            _ => None,
        }
    })
}

/// The fields that `httparse` found in `bytes`, sharing them; `None`: some are none of HTTP's.
pub(crate) fn headers(bytes: &Bytes, fields: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let mut map = HeaderMap::with_capacity(fields.len() + SPARE);
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value)).ok()?;
        map.append(name, value);
    }
    Some(map)
}

/// Fields of a trailer section.
const TRAILERS_MAX: usize = 100;
/// Headers that are added on the way, so that the map need not grow.
const SPARE: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn data(frame: Frame<Bytes>) -> Bytes {
        frame.into_data().expect("data")
    }

    #[test]
    fn bodies_end_where_their_head_says() {
        let mut bytes = BytesMut::from("helloGET");
        let mut decoder = Decoder::length(5);
        assert_eq!(data(decoder.take(&mut bytes).unwrap().unwrap()), "hello");
        assert!(decoder.is_done() && decoder.take(&mut bytes).unwrap().is_none());
        assert_eq!(&bytes[..], b"GET");
        assert_eq!(Decoder::length(5).end(), Err(BadBody::Cut));
        assert_eq!(Decoder::length(0).end(), Ok(()));
        assert_eq!(Decoder::chunked().end(), Err(BadBody::Cut));
        let mut rest = Decoder::UntilClose;
        assert_eq!(data(rest.take(&mut bytes).unwrap().unwrap()), "GET");
        assert_eq!((rest.end(), rest.is_done()), (Ok(()), true));
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        for (bytes, end) in [
            ("GET / HTTP/1.1\r\n\r\nrest", Some(18)),
            ("GET / HTTP/1.1\na: b\n\nrest", Some(21)),
            ("\r\n\r\nGET / HTTP/1.1\r\na: b\r\n\r\n", Some(28)),
            ("GET / HTTP/1.1\r\na: b\r\n\r", None),
            ("GET / HTTP/1.1\r\na: b\r\n", None),
            ("\r\n\r\n", None),
            ("", None),
        ] {
            assert_eq!(head_end(bytes.as_bytes(), 0), end, "{bytes:?}");
        }
    }

    #[test]
    fn chunks_give_data_and_trailers() {
        let mut bytes = BytesMut::from("2\r\nok\r\n0\r\nA: b\r\n\r\nGET");
        let mut decoder = Decoder::chunked();
        assert_eq!(data(decoder.take(&mut bytes).unwrap().unwrap()), "ok");
        let trailers = decoder.take(&mut bytes).unwrap().unwrap().into_trailers().expect("trailers");
        assert_eq!(trailers["a"], "b");
        assert!(decoder.is_done());
        assert_eq!(&bytes[..], b"GET");
        for bad in ["x", "0\r\na b\r\n\r\n", "0\r\n: b\r\n\r\n"] {
            assert!(Decoder::chunked().take(&mut BytesMut::from(bad)).is_err(), "{bad:?}");
        }
    }
}
