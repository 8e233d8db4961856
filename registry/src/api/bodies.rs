//! Reads requests' bodies whole before anybody handles them: within a limit each, all of them together
//! within a budget, and in a time that a slow client does not set.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Problem;

/// How long a body may take to arrive, and to find room.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);
/// The budget is counted in pieces of so many bytes.
const PIECE: usize = 4 << 10;

/// What bodies may take.
#[derive(Clone)]
pub(super) struct Bodies {
    each_max: usize,
    budget: Arc<Semaphore>,
}

impl Bodies {
    /// So many bytes each, and so many all together.
    pub(super) fn new(each_max: usize, together_max: usize) -> Self {
        Self { each_max, budget: Arc::new(Semaphore::new(together_max / PIECE)) }
    }

    async fn read(&self, body: Body) -> Result<axum::body::Bytes, Problem> {
        let too_large = || {
            let detail = format!("the body is larger than {} bytes", self.each_max);
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
        };
        match timeout(BODY_TIME_MAX, to_bytes(body, self.each_max)).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(error)) => Err(match std::error::Error::source(&error) {
                Some(source) if source.is::<http_body_util::LengthLimitError>() => too_large(),
                _ => Problem::new(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")),
            }),
            Err(_elapsed) => {
                let detail = format!("the body has not arrived within {BODY_TIME_MAX:?}");
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
            }
        }
    }
}

/// Hands a request on with its whole body.
pub(super) async fn gather(State(bodies): State<Bodies>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(head, body)).await;
    }
    let hint = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    // What cannot fit is refused before it is sent.
    if hint.is_some_and(|bytes| bytes > bodies.each_max) {
        let detail = format!("the body is larger than {} bytes", bodies.each_max);
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).into_response();
    }
    let pieces = u32::try_from(hint.unwrap_or(bodies.each_max).div_ceil(PIECE)).unwrap_or(u32::MAX);
    let Ok(Ok(_room)) = timeout(BODY_TIME_MAX, bodies.budget.acquire_many(pieces)).await else {
        let detail = "too many large requests at once; try again";
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response();
    };
    match bodies.read(body).await {
        Ok(body) => next.run(Request::from_parts(head, Body::from(body))).await,
        Err(problem) => problem.into_response(),
    }
}
