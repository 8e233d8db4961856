//! Changes of services as server-sent events.
//!
//! `service` (whole state), `change` (to a state known), `removed`, `resync`, `progress`. Only
//! `progress` carries an id, after every batch and at least every 30 seconds: whoever resumes from
//! it misses nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use pillion_model::name::ServiceName;

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
    let start = Stream { subscription, stop: api.stop.clone() };
    let events = stream::unfold(start, Stream::next);
    let first = stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from_static(RETRY.as_bytes()))]);
    let body = Body::from_stream(futures_util::StreamExt::chain(first, events));
    let mut response = body.into_response();
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

struct Stream {
    subscription: Subscription,
    stop: tokio_util::sync::CancellationToken,
}

impl Stream {
    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        let next = tokio::time::timeout(PROGRESS_EVERY, self.subscription.next());
        let batch = self.stop.run_until_cancelled(next).await?;
        let batch = batch.unwrap_or_else(|_| self.subscription.progress());
        Some((Ok(text(&batch)), self))
    }
}

fn text(batch: &Batch) -> Bytes {
    let size: usize = batch.events.iter().map(|event| event.data.len() + 32).sum();
    let mut text = Vec::with_capacity(size + 96);
    for Event { kind, data } in &batch.events {
        text.extend_from_slice(b"event: ");
        text.extend_from_slice(kind.as_str().as_bytes());
        text.extend_from_slice(b"\ndata: ");
        text.extend_from_slice(data);
        text.extend_from_slice(b"\n\n");
    }
    let mut progress = String::new();
    let token = &batch.token;
    // Writing to a String cannot fail.
    let _ = write!(progress, "event: progress\nid: {token}\ndata: {{\"token\":\"{token}\"}}\n\n");
    text.extend_from_slice(progress.as_bytes());
    text.into()
}
