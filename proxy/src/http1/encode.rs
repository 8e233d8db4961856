//! Heads and bodies as they go.

use bytes::{BufMut as _, Bytes};
use http::header::TRAILER;
use http::{HeaderMap, HeaderName, Method, Uri};
use http_body::Frame;

use super::wire::Wire;

/// Puts a message's body into what goes out.
#[derive(Debug)]
pub(crate) enum Encoder {
    /// Nothing more, whatever comes.
    Done,
    /// So many bytes more.
    Length(u64),
    /// In chunks, and these trailers.
    Chunked(Vec<HeaderName>),
}

impl Encoder {
    /// A body of so many bytes.
    pub(crate) fn length(length: u64) -> Self {
        if length == 0 { Self::Done } else { Self::Length(length) }
    }

    /// In chunks, with the trailers that `headers` announce.
    pub(crate) fn chunked(headers: &HeaderMap) -> Self {
        let announced = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
        let names = announced.flat_map(|value| value.split(','));
        Self::Chunked(names.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok()).collect())
    }

    /// Sends a frame. Bytes beyond the length that the head told, and trailers nobody announced, are
    /// left out.
    pub(crate) fn put<I>(&mut self, frame: Frame<Bytes>, wire: &mut Wire<I>) {
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let (Self::Chunked(announced), Ok(trailers)) = (&*self, frame.into_trailers()) {
                    put_last_chunk(wire.head(), announced, &trailers);
                    *self = Self::Done;
                }
                return;
            }
        };
        if data.is_empty() {
            return;
        }
        match self {
            Self::Done => {}
            Self::Length(left) => {
                let taken = usize::try_from(*left).map_or(data.len(), |left| left.min(data.len()));
                data.truncate(taken);
                *left -= taken as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                wire.put(data, b"");
            }
            Self::Chunked(_) => {
                put_hex(wire.head(), data.len());
                wire.put(data, b"\r\n");
            }
        }
    }

    /// After the last frame. Whether the body is as long as the head told.
    pub(crate) fn end<I>(&mut self, wire: &mut Wire<I>) -> bool {
        match std::mem::replace(self, Self::Done) {
            Self::Done => true,
            Self::Length(_) => false,
            Self::Chunked(_) => {
                wire.head().put_slice(b"0\r\n\r\n");
                true
            }
        }
    }
}

fn put_last_chunk(out: &mut Vec<u8>, announced: &[HeaderName], trailers: &HeaderMap) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers {
        if announced.contains(name) {
            put_header(out, name, value.as_bytes());
        }
    }
    out.put_slice(b"\r\n");
}

/// The length of a chunk, and its line's end.
fn put_hex(out: &mut Vec<u8>, length: usize) {
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (length >> (place * 4)) & 0xf;
        out.put_u8(b"0123456789abcdef"[digit]);
    }
    out.put_slice(b"\r\n");
}

/// Method, target and version.
pub(crate) fn put_request_line(out: &mut Vec<u8>, method: &Method, uri: &Uri) {
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    match (uri.path_and_query(), uri.authority()) {
        (Some(path), None) => out.put_slice(path.as_str().as_bytes()),
        (None, Some(authority)) => out.put_slice(authority.as_str().as_bytes()),
        _ => out.put_slice(uri.to_string().as_bytes()),
    }
    out.put_slice(b" HTTP/1.1\r\n");
}

/// Header fields, each with its line's end.
pub(crate) fn put_headers(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        put_header(out, name, value.as_bytes());
    }
}

fn put_header(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn sent(mut encoder: Encoder, frames: Vec<Frame<Bytes>>) -> (String, bool) {
        let mut wire = Wire::new(());
        for frame in frames {
            encoder.put(frame, &mut wire);
        }
        let whole = encoder.end(&mut wire);
        (String::from_utf8(wire.unsent()).expect("text"), whole)
    }

    #[test]
    fn bodies_are_sent_as_their_head_says() {
        let data = |text: &'static str| Frame::data(Bytes::from_static(text.as_bytes()));
        let mut headers = HeaderMap::new();
        headers.insert(TRAILER, HeaderValue::from_static("x-a, X-B"));
        let trailers: HeaderMap = [("x-b", "1"), ("x-c", "2")]
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        for (encoder, frames, want) in [
            (Encoder::length(5), vec![data("he"), data("llo")], ("hello", true)),
            (Encoder::length(4), vec![data("hello")], ("hell", true)),
            (Encoder::length(6), vec![data("hello")], ("hello", false)),
            (Encoder::length(0), vec![data("hello")], ("", true)),
            (
                Encoder::chunked(&HeaderMap::new()),
                vec![data("hello"), data(""), Frame::trailers(trailers.clone())],
                ("5\r\nhello\r\n0\r\n\r\n", true),
            ),
            (
                Encoder::chunked(&headers),
                vec![data("0123456789abcdef"), Frame::trailers(trailers)],
                ("10\r\n0123456789abcdef\r\n0\r\nx-b: 1\r\n\r\n", true),
            ),
        ] {
            let (text, whole) = want;
            assert_eq!(sent(encoder, frames), (text.to_owned(), whole));
        }
    }

    #[test]
    fn lengths_are_in_hexadecimal() {
        for length in [1, 9, 10, 15, 16, 255, 256, 4095, 65536, usize::MAX] {
            let mut out = Vec::new();
            put_hex(&mut out, length);
            assert_eq!(out, format!("{length:x}\r\n").into_bytes());
        }
    }
}
