//! Counts what an HTTP/2 client sends beside requests, on its way to `h2`, and ends the connections of
//! clients that only keep us busy: floods of SETTINGS, PING, PRIORITY, WINDOW_UPDATE and of frames
//! without content (CVE-2019-9511 to 9518). Streams that are reset are counted elsewhere, header blocks
//! without end by `h2`.
//!
//! It reads frame headers only (RFC 9113 section 4.1), and judges none: that is for `h2`.

use tokio::time::Instant;

/// Counts the frames of one connection.
pub(super) struct Frames {
    /// Of the preface or a payload: bytes still to come.
    skip: u64,
    /// Of a frame's header: what has come.
    header: [u8; HEADER],
    filled: usize,
    counts: Counts,
    since: Instant,
}

/// What came so far.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Header blocks, and as many requests at most.
    headers: u64,
    priority: u64,
    window_update: u64,
    /// SETTINGS, PING and frames nobody knows.
    control: u64,
    /// Frames in a row that hold nothing and end nothing.
    empty: u64,
}

/// What there was too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many {0} frames")]
pub(super) struct Flood(&'static str);

impl Frames {
    /// Before the connection's preface.
    pub(super) fn new() -> Self {
        let counts = Counts { headers: 0, priority: 0, window_update: 0, control: 0, empty: 0 };
        Self { skip: PREFACE, header: [0; HEADER], filled: 0, counts, since: Instant::now() }
    }

    /// Looks at what came; `sent`: bytes that went to the client so far.
    pub(super) fn came(&mut self, mut bytes: &[u8], sent: u64) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len() as u64);
                self.skip -= skipped;
                bytes = &bytes[usize::try_from(skipped).unwrap_or(bytes.len())..];
                continue;
            }
            let taken = (HEADER - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEADER {
                self.filled = 0;
                self.frame(sent)?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, sent: u64) -> Result<(), Flood> {
        let [high, middle, low, kind, flags, ..] = self.header;
        self.skip = u64::from(high) << 16 | u64::from(middle) << 8 | u64::from(low);
        let counts = &mut self.counts;
        if matches!(kind, DATA | HEADERS | CONTINUATION) {
            let ends = if kind == DATA { END_STREAM } else { END_HEADERS };
            let empty = self.skip == 0 && flags & ends == 0;
            counts.empty = if empty { counts.empty + 1 } else { 0 };
            counts.headers += u64::from(kind == HEADERS);
            return limit("empty", counts.empty, EMPTY_MAX);
        }
        // A connection may live for weeks on a PING every few seconds.
        let base = CONTROL_MAX + CONTROL_PER_SECOND * self.since.elapsed().as_secs();
        match kind {
            PRIORITY => {
                counts.priority += 1;
                limit("PRIORITY", counts.priority, PRIORITY_PER_STREAM * (1 + counts.headers))
            }
            WINDOW_UPDATE => {
                counts.window_update += 1;
                let allowed = base + 2 * counts.headers + sent / SENT_PER_WINDOW_UPDATE;
                limit("WINDOW_UPDATE", counts.window_update, allowed)
            }
            // `h2` counts resets, and GOAWAY is the last one.
            RST_STREAM | GOAWAY => Ok(()),
            _ => {
                counts.control += 1;
                let allowed = base + CONTROL_PER_STREAM * counts.headers + sent / SENT_PER_CONTROL;
                limit("control", counts.control, allowed)
            }
        }
    }
}

fn limit(what: &'static str, have: u64, allowed: u64) -> Result<(), Flood> {
    if have > allowed { Err(Flood(what)) } else { Ok(()) }
}

const PREFACE: u64 = 24;
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Envoy allows one empty frame and then none; we know no client that sends any, but for the first.
const EMPTY_MAX: u64 = 1;
/// Envoy: `max_inbound_priority_frames_per_stream`.
const PRIORITY_PER_STREAM: u64 = 100;
/// Of a client that asks for nothing.
const CONTROL_MAX: u64 = 1000;
/// More with every second.
const CONTROL_PER_SECOND: u64 = 10;
/// More with every request.
const CONTROL_PER_STREAM: u64 = 10;
/// And with every so many bytes sent to it: what a PING brings is a quarter of that.
const SENT_PER_CONTROL: u64 = 64;
/// Twice as many as there can be DATA frames in that.
const SENT_PER_WINDOW_UPDATE: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.extend(std::iter::repeat_n(0xff, usize::from(length)));
        frame
    }

    /// How many of a frame pass, given in parts of this size.
    fn pass(of: &[u8], parts: usize, sent: u64) -> usize {
        let mut frames = Frames::new();
        frames.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0).expect("the preface");
        (0..5000).take_while(|_| of.chunks(parts).all(|part| frames.came(part, sent).is_ok())).count()
    }

    #[test]
    fn floods_end_and_requests_do_not() {
        for (frame, want) in [
            (frame(4, 0, 0), 1000),
            (frame(6, 0, 8), 1000),
            (frame(99, 0, 3), 1000),
            (frame(PRIORITY, 0, 5), 100),
            (frame(WINDOW_UPDATE, 0, 4), 1000),
            (frame(DATA, 0, 0), 1),
            (frame(CONTINUATION, 0, 0), 1),
            (frame(DATA, END_STREAM, 0), 5000),
            (frame(DATA, 0, 1), 5000),
            (frame(HEADERS, END_HEADERS, 20), 5000),
        ] {
            for parts in [1, 4, 9, 100] {
                assert_eq!(pass(&frame, parts, 0), want, "{frame:?} in parts of {parts}");
            }
        }
        assert_eq!(pass(&frame(WINDOW_UPDATE, 0, 4), 100, 10_000), 3000);
        assert_eq!(pass(&frame(6, 0, 8), 100, 64_000), 2000);
    }

    #[test]
    fn a_ping_now_and_then_is_no_flood_however_long_it_lasts() {
        let mut frames = Frames::new();
        frames.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0).expect("the preface");
        let ping = frame(6, 0, 8);
        for _ in 0..CONTROL_MAX {
            frames.came(&ping, 0).expect("not too many");
        }
        assert_eq!(frames.came(&ping, 0), Err(Flood("control")));
        if let Some(earlier) = frames.since.checked_sub(std::time::Duration::from_secs(60)) {
            frames.since = earlier;
            frames.came(&ping, 0).expect("600 more in a minute");
        }
    }
}
