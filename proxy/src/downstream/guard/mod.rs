//! Stands between an HTTP/1 connection's bytes and hyper: no head comes through that was not judged.
//!
//! hyper answers heads that it cannot read by itself, without a word in the access log, and takes
//! requests that name two lengths. So heads are held back until they are complete, judged, and then
//! let through as they came; bodies are followed, not kept, to know where the next head begins. What
//! is refused ends the stream for hyper; the answer follows what hyper still has to say.

mod answer;
mod chunks;
mod head;

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use self::chunks::{Chunks, Followed};
pub(crate) use self::head::{HEADERS_MAX, Refused};
use self::head::{Then, judge};
use super::activity::Activity;
use crate::snapshot::Hcm;

/// Judges what one connection's client sends.
pub(super) struct Guard {
    hcm: Arc<Hcm>,
    activity: Arc<Activity>,
    expect: Expect,
    /// Bytes that came and were not let through yet.
    held: BytesMut,
    /// So many of these may pass.
    cleared: usize,
    /// How much there was of the head that is waited for when it was judged last.
    judged: usize,
    /// Heads let through.
    passed: u32,
    refused: Option<Refused>,
    farewell: Farewell,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Head,
    Body(u64),
    Chunks(Chunks),
    /// Nothing that is judged here.
    Rest,
    /// No chunked body: nobody knows.
    Unknown,
}

/// The answer to what was refused, on its way.
enum Farewell {
    Unsaid,
    Saying(Bytes),
    /// Closing at once would take the answer along, as the client may still be sending.
    Lingering(Pin<Box<Sleep>>),
}

impl Guard {
    pub(super) fn new(hcm: Arc<Hcm>, activity: Arc<Activity>) -> Self {
        Self {
            hcm,
            activity,
            expect: Expect::Head,
            held: BytesMut::new(),
            cleared: 0,
            judged: 0,
            passed: 0,
            refused: None,
            farewell: Farewell::Unsaid,
        }
    }

    /// Reads what may be read.
    pub(super) fn poll_read(
        &mut self,
        mut source: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.cleared > 0 {
                let count = self.cleared.min(buf.remaining());
                buf.put_slice(&self.held[..count]);
                self.held.advance(count);
                self.cleared -= count;
                return Poll::Ready(Ok(()));
            }
            if self.refused.is_some() {
                return self.poll_refused(source, cx);
            }
            if self.expect == Expect::Unknown {
                let broken = io::Error::new(io::ErrorKind::InvalidData, "this is no chunked body");
                return Poll::Ready(Err(broken));
            }
            if self.held.is_empty() {
                let before = buf.filled().len();
                ready!(source.as_mut().poll_read(cx, buf))?;
                let came = &buf.filled()[before..];
                let passed = self.inspect(came);
                self.held.extend_from_slice(&came[passed..]);
                let ended = came.is_empty();
                buf.set_filled(before + passed);
                if passed > 0 || ended {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let mut chunk = [std::mem::MaybeUninit::uninit(); CHUNK];
                let mut more = ReadBuf::uninit(&mut chunk);
                ready!(source.as_mut().poll_read(cx, &mut more))?;
                if more.filled().is_empty() {
                    // A head that is cut off is nobody's.
                    return Poll::Ready(Ok(()));
                }
                let mut held = std::mem::take(&mut self.held);
                held.extend_from_slice(more.filled());
                self.cleared = self.inspect(&held);
                self.held = held;
            }
        }
    }

    /// After a refusal: those who came before are answered first, then hyper is told of the end.
    fn poll_refused(
        &mut self,
        mut source: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.activity.wake_at_ends(cx.waker());
        while self.passed != self.activity.ended() {
            // What still comes is for nobody, but the client's end is.
            let mut chunk = [std::mem::MaybeUninit::uninit(); CHUNK];
            let mut more = ReadBuf::uninit(&mut chunk);
            ready!(source.as_mut().poll_read(cx, &mut more))?;
            if more.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        if let Some(refused) = self.refused.clone() {
            self.activity.refuse(refused);
        }
        Poll::Ready(Ok(()))
    }

    /// How many of `bytes`, which follow what was let through, may pass.
    fn inspect(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.expect {
                Expect::Head => match self.head(rest) {
                    Some(length) => at += length,
                    None => break,
                },
                Expect::Body(left) => {
                    let taken = (*left).min(rest.len() as u64);
                    *left -= taken;
                    if *left == 0 {
                        self.expect = Expect::Head;
                    }
                    at += usize::try_from(taken).unwrap_or(rest.len());
                }
                Expect::Chunks(chunks) => match chunks.follow(rest) {
                    Followed::All => return bytes.len(),
                    Followed::End(length) => {
                        self.expect = Expect::Head;
                        at += length;
                    }
                    Followed::Broken(length) => {
                        self.expect = Expect::Unknown;
                        return at + length;
                    }
                },
                Expect::Rest => return bytes.len(),
                Expect::Unknown => break,
            }
        }
        at
    }

