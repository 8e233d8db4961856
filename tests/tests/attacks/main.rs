//! Certificates that the mesh's own key signed, and that are wrong all the same: each is refused by a
//! sidecar and by the registry, with a line in the log and a count. And nothing goes in plaintext, ever.

mod federation;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use pillion_tests::support::ports::free_address;
use pillion_tests::support::sidecar::sum;
use pillion_tests::support::{App, DEADLINE, Plan, Registry, Sidecar, eventually};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const HELLO: &str = "kind: Service\nname: hello\nports: [{name: http, port: 80, protocol: http}]\n";
const SERVER_NAME: &str = "http.hello.default.mesh.internal";
const WEB: &str = "spiffe://mesh.internal/ns/default/svc/web";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: hello\r\nconnection: close\r\n\r\n";
const METRIC: &str = "pillion_peer_refused_total";

/// Bytes of a base64 text.
fn base64(text: &str) -> Vec<u8> {
    let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("base64").to_vec()
}

/// The mesh's own root with its key, out of a snapshot of the registry.
async fn root(registry: &Registry, file: &std::path::Path) -> Issuer<'static, KeyPair> {
    let file = file.join("mesh.snapshot").display().to_string();
    let saved = registry.cli(&["snapshot", "save", &file]).await;
    assert_eq!(saved.code, 0, "{saved:?}");
    let text = std::fs::read_to_string(&file).expect("written");
    let line = text.lines().find(|line| line.contains("\"ca/root\"")).expect("the root's line");
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    let value = base64(line["value"].as_str().expect("a value"));
    let kept: serde_json::Value = serde_json::from_slice(&value).expect("JSON");
    let part = |name: &str| base64(kept["active"][name].as_str().unwrap_or_else(|| panic!("{kept}")));
    let key = KeyPair::try_from(part("key")).expect("a key");
    Issuer::from_ca_cert_der(&part("certificate").into(), key).expect("a certificate")
}

/// A leaf as the mesh makes it for `web`.
fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Pillion");
    params.subject_alt_names = vec![uri(WEB)];
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2099, 1, 1));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().expect("ASCII"))
}

/// What comes back for a request with this certificate; empty if nothing does.
async fn ask(to: SocketAddr, params: &CertificateParams, issuer: &Issuer<'_, KeyPair>) -> String {
    let key = KeyPair::generate().expect("a key");
    let chain = vec![params.signed_by(&key, issuer).expect("signed").der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_auth_cert(chain, key)
        .expect("a certificate with its key");
    let talk = async {
        let tcp = TcpStream::connect(to).await?;
        let name = ServerName::try_from(SERVER_NAME).expect("a name");
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        stream.write_all(REQUEST).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(DEADLINE, talk).await.expect("an answer or an end in time").unwrap_or_default()
}

/// Trusts everybody: it is the other side that must not.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn certificates_that_break_a_rule_are_refused_logged_and_counted() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    registry.apply(HELLO).await;
    let app = App::start("hello").await;
    let sidecar = Sidecar::beside(&registry, "hello.default", app.address).await;
    let mesh = root(&registry, data.path()).await;
    let foreign = {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "Pillion");
        params.distinguished_name.push(DnType::CommonName, "mesh.internal root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Issuer::new(params, KeyPair::generate().expect("a key"))
    };
    let with = |change: fn(&mut CertificateParams)| {
        let mut params = leaf();
        change(&mut params);
        params
    };
    let two_names = with(|it| it.subject_alt_names.push(uri("spiffe://mesh.internal/ns/default/svc/hello")));
    let elsewhere = with(|it| it.subject_alt_names = vec![uri("spiffe://other.internal/ns/default/svc/web")]);
    for (reason, params, issuer) in [
        ("uri-names", two_names, &mesh),
        ("trust-domain", elsewhere, &mesh),
        ("expired", with(|it| it.not_after = date_time_ymd(2021, 1, 1)), &mesh),
        ("not-yet-valid", with(|it| it.not_before = date_time_ymd(2098, 1, 1)), &mesh),
        ("unknown-issuer", leaf(), &foreign),
    ] {
        let answer = ask(sidecar.inbound, &params, issuer).await;
        assert!(answer.is_empty(), "{reason}: {answer}");
        let answer = ask(registry.mesh, &params, issuer).await;
        assert!(answer.is_empty(), "{reason}: {answer}");
        let labels = [("reason", reason)];
        eventually(&format!("{reason} is counted"), DEADLINE, || async {
            let beside = sidecar.metric(METRIC, &labels).await;
            let text = registry.get("/metrics").await.body;
            let central = sum(&text, METRIC, &labels);
            if beside > 0.0 && central > 0.0 { Ok(()) } else { Err(format!("{beside} {central}")) }
        })
        .await;
        for log in [sidecar.process.output(), registry.process.output()] {
            assert!(log.contains(&format!("reason=\"{reason}\"")), "{reason}: {log}");
        }
    }
    assert!(app.seen().is_empty(), "{:?}", app.seen());
    // The same way with a sound certificate: it was not the way that was wrong.
    let answer = ask(sidecar.inbound, &leaf(), &mesh).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn no_plaintext_is_answered_during_start_and_rotation() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start_with(data.path(), &["--open", "--certificate-lifetime", "10s"]).await;
    registry.apply(HELLO).await;
    let app = App::start("hello").await;
    let inbound = free_address();
    let (stop, tries, answered) =
        (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let knocking = {
        let (stop, tries, answered) = (Arc::clone(&stop), Arc::clone(&tries), Arc::clone(&answered));
        tokio::spawn(async move {
            while !stop.load(Relaxed) {
                let Ok(mut stream) = TcpStream::connect(inbound).await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let mut answer = Vec::new();
                if stream.write_all(REQUEST).await.is_ok() {
                    drop(timeout(DEADLINE, stream.read_to_end(&mut answer)).await);
                }
                tries.fetch_add(1, Relaxed);
                answered.fetch_add(usize::from(answer.starts_with(b"HTTP/")), Relaxed);
            }
        })
    };
    let port = app.address.port().to_string();
    let sidecar = Plan::new(registry.mesh, "hello.default", &port).inbound(inbound).start().await;
    registry.serving("hello.default", 1).await;
    let begun = registry.cli(&["ca", "rotate"]).await;
    assert_eq!(begun.code, 0, "{begun:?}");
    eventually("the root has rotated", DEADLINE, || async {
        let status = registry.cli(&["ca", "status", "-o", "json"]).await.stdout;
        let json: serde_json::Value = serde_json::from_str(&status).map_err(|error| error.to_string())?;
        let roots = json["roots"].as_array().map_or(0, Vec::len);
        if json["step"] == "steady" && roots == 2 { Ok(()) } else { Err(status) }
    })
    .await;
    stop.store(true, Relaxed);
    knocking.await.expect("no panic");
    assert!(tries.load(Relaxed) > 10, "{tries:?}");
    assert_eq!((answered.load(Relaxed), app.seen().len()), (0, 0), "{}", sidecar.process.output());
}
