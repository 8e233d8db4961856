//! HTTP connections: HTTP/1.1 or HTTP/2, their limits, and how they end.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use pillion_model::http::Codec;
use tokio::time::{Instant, sleep_until};

use super::activity::{Activity, Waiting};
use super::connection::Connection;
use super::detect;
use super::http1::{Ending, Http1, Refused};
use super::io::Io;
use super::rarely::Rarely;
use super::tunnel::ClientTunnel;
use crate::chain;
use crate::local_reply::LocalReply;
use crate::metrics::{Family, Symbol};
use crate::record::{Owner, Record};
use crate::request::Arriving;
use crate::snapshot::Hcm;
use crate::trust;

/// HTTP/2 window of one stream: what one slow upstream may hold in memory.
const STREAM_WINDOW: u32 = 1 << 20;
/// HTTP/2 window of a connection; far above h2's floor for small DATA frames.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes of one HTTP/2 response queued for a slow client.
const SEND_BUFFER: usize = 256 << 10;
/// Streams reset before they were answered that h2 holds.
const RESET_STREAMS_MAX: usize = 50;
/// Streams that a client makes us reset, by breaking the protocol on them (CVE-2025-8671).
const RESET_BY_US_MAX: usize = 100;

/// Spawns a connection's streams on the worker's own thread.
#[derive(Clone)]
struct Streams(Rc<Connection>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let worker = &self.0.worker;
        let cut = worker.cut.clone();
        worker.tasks.spawn_local(async move {
            cut.run_until_cancelled(stream).await;
        });
    }
}

/// Why a connection is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Drained, retired, or too old: finish what is there.
    Finish,
    /// Idle for too long, or abused: nothing is lost.
    Close,
    /// The peer is trusted no more.
    Cut,
}

/// Carries requests until the connection ends.
pub(crate) async fn serve_http(connection: Rc<Connection>, hcm: Arc<Hcm>, mut io: Io) {
    let http2 = match (hcm.config.codec, connection.tls.as_ref().and_then(|tls| tls.alpn_http2)) {
        (Codec::Http1, _) => false,
        (Codec::Http2, _) => true,
        (Codec::Auto, Some(http2)) => http2,
        (Codec::Auto, None) => {
            let watch = pin!(watch(&connection.activity, &hcm));
            tokio::select! {
                biased;
                read = detect::http2(&mut io) => {
                    let Ok((http2, bytes)) = read else { return };
                    io.unread(bytes);
                    http2
                }
                () = watch => return,
                () = drained(&connection, &hcm) => return,
            }
        }
    };
    if http2 {
        connection.activity.speaks_frames();
        serve_http2(&connection, &hcm, io.counted()).await;
        if connection.activity.is_flooded() || connection.abused.get() {
            let labels = [connection.direction.into(), Symbol::FLOOD, Symbol::EMPTY];
            connection.worker.metrics.add(Family::ConnectionFailures, labels, 1);
        }
    } else {
        serve_http1(connection, &hcm, io).await;
    }
}

/// Ends when the connection drains and has had time to send what was on its way.
async fn drained(connection: &Connection, hcm: &Hcm) {
    connection.drain.cancelled().await;
    tokio::time::sleep(hcm.config.drain_timeout).await;
}

async fn serve_http1(connection: Rc<Connection>, hcm: &Arc<Hcm>, io: Io) {
    let http1 = Http1::new(&connection, hcm, io);
    let ending = carry_http1(&http1, &connection, hcm).await;
    http1.close(&ending).await;
    if let Ending::Refused(refused) = &ending {
        write_down(&connection, hcm, refused);
    }
}

/// A refused head has its line in the access log, as a request has.
fn write_down(connection: &Rc<Connection>, hcm: &Arc<Hcm>, refused: &Refused) {
    let owner = Owner::Http(Arc::clone(hcm));
    let reply = LocalReply::from(refused.cause.clone());
    connection.request_started();
    let mut record = Record::new(Rc::clone(connection), owner, refused.version, refused.method.clone());
    record.path = refused.path.clone();
    record.status = reply.status.as_u16();
    record.flags.add(reply.flags);
    record.details = Some(reply.details);
    record.bytes_sent = reply.body.len() as u64;
    record.complete = true;
}

