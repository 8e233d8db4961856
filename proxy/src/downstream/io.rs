//! The stream under a downstream connection: plaintext or TLS, with bytes that were read ahead.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::activity::Activity;
use super::frames::Frames;
use super::linger::Linger;
use super::tunnel::ClientStream;

/// A TCP stream whose first bytes were read already, and may be read once more.
pub(crate) struct Prefixed {
    prefix: Bytes,
    stream: TcpStream,
    /// What was read since the beginning, while it may have to be put back.
    recorded: Option<BytesMut>,
}

/// What the bytes go through.
pub(crate) enum Stream {
    Plain(Prefixed),
    Tls(Box<TlsStream<Prefixed>>),
    /// Inside a CONNECT tunnel.
    Tunnel(Box<ClientStream>),
}

/// A downstream stream that tells its [`Activity`] when bytes come.
pub(crate) struct Io {
    source: Source,
    look: Look,
    /// Once an HTTP/2 connection has said its last word.
    linger: Option<Linger>,
    /// Bytes that went to the client.
    sent: u64,
}

/// Who looks at what comes.
enum Look {
    Nobody,
    /// At HTTP/2.
    Frames(Box<Frames>),
}

/// The bytes as they come.
struct Source {
    /// Decrypted bytes that were read ahead.
    prefix: Bytes,
    stream: Stream,
    activity: Arc<Activity>,
}

impl Prefixed {
    pub(crate) fn new(prefix: Bytes, stream: TcpStream) -> Self {
        Self { prefix, stream, recorded: None }
    }

    /// Once dropped, the client gets a reset instead of an end.
    pub(crate) fn reset(&self) {
        // Fails only on a socket that is gone already.
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO));
    }

    /// Puts back what was read last.
    pub(crate) fn unread(&mut self, bytes: Bytes) {
        if self.prefix.is_empty() {
            self.prefix = bytes;
        } else {
            self.prefix = [bytes, std::mem::take(&mut self.prefix)].concat().into();
        }
    }

    /// Remembers what is read from here on.
    pub(crate) fn record(&mut self) {
        self.recorded = Some(BytesMut::new());
    }

    /// Puts back what was read since [`Prefixed::record`], or forgets it.
    pub(crate) fn stop_recording(&mut self, put_back: bool) {
        if let Some(mut recorded) = self.recorded.take()
            && put_back
        {
            recorded.extend_from_slice(&self.prefix);
            self.prefix = recorded.freeze();
        }
    }
}

impl Io {
    pub(crate) fn new(stream: Stream, activity: Arc<Activity>) -> Self {
        Self {
            source: Source { prefix: Bytes::new(), stream, activity },
            look: Look::Nobody,
            linger: None,
            sent: 0,
        }
    }

    /// From here on frames are counted.
    pub(super) fn counted(mut self) -> Self {
        self.look = Look::Frames(Box::new(Frames::new()));
        self
    }

    /// Puts bytes back that were read from this stream.
    pub(crate) fn unread(&mut self, bytes: Bytes) {
        debug_assert!(self.source.prefix.is_empty(), "bytes are put back once");
        self.source.prefix = bytes;
    }
}

/// Gives from `prefix` if it holds anything.
fn take_prefix(prefix: &mut Bytes, buf: &mut ReadBuf<'_>) -> bool {
    if prefix.is_empty() {
        return false;
    }
    let count = prefix.len().min(buf.remaining());
    buf.put_slice(&prefix[..count]);
    prefix.advance(count);
    true
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let polled = if take_prefix(&mut this.prefix, buf) {
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut this.stream).poll_read(cx, buf)
        };
        if let Some(recorded) = &mut this.recorded {
            recorded.extend_from_slice(&buf.filled()[before..]);
        }
        polled
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().stream {
            Stream::Plain($stream) => $call,
            Stream::Tls($stream) => $call,
            Stream::Tunnel($stream) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let frames = match &mut this.look {
            Look::Nobody => return Pin::new(&mut this.source).poll_read(cx, buf),
            Look::Frames(frames) => frames,
        };
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.source).poll_read(cx, buf))?;
        if let Err(flood) = frames.came(&buf.filled()[before..], this.sent) {
            this.source.activity.flooded();
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, flood)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if take_prefix(&mut self.prefix, buf) {
            self.activity.read();
            return Poll::Ready(Ok(()));
        }
        let polled = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            self.activity.read();
        }
        polled
    }
}

impl AsyncWrite for Source {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Tunnel(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.source).poll_write(cx, buf))?;
        self.sent += written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.source).poll_write_vectored(cx, bufs))?;
        self.sent += written as u64;
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.source.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.source).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.source).poll_shutdown(cx))?;
        if matches!(this.look, Look::Nobody) || this.source.activity.is_flooded() {
            return Poll::Ready(Ok(()));
        }
        let linger = this.linger.get_or_insert_with(Linger::new);
        linger.poll(Pin::new(&mut this.source), cx).map(Ok)
    }
}
