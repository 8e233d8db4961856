//! How hyper's client connections are set up: Envoy's limits where hyper's differ.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::TokioTimer;

use super::worker::Worker;

/// Runs hyper's per-connection tasks on this worker.
#[derive(Clone)]
pub(super) struct LocalExecutor(pub(super) Rc<Worker>);

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

pub(super) fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_headers(HEADERS_MAX).max_buf_size(HTTP1_BUFFER_MAX);
    builder
}

pub(super) fn http2_builder(executor: LocalExecutor) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_send_buf_size(SEND_BUFFER_MAX)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(false);
    builder
}

/// Header fields of a response.
pub(super) const HEADERS_MAX: usize = 100;
/// Head of an HTTP/1 response, and what is read ahead.
const HTTP1_BUFFER_MAX: usize = 80 * 1024;
/// Header list of an HTTP/2 response.
const HEADER_LIST_MAX: u32 = 60 * 1024;
/// Envoy's: 16 MiB per stream, 24 MiB per connection.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 24 << 20;
/// Bytes of one stream buffered for sending.
const SEND_BUFFER_MAX: usize = 256 * 1024;
/// A peer that vanished is found by pings while streams are open.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
