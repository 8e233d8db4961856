//! Serves an axum router (and tonic's routes are one) over TLS or plaintext, HTTP/1.1 and HTTP/2.
//!
//! Each request carries in its extensions: [`Incoming`], tonic's `TcpConnectInfo` and axum's
//! `ConnectInfo<SocketAddr>`; and with a client certificate `Arc<PeerCertificate>` and, if it names
//! a mesh identity, [`SpiffeId`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use pillion_model::name::SpiffeId;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt as _;

use crate::listen::pause_accept;
use crate::tls::{self, PeerCertificate, ServerTls};

/// How connections are protected.
#[derive(Clone)]
pub enum ServerSecurity {
    /// Not at all: loopback only.
    Plaintext,
    /// By one configuration.
    Fixed(Arc<ServerConfig>),
    /// By the identity in force when a connection arrives. Without one, connections are closed.
    Mesh(Arc<ServerTls>),
}

/// What to serve and within which limits.
pub struct Serve {
    /// For logs: `mesh gRPC`, `api`.
    pub name: &'static str,
    /// The protection.
    pub security: ServerSecurity,
    /// What answers.
    pub router: Router,
    /// Connections at a time; more wait to be accepted. Default 16 384.
    pub connections_max: usize,
    /// How long requests in flight may take after `stop`. Default 20 s.
    pub grace: Duration,
}

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

impl Serve {
    /// Serves `router` with the default limits.
    pub fn new(name: &'static str, security: ServerSecurity, router: Router) -> Self {
        Self { name, security, router, connections_max: CONNECTIONS_MAX, grace: GRACE }
    }

    /// Serves until `stop`; then says GOAWAY, gives requests in flight their grace and cuts the rest.
    ///
    /// A connection also ends (after GOAWAY) when its client's certificate does.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let (open, cut) = (TaskTracker::new(), CancellationToken::new());
        let room = Arc::new(Semaphore::new(self.connections_max));
        let shared = Arc::new(self);
        while let Some((stream, remote, permit)) = accept(&listener, &room, &stop).await {
            let (shared, stop, cut) = (Arc::clone(&shared), stop.clone(), cut.clone());
            open.spawn(async move {
                cut.run_until_cancelled(shared.connection(stream, remote, stop)).await;
                drop(permit);
            });
        }
        drop(listener); // the port is free while we drain
        open.close();
        if timeout(shared.grace, open.wait()).await.is_err() {
            tracing::warn!(server = shared.name, connections = open.len(), "grace is over, closing");
            cut.cancel();
            open.wait().await;
        }
    }

    async fn connection(&self, stream: TcpStream, remote: SocketAddr, stop: CancellationToken) {
        let _ = stream.set_nodelay(true);
        let Ok(local) = stream.local_addr() else { return };
        let config = match &self.security {
            ServerSecurity::Plaintext => {
                let incoming = Incoming { local, remote, tls: false };
                return self.http(stream, incoming, None, stop).await;
            }
            ServerSecurity::Fixed(config) => Arc::clone(config),
            ServerSecurity::Mesh(tls) => match tls.current() {
                Ok(config) => config,
                Err(error) => {
                    return tracing::warn!(server = self.name, %error, "no TLS yet, connection closed");
                }
            },
        };
        let accepted = stop
            .run_until_cancelled(timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)))
            .await;
        let stream = match accepted {
            Some(Ok(Ok(stream))) => stream,
            Some(Ok(Err(error))) => {
                let reason = tls::explain(&error);
                return tracing::info!(server = self.name, %remote, reason, "no TLS with a client");
            }
            Some(Err(_)) | None => return,
        };
        let peer = match stream.get_ref().1.peer_certificates() {
            None => None,
            Some(chain) => match PeerCertificate::parse(chain) {
                Ok(peer) => Some(Arc::new(peer)),
                Err(error) => {
                    return tracing::info!(server = self.name, %remote, %error, "client certificate refused");
                }
            },
        };
        self.http(stream, Incoming { local, remote, tls: true }, peer, stop).await;
    }

    async fn http<S>(
        &self,
        stream: S,
        incoming: Incoming,
        peer: Option<Arc<PeerCertificate>>,
        stop: CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ends_in = peer.as_ref().map(|peer| peer.not_after);
        let id = peer.as_ref().and_then(|peer| peer.spiffe_id());
        let router = self.router.clone();
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            describe(&mut request, incoming, peer.as_ref(), id.as_ref());
            router.clone().oneshot(request.map(Body::new))
        });
        let builder = http_builder();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let finish = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = certificate_end(ends_in) => {}
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = finish => {
                connection.as_mut().graceful_shutdown();
                // After `stop` the caller of `run` limits this wait; after the certificate's end we do.
                tokio::select! {
                    ended = connection => ended,
                    () = tokio::time::sleep(self.grace) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(server = self.name, remote = %incoming.remote, %error, "connection ended");
        }
    }
}

/// Refuses requests without a mesh identity: 401, and for gRPC status UNAUTHENTICATED.
pub fn require_peer(router: Router) -> Router {
    router.layer(axum::middleware::from_fn(async |request: Request, next: Next| -> Response {
        if request.extensions().get::<SpiffeId>().is_some() {
            return next.run(request).await;
        }
        let grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let reason = "a client certificate of the mesh is needed here; obtain one with a join token";
        if grpc {
            return tonic::Status::unauthenticated(reason).into_http::<Body>();
        }
        (http::StatusCode::UNAUTHORIZED, reason).into_response()
    }))
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = stop.run_until_cancelled(Arc::clone(room).acquire_owned()).await?.ok()?;
    loop {
        match stop.run_until_cancelled(listener.accept()).await? {
            Ok((stream, remote)) => return Some((stream, remote, permit)),
            Err(error) => pause_accept(&error).await,
        }
    }
}

fn describe(
    request: &mut hyper::Request<hyper::body::Incoming>,
    incoming: Incoming,
    peer: Option<&Arc<PeerCertificate>>,
    id: Option<&SpiffeId>,
) {
    let extensions = request.extensions_mut();
    extensions.insert(incoming);
    extensions.insert(ConnectInfo(incoming.remote));
    extensions
        .insert(TcpConnectInfo { local_addr: Some(incoming.local), remote_addr: Some(incoming.remote) });
    if let Some(peer) = peer {
        extensions.insert(Arc::clone(peer));
    }
    if let Some(id) = id {
        extensions.insert(id.clone());
    }
}

/// Waits for the end of the client's certificate; forever without one.
async fn certificate_end(not_after: Option<SystemTime>) {
    let Some(not_after) = not_after else { return std::future::pending().await };
    // In steps: the wall clock may be set while we wait.
    while let Ok(left) = not_after.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(CLOCK_STEP)).await;
    }
}

fn http_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}

const CONNECTIONS_MAX: usize = 16_384;
const GRACE: Duration = Duration::from_secs(20);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const CLOCK_STEP: Duration = Duration::from_secs(60);
const STREAMS_MAX: u32 = 1000;
const STREAM_WINDOW: u32 = 1 << 20;
/// At least 4 MiB: h2 ends connections that carry many small messages in smaller windows.
const CONNECTION_WINDOW: u32 = 8 << 20;
