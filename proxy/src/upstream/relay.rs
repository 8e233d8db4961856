//! Carries bytes both ways between two streams, and closes each direction by itself.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What went through, and how it ended.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes from the first stream to the second.
    pub sent: u64,
    /// Bytes from the second stream to the first.
    pub received: u64,
    /// How it ended.
    pub end: RelayEnd,
}

/// How a relay ended.
#[derive(Debug)]
pub enum RelayEnd {
    /// Both sides said that they are done.
    Closed,
    /// No byte moved for the idle time.
    Idle,
    /// The first stream failed.
    First(io::Error),
    /// The second stream failed.
    Second(io::Error),
}

/// Carries bytes both ways until both directions are closed. A side that stops sending is passed on
/// as a half-close, and the other direction goes on. `idle`: how long no byte may move.
pub async fn relay<A, B>(first: &mut A, second: &mut B, idle: Option<Duration>) -> Relayed
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut out, mut back) = (Direction::new(), Direction::new());
    let mut moved_at = Instant::now();
    let timer = tokio::time::sleep(idle.unwrap_or(FOREVER));
    tokio::pin!(timer);
    let end = poll_fn(|cx| {
        let before = out.moves + back.moves;
        let sent = out.poll(cx, first, second);
        let received = back.poll(cx, second, first);
        match (sent, received) {
            (Poll::Ready(Err(Side::Reader(error))), _) | (_, Poll::Ready(Err(Side::Writer(error)))) => {
                return Poll::Ready(RelayEnd::First(error));
            }
            (Poll::Ready(Err(Side::Writer(error))), _) | (_, Poll::Ready(Err(Side::Reader(error)))) => {
                return Poll::Ready(RelayEnd::Second(error));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(RelayEnd::Closed),
            _ => {}
        }
        let Some(idle) = idle else { return Poll::Pending };
        if out.moves + back.moves != before {
            moved_at = Instant::now();
        }
        while timer.as_mut().poll(cx).is_ready() {
            let end = moved_at + idle;
            if end <= Instant::now() {
                return Poll::Ready(RelayEnd::Idle);
            }
            // Set again only when it fires: moving bytes costs no timer.
            timer.as_mut().reset(end);
        }
        Poll::Pending
    })
    .await;
    Relayed { sent: out.total, received: back.total, end }
}

/// One direction.
struct Direction {
    buffer: Box<[u8]>,
    /// The part of the buffer still to be written.
    start: usize,
    end: usize,
    total: u64,
    /// Reads and writes that moved something.
    moves: u64,
    state: State,
    unflushed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Copying,
    /// The reader's end was seen; what is left is written, then the writer is closed.
    Closing,
    Closed,
}

enum Side {
    Reader(io::Error),
    Writer(io::Error),
}

impl Direction {
    fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            total: 0,
            moves: 0,
            state: State::Copying,
            unflushed: false,
        }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while self.start < self.end {
                let rest = &self.buffer[self.start..self.end];
                let written = ready!(Pin::new(&mut *writer).poll_write(cx, rest)).map_err(Side::Writer)?;
                if written == 0 {
                    return Poll::Ready(Err(Side::Writer(io::ErrorKind::WriteZero.into())));
                }
                self.start += written;
                self.total += written as u64;
                self.moves += 1;
                self.unflushed = true;
            }
            match self.state {
                State::Copying => {}
                State::Closing => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Side::Writer)?;
                    self.state = State::Closed;
                    self.moves += 1;
                }
                State::Closed => return Poll::Ready(Ok(())),
            }
            if self.state == State::Closed {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *reader).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {
                    (self.start, self.end) = (0, buffer.filled().len());
                    if self.end == 0 {
                        self.state = State::Closing;
                    }
                    self.moves += 1;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Side::Reader(error))),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Side::Writer)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Bytes in flight per direction: one TLS record.
const BUFFER: usize = 16 * 1024;
/// Longer than any process lives.
const FOREVER: Duration = Duration::from_secs(86_400 * 365);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_half_close_passes_and_the_other_direction_goes_on() {
        let (mut client, mut near) = duplex(64);
        let (mut far, mut server) = duplex(64);
        let relayed = tokio::spawn(async move { relay(&mut near, &mut far, None).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        let answer = vec![7; 100_000];
        let (written, mut got) = (answer.clone(), Vec::new());
        tokio::join!(
            async {
                server.write_all(&written).await.unwrap();
                server.shutdown().await.unwrap();
            },
            async {
                client.read_to_end(&mut got).await.unwrap();
            }
        );
        assert_eq!(got, answer);
        let relayed = relayed.await.unwrap();
        assert_eq!((relayed.sent, relayed.received), (8, 100_000));
        assert!(matches!(relayed.end, RelayEnd::Closed), "{:?}", relayed.end);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_bytes_keep_it() {
        let (mut client, mut near) = duplex(64);
        let (mut far, _server) = duplex(64);
        let idle = Some(Duration::from_secs(10));
        let begin = Instant::now();
        let talk = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                client.write_all(b"x").await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let relayed = tokio::select! {
            relayed = relay(&mut near, &mut far, idle) => relayed,
            () = talk => unreachable!(),
        };
        assert!(matches!(relayed.end, RelayEnd::Idle), "{:?}", relayed.end);
        assert_eq!(relayed.sent, 5);
        assert_eq!(begin.elapsed().as_secs(), 55);
    }
}
