//! The authority against clients that we wrote and clients that we did not.

mod files;
mod rotation;
mod tokens;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use pillion_model::name::{NodeId, ServiceName, SpiffeId};
use pillion_net::bootstrap::{Credential, JoinError, JoinToken, join, renew};
use pillion_net::grpc::{Dialer, Security, Serve, ServerSecurity};
use pillion_net::identity::{Identity, IdentityWatch, TrustBundle, channel};
use pillion_net::listen::{Reuse, bind_tcp};
use pillion_net::resolve::{Resolver, Target};
use pillion_net::tls::{ClientTls, PeerCertificate, ServerTls, mesh_client_context, mesh_server_context};
use rcgen::KeyPair;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::redb::RedbStore;

/// An authority on a store of its own, with a clock that tests move.
struct World {
    directory: tempfile::TempDir,
    authority: Arc<Authority>,
    ahead: Arc<AtomicU64>,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let ahead = Arc::new(AtomicU64::new(0));
        let authority = open(&directory, &ahead).await;
        Self { directory, authority, ahead }
    }

    fn advance(&self, by: Duration) {
        self.ahead.fetch_add(by.as_secs(), Ordering::Relaxed);
    }

    /// As after a restart of the process.
    async fn reopen(self) -> Self {
        let Self { directory, authority, ahead } = self;
        drop(authority);
        let authority = open(&directory, &ahead).await;
        Self { directory, authority, ahead }
    }

    async fn token(&self, new: NewToken) -> JoinToken {
        self.authority.tokens().create(new).await.expect("a token").0
    }
}

async fn open(directory: &tempfile::TempDir, ahead: &Arc<AtomicU64>) -> Arc<Authority> {
    let store = Arc::new(RedbStore::open(directory.path()).expect("a store"));
    let ahead = Arc::clone(ahead);
    let clock: Clock =
        Arc::new(move || SystemTime::now() + Duration::from_secs(ahead.load(Ordering::Relaxed)));
    Authority::open_with_clock(store, Settings::default(), Keys::Plain, clock).await.expect("an authority")
}

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
    csr.der().to_vec()
}

fn orders() -> ServiceName {
    ServiceName::new("shop", "orders").expect("a name")
}

fn orders_1() -> NodeId {
    "shop/orders/orders-1".parse().expect("a node")
}

#[tokio::test]
async fn leaves_follow_the_spiffe_rules_whatever_the_request_asks_for() {
    let world = World::new().await;
    let key = KeyPair::generate().expect("a key");
    let mut greedy = rcgen::CertificateParams::new(vec!["evil.example.com".to_owned()]).expect("a name");
    let uri = "spiffe://mesh.internal/registry".to_owned().try_into().expect("ASCII");
    greedy.subject_alt_names.push(rcgen::SanType::URI(uri));
    greedy.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    greedy.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let request = greedy.serialize_request(&key).expect("a request");
    let issued = world.authority.issue(&orders_1(), request.der()).expect("signed");
    let peer = PeerCertificate::parse(&issued.chain).expect("a certificate");
    assert_eq!(peer.rbac_names(), ["spiffe://mesh.internal/ns/shop/svc/orders", "CN=orders-1,O=Pillion"]);
    assert_eq!(peer.lifetime(), Duration::from_secs(24 * 3600 + 300));
    let trust_domain = TrustDomain::default();
    let bundle = TrustBundle { trust_domain, roots: issued.roots, revoked: Arc::default() };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Identity::new(issued.chain, key, bundle, "mesh.internal").expect("the verifier accepts it");
}

#[tokio::test]
async fn requests_that_are_none_are_refused() {
    let world = World::new().await;
    let mut forged = csr();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let mut long = csr();
    long.push(0);
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).expect("a key");
    let p521 =
        rcgen::CertificateParams::default().serialize_request(&p521).expect("a request").der().to_vec();
    for (case, csr, want) in [
        ("empty", Vec::new(), "no PKCS#10"),
        ("garbage", b"-----BEGIN".to_vec(), "no PKCS#10"),
        ("forged", forged, "signature does not fit"),
        ("trailing", long, "1 bytes follow"),
        ("large", vec![0x30; 20_000], "want at most"),
        ("another curve", p521, "want ECDSA P-256"),
    ] {
        let error = world.authority.issue(&orders_1(), &csr).expect_err(case).to_string();
        assert!(error.contains(want), "{case}: {error}");
    }
}

