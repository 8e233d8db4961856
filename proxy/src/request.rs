//! The body of a request on its way in: counts bytes, and tells when it is complete.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::body::BodyError;
use crate::downstream::Http1Body;
use crate::http1::BadBody;

/// How far an exchange has come; shared by the request's body, the response's and the timers.
pub(crate) struct Progress {
    bytes: Cell<u64>,
    complete: Cell<Option<Instant>>,
    last: Cell<Instant>,
    waiting: RefCell<Option<Waker>>,
    broken: Cell<Option<Broken>>,
    /// The answer is complete: the rest of the request is of no use to anybody.
    abandoned: Cell<bool>,
    /// Who reads the body.
    reader: RefCell<Option<Waker>>,
}

/// Why a request's body will never be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It is not what HTTP/1 allows.
    Malformed,
    /// The client has left.
    Gone,
}

impl Broken {
    fn of(error: &BodyError) -> Self {
        match error {
            BodyError::Connection(error) => Self::of_http2(error),
            BodyError::Downstream(BadBody::Chunks | BadBody::Trailers) => Self::Malformed,
            _ => Self::Gone,
        }
    }

    fn of_http2(error: &hyper::Error) -> Self {
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                let malformed =
                    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput);
                return if malformed { Self::Malformed } else { Self::Gone };
            }
            source = error.source();
        }
        Self::Gone
    }
}

impl Progress {
    /// At `now`; `complete`: the request has no body.
    pub(crate) fn new(now: Instant, complete: bool) -> Rc<Self> {
        Rc::new(Self {
            bytes: Cell::new(0),
            complete: Cell::new(complete.then_some(now)),
            last: Cell::new(now),
            waiting: RefCell::default(),
            broken: Cell::new(None),
            abandoned: Cell::new(false),
            reader: RefCell::default(),
        })
    }

    /// Of a request that is made again at `now`, with a body of so many bytes.
    pub(crate) fn again(now: Instant, bytes: u64) -> Rc<Self> {
        let progress = Self::new(now, true);
        progress.bytes.set(bytes);
        progress
    }

    /// Bytes of the request's body so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// When the request was complete.
    pub(crate) fn complete(&self) -> Option<Instant> {
        self.complete.get()
    }

    /// Why the request will never be complete, once that is known.
    pub(crate) fn broken(&self) -> Option<Broken> {
        self.broken.get()
    }

    /// When something moved last.
    pub(crate) fn last(&self) -> Instant {
        self.last.get()
    }

    /// Something moved.
    pub(crate) fn moved(&self) {
        self.last.set(Instant::now());
    }

    /// Waits until the request is complete.
    pub(crate) async fn completed(&self) {
        std::future::poll_fn(|cx| {
            if self.complete.get().is_some() {
                return Poll::Ready(());
            }
            self.waiting.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Nobody waits for the rest of the request any more: whoever still sends it on stops.
    pub(crate) fn abandon(&self) {
        if self.complete.get().is_some() {
            return;
        }
        self.abandoned.set(true);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn end(&self) {
        if self.complete.get().is_none() {
            self.complete.set(Some(Instant::now()));
        }
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

/// Where a request's body comes from.
pub(crate) enum Arriving {
    /// There is none.
    Nothing,
    /// An HTTP/1 connection.
    Http1(Http1Body),
    /// A stream of an HTTP/2 connection.
    Http2(Incoming),
}

impl Arriving {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Nothing => Poll::Ready(None),
            Self::Http1(body) => body.poll_frame(cx),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
        }
    }

    /// Whether nothing more comes.
    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}

/// A request's body as it comes in.
pub struct RequestBody {
    incoming: Arriving,
    progress: Rc<Progress>,
}

impl RequestBody {
    pub(crate) fn new(incoming: Arriving, progress: Rc<Progress>) -> Self {
        Self { incoming, progress }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.progress.abandoned.get() {
            return Poll::Ready(Some(Err(BodyError::Abandoned)));
        }
        let Poll::Ready(frame) = self.incoming.poll_frame(cx) else {
            let mut reader = self.progress.reader.borrow_mut();
            if !reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
                *reader = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        match &frame {
            None => self.progress.end(),
            Some(Err(error)) => self.progress.broken.set(Some(Broken::of(error))),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.progress.bytes.set(self.progress.bytes.get() + data.len() as u64);
                }
                self.progress.moved();
                if frame.is_trailers() || self.incoming.is_end_stream() {
                    self.progress.end();
                }
            }
        }
        Poll::Ready(frame)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
