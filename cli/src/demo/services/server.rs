//! What the sample services share: listening, serving HTTP, and stopping.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long requests in flight may take after the stop.
const GRACE: Duration = Duration::from_secs(5);
/// How long an accept that failed (out of descriptors) is put off.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An answer of a sample service.
pub(super) type Response = http::Response<Full<Bytes>>;

/// A token that SIGTERM or Ctrl-C cancels.
pub(super) fn stop_on_signal() -> anyhow::Result<Stop> {
    let terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    Ok(Stop { terminate, interrupt })
}

/// The signals that end a sample service.
pub(super) struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Listens, says where, and hands each connection to `connection` until the stop.
pub(super) async fn serve<F>(
    listen: SocketAddr,
    mut stop: Stop,
    connection: impl Fn(TcpStream, CancellationToken) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    crate::output::line(format_args!("listening on {}", listener.local_addr()?))?;
    let (open, closing) = (TaskTracker::new(), CancellationToken::new());
    loop {
        tokio::select! {
            () = stop.requested() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _peer)) => {
                    open.spawn(connection(stream, closing.clone()));
                }
                Err(_out_of_descriptors) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listener);
    closing.cancel();
    open.close();
    // Whatever is left after the grace ends with the process.
    let _ = tokio::time::timeout(GRACE, open.wait()).await;
    Ok(())
}

/// Serves HTTP/1.1 on one connection until it ends, or until the request in flight is answered
/// after `closing`.
pub(super) async fn http<F>(
    stream: TcpStream,
    closing: CancellationToken,
    handle: impl Fn(http::Request<Incoming>) -> F,
) where
    F: Future<Output = Response>,
{
    let service = hyper::service::service_fn(|request| {
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    let connection = builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // An error here is the client's: it went away, or spoke no HTTP.
    tokio::select! {
        _ended = connection.as_mut() => {}
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// A JSON answer.
pub(super) fn json(status: http::StatusCode, value: &serde_json::Value) -> Response {
    let mut response = http::Response::new(Full::new(Bytes::from(format!("{value}\n"))));
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}
