//! What a request holds while it is in flight: its place among the active requests and its
//! connection, given back when the response has ended.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::pool::{EndpointPool, Http1, Stream};
use super::state::{EndpointState, Priority};
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

    pub(super) fn endpoint(&self) -> &Arc<EndpointState> {
        &self.request.pool.endpoint
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
    incoming: Incoming,
    lease: Option<Lease>,
}

impl UpstreamBody {
    pub(super) fn new(incoming: Incoming, lease: Lease) -> Self {
        Self { incoming, lease: Some(lease) }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match &frame {
            None => self.end(),
            Some(Ok(_)) if self.incoming.is_end_stream() => self.end(),
            Some(Ok(_)) => {}
            Some(Err(_)) => self.lease = None,
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }

    fn end(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.end();
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Keeps a tunnel counted as an active request while it is open.
pub struct TunnelGuard {
    _lease: Lease,
}

impl TunnelGuard {
    pub(super) fn new(lease: Lease) -> Self {
        Self { _lease: lease }
    }
}

impl std::fmt::Debug for TunnelGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TunnelGuard")
    }
}
