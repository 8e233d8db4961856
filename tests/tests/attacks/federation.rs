//! Forged bundles: an endpoint that is not who it should be, or says what it may not. The last good bundle
//! stays in force, with a line in the log and a count.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use pillion_tests::support::ports::free_address;
use pillion_tests::support::sidecar::sum;
use pillion_tests::support::{DEADLINE, Registry, eventually};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{leaf, uri};

/// A root of `acme.example`.
struct Root {
    x5c: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Root {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "acme root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = vec![uri("spiffe://acme.example")];
        let key = KeyPair::generate().expect("a key");
        let x5c = x5c(&params.self_signed(&key).expect("signed"));
        Self { x5c, issuer: Issuer::new(params, key) }
    }

    /// A server with this identity, signed by this root.
    fn server(&self, id: &str) -> Arc<ServerConfig> {
        let mut params = leaf();
        params.subject_alt_names = vec![uri(id)];
        let key = KeyPair::generate().expect("a key");
        let chain = vec![params.signed_by(&key, &self.issuer).expect("signed").der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth().with_single_cert(chain, key);
        Arc::new(config.expect("a certificate with its key"))
    }

    fn bundle(&self, sequence: u64) -> Value {
        json!({
            "keys": [{"use": "x509-svid", "kty": "EC", "x5c": [self.x5c]}],
            "spiffe_sequence": sequence,
            "spiffe_refresh_hint": 1,
        })
    }
}

fn x5c(certificate: &Certificate) -> String {
    certificate.pem().lines().filter(|line| !line.starts_with('-')).collect()
}

/// What the endpoint is at the moment.
type Says = Arc<Mutex<(Arc<ServerConfig>, Value)>>;

async fn endpoint(at: SocketAddr, says: Says) -> JoinSet<()> {
    let listener = TcpListener::bind(at).await.expect("a free port");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (config, document) = says.lock().expect("nobody panics with it").clone();
            // Whoever goes away in between is the test's subject, and its business.
            let answer = async {
                let mut stream = TlsAcceptor::from(config).accept(stream).await?;
                let mut head = [0; 4096];
                let _read = stream.read(&mut head).await?;
                let body = document.to_string();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await?;
                stream.shutdown().await
            };
            drop::<std::io::Result<()>>(answer.await);
        }
    });
    tasks
}

const REGISTRY: &str = "spiffe://acme.example/registry";

#[tokio::test]
async fn forged_federation_bundles_are_refused_logged_and_counted() {
    let data = tempfile::tempdir().expect("a folder");
    let (at, root, forger) = (free_address(), Root::new(), Root::new());
    let good = (root.server(REGISTRY), root.bundle(7));
    let says: Says = Arc::new(Mutex::new(good.clone()));
    let _endpoint = endpoint(at, Arc::clone(&says)).await;
    let registry = Registry::start(data.path()).await;
    let trusted = root.bundle(7);
    registry
        .apply(&format!(
            "kind: Federation\nname: acme\ntrustDomain: acme.example\n\
             bundle: {{url: 'https://{at}/', trusted: '{trusted}'}}\n"
        ))
        .await;
    let known = async || {
        let list = registry.get("/v1/federations").await.json();
        list["federations"][0].clone()
    };
    let is_good = async |sequence: u64| {
        eventually(&format!("bundle {sequence} is in force, and nothing wrong"), DEADLINE, || async {
            let known = known().await;
            let good = known["sequence"] == sequence && known["bundleAge"].is_u64();
            if good && known["bundleError"].is_null() { Ok(()) } else { Err(known.to_string()) }
        })
        .await;
    };
    is_good(7).await;
    let mut no_root = root.bundle(8);
    no_root["keys"] = forged_keys();
    for (reason, forged) in [
        ("untrusted", (forger.server(REGISTRY), forger.bundle(8))),
        ("untrusted", (root.server("spiffe://acme.example/ns/shop/svc/web"), forger.bundle(8))),
        ("older", (root.server(REGISTRY), forger.bundle(6))),
        ("conflicting", (root.server(REGISTRY), forger.bundle(7))),
        ("malformed", (root.server(REGISTRY), no_root)),
    ] {
        let counted = async || {
            let text = registry.get("/metrics").await.body;
            let labels = [("trust_domain", "acme.example"), ("part", "bundle"), ("reason", reason)];
            sum(&text, "pillion_federation_refused_total", &labels)
        };
        let before = counted().await;
        *says.lock().expect("nobody panics with it") = forged;
        eventually(&format!("{reason} is counted"), DEADLINE, || async {
            let now = counted().await;
            if now > before { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
        let known = known().await;
        assert_eq!((&known["sequence"], &known["roots"]), (&json!(7), &json!(1)), "{reason}: {known}");
        let log = registry.process.output();
        assert!(log.contains(&format!("reason=\"{reason}\"")), "{reason}: {log}");
        *says.lock().expect("nobody panics with it") = good.clone();
        is_good(7).await;
    }
    // The same way with a sound bundle: it was not the way that was wrong.
    *says.lock().expect("nobody panics with it") = (root.server(REGISTRY), forger.bundle(8));
    is_good(8).await;
}

/// A key that is no root.
fn forged_keys() -> Value {
    let key = KeyPair::generate().expect("a key");
    let certificate = leaf().self_signed(&key).expect("signed");
    json!([{"use": "x509-svid", "kty": "EC", "x5c": [x5c(&certificate)]}])
}
