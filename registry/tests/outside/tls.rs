//! The API beyond loopback: TLS with the registry's own certificate.

use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use pillion_registry::app::{self, Options, ROOTS_FILE};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn beyond_loopback_the_api_speaks_tls_only() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mut options = Options::new(directory.path());
    options.api = ([0, 0, 0, 0], 0).into();
    options.mesh.set_port(0);
    options.dns.set_port(0);
    let running = app::start(options).await.expect("starts");
    assert!(running.api_tls);
    let address = ("127.0.0.1", running.api_addr.port());

    let mut plain = TcpStream::connect(address).await.expect("connects");
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sends");
    let mut answer = Vec::new();
    // An alert, or the connection cut: in any case no HTTP.
    drop(plain.read_to_end(&mut answer).await);
    assert!(!answer.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&answer));

    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(directory.path().join(ROOTS_FILE)).expect("a file") {
        roots.add(root.expect("a certificate")).expect("a root");
    }
    let config = rustls::ClientConfig::builder_with_provider(pillion_net::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TcpStream::connect(address).await.expect("connects");
    let stream = tls.connect(name, stream).await.expect("the registry's certificate is for localhost");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
    let connection = tokio::spawn(connection);
    let request =
        hyper::Request::get("/readyz").header("host", "localhost").body(Empty::<bytes::Bytes>::new());
    let answer = sender.send_request(request.expect("a request")).await.expect("answers");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "ready\n");
    drop(sender);
    connection.await.expect("ends").expect("in order");
    running.stop().await;
}
