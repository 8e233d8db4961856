//! Dials one of several registries, over TLS, with the identity in force at that moment.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::resolve::{ResolveError, Resolver, Target};
use crate::tls::{ClientTls, TlsError, server_name};

/// How connections are protected.
#[derive(Clone)]
pub enum Security {
    /// Not at all: loopback only.
    Plaintext,
    /// By one configuration; the server name is sent if it is a DNS name.
    Fixed(Arc<ClientConfig>, String),
    /// By the identity in force when a connection is made.
    Mesh(Arc<ClientTls>),
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// TCP did not connect.
    #[error("cannot connect to {target} at {address}")]
    Tcp {
        /// As configured.
        target: Target,
        /// The address tried.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// TLS did not come about.
    #[error("no TLS with {target} at {address}: {}{}", crate::tls::explain(error), hint(error))]
    Handshake {
        /// As configured.
        target: Target,
        /// The address tried.
        address: SocketAddr,
        /// rustls's error: why we refuse the server, or what the server's alert says.
        error: io::Error,
    },
    /// There is no usable TLS configuration (yet).
    #[error("no TLS configuration for {target}")]
    Tls {
        /// As configured.
        target: Target,
        /// Which field.
        source: TlsError,
    },
    /// Nothing to dial.
    #[error("no address to dial is configured")]
    NoTarget,
}

impl ConnectError {
    /// Whether a registry answered that is not the one that the join token names.
    pub fn is_of_another_mesh(&self) -> bool {
        matches!(self, Self::Handshake { error, .. } if crate::tls::is_of_another_mesh(error))
    }
}

/// What a server that speaks no TLS may be.
fn hint(error: &io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => {
            "; a registry's port for proxies is 7071, its API is another"
        }
        _ => "",
    }
}

/// Dials the targets in turn, beginning with the one that answered last. Cheap to clone.
#[derive(Clone)]
pub struct Dialer(Arc<Inner>);

struct Inner {
    targets: Vec<Target>,
    security: Security,
    resolver: Resolver,
    next: AtomicUsize,
}

/// Connects to the first of `targets` that answers, over TLS by `tls`.
///
/// The channel reconnects by itself, in turn to every target.
///
/// # Errors
///
/// [`ConnectError`] of the last target tried.
pub async fn connect(
    targets: &[Target],
    tls: Arc<ClientConfig>,
    server_name: &str,
) -> Result<Channel, ConnectError> {
    Dialer::new(targets.to_vec(), Security::Fixed(tls, server_name.to_owned()), Resolver::system())
        .connect()
        .await
}

impl Dialer {
    /// A dialer over `targets`; the first one dialled is a random one, so that clients spread.
    pub fn new(targets: Vec<Target>, security: Security, resolver: Resolver) -> Self {
        let first = fastrand::usize(..targets.len().max(1));
        Self(Arc::new(Inner { targets, security, resolver, next: AtomicUsize::new(first) }))
    }

    /// A channel whose first connection exists. It reconnects by itself.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] of the last target tried.
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        // tonic hides the connector's error in text; the first connection is made here instead.
        let first = self.dial().await?;
        let connector =
            Connector { dialer: self.clone(), first: Arc::new(std::sync::Mutex::new(Some(first))) };
        Ok(self.endpoint().connect_with_connector_lazy(connector))
    }

    /// A channel that connects with the first request.
    pub fn lazy(&self) -> Channel {
        let connector = Connector { dialer: self.clone(), first: Arc::default() };
        self.endpoint().connect_with_connector_lazy(connector)
    }

    /// The local address from which the first reachable target is reached.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] when no target has an address or route.
    pub async fn source_address(&self) -> Result<std::net::IpAddr, ConnectError> {
        let mut last = ConnectError::NoTarget;
        for target in &self.0.targets {
            match self.0.resolver.sockets(target).await {
                Err(error) => last = error.into(),
                Ok(addresses) => {
                    for address in addresses {
                        match crate::listen::source_address(address) {
                            Ok(source) => return Ok(source),
                            Err(source) => {
                                last = ConnectError::Tcp { target: target.clone(), address, source }
                            }
                        }
                    }
                }
            }
        }
        Err(last)
    }

    /// One connection to the first target that answers.
    async fn dial(&self) -> Result<Stream, ConnectError> {
        let inner = &self.0;
        let mut last = ConnectError::NoTarget;
        let start = inner.next.load(Ordering::Relaxed);
        for step in 0..inner.targets.len() {
            let at = (start + step) % inner.targets.len();
            match inner.dial_target(&inner.targets[at]).await {
                Ok(stream) => {
                    inner.next.store(at, Ordering::Relaxed);
                    return Ok(stream);
                }
                // One that could not be reached may still be the right one.
                Err(error) if error.is_of_another_mesh() && !matches!(last, ConnectError::NoTarget) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn endpoint(&self) -> Endpoint {
        let scheme = if matches!(self.0.security, Security::Plaintext) { "http" } else { "https" };
        let authority = match &self.0.security {
            Security::Fixed(_, name) if !name.is_empty() => name.clone(),
            Security::Mesh(tls) if !tls.sni().is_empty() => tls.sni().to_owned(),
            _ => self.0.targets.first().map_or_else(|| "registry".to_owned(), ToString::to_string),
        };
        let uri: Uri =
            format!("{scheme}://{authority}").parse().unwrap_or_else(|_| Uri::from_static("http://registry"));
        Endpoint::from(uri)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("targets", &self.0.targets).finish_non_exhaustive()
    }
}

impl Inner {
    async fn dial_target(&self, target: &Target) -> Result<Stream, ConnectError> {
        let mut last = ConnectError::NoTarget;
        for address in self.resolver.sockets(target).await? {
            match self.dial_address(target, address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial_address(&self, target: &Target, address: SocketAddr) -> Result<Stream, ConnectError> {
        let tls = match &self.security {
            Security::Plaintext => None,
            Security::Fixed(config, name) => Some((Arc::clone(config), server_name(name, address.ip()))),
            Security::Mesh(tls) => {
                let config =
                    tls.current().map_err(|source| ConnectError::Tls { target: target.clone(), source })?;
                Some((config, server_name(tls.sni(), address.ip())))
            }
        };
        let tcp = bounded(CONNECT_TIMEOUT, TcpStream::connect(address))
            .await
            .map_err(|source| ConnectError::Tcp { target: target.clone(), address, source })?;
        // A socket without it still works, only slower.
        let _ = tcp.set_nodelay(true);
        match tls {
            None => Ok(Box::new(tcp)),
            Some((config, name)) => {
                let stream = handshake(config, name, tcp).await.map_err(|error| ConnectError::Handshake {
                    target: target.clone(),
                    address,
                    error,
                })?;
                Ok(Box::new(stream))
            }
        }
    }
}

async fn handshake(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tcp: TcpStream,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    bounded(HANDSHAKE_TIMEOUT, TlsConnector::from(config).connect(name, tcp)).await
}

async fn bounded<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"))),
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
type Stream = Box<dyn Duplex>;

/// tonic's connector: the connection made first, then new ones.
#[derive(Clone)]
struct Connector {
    dialer: Dialer,
    first: Arc<std::sync::Mutex<Option<Stream>>>,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let made = self.first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let dialer = self.dialer.clone();
        Box::pin(async move {
            match made {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => dialer.dial().await.map(TokioIo::new),
            }
        })
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW: u32 = 1 << 20;
/// At least 4 MiB: h2 ends connections that carry many small messages in smaller windows.
const CONNECTION_WINDOW: u32 = 8 << 20;
