//! One HTTP/1.1 request to a server outside the mesh, small and bounded: for keys, credentials and proofs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::resolve::Resolver;
use crate::tls;

/// A server with how it is verified.
#[derive(Clone)]
pub struct Origin {
    tls: Option<Arc<ClientConfig>>,
    host: String,
    port: u16,
    /// As in the `host` header: without the port where it is the scheme's.
    authority: String,
    path: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL is none of these.
    #[error("`{0}` is no URL to fetch from; want http://… or https://…")]
    Url(String),
    /// The roots cannot be used.
    #[error("the root certificates in {path} cannot be used: {reason}")]
    Roots {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// No connection, or it broke.
    #[error("{authority} does not answer: {reason}")]
    Failed {
        /// Who.
        authority: String,
        /// Why.
        reason: String,
    },
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: http::StatusCode,
    /// The whole body.
    pub body: hyper::body::Bytes,
}

impl Origin {
    /// Reads a URL; `ca` (PEM) holds whom to trust, without it those whom the system trusts.
    ///
    /// # Errors
    ///
    /// [`FetchError`] about the URL or the file.
    pub fn new(url: &str, ca: Option<&Path>) -> Result<Self, FetchError> {
        let wrong = || FetchError::Url(url.to_owned());
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let (tls, default) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => (Some(client_config(ca)?), 443),
            _ => return Err(wrong()),
        };
        let port = authority.port_u16().unwrap_or(default);
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let shown = if port == default {
            authority.host().to_owned()
        } else {
            format!("{}:{port}", authority.host())
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { tls, host, port, authority: shown, path })
    }

    /// As in the `host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Sends one request to the URL's path and reads the whole answer, of `body_max` bytes at most.
    ///
    /// # Errors
    ///
    /// [`FetchError::Failed`], at the latest after ten seconds.
    pub async fn send(
        &self,
        resolver: &Resolver,
        request: http::request::Builder,
        body: impl Into<hyper::body::Bytes>,
        body_max: usize,
    ) -> Result<Answer, FetchError> {
        let failed = |reason: String| FetchError::Failed { authority: self.authority.clone(), reason };
        let request = request
            .uri(&self.path)
            .header(http::header::HOST, &self.authority)
            .body(Full::new(body.into()))
            .map_err(|error| failed(error.to_string()))?;
        let exchange = async {
            let stream = self.connect(resolver).await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| error.to_string())?;
            let answer = async {
                let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
                let (head, body) = answer.into_parts();
                let body = Limited::new(body, body_max).collect().await.map_err(|error| error.to_string())?;
                Ok(Answer { status: head.status, body: body.to_bytes() })
            };
            let mut answer = std::pin::pin!(answer);
            tokio::select! {
                answer = &mut answer => answer,
                // It may end right after the last byte of the answer.
                _ended = connection => answer.await,
            }
        };
        let answer = timeout(TIMEOUT, Box::pin(exchange)).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}"))).map_err(failed)
    }

    async fn connect(&self, resolver: &Resolver) -> Result<Box<dyn Stream>, String> {
        let addresses = resolver.addresses(&self.host).await.map_err(|error| error.to_string())?;
        let mut last = "the name has no address".to_owned();
        for address in addresses {
            let stream = match TcpStream::connect(SocketAddr::new(address, self.port)).await {
                Ok(stream) => stream,
                Err(error) => {
                    last = error.to_string();
                    continue;
                }
            };
            let Some(config) = &self.tls else { return Ok(Box::new(stream)) };
            let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
            let stream = tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
            return Ok(Box::new(stream.map_err(|error| tls::explain(&error))?));
        }
        Err(last)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn client_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, FetchError> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        Some(path) => {
            let wrong = |reason: String| FetchError::Roots { path: path.display().to_string(), reason };
            for root in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
                let root = root.map_err(|error| wrong(error.to_string()))?;
                roots.add(root).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("it holds no certificate in PEM".to_owned()));
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider has suites of every version");
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// For name, connection, handshake and answer together.
const TIMEOUT: Duration = Duration::from_secs(10);
