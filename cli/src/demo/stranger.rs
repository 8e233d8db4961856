//! What somebody without an identity gets from a sidecar's inbound port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pillion_net::tls::PeerCertificate;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::onlooker;

/// How long the other side may take to refuse.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Shakes hands without a client certificate, and tells which certificate the other side showed and
/// whether it then refused to talk.
pub(super) async fn knock(address: SocketAddr, sni: &str) -> anyhow::Result<(PeerCertificate, bool)> {
    let config = onlooker::client_config()?;
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