async fn carry_http1(http1: &Http1, connection: &Connection, hcm: &Hcm) -> Ending {
    let mut serving = pin!(http1.run());
    let end = tokio::select! {
        biased;
        ending = serving.as_mut() => return ending,
        end = Rarely::new(until_end(connection, hcm)) => end,
    };
    if end == End::Cut {
        return Ending::Said;
    }
    if end == End::Close {
        let in_head = matches!(connection.activity.waiting(), Waiting::Head(_));
        return if in_head { Ending::Refused(Refused::too_slow()) } else { Ending::Said };
    }
    // Responses say `connection: close` from here on. An idle client gets time to use the connection
    // once more, so that no request crosses our close on the wire.
    let grace = hcm.config.drain_timeout;
    tokio::select! {
        biased;
        ending = serving.as_mut() => return ending,
        () = tokio::time::sleep(grace) => http1.end_soon(),
    }
    finish(serving, connection, hcm).await.unwrap_or(Ending::Said)
}

/// Waits for the end of a connection that was told to end, but not for a client that is silent.
async fn finish<F: Future>(
    serving: std::pin::Pin<&mut F>,
    connection: &Connection,
    hcm: &Hcm,
) -> Option<F::Output> {
    tokio::select! {
        biased;
        ended = serving => Some(ended),
        () = watch(&connection.activity, hcm) => None,
        () = connection.distrusted() => None,
    }
}

async fn serve_http2(connection: &Rc<Connection>, hcm: &Hcm, io: Io) {
    let mut builder = http2::Builder::new(Streams(Rc::clone(connection)));
    builder
        .max_concurrent_streams(hcm.config.max_concurrent_streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(hcm.config.max_request_headers_kb.saturating_mul(1024))
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(Some(RESET_BY_US_MAX))
        .enable_connect_protocol();
    let for_requests = Rc::clone(connection);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let connection = Rc::clone(&for_requests);
        let tunnel = request.extensions_mut().remove::<OnUpgrade>().map(ClientTunnel::Http2);
        let request = request.map(Arriving::Http2);
        // Boxed: what is spawned for a stream is moved a dozen times before it runs.
        let handled = Box::pin(chain::handle(connection, request, tunnel));
        async move { Ok::<_, Infallible>(handled.await) }
    });
    let mut serving = pin!(builder.serve_connection(TokioIo::new(io), service));
    let end = tokio::select! {
        biased;
        _ = serving.as_mut() => return,
        end = Rarely::new(until_end(connection, hcm)) => end,
    };
    if end == End::Cut || (end == End::Close && connection.abused.get()) {
        return;
    }
    // GOAWAY with the largest id, and the final one after a round trip.
    serving.as_mut().graceful_shutdown();
    if end == End::Close {
        // The client may be gone: it gets a moment for its farewell.
        let _ = tokio::time::timeout(hcm.config.drain_timeout, serving).await;
        return;
    }
    finish(serving, connection, hcm).await;
}

/// Waits until the connection should end, and says how.
async fn until_end(connection: &Connection, hcm: &Hcm) -> End {
    let age = async {
        match hcm.config.max_connection_duration {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let certificate = async {
        match connection.peer_certificate() {
            Some(peer) => trust::ending(peer).await,
            None => std::future::pending().await,
        }
    };
    let chain = connection.chain();
    let finish = tokio::select! {
        () = connection.drain.cancelled() => End::Finish,
        () = chain.retired.cancelled() => End::Finish,
        () = age => End::Finish,
        () = certificate => End::Finish,
        () = connection.distrusted() => End::Cut,
        () = connection.abuse.cancelled() => End::Close,
        () = watch(&connection.activity, hcm) => End::Close,
    };
    connection.draining.set(true);
    finish
}

/// Ends when a head takes too long or the connection was idle for too long.
async fn watch(activity: &Activity, hcm: &Hcm) {
    let idle_timeout = hcm.config.idle_timeout.unwrap_or(Duration::MAX);
    loop {
        let now = Instant::now();
        let look_again = now + hcm.headers_timeout.min(idle_timeout);
        let deadline = match activity.waiting() {
            Waiting::Busy => None,
            Waiting::Head(since) => Some(since + hcm.headers_timeout),
            Waiting::Idle(since) => since.checked_add(idle_timeout),
        };
        match deadline {
            Some(deadline) if deadline <= now => return,
            Some(deadline) => sleep_until(deadline.min(look_again)).await,
            None => sleep_until(look_again).await,
        }
    }
}
