//! One GET over TLS of the caller's choosing, for what the registries of other meshes publish. No redirects,
//! no second try.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::resolve::{ResolveError, Resolver, Target};
use crate::tls::{explain, server_name};

/// What to get.
#[derive(Clone, Debug)]
pub struct Fetch<'a> {
    /// From where.
    pub target: &'a Target,
    /// Path and query.
    pub path: &'a str,
    /// Bytes of the body at most.
    pub body_max: usize,
    /// Time for all of it.
    pub time: Duration,
}

/// Why nothing was got.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The name has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No address answers.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    /// TLS did not come about.
    #[error("no TLS with {0}: {1}")]
    Handshake(Target, String),
    /// HTTP broke.
    #[error("{0} broke off: {1}")]
    Http(Target, String),
    /// Too slow.
    #[error("{0} did not answer within {1:?}")]
    Late(Target, Duration),
}

impl FetchError {
    /// Whether the other side is not who it should be, rather than not there.
    pub fn is_distrust(&self) -> bool {
        matches!(self, Self::Handshake(..))
    }
}

impl Fetch<'_> {
    /// Gets it: status and body.
    ///
    /// # Errors
    ///
    /// [`FetchError`].
    pub async fn get(
        &self,
        resolver: &Resolver,
        tls: Arc<ClientConfig>,
    ) -> Result<(StatusCode, bytes::Bytes), FetchError> {
        let late = |_| FetchError::Late(self.target.clone(), self.time);
        timeout(self.time, Box::pin(self.run(resolver, tls))).await.map_err(late)?
    }

    async fn run(
        &self,
        resolver: &Resolver,
        tls: Arc<ClientConfig>,
    ) -> Result<(StatusCode, bytes::Bytes), FetchError> {
        let (stream, address) = self.connect(resolver).await?;
        let refused = |error: std::io::Error| FetchError::Handshake(self.target.clone(), explain(&error));
        let name = server_name(&self.target.host, address.ip());
        let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(refused)?;
        let broke = |error: &dyn std::fmt::Display| FetchError::Http(self.target.clone(), error.to_string());
        let (mut requests, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broke(&error))?;
        let request = Request::get(self.path)
            .header(header::HOST, self.target.to_string())
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| broke(&error))?;
        let exchange = async {
            let answer = requests.send_request(request).await.map_err(|error| broke(&error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, self.body_max).collect().await.map_err(|error| broke(&error))?;
            Ok((head.status, body.to_bytes()))
        };
        // The connection does the work while the exchange waits; it ends with it.
        tokio::pin!(connection, exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            _ended = &mut connection => exchange.await,
        }
    }

    async fn connect(&self, resolver: &Resolver) -> Result<(TcpStream, SocketAddr), FetchError> {
        let mut last = None;
        for address in resolver.sockets(self.target).await? {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok((stream, address)),
                Ok(Err(error)) => last = Some(FetchError::Connect(address, error)),
                Err(_) => last = Some(FetchError::Late(self.target.clone(), CONNECT_TIMEOUT)),
            }
        }
        Err(last.unwrap_or_else(|| FetchError::Late(self.target.clone(), CONNECT_TIMEOUT)))
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
