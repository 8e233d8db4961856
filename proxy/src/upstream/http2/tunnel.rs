//! The bytes of a stream after CONNECT.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Both directions of a stream. Dropped before both have ended, the stream is reset.
pub(in crate::upstream) struct StreamTunnel {
    out: SendStream<Bytes>,
    back: RecvStream,
    /// Came, and not read yet.
    unread: Bytes,
    closed: bool,
}

impl StreamTunnel {
    pub(super) fn new(out: SendStream<Bytes>, back: RecvStream) -> Self {
        Self { out, back, unread: Bytes::new(), closed: false }
    }
}

impl AsyncRead for StreamTunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.back.poll_data(cx)) {
                Some(Ok(bytes)) => self.unread = bytes,
                Some(Err(error)) => return Poll::Ready(ended(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        // Fails only if more is released than came.
        let _released = self.back.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

/// A peer that is done with the stream may say so by a reset.
fn ended(error: h2::Error) -> io::Result<()> {
    match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL) => Ok(()),
        _ => Err(failed(error)),
    }
}

impl AsyncWrite for StreamTunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.out.reserve_capacity(bytes.len());
        while self.out.capacity() == 0 {
            match ready!(self.out.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = bytes.len().min(self.out.capacity());
        self.out.send_data(Bytes::copy_from_slice(&bytes[..count]), false).map_err(failed)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            self.closed = true;
            self.out.reserve_capacity(0);
            self.out.send_data(Bytes::new(), true).map_err(failed)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn failed(error: h2::Error) -> io::Error {
    match error.reason() {
        Some(Reason::STREAM_CLOSED) => io::Error::new(io::ErrorKind::BrokenPipe, error),
        _ if error.is_io() => error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()),
        _ => io::Error::other(error),
    }
}
