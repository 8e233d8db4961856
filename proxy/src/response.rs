//! The body of a response on its way to the client: counts bytes, enforces the timeouts that go on
//! after the headers, and ends the record.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::{Body, BodyError};
use crate::flags::Flags;
use crate::headers::names::GRPC_STATUS;
use crate::record::Record;
use crate::router::timeout::{Expired, Timers};

/// A response body with everything that ends with it.
pub(crate) struct ResponseBody {
    body: Body,
    tail: Option<Box<Tail>>,
}

/// What ends with the response.
pub(crate) struct Tail {
    pub(crate) record: Box<Record>,
    pub(crate) timers: Timers,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// Why a response was cut.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResponseError {
    /// The upstream's part failed.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// A timeout passed after the headers.
    #[error("the response took too long")]
    TimedOut,
}

impl ResponseBody {
    /// Of a tunnel: nothing, and the record lives elsewhere.
    pub(crate) fn none() -> Self {
        Self { body: Body::Empty, tail: None }
    }

    /// Sends `body`; `bodiless`: the client will not read it (HEAD).
    pub(crate) fn new(body: Body, mut record: Box<Record>, timers: Timers, bodiless: bool) -> Self {
        if bodiless || body.is_end_stream() {
            timers.progress.abandon();
            record.finish();
            return Self { body, tail: None };
        }
        Self { body, tail: Some(Box::new(Tail { record, timers, sleep: None })) }
    }

    fn end(&mut self) {
        if let Some(mut tail) = self.tail.take() {
            tail.timers.progress.abandon();
            tail.record.finish();
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            let Some(tail) = &mut this.tail else { return Poll::Pending };
            let expired = std::task::ready!(tail.poll_expired(cx));
            tail.record.cut(expired);
            this.tail = None;
            this.body = Body::Empty;
            return Poll::Ready(Some(Err(ResponseError::TimedOut)));
        };
        match frame {
            None => {
                this.end();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                if let Some(tail) = &mut this.tail {
                    tail.record.upstream_cut(&error);
                }
                this.tail = None;
                Poll::Ready(Some(Err(error.into())))
            }
            Some(Ok(frame)) => {
                if let Some(tail) = &mut this.tail {
                    tail.note(&frame);
                }
                // Nothing follows trailers, and a client of HTTP/1 may not want them.
                if frame.is_trailers() || this.body.is_end_stream() {
                    this.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Tail {
    fn note(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.record.bytes_sent += data.len() as u64;
        } else if let Some(trailers) = frame.trailers_ref() {
            self.record.trailers(trailers);
        }
        self.timers.progress.moved();
    }

    /// Ready when a timeout has passed. The timer is set up at the first wait only.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        loop {
            let Some((at, expired)) = self.timers.next(None) else { return Poll::Pending };
            if at <= Instant::now() {
                return Poll::Ready(expired);
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            std::task::ready!(sleep.as_mut().poll(cx));
        }
    }
}

impl Record {
    /// The response was handed over whole.
    pub(crate) fn finish(&mut self) {
        self.complete = true;
    }

    /// A timeout passed after the response headers.
    fn cut(&mut self, expired: Expired) {
        let (flag, details) = match expired {
            Expired::Route | Expired::PerTry => (Flags::UPSTREAM_REQUEST_TIMEOUT, "response_timeout"),
            Expired::MaxStream { .. } => (Flags::NONE, "max_duration_timeout"),
            Expired::Idle | Expired::Request => (Flags::STREAM_IDLE, "stream_idle_timeout"),
        };
        self.flags.add(flag);
        self.details = Some(details.into());
        self.complete = true;
    }

    fn upstream_cut(&mut self, error: &BodyError) {
        let reset = crate::upstream::body_reset(error);
        self.flags.add(match reset {
            pillion_model::retry::Reset::ConnectionTermination => Flags::UPSTREAM_CONNECTION_TERMINATION,
            pillion_model::retry::Reset::ProtocolError => Flags::UPSTREAM_PROTOCOL_ERROR,
            _ => Flags::UPSTREAM_RESET,
        });
        let reason = crate::upstream::reset_reason(reset).replace(' ', "_");
        self.details = Some(format!("upstream_reset_after_response_started{{{reason}}}").into());
        self.complete = true;
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.grpc {
            self.grpc_status = parse_grpc_status(trailers);
        }
        if self.wants_trailers() {
            self.trailers = trailers.clone();
        }
    }
}

/// `grpc-status` as a number.
pub(crate) fn parse_grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()
}
