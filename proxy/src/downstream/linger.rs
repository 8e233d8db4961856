//! The last moments of a connection: what is on its way to us is read and thrown away until
//! the client has closed, too. Closing at once would answer it with a reset, which may reach the client
//! before our GOAWAY: it would not know that what it sent was not taken.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A connection that has said its last word.
pub(super) struct Linger {
    until: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl Linger {
    /// From now on.
    pub(super) fn new() -> Self {
        Self { until: Box::pin(sleep(TIME_MAX)), bytes_left: BYTES_MAX }
    }

    /// Ends when the client has closed, or had its time.
    pub(super) fn poll(&mut self, mut from: Pin<&mut impl AsyncRead>, cx: &mut Context<'_>) -> Poll<()> {
        while self.bytes_left > 0 && self.until.as_mut().poll(cx).is_pending() {
            let mut chunk = [std::mem::MaybeUninit::uninit(); CHUNK];
            let mut more = ReadBuf::uninit(&mut chunk);
            if ready!(from.as_mut().poll_read(cx, &mut more)).is_err() || more.filled().is_empty() {
                break;
            }
            self.bytes_left = self.bytes_left.saturating_sub(more.filled().len());
        }
        Poll::Ready(())
    }
}

/// How long a client may take to close. Envoy: `delayed_close_timeout`.
const TIME_MAX: Duration = Duration::from_secs(1);
/// Who sends more than that does not listen.
const BYTES_MAX: usize = 1 << 20;
const CHUNK: usize = 4096;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_client_or_in_time_or_when_there_is_too_much() {
        for (closes, sends, want) in [(true, 10, 0), (false, 10, 1), (false, BYTES_MAX, 0)] {
            let (mut client, mut stream) = duplex(2 * BYTES_MAX);
            client.write_all(&vec![b'a'; sends]).await.unwrap();
            let held = (!closes).then_some(client);
            let (begun, mut linger) = (Instant::now(), Linger::new());
            poll_fn(|cx| linger.poll(Pin::new(&mut stream), cx)).await;
            assert_eq!(begun.elapsed().as_secs(), want, "{closes} {sends}");
            drop(held);
        }
    }
}
