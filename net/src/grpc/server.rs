//! Serves an axum router (and tonic's routes are one) over TLS or plaintext, HTTP/1.1 and HTTP/2.
//!
//! Each request carries in its extensions: [`Incoming`], tonic's `TcpConnectInfo` and axum's
//! `ConnectInfo<SocketAddr>`; and with a client certificate `Arc<PeerCertificate>` and, if it names
//! a mesh identity, [`SpiffeId`].

use std::fmt::Display;
use std::net::SocketAddr;
use std::pin::Pin;
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
use hyper_util::server::graceful::GracefulConnection;
use pillion_model::name::SpiffeId;
use rustix::process::{Resource, getrlimit};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt as _;

use super::connections::{Answering, Connections, Place};
use super::signal::Asked;
use super::stall::Impatient;
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
    /// Connections at a time; a newcomer beyond it takes the place of an idle one, else of one of another
    /// client address that has more than half of all, else it is closed.
    /// Default 16 384, or what the process may have open less 4096 (but at least half of that).
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
        Self { name, security, router, connections_max: connections_max(), grace: GRACE }
    }

    /// Serves until `stop`; then says GOAWAY, gives requests in flight their grace and cuts the rest.
    ///
    /// A connection also ends (after GOAWAY) when its client's certificate does.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let open = TaskTracker::new();
        let connections = Connections::new(self.connections_max);
        let shared = Arc::new(self);
        let accepting = async {
            while let Some((stream, remote)) = accept(&listener, &stop).await {
                let Some(place) = connections.enter(remote.ip()) else {
                    tracing::debug!(server = shared.name, %remote, "too many connections, and none can go");
                    continue;
                };
                let shared = Arc::clone(&shared);
                open.spawn(async move {
                    let signal = Arc::clone(place.signal());
                    let connection = Box::pin(shared.connection(stream, remote, place));
                    signal.unless(Asked::Cut, connection).await;
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = shared.cut_revoked(&connections) => {}
        }
        drop(listener); // the port is free while we drain
        connections.ask_all(Asked::Finish);
        open.close();
        if timeout(shared.grace, open.wait()).await.is_err() {
            tracing::warn!(server = shared.name, connections = open.len(), "grace is over, closing");
            connections.ask_all(Asked::Cut);
            open.wait().await;
        }
    }

    /// Cuts connections whose peers are revoked meanwhile, for ever.
    async fn cut_revoked(&self, connections: &Connections) {
        if let ServerSecurity::Mesh(tls) = &self.security {
            let mut identity = tls.identity().clone();
            while let Some(identity) = identity.changed().await {
                connections.cut_revoked(identity.roots().revoked());
            }
        }
        std::future::pending().await
    }

    async fn connection(&self, stream: TcpStream, remote: SocketAddr, place: Place) {
        // Nothing is made ready for those who say nothing: so they cost next to nothing.
        let speaks = timeout(HEADER_TIMEOUT, stream.readable());
        if matches!(place.signal().unless(Asked::Finish, speaks).await, Some(Ok(Ok(())))) {
            Box::pin(self.accepted(stream, remote, place)).await;
        }
    }

    async fn accepted(&self, stream: TcpStream, remote: SocketAddr, place: Place) {
        let _ = stream.set_nodelay(true);
        let Ok(local) = stream.local_addr() else { return };
        let config = match &self.security {
            ServerSecurity::Plaintext => {
                let incoming = Incoming { local, remote, tls: false };
                return self.http(stream, Versions::Both, incoming, None, place).await;
            }
            ServerSecurity::Fixed(config) => Arc::clone(config),
            ServerSecurity::Mesh(tls) => match tls.current() {
                Ok(config) => config,
                Err(error) => {
                    return tracing::warn!(server = self.name, %error, "no TLS yet, connection closed");
                }
            },
        };
        // In a box that is gone when connections that last begin: there are many of them.
        let Some((stream, peer)) = Box::pin(self.handshake(config, stream, remote, &place)).await else {
            return;
        };
        let versions = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Versions::Two,
            _ => Versions::Both,
        };
        self.http(stream, versions, Incoming { local, remote, tls: true }, peer, place).await;
    }

    async fn handshake(
        &self,
        config: Arc<ServerConfig>,
        stream: TcpStream,
        remote: SocketAddr,
        place: &Place,
    ) -> Option<(Box<TlsStream<TcpStream>>, Option<Arc<PeerCertificate>>)> {
        let accept = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream));
        let stream = match place.signal().unless(Asked::Finish, accept).await?.ok()? {
            Ok(stream) => stream,
            Err(error) => {
                let reason = tls::explain(&error);
                tracing::info!(server = self.name, %remote, reason, "no TLS with a client");
                return None;
            }
        };
        let peer = match stream.get_ref().1.peer_certificates().map(PeerCertificate::parse) {
            None => None,
            Some(Ok(peer)) => {
                let peer = Arc::new(peer);
                place.know(&peer);
                // Whoever was revoked since the handshake began was not known then.
                let identity = match &self.security {
                    ServerSecurity::Mesh(tls) => tls.identity().current(),
                    _ => None,
                };
                if identity.is_some_and(|identity| identity.roots().revoked().names(&peer).is_some()) {
                    return None;
                }
                Some(peer)
            }
            Some(Err(error)) => {
                tracing::info!(server = self.name, %remote, %error, "client certificate refused");
                return None;
            }
        };
        Some((Box::new(stream), peer))
    }

    /// What serves a connection. It is made outside of the future, which would have room for it twice.
    fn http<S>(
        &self,
        stream: S,
        versions: Versions,
        incoming: Incoming,
        peer: Option<Arc<PeerCertificate>>,
        place: Place,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ends_in = peer.as_ref().map(|peer| peer.not_after);
        let id = peer.as_ref().and_then(|peer| peer.spiffe_id());
        let router = self.router.clone();
        let place = Arc::new(place);
        let busy = Arc::clone(&place);
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            let busy = busy.begin();
            describe(&mut request, incoming, peer.as_ref(), id.as_ref());
            let answer = router.clone().oneshot(request.map(Body::new));
            async move {
                let answer = answer.await;
                answer.map(|answer| answer.map(|body| Answering { body, _busy: busy }))
            }
        });
        let stream = TokioIo::new(Impatient::new(stream, STALL_MAX));
        let finish = async move {
            tokio::select! {
                biased;
                () = place.signal().asked(Asked::Finish) => {}
                () = certificate_end(ends_in) => {}
                () = never_asks(&place) => {}
            }
        };
        match versions {
            Versions::Two => {
                let connection = http_builder().http2_only().serve_connection(stream, service).into_owned();
                Box::pin(self.serve(Box::pin(connection), finish, incoming.remote))
            }
            Versions::Both => {
                let connection = http_builder().serve_connection_with_upgrades(stream, service).into_owned();
                Box::pin(self.serve(Box::pin(connection), finish, incoming.remote))
            }
        }
    }

    /// Serves a connection until its end, which `finish` asks for.
    async fn serve<C>(
        &self,
        mut connection: Pin<Box<C>>,
        finish: impl Future<Output = ()>,
        remote: SocketAddr,
    ) where
        C: GracefulConnection<Error: Display>,
    {
        let ended = tokio::select! {
            biased;
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
            tracing::debug!(server = self.name, %remote, %error, "connection ended");
        }
    }
}

