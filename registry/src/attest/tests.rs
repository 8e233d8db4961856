//! Proofs that are good, and the many that are not. Keys and certificates are rcgen's and openssl's; what
//! stands in for STS says whatever it is told to say.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pillion_net::attest::Attestation as Claimant;
use pillion_net::attest::aws::{Credentials, Sts, sign};
use pillion_net::resolve::Resolver;
use pillion_xds::mesh::{AwsProof, KubernetesProof};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

const CSR: &[u8] = b"a certificate request";

/// A folder, and an attestation of what is written there.
struct World {
    folder: tempfile::TempDir,
    metrics: Registry,
    attestation: Attestation,
}

impl World {
    fn new(folder: tempfile::TempDir, settings: &str) -> Self {
        let metrics = Registry::new();
        let file = folder.path().join("attestation.yaml");
        std::fs::write(&file, settings).expect("written");
        let attestation = Attestation::open(&file, &metrics).expect(settings);
        Self { folder, metrics, attestation }
    }

    async fn ask(&self, proof: &Proof, node: &str) -> Result<Proven, Refusal> {
        self.ask_at(proof, node, SystemTime::now()).await
    }

    async fn ask_at(&self, proof: &Proof, node: &str, at: SystemTime) -> Result<Proven, Refusal> {
        self.attestation.authorize(proof, CSR, &node.parse().expect("a node"), at).await
    }

    async fn refused(&self, proof: &Proof, node: &str, want: &str) {
        let error = self.ask(proof, node).await.expect_err(want).to_string();
        assert!(error.contains(want), "no `{want}` in: {error}");
    }

    /// How many proofs ended so.
    fn counted(&self, outcome: &str) -> f64 {
        let families = self.metrics.gather();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        let of = metrics.filter(|metric| metric.get_label().iter().any(|label| label.value() == outcome));
        of.map(|metric| metric.get_counter().get_value()).sum()
    }
}

/// An authority of a company.
fn authority() -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "company");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    let pem = params.self_signed(&key).expect("signed").pem();
    (Issuer::new(params, key), pem)
}

/// The files of a certificate that `by` signs.
fn certificate(folder: &Path, name: &str, by: &Issuer<'_, KeyPair>) -> Claimant {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationalUnitName, "Payments");
    params
        .subject_alt_names
        .push(SanType::URI(format!("spiffe://company/{name}").try_into().expect("ASCII")));
    params.subject_alt_names.push(SanType::DnsName(format!("{name}.company.com").try_into().expect("ASCII")));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().expect("a key");
    let pem = params.signed_by(&key, by).expect("signed").pem();
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    std::fs::write(file("pem"), pem).expect("written");
    std::fs::write(file("key"), key.serialize_pem()).expect("written");
    Claimant::X509 { certificate: file("pem"), key: file("key") }
}

async fn prove(claimant: &Claimant, node: &str) -> Proof {
    claimant.prove(CSR, node, &Resolver::system()).await.expect("a proof")
}

