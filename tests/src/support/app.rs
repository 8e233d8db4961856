//! An application that knows nothing of the mesh: a plain HTTP server inside the test, which keeps
//! what it has seen. It speaks HTTP/1.1 and HTTP/2 in the clear.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A request as the application saw it, with its whole body.
pub type Seen = http::Request<Bytes>;
/// What the application answers.
pub type Reply = http::Response<Bytes>;

/// A running application. Dropping it closes its port and its connections.
#[derive(Debug)]
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _server: JoinSet<()>,
}

impl App {
    /// Starts one that tells in JSON what it was asked, and by whom; see [`echo`].
    pub async fn start(name: &'static str) -> Self {
        Self::with(move |seen| std::future::ready(echo(name, &seen))).await
    }

    /// Starts one that answers as `answer` does.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn with<F, R>(answer: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (kept, answer) = (Arc::clone(&seen), Arc::new(answer));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _peer)) = accepted else { continue };
                        connections.spawn(connection(stream, Arc::clone(&kept), Arc::clone(&answer)));
                    }
                    Some(_ended) = connections.join_next() => {}
                }
            }
        });
        Self { address, seen, _server: server }
    }

    /// What it has been asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The port, as a sidecar is told it.
    pub fn port(&self) -> String {
        self.address.port().to_string()
    }
}

async fn connection<F, R>(stream: TcpStream, kept: Arc<Mutex<Vec<Seen>>>, answer: Arc<F>)
where
    F: Fn(Seen) -> R + Send + Sync + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
        async move {
            let (head, body) = request.into_parts();
            // A body that was cut off is none: the proxy went away.
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let seen = Seen::from_parts(head, body);
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(seen.clone());
            Ok::<_, Infallible>(answer(seen).await.map(Full::new))
        }
    });
    let builder = Builder::new(TokioExecutor::new());
    // An error is the client's: it went away, or spoke no HTTP.
    let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
}

/// 200 with JSON: `name`, `method`, `uri`, `version`, `headers` (values of one name joined by `, `),
/// `bytes` of the body, and `caller`, the SPIFFE id that the sidecar tells.
pub fn echo(name: &str, seen: &Seen) -> Reply {
    let mut headers = serde_json::Map::new();
    for field in seen.headers().keys() {
        let values: Vec<_> =
            seen.headers().get_all(field).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        headers.insert(field.to_string(), values.join(", ").into());
    }
    let page = json!({
        "name": name,
        "method": seen.method().as_str(),
        "uri": seen.uri().to_string(),
        "version": format!("{:?}", seen.version()),
        "headers": headers,
        "bytes": seen.body().len(),
        "caller": caller(seen),
    });
    let mut reply = Reply::new(Bytes::from(page.to_string()));
    reply.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    reply
}

/// An answer without a body.
pub fn status(code: u16) -> Reply {
    let mut reply = Reply::default();
    *reply.status_mut() = http::StatusCode::from_u16(code).expect("a status code");
    reply
}

/// Who called: the URI of `x-forwarded-client-cert`.
pub fn caller(seen: &Seen) -> Option<String> {
    let header = seen.headers().get("x-forwarded-client-cert")?.to_str().ok()?;
    let uri = header.split(';').find_map(|part| part.trim().strip_prefix("URI="))?;
    Some(uri.trim_matches('"').to_owned())
}
