//! The HTTP/2 side of an application, on bare streams: hyper sends only one kind of GOAWAY.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::origin::{Asked, Shared, reply_bytes};

/// How long nothing is in flight before a connection is ended at once: answers have left by then.
const QUIET: Duration = Duration::from_millis(5);

/// How long a client may take to close.
const LINGER: Duration = Duration::from_secs(1);

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// GOAWAY with the largest id, then, after a round trip, with the last one that is served.
    Graceful,
    /// GOAWAY with the last one that came, when nothing is in flight, and the end.
    AtOnce,
}

/// Carries one connection, and does not close it before the client has, or had a second for that: a
/// reset might be there before our GOAWAY.
pub(super) async fn serve(stream: TcpStream, shared: &Arc<Shared>) {
    let stream = stream.into_std().expect("an open socket");
    let open = stream.try_clone().and_then(TcpStream::from_std).expect("a descriptor");
    carry(TcpStream::from_std(stream).expect("an open socket"), shared).await;
    let rest = async {
        let mut bytes = [0; 4096];
        while open.readable().await.is_ok() {
            match open.try_read(&mut bytes) {
                Ok(0) => break,
                Err(error) if error.kind() != ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
    };
    let _gone = timeout(LINGER, rest).await;
}

async fn carry(stream: TcpStream, shared: &Arc<Shared>) {
    let (life, end, streams) = {
        let mut rng = shared.rng();
        let end = if rng.bool() { End::Graceful } else { End::AtOnce };
        (Duration::from_millis(rng.u64(200..3000)), end, rng.u32(4..100))
    };
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(streams);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let (begun, active, mut ending) = (Instant::now(), Arc::new(AtomicU32::new(0)), false);
    let (mut work, mut last_ended) = (JoinSet::new(), Instant::now());
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { break };
                active.fetch_add(1, Relaxed);
                work.spawn(one(request, respond, Arc::clone(shared), Arc::clone(&active)));
            }
            Some(_ended) = work.join_next() => last_ended = Instant::now(),
            () = sleep(QUIET) => {}
        }
        if ending || begun.elapsed() < life {
            continue;
        }
        match end {
            End::Graceful => {
                connection.graceful_shutdown();
                ending = true;
            }
            End::AtOnce if active.load(Relaxed) == 0 && last_ended.elapsed() >= QUIET => {
                // What has come already counts as taken.
                match connection.accept().now_or_never() {
                    None => {
                        connection.abrupt_shutdown(Reason::NO_ERROR);
                        ending = true;
                    }
                    Some(Some(Ok((request, respond)))) => {
                        active.fetch_add(1, Relaxed);
                        work.spawn(one(request, respond, Arc::clone(shared), Arc::clone(&active)));
                    }
                    Some(_) => break,
                }
            }
            End::AtOnce => {}
        }
    }
    while work.join_next().await.is_some() {}
}

async fn one(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
    active: Arc<AtomicU32>,
) {
    // An error is the proxy's: it went away, or reset the stream.
    let _gone = answer(request, respond, &shared).await;
    active.fetch_sub(1, Relaxed);
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: &Shared,
) -> Result<(), h2::Error> {
    let (head, mut incoming) = request.into_parts();
    let mut body = BytesMut::new();
    while let Some(data) = incoming.data().await {
        let data = data?;
        body.extend_from_slice(&data);
        incoming.flow_control().release_capacity(data.len())?;
    }
    let asked = Asked::of(&head, &body);
    sleep(shared.work()).await;
    shared.carry_out(&asked);
    let mut response = Response::new(());
    asked.annotate(response.headers_mut(), shared.name());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut stream = respond.send_response(response, false)?;
    // Until there is room for all of it: once this is done, it has left.
    stream.reserve_capacity(asked.answer);
    while stream.capacity() < asked.answer {
        let Some(room) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return Ok(()) };
        room?;
    }
    stream.send_data(reply_bytes(asked.id, asked.answer), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}
