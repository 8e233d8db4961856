//! Changes of services as server-sent events.
//!
//! `service` (whole state), `change` (to a state known), `removed`, `resync`, `progress`. Only
//! `progress` carries an id, after every batch and at least every 30 seconds: whoever resumes from
//! it misses nothing.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use http_body::Frame;
use pillion_model::name::ServiceName;
use tokio::time::{Instant, Sleep, sleep};

use super::request::{Position, Query, gone, position};
use super::{Api, Problem};
use crate::watch::{Batch, Event, Interest, Subscription};

/// A stream says at least this often how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);
/// Services one stream may name.
const SERVICES_MAX: usize = 1000;
/// How long a client is asked to wait before it reconnects.
const RETRY: &str = "retry: 1000\n\n";

pub(super) async fn stream(
    State(api): State<Api>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    query.only(&["service", "namespace", "since"])?;
    let interest = interest(&query)?;
    let world = api.catalog.world();
    let last_event = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    // A browser resumes by itself and would not understand 410: it is told in the stream.
    let after = match (last_event, query.first("since")) {
        (Some(id), _) => match position("Last-Event-ID", id, &world)? {
            Position::Known(revision) => Some(revision),
            Position::Foreign => Some(u64::MAX),
        },
        (None, Some(since)) => match position("since", since, &world)? {
            Position::Known(revision) => Some(revision),
            Position::Foreign => return Err(gone(&world)),
        },
        (None, None) => None,
    };
    let subscription = api.hub.subscribe(&world, interest, after)?;
    let mut response = Body::new(Stream::new(subscription)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn interest(query: &Query) -> Result<Interest, Problem> {
    let mut services = BTreeSet::new();
    for text in query.all("service") {
        let name = text.parse::<ServiceName>();
        let wrong =
            |error| Problem::parameter("service", format!("`{text}`: {error}; want service.namespace"));
        services.insert(name.map_err(wrong)?);
    }
    if services.len() > SERVICES_MAX {
        let detail = format!("got {} services, want at most {SERVICES_MAX}", services.len());
        return Err(Problem::parameter("service", detail));
    }
    match query.first("namespace") {
        Some(_) if !services.is_empty() => {
            Err(Problem::parameter("namespace", "got namespace and service, want one of them"))
        }
        Some(namespace) => Ok(Interest::Namespace(namespace.to_owned())),
        None if services.is_empty() => Ok(Interest::All),
        None => Ok(Interest::Services(services)),
    }
}

/// The events as they happen. It is a body of its own, without what a stream of futures does for each.
struct Stream {
    subscription: Subscription,
    /// What has not been said of the beginning.
    greeting: Option<Bytes>,
    said_at: Instant,
    /// Runs beyond the time at which something must be said; set again only when it has ended.
    silence: Pin<Box<Sleep>>,
}

impl Stream {
    fn new(subscription: Subscription) -> Self {
        let greeting = Some(Bytes::from_static(RETRY.as_bytes()));
        Self { subscription, greeting, said_at: Instant::now(), silence: Box::pin(sleep(PROGRESS_EVERY)) }
    }

    /// How far the subscriber is, when nothing has been said for so long.
    fn poll_progress(&mut self, context: &mut Context<'_>) -> Poll<Batch> {
        while self.silence.as_mut().poll(context).is_ready() {
            let (now, due) = (Instant::now(), self.said_at + PROGRESS_EVERY);
            if due <= now {
                self.silence.as_mut().reset(now + PROGRESS_EVERY);
                return Poll::Ready(self.subscription.progress());
            }
            self.silence.as_mut().reset(due);
        }
        Poll::Pending
    }
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(greeting) = self.greeting.take() {
            return Poll::Ready(Some(Ok(Frame::data(greeting))));
        }
        let batch = match self.subscription.poll_next(context) {
            Poll::Ready(Some(batch)) => batch,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => std::task::ready!(self.poll_progress(context)),
        };
        self.said_at = Instant::now();
        Poll::Ready(Some(Ok(Frame::data(text(&batch)))))
    }
}

fn text(batch: &Batch) -> Bytes {
    let size: usize = batch.events.iter().map(|event| event.data.len() + EVENT_BYTES).sum();
    let token = batch.token.as_bytes();
    let mut text = Vec::with_capacity(size + PROGRESS_BYTES + 2 * token.len());
    for Event { kind, data } in &batch.events {
        for part in [b"event: ", kind.as_str().as_bytes(), b"\ndata: ", data, b"\n\n"] {
            text.extend_from_slice(part);
        }
    }
    for part in [b"event: progress\nid: ", token, b"\ndata: {\"token\":\"", token, b"\"}\n\n"] {
        text.extend_from_slice(part);
    }
    text.into()
}

/// What stands around an event, at most.
const EVENT_BYTES: usize = 32;
/// What stands around the tokens of a progress mark.
const PROGRESS_BYTES: usize = 48;