    /// The length of the head at the beginning of `bytes`, if it is complete and good.
    fn head(&mut self, bytes: &[u8]) -> Option<usize> {
        let max = self.hcm.config.max_request_headers_kb as usize * 1024;
        if !is_worth_judging(bytes, self.judged, max) {
            return None;
        }
        self.judged = bytes.len();
        match judge(bytes, max) {
            Ok(None) => None,
            Ok(Some(whole)) => {
                self.judged = 0;
                self.passed = self.passed.wrapping_add(1);
                self.expect = match whole.then {
                    Then::Length(0) => Expect::Head,
                    Then::Length(length) => Expect::Body(length),
                    Then::Chunks => Expect::Chunks(Chunks::new()),
                    Then::Rest => {
                        self.activity.judges_no_more();
                        Expect::Rest
                    }
                };
                Some(whole.bytes)
            }
            Err(refused) => {
                self.refused = Some(refused);
                None
            }
        }
    }

    /// Before a connection is closed: says why, if something was refused.
    pub(super) fn poll_farewell(
        &mut self,
        mut stream: Pin<&mut impl AsyncWrite>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.farewell {
                Farewell::Unsaid => match self.activity.refused() {
                    Some(refused) => self.farewell = Farewell::Saying(answer::bytes(refused, &self.hcm)),
                    None if matches!(self.expect, Expect::Body(_) | Expect::Chunks(_)) => {
                        // Answered before the request's end.
                        self.farewell = Farewell::Saying(Bytes::new());
                    }
                    None => return Poll::Ready(Ok(())),
                },
                Farewell::Saying(rest) if rest.is_empty() => {
                    ready!(stream.as_mut().poll_flush(cx))?;
                    self.farewell = Farewell::Lingering(Box::pin(sleep(LINGER)));
                }
                Farewell::Saying(rest) => {
                    let count = ready!(stream.as_mut().poll_write(cx, rest))?;
                    if count == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    rest.advance(count);
                }
                Farewell::Lingering(_) => return Poll::Ready(Ok(())),
            }
        }
    }

    /// After the last word: waits for the client to have read it, for a while.
    pub(super) fn poll_linger(
        &mut self,
        mut source: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Farewell::Lingering(until) = &mut self.farewell else { return Poll::Ready(Ok(())) };
        loop {
            if until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut chunk = [std::mem::MaybeUninit::uninit(); CHUNK];
            let mut more = ReadBuf::uninit(&mut chunk);
            ready!(source.as_mut().poll_read(cx, &mut more))?;
            if more.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Whether judging `bytes`, of which `judged` were judged before, can tell anything new. A head that
/// comes in crumbs is not read from its beginning for each of them.
fn is_worth_judging(bytes: &[u8], judged: usize, max: usize) -> bool {
    let new = &bytes[judged.saturating_sub(3).min(bytes.len())..];
    judged == 0
        || bytes.len() > max
        || bytes.len() >= judged * 2
        || new.windows(2).any(|two| two == b"\n\n")
        || new.windows(3).any(|three| three == b"\n\r\n")
}

/// Read at a time of what is held back or not wanted.
const CHUNK: usize = 4096;
/// How long a client that was refused may go on reading. Envoy: `delayed_close_timeout`.
const LINGER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_in_crumbs_is_judged_a_few_times() {
        let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(4000));
        let (mut judged, mut times) = (0, 0);
        for length in 1..=head.len() {
            if is_worth_judging(&head.as_bytes()[..length], judged, 60 << 10) {
                (judged, times) = (length, times + 1);
            }
        }
        assert_eq!(judged, head.len());
        assert!(times < 16, "{times}");
    }
}
