//! How connections for health checks are set up: Envoy's limits where hyper's differ.

use std::future::Future;
use std::rc::Rc;

use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::TokioTimer;

use crate::upstream::worker::Worker;

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
    builder.timer(TokioTimer::new()).max_header_list_size(HEADER_LIST_MAX);
    builder
}

/// Header fields of a response.
const HEADERS_MAX: usize = 100;
/// Head of an HTTP/1 response, and what is read ahead.
const HTTP1_BUFFER_MAX: usize = 80 * 1024;
/// Header list of an HTTP/2 response.
const HEADER_LIST_MAX: u32 = 60 * 1024;
