//! The stream under an upstream connection, and the guard that counts the connection while the
//! stream lives, through pools and upgrades alike.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::state::{EndpointState, Priority};

/// An open stream to an endpoint.
pub struct Io {
    stream: Stream,
    _counted: Option<ConnectionGuard>,
}

/// What the bytes go through.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One connection counted against its cluster's limit and its endpoint.
pub(super) struct ConnectionGuard {
    endpoint: Arc<EndpointState>,
    priority: Priority,
}

impl ConnectionGuard {
    /// Counts a connection if there is room, or if `forced`.
    pub(super) fn acquire(
        endpoint: &Arc<EndpointState>,
        priority: Priority,
        max: u32,
        forced: bool,
    ) -> Option<Self> {
        let connections = &endpoint.cluster.usage(priority).connections;
        if connections.fetch_add(1, Relaxed) >= max && !forced {
            connections.fetch_sub(1, Relaxed);
            endpoint.cluster.stats.upstream_cx_overflow.fetch_add(1, Relaxed);
            return None;
        }
        endpoint.stats.cx_total.fetch_add(1, Relaxed);
        endpoint.stats.cx_active.fetch_add(1, Relaxed);
        Some(Self { endpoint: Arc::clone(endpoint), priority })
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.endpoint.cluster.usage(self.priority).connections.fetch_sub(1, Relaxed);
        self.endpoint.stats.cx_active.fetch_sub(1, Relaxed);
    }
}

impl Io {
    pub(super) fn new(stream: Stream, counted: ConnectionGuard) -> Self {
        Self { stream, _counted: Some(counted) }
    }

    /// One that counts against no limit: that of a health check.
    pub(super) fn uncounted(stream: Stream) -> Self {
        Self { stream, _counted: None }
    }

    /// The TLS session, if there is one.
    pub fn tls(&self) -> Option<&rustls::ClientConnection> {
        match &self.stream {
            Stream::Tls(stream) => Some(stream.get_ref().1),
            Stream::Tcp(_) | Stream::Unix(_) => None,
        }
    }

    /// Our end of the TCP connection.
    pub fn local_address(&self) -> Option<std::net::SocketAddr> {
        match &self.stream {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            Stream::Tls(stream) => stream.get_ref().0.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.stream {
            Stream::Tcp($stream) => $call,
            Stream::Unix($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