#[tokio::test]
async fn root_and_tokens_survive_a_restart() {
    let world = World::new().await;
    let before = world.authority.info();
    let token = world.token(NewToken::default()).await;
    let used = world.token(NewToken::default()).await;
    world.authority.tokens().redeem(&used, &orders()).await.expect("good");
    let world = world.reopen().await;
    assert_eq!(world.authority.info(), before);
    assert_eq!(token.pin, root::key_hash(&world.authority.roots()[0]).expect("a root"));
    let years = before.root_not_after.duration_since(before.root_not_before).expect("in order");
    assert_eq!(years.as_secs() / (365 * 24 * 3600), 10);
    world.authority.tokens().redeem(&token, &orders()).await.expect("still good");
    let error = world.authority.tokens().redeem(&used, &orders()).await.expect_err("used before the restart");
    assert!(matches!(error, TokenError::Used), "{error}");
}

/// A registry's mesh port with nothing but `Identity`.
struct Registry {
    address: SocketAddr,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Registry {
    async fn start(authority: &Arc<Authority>, open: bool) -> Self {
        let stop = CancellationToken::new();
        let (publisher, mut watch) = channel();
        let names = RegistryNames::new(&[Target { host: "registry.example.com".into(), port: 7071 }]);
        let keep = tokio::spawn(keep_identity(Arc::clone(authority), names, publisher, stop.clone()));
        watch.first().await.expect("an identity");
        let mut context = mesh_server_context(&["h2", "http/1.1"]);
        context.require_client_certificate = false;
        let security = ServerSecurity::Mesh(Arc::new(ServerTls::new(context, watch)));
        let routes = tonic::service::Routes::new(
            IdentityService::new(Arc::clone(authority), open, stop.clone(), Arc::default()).into_server(),
        );
        let router = routes.into_axum_router().route("/healthz", axum::routing::get(async || "ok"));
        let socket = bind_tcp("mesh gRPC", ([127, 0, 0, 1], 0).into(), Reuse::Exclusive).expect("a port");
        let address = socket.local_addr().expect("bound");
        let listener = TcpListener::from_std(socket).expect("tokio");
        let serve = tokio::spawn(Serve::new("mesh gRPC", security, router).run(listener, stop.clone()));
        Self { address, stop, tasks: vec![keep, serve] }
    }

    fn target(&self) -> Target {
        Target { host: self.address.ip().to_string(), port: self.address.port() }
    }

    async fn join(&self, credential: &Credential, node: &str) -> Result<Identity, JoinError> {
        let node: NodeId = node.parse().expect("a node");
        join(&[self.target()], credential, &node, &Resolver::system()).await
    }

    async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            tokio::time::timeout(Duration::from_secs(10), task).await.expect("ends").expect("no panic");
        }
    }
}

#[tokio::test]
async fn a_sidecar_joins_by_token_and_renews_by_its_certificate() {
    let world = World::new().await;
    let registry = Registry::start(&world.authority, false).await;
    let token = world.token(NewToken::default()).await;
    let credential = Credential::Token(token);
    let identity = registry.join(&credential, "shop/orders/orders-1").await.expect("joins");
    assert_eq!(identity.svid.id.to_string(), "spiffe://mesh.internal/ns/shop/svc/orders");
    assert_eq!(identity.zone, "mesh.internal");
    let error = registry.join(&credential, "shop/orders/orders-2").await.expect_err("one use");
    assert!(error.is_final());
    assert!(error.to_string().contains("was used already"), "{error}");

    let expected = SpiffeId::registry(TrustDomain::default());
    let serial = identity.svid.chain[0].to_vec();
    let watch = IdentityWatch::fixed(Arc::new(identity));
    let tls = Arc::new(ClientTls::new(mesh_client_context(&[expected], "", &["h2"]), watch));
    let channel = Dialer::new(vec![registry.target()], Security::Mesh(tls), Resolver::system()).lazy();
    let node: NodeId = "shop/orders/orders-1".parse().expect("a node");
    let next = renew(channel.clone(), &node).await.expect("renews");
    assert_eq!(next.svid.id.to_string(), "spiffe://mesh.internal/ns/shop/svc/orders");
    assert_ne!(next.svid.chain[0].to_vec(), serial, "a new certificate");
    let other: NodeId = "shop/payments/payments-1".parse().expect("a node");
    let error = renew(channel, &other).await.expect_err("another service").to_string();
    assert!(error.contains("not obtain one for payments.shop"), "{error}");
    registry.end().await;
}