#[tokio::test]
async fn a_certificate_of_the_company_is_good_for_what_its_rule_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let (company, pem) = authority();
    let (stranger, _) = authority();
    std::fs::write(folder.path().join("company.pem"), pem).expect("written");
    let ca = folder.path().join("company.pem").display().to_string();
    let settings = format!(
        "x509: {{ca: {ca}}}\nrules:\n- {{x509: 'uri:spiffe://company/web', service: web.shop}}\n\
         - {{x509: 'dns:*.company.com', service: '{{1}}.names', instance: '{{1}}-1'}}\n\
         - {{x509: 'ou:Payments', service: payments.billing}}\n"
    );
    let world = World::new(folder, &settings);
    let here = world.folder.path().to_owned();
    let web = certificate(&here, "web", &company);
    for node in ["shop/web/1", "names/web/web-1", "billing/payments/7"] {
        let proven = world.ask(&prove(&web, node).await, node).await.expect(node);
        assert_eq!(proven.to_string(), "x509 `uri:spiffe://company/web`");
    }
    let other = "it may be web.shop or web.names as instance web-1 or payments.billing";
    world.refused(&prove(&web, "shop/orders/1").await, "shop/orders/1", other).await;
    let proof = prove(&web, "shop/web/1").await;
    world.refused(&proof, "shop/web/2", "the signature is not one of the certificate's key").await;
    world.ask(&proof, "shop/web/1").await.expect("for the node that was signed");
    world.refused(&proof, "shop/web/1", "it was presented before").await;
    let foreign = certificate(&here, "foreign", &stranger);
    world
        .refused(&prove(&foreign, "shop/web/1").await, "shop/web/1", "not signed by a root that we trust")
        .await;
    // The certificate of one, which anybody may know, with the key of another.
    let mallory = certificate(&here, "mallory", &company);
    let (Proof::X509(mut forged), Proof::X509(real)) =
        (prove(&mallory, "shop/web/1").await, prove(&web, "shop/web/1").await)
    else {
        unreachable!("made by certificates")
    };
    forged.chain = real.chain.clone();
    world.refused(&Proof::X509(forged.clone()), "shop/web/1", "the signature is not").await;
    forged.scheme = 0x0201; // rsa_pkcs1_sha1
    world.refused(&Proof::X509(forged), "shop/web/1", "signature scheme 513 is not supported").await;
    let later = SystemTime::now() + Duration::from_secs(400);
    let late = world.ask_at(&Proof::X509(real), "shop/web/1", later).await.expect_err("late").to_string();
    assert!(late.contains("want at most 300 s ago"), "{late}");
    let token = Proof::Kubernetes(KubernetesProof { token: "x".into() });
    world.refused(&token, "shop/web/1", "takes no proof by kubernetes; want one by x509").await;
    assert_eq!(world.counted("accepted"), 4.0);
    assert_eq!(
        (world.counted("invalid"), world.counted("not-allowed"), world.counted("unknown")),
        (6.0, 1.0, 1.0)
    );
}

/// Signs tokens as a cluster does.
struct Cluster {
    key: KeyPair,
}

impl Cluster {
    fn new() -> Self {
        Self { key: KeyPair::generate().expect("a key") }
    }

    fn jwks(&self) -> serde_json::Value {
        let point = &self.key.der_bytes()[1..];
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let key = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "one",
            "x": text(&point[..32]), "y": text(&point[32..])});
        json!({"keys": [key]})
    }

    fn token(&self, header: &serde_json::Value, claims: &serde_json::Value) -> Proof {
        let text = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", text(header), text(claims));
        let key = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(
            &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            &self.key.serialize_der(),
        );
        let random = aws_lc_rs::rand::SystemRandom::new();
        let signature = key.expect("P-256").sign(&random, signed.as_bytes()).expect("signed");
        token(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }
}

fn token(token: String) -> Proof {
    Proof::Kubernetes(KubernetesProof { token })
}

