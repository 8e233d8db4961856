//! The server's side of TLS: the client hello before the filter chain is chosen, the handshake, and
//! what it told about the peer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pillion_net::tls::PeerCertificate;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::{StartHandshake, TlsStream};

use super::connection::TlsInfo;
use super::io::Prefixed;

/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// A TLS record with the fatal alert `unrecognized_name` (RFC 6066 section 3).
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 112];

/// A client hello that was read, and the stream to answer on.
pub(super) struct Hello {
    start: StartHandshake<Prefixed>,
    pub(super) server_name: Option<String>,
    pub(super) alpn: Vec<String>,
}

/// Reads the client hello.
pub(super) async fn hello(mut stream: Prefixed) -> io::Result<Hello> {
    stream.record();
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let hello = start.client_hello();
    let server_name = hello.server_name().map(str::to_ascii_lowercase);
    let alpn = hello
        .alpn()
        .into_iter()
        .flatten()
        .map(|protocol| String::from_utf8_lossy(protocol).into_owned())
        .collect();
    Ok(Hello { start, server_name, alpn })
}

impl Hello {
    /// Completes the handshake.
    pub(super) async fn accept(
        self,
        config: &Arc<ServerConfig>,
    ) -> io::Result<(Box<TlsStream<Prefixed>>, TlsInfo)> {
        let mut start = self.start;
        start.io.stop_recording(false);
        let accept = start.into_stream(Arc::clone(config));
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await.map_err(|_elapsed| {
            io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long")
        })??;
        let info = describe(&stream, self.server_name)?;
        Ok((Box::new(stream), info))
    }

    /// The stream as if nothing had been read, to be carried without a look inside.
    pub(super) fn into_plain(self) -> Prefixed {
        let mut stream = self.start.io;
        stream.stop_recording(true);
        stream
    }

    /// Refuses: no filter chain has this server name.
    pub(super) async fn refuse(mut self) {
        // The peer may be gone already.
        let _ = self.start.io.write_all(&UNRECOGNIZED_NAME).await;
        let _ = self.start.io.shutdown().await;
    }
}

fn describe(stream: &TlsStream<Prefixed>, server_name: Option<String>) -> io::Result<TlsInfo> {
    let (_, session) = stream.get_ref();
    let peer = session
        .peer_certificates()
        .map(PeerCertificate::parse)
        .transpose()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "unknown",
    };
    let cipher =
        session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown");
    Ok(TlsInfo {
        server_name,
        version,
        cipher,
        alpn_http2: session.alpn_protocol().map(|protocol| protocol == b"h2"),
        names: peer.as_ref().map(PeerCertificate::rbac_names),
        peer,
    })
}
