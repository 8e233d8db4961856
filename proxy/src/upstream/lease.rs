//! What a request holds while it is in flight: its place among the active requests and its
//! connection, given back when the response has ended.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http1::Http1;
use super::http2::{Answer, StreamTunnel};
use super::pool::{EndpointPool, Stream};
use super::state::Priority;
use crate::body::BodyError;

/// One place among the active requests of an endpoint and its cluster.
pub(super) struct RequestGuard {
    pub(super) pool: Rc<EndpointPool>,
    priority: Priority,
}

impl RequestGuard {
    /// Takes a place, if the cluster's limit leaves one.
    pub(super) fn acquire(pool: &Rc<EndpointPool>, priority: Priority) -> Option<Self> {
        let requests = &pool.endpoint.cluster.usage(priority).requests;
        if requests.fetch_add(1, Relaxed) >= pool.cluster.limits(priority).requests_max {
            requests.fetch_sub(1, Relaxed);
            return None;
        }
        pool.endpoint.active.fetch_add(1, Relaxed);
        pool.endpoint.stats.rq_total.fetch_add(1, Relaxed);
        Some(Self { pool: Rc::clone(pool), priority })
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.pool.endpoint.cluster.usage(self.priority).requests.fetch_sub(1, Relaxed);
        self.pool.endpoint.active.fetch_sub(1, Relaxed);
    }
}

/// A place among the requests that wait for a connection.
pub(super) struct Pending<'a> {
    pool: &'a EndpointPool,
    priority: Priority,
}

impl<'a> Pending<'a> {
    /// Takes a place, if the cluster's limit leaves one.
    pub(super) fn acquire(pool: &'a EndpointPool, priority: Priority) -> Option<Self> {
        let cluster = &pool.endpoint.cluster;
        let pending = &cluster.usage(priority).pending;
        if pending.fetch_add(1, Relaxed) >= pool.cluster.limits(priority).pending_max {
            pending.fetch_sub(1, Relaxed);
            cluster.stats.upstream_rq_pending_overflow.fetch_add(1, Relaxed);
            return None;
        }
        pool.endpoint.waiting.fetch_add(1, Relaxed);
        Some(Self { pool, priority })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.pool.endpoint.waiting.fetch_sub(1, Relaxed);
        self.pool.endpoint.cluster.usage(self.priority).pending.fetch_sub(1, Relaxed);
    }
}

/// Which kept connections a request may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// Any: if the peer is just closing it, the request is sent again.
    Any,
    /// One in use a moment ago: the peer may be closing others for their idleness, and nobody could
    /// tell whether it has seen the request.
    Recent,
}

/// The connection a request is on.
pub(super) enum Connection {
    Http1(Http1),
    Http2(Stream),
}

/// A request in flight. Dropped before its end: an HTTP/1 connection is closed, an HTTP/2 stream is
/// reset.
pub(super) struct Lease {
    connection: Connection,
    request: RequestGuard,
}

impl Lease {
    pub(super) fn new(connection: Connection, request: RequestGuard) -> Self {
        Self { connection, request }
    }

    /// The response has ended: the connection may serve others.
    pub(super) fn end(self) {
        if let Connection::Http1(connection) = self.connection {
            self.request.pool.give_back(connection);
        }
    }
}

/// What an upstream sends after its headers.
pub struct UpstreamBody {
    source: Source,
    lease: Option<Lease>,
}

/// Where a response's body comes from.
enum Source {
    /// The connection that the lease holds.
    Http1,
    Http2(Answer),
}

impl UpstreamBody {
    /// The rest of the message on the lease's connection.
    pub(super) fn http1(lease: Lease) -> Self {
        Self { source: Source::Http1, lease: Some(lease) }
    }

    pub(super) fn http2(answer: Answer, lease: Lease) -> Self {
        Self { source: Source::Http2(answer), lease: Some(lease) }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = match (&mut self.source, self.lease.as_ref().map(|lease| &lease.connection)) {
            (Source::Http1, Some(Connection::Http1(connection))) => {
                connection.poll_frame(cx).map_err(BodyError::from)
            }
            (Source::Http1, _) => return Poll::Ready(None),
            (Source::Http2(answer), _) => answer.poll_frame(cx).map_err(BodyError::from),
        };
        let frame = std::task::ready!(polled);
        match &frame {
            None => self.end(),
            Some(Ok(_)) if self.is_end_stream() => self.end(),
            Some(Ok(_)) => {}
            Some(Err(_)) => self.lease = None,
        }
        Poll::Ready(frame)
    }

    fn end(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.end();
        }
    }

    fn http1_connection(&self) -> Option<&Http1> {
        match self.lease.as_ref().map(|lease| &lease.connection) {
            Some(Connection::Http1(connection)) => Some(connection),
            _ => None,
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Http1 => self.http1_connection().is_none_or(Http1::is_answered),
            Source::Http2(answer) => answer.is_end_stream(),
        }
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Http1 => {
                self.http1_connection().map_or_else(|| SizeHint::with_exact(0), Http1::size_hint)
            }
            Source::Http2(answer) => answer.size_hint(),
        }
    }
}

/// The upstream's side of a tunnel (CONNECT, upgrade), once both have agreed. Counts as an active
/// request while it is open.
pub struct UpstreamTunnel {
    bytes: Bytestream,
    _request: RequestGuard,
}

enum Bytestream {
    Http1(Box<Http1>),
    /// With its place on the connection.
    Http2(StreamTunnel, #[expect(dead_code, reason = "held until the tunnel ends")] Stream),
}

impl UpstreamTunnel {
    pub(super) fn http1(connection: Http1, request: RequestGuard) -> Self {
        Self { bytes: Bytestream::Http1(Box::new(connection)), _request: request }
    }

    pub(super) fn http2(stream: StreamTunnel, place: Stream, request: RequestGuard) -> Self {
        Self { bytes: Bytestream::Http2(stream, place), _request: request }
    }
}

impl std::fmt::Debug for UpstreamTunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UpstreamTunnel")
    }
}

impl AsyncRead for UpstreamTunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.bytes {
            Bytestream::Http1(stream) => Pin::new(stream).poll_read(cx, buf),
            Bytestream::Http2(stream, _) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamTunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.bytes {
            Bytestream::Http1(stream) => Pin::new(stream).poll_write(cx, bytes),
            Bytestream::Http2(stream, _) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.bytes {
            Bytestream::Http1(stream) => Pin::new(stream).poll_flush(cx),
            Bytestream::Http2(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.bytes {
            Bytestream::Http1(stream) => Pin::new(stream).poll_shutdown(cx),
            Bytestream::Http2(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