#[tokio::test]
async fn a_service_account_token_is_judged_by_the_issuers_keys_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::new();
    let keys = folder.path().join("jwks.json");
    std::fs::write(&keys, cluster.jwks().to_string()).expect("written");
    let settings = format!(
        "kubernetes: {{issuer: 'https://cluster', audience: pillion, jwks: {}}}\n\
         rules: [{{kubernetes: '*/*', service: '{{2}}.{{1}}'}}]\n",
        keys.display()
    );
    let world = World::new(folder, &settings);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let header = json!({"alg": "ES256", "kid": "one"});
    let claims = |field: &str, value: serde_json::Value| {
        let mut claims = json!({"iss": "https://cluster", "aud": ["pillion"], "exp": now + 600,
            "nbf": now - 10, "sub": "system:serviceaccount:shop:web"});
        claims[field] = value;
        claims
    };
    let good = claims("iat", json!(now));
    let proven = world.ask(&cluster.token(&header, &good), "shop/web/1").await.expect("good");
    assert_eq!(proven.to_string(), "kubernetes `shop/web`");
    let error = world.ask(&cluster.token(&header, &good), "shop/orders/1").await.expect_err("another");
    assert!(error.to_string().contains("`shop/web` may not be shop/orders/1: it may be web.shop"), "{error}");
    for (claims, want) in [
        (claims("aud", json!(["https://kubernetes.default.svc"])), "want `pillion`"),
        (claims("aud", serde_json::Value::Null), "want `pillion`"),
        (claims("iss", json!("https://other")), "of issuer `https://other`; want https://cluster"),
        (claims("exp", json!(now - 100)), "the token expired 100 s ago"),
        (claims("exp", serde_json::Value::Null), "has no end"),
        (claims("nbf", json!(now + 600)), "is not good before"),
        (claims("sub", json!("system:node:a")), "the token's subject is `system:node:a`"),
        (claims("sub", json!("system:serviceaccount:a:b:c")), "the token's subject is"),
    ] {
        world.refused(&cluster.token(&header, &claims), "shop/web/1", want).await;
    }
    let text = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    for (header, want) in [
        (json!({"alg": "ES256", "kid": "two"}), "key `two` is none that is known"),
        (json!({"alg": "ES256"}), "names no key"),
        (json!({"alg": "ES384", "kid": "one"}), "and key `one` is for ES256"),
        (json!({"alg": "none", "kid": "one"}), "signed with `none`"),
    ] {
        world.refused(&cluster.token(&header, &good), "shop/web/1", want).await;
    }
    // Signed with what everybody knows, as if that were a secret.
    let head = json!({"alg": "HS256", "kid": "one"});
    let signed = format!("{}.{}", text(&head), text(&good));
    for secret in [cluster.key.der_bytes().to_vec(), cluster.key.public_key_pem().into_bytes()] {
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret);
        let mac = URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&secret, signed.as_bytes()).as_ref());
        world.refused(&token(format!("{signed}.{mac}")), "shop/web/1", "and key `one` is for ES256").await;
    }
    world.refused(&token(format!("{signed}.")), "shop/web/1", "kubernetes").await;
    world.refused(&token(String::new()), "shop/web/1", "it is no token").await;
    // Another cluster's key under the same name.
    world
        .refused(&Cluster::new().token(&header, &good), "shop/web/1", "the signature is not one of key `one`")
        .await;
}

