//! Certificates of the fixtures, and the client's side of TLS.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, SanType,
};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::fixture::Tls;

/// What a client's connection goes through.
pub(crate) enum Channel {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Where bytes come from.
pub(crate) type Reader = Box<dyn AsyncRead + Send + Sync + Unpin>;
/// Where bytes go.
pub(crate) type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

impl Channel {
    /// In its two directions.
    pub(crate) fn halves(self) -> (Reader, Writer) {
        match self {
            Self::Plain(stream) => {
                let (read, write) = stream.into_split();
                (Box::new(read), Box::new(write))
            }
            Self::Tls(stream) => {
                let (read, write) = tokio::io::split(stream);
                (Box::new(read), Box::new(write))
            }
        }
    }
}

/// Handshakes, if the case says so; what came of it, or that the proxy does not want to.
pub(crate) async fn connect(
    stream: TcpStream,
    tls: Option<&Tls>,
) -> Result<(Channel, Vec<String>), Vec<String>> {
    let Some(tls) = tls else { return Ok((Channel::Plain(stream), Vec::new())) };
    let name = ServerName::try_from(tls.name.clone().unwrap_or_else(|| "192.0.2.1".to_owned()));
    let connector = TlsConnector::from(Arc::new(config(tls)));
    match connector.connect(name.expect("a server name"), stream).await {
        Ok(stream) => {
            let told = told(&stream);
            Ok((Channel::Tls(Box::new(stream)), told))
        }
        Err(_refused) => Err(vec!["client got no TLS".to_owned()]),
    }
}

fn told(stream: &TlsStream<TcpStream>) -> Vec<String> {
    let (_, session) = stream.get_ref();
    let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("no version");
    let alpn = session.alpn_protocol().map_or_else(|| "none".into(), String::from_utf8_lossy);
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let whose = ["server", "other"].into_iter().find(|name| leaf == certificates(name).first());
    vec![format!("client got {version} alpn={alpn} certificate={}", whose.unwrap_or("unknown"))]
}

fn config(tls: &Tls) -> ClientConfig {
    let mut provider = default_provider();
    if tls.version.as_deref() == Some("1.2") {
        provider.cipher_suites = vec![
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ];
    }
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.version.as_deref() {
        Some("1.2") => &[&rustls::version::TLS12],
        Some("1.3") => &[&rustls::version::TLS13],
        _ => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificates("ca").remove(0)).expect("a root");
    let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions);
    let verifier =
        rustls::client::WebPkiServerVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let builder = builder.expect("versions").dangerous();
    // The certificate is looked at, not judged: its names are not the point.
    let builder = builder.with_custom_certificate_verifier(Arc::new(Anyone(verifier)));
    let mut config = match &tls.certificate {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).expect("a key");
            builder.with_client_auth_cert(certificates(name), key).expect("the key fits")
        }
    };
    config.enable_sni = tls.name.is_some();
    config.alpn_protocols = tls.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// Takes any certificate whose owner has the key.
#[derive(Debug)]
struct Anyone(Arc<rustls::client::WebPkiServerVerifier>);

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn certificates(name: &str) -> Vec<CertificateDer<'static>> {
    let chain = CertificateDer::pem_file_iter(file(&format!("{name}.pem"))).expect("a certificate");
    chain.map(|one| one.expect("a certificate")).collect()
}

/// A file of the fixtures' authority: `ca.pem`, and `.pem` and `.key` of `server`, `other`, `client`,
/// `plain` (without names) and `stranger` (of another authority).
pub(crate) fn file(name: &str) -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(make).path().join(name)
}

fn make() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("written");
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    write("ca.pem", ours.pem());
    let uri = |text: &str| SanType::URI(text.try_into().expect("ASCII"));
    let dns = |text: &str| SanType::DnsName(text.try_into().expect("ASCII"));
    for (name, issuer, names, subject) in [
        ("server", &ours, vec![dns("host.test")], "server"),
        ("other", &ours, vec![dns("other.test")], "other"),
        (
            "client",
            &ours,
            vec![uri("spiffe://mesh/a"), dns("a.test"), uri("urn:b"), dns("b.test")],
            "a, \"b\"",
        ),
        ("plain", &ours, vec![], "plain"),
        ("stranger", &theirs, vec![uri("spiffe://mesh/a")], "stranger"),
    ] {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Pillion");
        params.distinguished_name.push(DnType::CommonName, subject);
        params.subject_alt_names = names;
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, issuer).expect("a certificate");
        write(&format!("{name}.pem"), leaf.pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
    folder
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}
