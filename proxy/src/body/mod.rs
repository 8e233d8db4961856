//! The one body type that crosses the proxy: an enum, so that forwarding a body allocates nothing
//! and names its type everywhere.
//!
//! Frames are forwarded as they come, trailers included. What a body does not do: count bytes for
//! logs, enforce timeouts or change content; whoever needs that wraps it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

pub mod replay;

pub use replay::{Replay, ReplayBuffer};

use crate::http1::BadBody;
pub use crate::request::RequestBody;
use crate::upstream::{Http1Error, UpstreamBody};

/// A request's or a response's body.
#[derive(Default)]
pub enum Body {
    /// No bytes, no trailers.
    #[default]
    Empty,
    /// Bytes in hand.
    Full(Bytes),
    /// A whole message in hand, with trailers.
    Whole(Box<Whole>),
    /// What a connection sends, as it comes.
    Incoming(Incoming),
    /// What a downstream connection sends, counted.
    Request(RequestBody),
    /// A request's body of which a copy is kept for a retry or a mirror.
    Replay(Replay),
    /// What an upstream sends; holds its connection and its place among the active requests until
    /// the last frame, or until dropped.
    Upstream(UpstreamBody),
}

/// A whole message in hand.
pub struct Whole {
    /// What is left of its bytes.
    pub bytes: Bytes,
    /// Its trailers; none once they were given.
    pub trailers: HeaderMap,
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection it came from failed; keeps the HTTP/2 reason in its chain.
    #[error(transparent)]
    Connection(#[from] hyper::Error),
    /// The HTTP/1 request broke off.
    #[error(transparent)]
    Downstream(#[from] BadBody),
    /// The HTTP/1 connection to the upstream failed.
    #[error(transparent)]
    Http1(#[from] Http1Error),
    /// The HTTP/2 stream to the upstream failed.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// The source of a replayed body failed for another reader.
    #[error("the request body ended early")]
    Source,
    /// The answer came before the end of the request.
    #[error("the request was answered before its end")]
    Abandoned,
    /// A second reader needs bytes that were let go.
    #[error("the request body is larger than the replay buffer")]
    NotKept,
}

impl Body {
    /// A body of these bytes; empty bytes make an empty body.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }

    /// A second body with the same content, if that needs no reading.
    pub fn try_clone(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Full(bytes) => Some(Self::Full(bytes.clone())),
            Self::Incoming(incoming) if http_body::Body::is_end_stream(incoming) => Some(Self::Empty),
            Self::Replay(replay) => replay.restart().map(Self::Replay),
            Self::Whole(_) | Self::Incoming(_) | Self::Request(_) | Self::Upstream(_) => None,
        }
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        if http_body::Body::is_end_stream(&incoming) { Self::Empty } else { Self::Incoming(incoming) }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::full(bytes)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Whole(whole) => {
                let frame = match std::mem::take(&mut whole.bytes) {
                    bytes if bytes.is_empty() => Frame::trailers(std::mem::take(&mut whole.trailers)),
                    bytes => Frame::data(bytes),
                };
                if frame.is_trailers() {
                    *this = Self::Empty;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Self::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(BodyError::from),
            Self::Request(request) => request.poll_frame(cx),
            Self::Replay(replay) => replay.poll_frame(cx),
            Self::Upstream(upstream) => upstream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) | Self::Whole(_) => false,
            Self::Incoming(incoming) => http_body::Body::is_end_stream(incoming),
            Self::Request(request) => request.is_end_stream(),
            Self::Replay(replay) => replay.is_end_stream(),
            Self::Upstream(upstream) => upstream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Whole(whole) => SizeHint::with_exact(whole.bytes.len() as u64),
            Self::Incoming(incoming) => http_body::Body::size_hint(incoming),
            Self::Request(request) => request.size_hint(),
            Self::Replay(replay) => replay.size_hint(),
            Self::Upstream(upstream) => upstream.size_hint(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Full(_) => "Full",
            Self::Whole(_) => "Whole",
            Self::Incoming(_) => "Incoming",
            Self::Request(_) => "Request",
            Self::Replay(_) => "Replay",
            Self::Upstream(_) => "Upstream",
        })
    }
}
