//! A client of HTTP/2 that sends fields as they are given, also such as no client should send.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::client::{Given, Pace};
use crate::support::frames::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, beginning, field, frame,
};

/// Sends one request of these fields, and what follows them as a body.
pub(crate) async fn request(
    to: SocketAddr,
    fields: &[(String, String)],
    body: Option<&str>,
    tag: &str,
    pace: Pace,
) -> Given {
    let mut stream = TcpStream::connect(to).await.unwrap_or_else(|error| panic!("connect {to}: {error}"));
    let port = stream.local_addr().map_or(0, |address| address.port());
    let fields = fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let block: Vec<u8> =
        fields.chain([("x-case", tag)]).flat_map(|(name, value)| field(name, value)).collect();
    let mut sent = beginning(&[]);
    sent.extend(frame(
        HEADERS,
        if body.is_some() { END_HEADERS } else { END_HEADERS | END_STREAM },
        1,
        &block,
    ));
    sent.extend(body.into_iter().flat_map(|body| frame(DATA, END_STREAM, 1, body.as_bytes())));
    let mut lines = Vec::new();
    if stream.write_all(&sent).await.is_err() {
        lines.push("nothing can be sent".to_owned());
    }
    let mut seen = Seen::default();
    let mut until = Instant::now() + pace.answer;
    let mut bytes = Vec::new();
    let end = loop {
        match timeout_at(until, stream.read_buf(&mut bytes)).await {
            Err(_elapsed) => break "connection stays open",
            Ok(Ok(0)) => break "connection closed by the proxy",
            Ok(Err(_)) => break "connection reset by the proxy",
            Ok(Ok(_)) => {}
        }
        while let Some(frame) = take_frame(&mut bytes) {
            seen.frame(&frame);
            if frame.kind == SETTINGS && frame.flags == 0 {
                // A client that does not confirm them is closed after a while.
                let _closed = stream.write_all(&self::frame(SETTINGS, 1, 0, &[])).await;
            }
        }
        if seen.ended {
            until = until.min(Instant::now() + pace.settle);
        }
    };
    lines.append(&mut seen.lines);
    lines.push(end.to_owned());
    let answers = usize::from(seen.answered);
    Given { port, lines: lines.into_iter().map(|line| format!("client got {line}")).collect(), answers }
}

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

fn take_frame(bytes: &mut Vec<u8>) -> Option<Frame> {
    let &[high, middle, low, kind, flags, ..] = bytes.get(..9)? else { return None };
    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    if bytes.len() < 9 + length {
        return None;
    }
    let payload = bytes[9..9 + length].to_vec();
    bytes.drain(..9 + length);
    Some(Frame { kind, flags, payload })
}

#[derive(Default)]
struct Seen {
    lines: Vec<String>,
    answered: bool,
    ended: bool,
    body: usize,
}

impl Seen {
    fn frame(&mut self, frame: &Frame) {
        match frame.kind {
            HEADERS if !self.answered => {
                self.answered = true;
                self.lines.push(format!("HTTP/2 {}", status(&frame.payload)));
            }
            DATA => self.body += frame.payload.len(),
            RST_STREAM => {
                self.lines.push(format!("stream reset, {}", code(&frame.payload)));
                self.ended = true;
            }
            GOAWAY => {
                self.lines.push(format!("goaway, {}", code(frame.payload.get(4..).unwrap_or_default())));
                self.ended = true;
            }
            _ => {}
        }
        if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
            self.lines.push(format!("body [{}]", self.body));
            self.ended = true;
        }
    }
}

fn code(payload: &[u8]) -> String {
    let code = payload.first_chunk().map_or(u32::MAX, |bytes| u32::from_be_bytes(*bytes));
    format!("{:?}", h2::Reason::from(code))
}

/// The status that a header block begins with (RFC 7541 section 6, appendices A and B).
fn status(block: &[u8]) -> String {
    // An update of the table's size may come first.
    let block = match block {
        [0x20..=0x3e, rest @ ..] => rest,
        block => block,
    };
    match block {
        [0x88, ..] => "200".to_owned(),
        [0x89, ..] => "204".to_owned(),
        [0x8a, ..] => "206".to_owned(),
        [0x8b, ..] => "304".to_owned(),
        [0x8c, ..] => "400".to_owned(),
        [0x8d, ..] => "404".to_owned(),
        [0x8e, ..] => "500".to_owned(),
        [0x08 | 0x48, 0x03, a, b, c, ..] => [a, b, c].map(|digit| char::from(*digit)).iter().collect(),
        [0x08 | 0x48, length, rest @ ..] if length & 0x80 != 0 => digits(rest),
        other => format!("in {:02x?}", &other[..other.len().min(8)]),
    }
}

/// Three digits in Huffman's code: 0 to 2 have five bits, the others six, which begin with 011.
fn digits(bytes: &[u8]) -> String {
    let bits: Vec<u8> =
        bytes.iter().take(3).flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)).collect();
    let (mut at, mut text) = (0, String::new());
    while text.len() < 3 && at + 5 <= bits.len() {
        let number = |count: usize| bits[at..at + count].iter().fold(0, |sum, bit| sum << 1 | bit);
        match number(5) {
            digit @ 0..=2 => {
                text.push(char::from(b'0' + digit));
                at += 5;
            }
            _ if at + 6 > bits.len() => break,
            _ => {
                text.push(char::from(b'3' + (number(6).wrapping_sub(0b01_1001) & 7)));
                at += 6;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read() {
        for (block, want) in [
            (&[0x88][..], "200"),
            (&[0x3f, 0x88], "in [3f, 88]"),
            (&[0x20, 0x8d], "404"),
            (&[0x48, 3, b'4', b'3', b'1'], "431"),
            // From RFC 7541, C.6.1: 302.
            (&[0x48, 0x82, 0x64, 0x02], "302"),
            // C.6.2: 307.
            (&[0x48, 0x83, 0x64, 0x0e, 0xff], "307"),
        ] {
            assert_eq!(status(block), want);
        }
    }
}
