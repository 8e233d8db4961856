//! The ways to a registry's API: plaintext, or TLS with the operator's token.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A connection, whatever it goes over.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Where an API is, and how one gets in.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) address: SocketAddr,
    secure: Option<Secure>,
}

#[derive(Clone)]
struct Secure {
    roots: Arc<RootCertStore>,
    token: Arc<str>,
}

impl Door {
    /// Plaintext, open to this machine.
    pub(super) fn open(address: SocketAddr) -> Self {
        Self { address, secure: None }
    }

    /// TLS, with what the registry has left in its data directory.
    pub(super) fn secure(address: SocketAddr, data: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(data.join("roots.pem"))? {
            roots.add(root?)?;
        }
        let token = std::fs::read_to_string(data.join("operator.token")).context("read the token")?;
        let secure = Secure { roots: Arc::new(roots), token: token.trim().into() };
        Ok(Self { address, secure: Some(secure) })
    }

    pub(super) fn is_secure(&self) -> bool {
        self.secure.is_some()
    }

    /// What shows the token, where one is asked for.
    pub(super) fn authorization(&self) -> Option<String> {
        self.secure.as_ref().map(|secure| format!("Bearer {}", secure.token))
    }

    /// Connects for a protocol by its ALPN name.
    pub(super) async fn connect(&self, protocol: &str) -> anyhow::Result<Box<dyn Io>> {
        let address = self.address;
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let Some(secure) = &self.secure else { return Ok(Box::new(stream)) };
        let mut config = ClientConfig::builder_with_provider(pillion_net::tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::clone(&secure.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TlsConnector::from(Arc::new(config)).connect(address.ip().into(), stream).await?;
        ensure!(stream.get_ref().1.alpn_protocol() == Some(protocol.as_bytes()), "{protocol} was refused");
        Ok(Box::new(stream))
    }
}