#[tokio::test]
async fn who_cannot_join_learns_why() {
    let world = World::new().await;
    let other = World::new().await;
    let registry = Registry::start(&world.authority, false).await;
    let foreign = Credential::Token(other.token(NewToken::default()).await);
    let error = registry.join(&foreign, "shop/orders/orders-1").await.expect_err("another mesh");
    let JoinError::Connect(error) = error else { panic!("{error}") };
    assert!(error.to_string().contains("is this token of another mesh?"), "{error}");
    let error = registry.join(&Credential::OpenLoopback, "shop/orders/orders-1").await.expect_err("not open");
    assert!(error.is_final());
    assert!(error.to_string().contains("a join token is needed"), "{error}");
    let binding = Binding { namespace: None, service: Some("web".into()) };
    let bound = Credential::Token(world.token(NewToken { binding, ..NewToken::default() }).await);
    let error = registry.join(&bound, "shop/orders/orders-1").await.expect_err("for another service");
    assert!(error.to_string().contains("is for services named web, not for orders.shop"), "{error}");
    registry.join(&bound, "shop/web/web-1").await.expect("a refused use does not use it up");
    registry.end().await;
}

#[tokio::test]
async fn an_open_registry_lets_loopback_in_without_a_token() {
    let world = World::new().await;
    let registry = Registry::start(&world.authority, true).await;
    registry.join(&Credential::OpenLoopback, "shop/web/web-1").await.expect("joins");
    registry.end().await;
}

#[tokio::test]
async fn the_registry_renews_at_once_when_the_trust_domain_changes() {
    let world = World::new().await;
    let (publisher, mut watch) = channel();
    let stop = CancellationToken::new();
    let keeper = tokio::spawn(keep_identity(
        Arc::clone(&world.authority),
        RegistryNames::new(&[]),
        publisher,
        stop.clone(),
    ));
    watch.first().await.expect("an identity");
    let trust_domain = TrustDomain::parse("prod.example.com").expect("a domain");
    world.authority.configure(Settings { trust_domain, ..Settings::default() });
    let next = tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.expect("in time");
    assert_eq!(next.expect("renewed").svid.id.to_string(), "spiffe://prod.example.com/registry");
    stop.cancel();
    keeper.await.expect("ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_and_curl_accept_what_we_issue() {
    if !(has("openssl") && has("curl")) {
        return;
    }
    let world = World::new().await;
    let path = |name: &str| world.directory.path().join(name).display().to_string();
    let issued = world.authority.issue(&orders_1(), &csr()).expect("signed");
    let pem = |der: &CertificateDer<'_>| pillion_net::identity::pem_text("CERTIFICATE", der);
    std::fs::write(path("root.pem"), world.authority.info().root_pem).expect("written");
    std::fs::write(path("leaf.pem"), pem(&issued.chain[0])).expect("written");
    let strictly = |root: &str, chain: &str, leaf: &str| {
        for purpose in ["sslserver", "sslclient"] {
            let (root, chain, leaf) = (path(root), path(chain), path(leaf));
            let arguments = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", &root];
            run("openssl", &[&arguments[..], &["-untrusted", &chain, &leaf]].concat());
        }
    };
    std::fs::write(path("first.pem"), issued.chain.iter().map(pem).collect::<String>()).expect("written");
    strictly("root.pem", "first.pem", "leaf.pem");
    world.authority.rotate(false).await.expect("announces");
    world.advance(Duration::from_secs(30));
    world.authority.drive(&nobody(), SystemTime::now() - Duration::from_secs(60)).await.expect("switches");
    let crossed = world.authority.issue(&orders_1(), &csr()).expect("signed");
    std::fs::write(path("crossed.pem"), pem(&crossed.chain[0])).expect("written");
    std::fs::write(path("chain.pem"), crossed.chain.iter().map(pem).collect::<String>()).expect("written");
    std::fs::write(path("next.pem"), pem(&crossed.roots[0])).expect("written");
    for root in ["root.pem", "next.pem"] {
        strictly(root, "chain.pem", "crossed.pem");
    }
    let registry = Registry::start(&world.authority, false).await;
    for host in ["127.0.0.1", "localhost", "registry.example.com"] {
        let port = registry.address.port();
        let (url, to) = (format!("https://{host}:{port}/healthz"), format!("{host}:{port}:127.0.0.1"));
        let root = path("root.pem");
        let args = ["-sS", "--noproxy", "*", "--cacert", &root, "--resolve", &to, &url].map(str::to_owned);
        let body =
            tokio::task::spawn_blocking(move || run("curl", &args.each_ref().map(String::as_str))).await;
        assert_eq!(body.expect("ran"), "ok");
    }
    registry.end().await;
}

fn nobody() -> Alive {
    Arc::new(Live::default)
}

/// Whether a program is there; its absence is said, and is a failure in CI.
fn has(program: &str) -> bool {
    if Command::new(program).arg("--help").output().is_ok() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{program} is needed in CI");
    eprintln!("SKIPPED: {program} is not installed");
    false
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect(program);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}{errors}");
    text
}

const TWO_YEARS: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