/// The versions of HTTP that a connection may speak.
#[derive(Clone, Copy)]
enum Versions {
    /// HTTP/2 alone, as agreed in TLS: it is not looked for in what arrives.
    Two,
    /// HTTP/1.1 or HTTP/2, whatever arrives.
    Both,
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

async fn accept(listener: &TcpListener, stop: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    loop {
        match stop.run_until_cancelled(listener.accept()).await? {
            Ok(accepted) => return Some(accepted),
            Err(error) => pause_accept(&error).await,
        }
    }
}

/// Waits until a connection has had its time for a first request, and made none.
async fn never_asks(place: &Place) {
    tokio::time::sleep(HEADER_TIMEOUT).await;
    if place.has_asked() {
        std::future::pending::<()>().await;
    }
}

/// The default ceiling: so many that some descriptors are left for everything else.
fn connections_max() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let ours = descriptors.saturating_sub(DESCRIPTORS_SPARED).max(descriptors / 2);
    usize::try_from(ours).unwrap_or(CONNECTIONS_MAX).min(CONNECTIONS_MAX)
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
/// For the store, DNS and other servers of the process.
const DESCRIPTORS_SPARED: u64 = 4096;
const GRACE: Duration = Duration::from_secs(20);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For a first request, and for the head of any.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a peer may take nothing of what is sent to it.
const STALL_MAX: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const CLOCK_STEP: Duration = Duration::from_secs(60);
const STREAMS_MAX: u32 = 1000;
const STREAM_WINDOW: u32 = 1 << 20;
/// At least 4 MiB: h2 ends connections that carry many small messages in smaller windows.
const CONNECTION_WINDOW: u32 = 8 << 20;
