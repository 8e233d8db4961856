//! What somebody without an identity gets from a sidecar's inbound port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pillion_net::tls::{PeerCertificate, provider};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long the other side may take to refuse.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Shakes hands without a client certificate, and tells which certificate the other side showed and
/// whether it then refused to talk.
pub(super) async fn knock(address: SocketAddr, sni: &str) -> anyhow::Result<(PeerCertificate, bool)> {
    let provider = provider();
    let verifier = Arc::new(Onlooker(Arc::clone(&provider)));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let name = ServerName::try_from(sni.to_owned()).context("server name")?;
    let knock = async {
        let stream = TcpStream::connect(address).await?;
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let chain = stream.get_ref().1.peer_certificates().context("the other side showed no certificate")?;
        let shown = PeerCertificate::parse(chain)?;
        // In TLS 1.3 the refusal comes after the client's side of the handshake.
        let written = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let read = stream.read(&mut [0; 1]).await;
        let refused = written.is_err() || matches!(read, Err(_) | Ok(0));
        Ok((shown, refused))
    };
    let outcome = tokio::time::timeout(REFUSAL_TIMEOUT, knock).await;
    outcome.unwrap_or_else(|_elapsed| {
        Err(anyhow::anyhow!("neither served nor refused within {REFUSAL_TIMEOUT:?}"))
    })
}

/// Whether plain HTTP is refused: the connection ends without an answer.
pub(super) async fn plaintext_is_refused(address: SocketAddr) -> anyhow::Result<bool> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        let written = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        Ok(written.is_err() || read.is_err() || !answer.starts_with(b"HTTP/1.1 2"))
    };
    let outcome = tokio::time::timeout(REFUSAL_TIMEOUT, talk).await;
    outcome.unwrap_or_else(|_elapsed| {
        Err(anyhow::anyhow!("neither served nor refused within {REFUSAL_TIMEOUT:?}"))
    })
}

/// Looks at the certificate without judging it: the point is to see what strangers are shown.
#[derive(Debug)]
struct Onlooker(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Onlooker {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