/// Stands in for STS: says that whoever asks is this.
struct Oracle {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Oracle {
    async fn start(status: &'static str, body: &'static str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let (address, asked) = (listener.local_addr().expect("bound"), Arc::<AtomicUsize>::default());
        let count = Arc::clone(&asked);
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Relaxed);
                let mut seen = Vec::new();
                while !seen.ends_with(b"2011-06-15") && stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0)
                {
                }
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        Self { address, asked, serving }
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

const IDENTITY: &str = "<GetCallerIdentityResponse><GetCallerIdentityResult>\
    <Arn>arn:aws:sts::123456789012:assumed-role/web/i-1</Arn></GetCallerIdentityResult>\
    </GetCallerIdentityResponse>";
const ERROR: &str = "<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code></Error></ErrorResponse>";

#[tokio::test]
async fn a_signed_request_is_sent_to_the_configured_sts_and_nowhere_else() {
    let sts = Oracle::start("200 OK", IDENTITY).await;
    let elsewhere = Oracle::start("200 OK", IDENTITY).await;
    let world = |sts: &Oracle| {
        let rule = "{aws: 'arn:aws:iam::123456789012:role/web', service: web.shop}";
        let settings = format!("aws: {{sts: 'http://{}'}}\nrules: [{rule}]\n", sts.address);
        World::new(tempfile::tempdir().expect("a folder"), &settings)
    };
    let signed_at = |csr: &[u8], at: SystemTime| {
        let credentials =
            Credentials { key_id: "AKIA".into(), secret: "s".into(), token: Some("session".into()) };
        let endpoint = Sts { host: sts.address.to_string(), region: "eu-central-1".into() };
        sign(&credentials, &endpoint, csr, at)
    };
    let signed = || signed_at(CSR, SystemTime::now());
    let here = world(&sts);
    let proof = Proof::Aws(signed());
    let proven = here.ask(&proof, "shop/web/1").await.expect("good");
    assert_eq!(proven.to_string(), "aws `arn:aws:sts::123456789012:assumed-role/web/i-1`");
    assert_eq!(sts.asked.load(Relaxed), 1);
    here.refused(&proof, "shop/web/1", "it was presented before").await;
    let with = |name: &str, value: &str| {
        let mut proof = signed();
        proof.headers.insert(name.to_owned(), value.to_owned());
        proof
    };
    let without = |name: &str| {
        let mut proof = signed();
        proof.headers.remove(name);
        proof
    };
    let unsigned = |name: &str| {
        let mut proof = signed();
        let text =
            proof.headers["authorization"].replace(&format!("{name};"), "").replace(&format!(";{name}"), "");
        proof.headers.insert("authorization".to_owned(), text);
        proof
    };
    let old = SystemTime::now() - Duration::from_secs(1000);
    let evil = elsewhere.address.to_string();
    for (proof, want) in [
        (with("host", &evil), "header `host` is not taken"),
        (with("x-forwarded-host", &evil), "is not taken"),
        (with("Authorization", "x"), "is not taken"),
        (without("authorization"), "header `authorization` is missing"),
        (without("x-amz-date"), "header `x-amz-date` is missing"),
        (without("x-pillion-csr-sha256"), "is missing"),
        (unsigned("x-pillion-csr-sha256"), "header `x-pillion-csr-sha256` is not signed"),
        (unsigned("host"), "header `host` is not signed"),
        (signed_at(b"another request", SystemTime::now()), "is not that of this certificate request"),
        (signed_at(CSR, old), "want 300 s at most"),
        (with("x-amz-date", "yesterday"), "is no date"),
        (AwsProof::default(), "is missing"),
    ] {
        here.refused(&Proof::Aws(proof), "shop/web/1", want).await;
    }
    assert_eq!(
        (sts.asked.load(Relaxed), elsewhere.asked.load(Relaxed)),
        (1, 0),
        "nobody was asked for those"
    );
    let other = Proof::Aws(signed_at(CSR, SystemTime::now() - Duration::from_secs(2)));
    here.refused(&other, "shop/orders/1", "it may be web.shop").await;

    for (status, body, want) in [
        ("403 Forbidden", ERROR, "(403 Forbidden, SignatureDoesNotMatch)"),
        ("403 Forbidden", IDENTITY, "does not know who signed it"),
        ("200 OK", "<Arn>nobody</Arn>", "does not know who signed it"),
        ("503 Slow Down", "", "answers 503"),
    ] {
        let sts = Oracle::start(status, body).await;
        world(&sts).refused(&Proof::Aws(signed()), "shop/web/1", want).await;
    }
}

#[tokio::test]
async fn keys_that_cannot_be_read_refuse_for_now_and_not_for_good() {
    let missing = PathBuf::from("/nonexistent/jwks.json");
    let settings = format!(
        "kubernetes: {{issuer: i, jwks: {}}}\nrules: [{{kubernetes: 'a/b', service: b.a}}]\n",
        missing.display()
    );
    let world = World::new(tempfile::tempdir().expect("a folder"), &settings);
    let proof = Cluster::new().token(&json!({"alg": "ES256", "kid": "one"}), &json!({}));
    let refusal = world.ask(&proof, "a/b/1").await.expect_err("no keys");
    assert!(matches!(refusal, Refusal::Unavailable { .. }), "{refusal}");
    assert_eq!(world.counted("unavailable"), 1.0);
}
