//! Applications that close their connections as real ones do, and worse.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::load::Ledger;
use super::origin_http2;

/// A request's number, in request and answer.
pub(crate) const ID: &str = "x-id";
/// How many bytes of the right body came.
pub(crate) const CHECK: &str = "x-check";
/// How long an application takes to answer, at most.
const WORK_MAX_MS: u64 = 8;

/// How an application ends its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temper {
    /// HTTP/1.1. Says `connection: close` with the last answer of each connection, and closes without a
    /// word only what has been idle for a second or more, as servers do.
    Orderly,
    /// HTTP/1.1. Closes whenever no request is being answered, at any moment, without a word.
    Careless,
    /// HTTP/2: says GOAWAY, in both of its ways.
    Http2,
}

/// A running application. Dropping it closes its port and its connections.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

/// What all its connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    name: &'static str,
    ledger: Arc<Ledger>,
    answered: AtomicU64,
    rng: Mutex<Rng>,
}

impl Origin {
    /// Starts one.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub(crate) async fn start(
        name: &'static str,
        temper: Temper,
        ledger: &Arc<Ledger>,
        rng: &mut Rng,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound above");
        let (ledger, answered) = (Arc::clone(ledger), AtomicU64::new(0));
        let shared = Arc::new(Shared { name, ledger, answered, rng: Mutex::new(rng.fork()) });
        let mut server = JoinSet::new();
        let for_connections = Arc::clone(&shared);
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _peer)) = accepted else { continue };
                        // It fails only on a socket that is gone.
                        let _gone = stream.set_nodelay(true);
                        connections.spawn(connection(stream, temper, Arc::clone(&for_connections)));
                    }
                    Some(_ended) = connections.join_next() => {}
                }
            }
        });
        Self { address, shared, _server: server }
    }

    /// How many requests it has answered.
    pub(crate) fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }
}

async fn connection(stream: TcpStream, temper: Temper, shared: Arc<Shared>) {
    match temper {
        Temper::Http2 => origin_http2::serve(stream, &shared).await,
        Temper::Orderly | Temper::Careless => serve_http1(stream, temper, shared).await,
    }
}

/// How busy a connection is.
struct Busy {
    active: AtomicU32,
    served: AtomicU32,
    since: Mutex<Instant>,
    last: AtomicBool,
}

impl Busy {
    fn begin(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    fn end(&self) {
        self.served.fetch_add(1, Relaxed);
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.active.fetch_sub(1, Relaxed);
    }

    /// Since its last answer; nobody gives up a connection that has not been used yet so soon.
    fn idle_for(&self) -> Duration {
        if self.active.load(Relaxed) > 0 || self.served.load(Relaxed) == 0 {
            return Duration::ZERO;
        }
        self.since.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

async fn serve_http1(stream: TcpStream, temper: Temper, shared: Arc<Shared>) {
    let (idle_max, served_max) = {
        let mut rng = shared.rng();
        match temper {
            Temper::Careless => (Duration::from_millis(rng.u64(0..60)), rng.u32(1..200)),
            _ => (Duration::from_millis(rng.u64(1000..2000)), rng.u32(1..300)),
        }
    };
    let busy = Arc::new(Busy {
        active: AtomicU32::new(0),
        served: AtomicU32::new(0),
        since: Mutex::new(Instant::now()),
        last: AtomicBool::new(false),
    });
    let for_requests = (Arc::clone(&shared), Arc::clone(&busy));
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, busy) = (Arc::clone(&for_requests.0), Arc::clone(&for_requests.1));
        async move {
            busy.begin();
            let answered = answer_http1(&shared, request).await;
            busy.end();
            let mut response = answered?;
            if temper == Temper::Orderly && busy.served.load(Relaxed) >= served_max {
                response.headers_mut().insert("connection", HeaderValue::from_static("close"));
                busy.last.store(true, Relaxed);
            }
            Ok::<_, hyper::Error>(response)
        }
    });
    let mut serving = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            // An error is the proxy's: it went away.
            _ = serving.as_mut() => return,
            () = sleep(Duration::from_millis(5)) => {}
        }
        let enough = temper == Temper::Careless && busy.served.load(Relaxed) >= served_max;
        let idle = busy.idle_for();
        if !idle.is_zero() && !busy.last.load(Relaxed) && (enough || idle >= idle_max) {
            // Idle: it closes at once, whatever is on its way.
            serving.as_mut().graceful_shutdown();
        }
    }
}

async fn answer_http1(
    shared: &Shared,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    // A body that was cut off is none: nothing is carried out.
    let body = body.collect().await?.to_bytes();
    let asked = Asked::of(&head, &body);
    sleep(shared.work()).await;
    shared.carry_out(&asked);
    let mut response = Response::new(Full::new(reply_bytes(asked.id, asked.answer)));
    asked.annotate(response.headers_mut(), shared.name);
    Ok(response)
}

/// What a request wants.
pub(crate) struct Asked {
    pub(crate) id: usize,
    pub(crate) answer: usize,
    /// Bytes that came, if they are the right ones.
    right: Option<usize>,
}

impl Asked {
    pub(crate) fn of(head: &http::request::Parts, body: &[u8]) -> Self {
        let id = head.headers.get(ID).and_then(|id| id.to_str().ok()?.parse().ok()).unwrap_or(usize::MAX);
        let query = head.uri.query().unwrap_or_default();
        let answer = query.strip_prefix("answer=").and_then(|count| count.parse().ok()).unwrap_or_default();
        Self { id, answer, right: (body == fill(id, body.len())).then_some(body.len()) }
    }

    pub(crate) fn annotate(&self, headers: &mut http::HeaderMap, name: &'static str) {
        headers.insert(ID, self.id.into());
        headers.insert("x-app", HeaderValue::from_static(name));
        let right = self.right.map_or(HeaderValue::from_static("broken"), HeaderValue::from);
        headers.insert(CHECK, right);
    }
}

impl Shared {
    pub(crate) fn rng(&self) -> std::sync::MutexGuard<'_, Rng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long this one takes.
    pub(crate) fn work(&self) -> Duration {
        Duration::from_millis(self.rng().u64(0..WORK_MAX_MS))
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn carry_out(&self, asked: &Asked) {
        self.ledger.carried_out(asked.id);
        self.answered.fetch_add(1, Relaxed);
    }
}

/// The body of a request.
pub(crate) fn fill(id: usize, length: usize) -> Bytes {
    pattern(id, length, 7)
}

/// The body of an answer.
pub(crate) fn reply_bytes(id: usize, length: usize) -> Bytes {
    pattern(id, length, 13)
}

/// Bytes that differ from request to request and from place to place.
fn pattern(id: usize, length: usize, step: usize) -> Bytes {
    (0..length).map(|at| ((id + at * step) % 251) as u8).collect()
}
