//! The authority against clients that we wrote and clients that we did not.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use pillion_model::name::ServiceName;
use pillion_net::bootstrap::{Credential, JoinError, JoinToken, join, renew};
use pillion_net::grpc::{Dialer, Security, Serve, ServerSecurity};
use pillion_net::identity::{IdentityWatch, channel};
use pillion_net::listen::{Reuse, bind_tcp};
use pillion_net::resolve::Resolver;
use pillion_net::tls::{ClientTls, PeerCertificate, ServerTls, mesh_client_context, mesh_server_context};
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
    Authority::open_with_clock(store, Settings::default(), None, clock).await.expect("an authority")
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

#[tokio::test]
async fn tokens_are_refused_for_distinct_reasons_but_only_to_holders_of_the_secret() {
    let world = World::new().await;
    let tokens = world.authority.tokens();
    let redeem = async |token: &JoinToken| tokens.redeem(token, &orders()).await;
    let bind = |namespace: Option<&str>, service: Option<&str>| NewToken {
        binding: Binding { namespace: namespace.map(str::to_owned), service: service.map(str::to_owned) },
        ..NewToken::default()
    };
    let once = world.token(NewToken::default()).await;
    redeem(&once).await.expect("the first use");
    let reusable = world.token(NewToken { reusable: true, ..NewToken::default() }).await;
    for _ in 0..3 {
        redeem(&reusable).await.expect("any number of uses");
    }
    redeem(&world.token(bind(Some("shop"), Some("orders"))).await).await.expect("for this service");
    redeem(&world.token(bind(Some("shop"), None)).await).await.expect("for this namespace");
    let other = world.token(bind(Some("billing"), None)).await;
    let long = world.token(NewToken { ttl: Some(Duration::from_secs(7200)), ..NewToken::default() }).await;
    let short = world.token(NewToken::default()).await;
    world.advance(Duration::from_secs(3601));
    redeem(&long).await.expect("two hours");
    let without_secret = |token: &JoinToken| JoinToken { secret: "guess".into(), ..token.clone() };
    let no_such = JoinToken { id: "0".into(), ..once.clone() };
    for (case, token, want) in [
        ("used", &once, "was used already"),
        ("expired", &short, "expired 1s ago"),
        ("expired though bound to others", &other, "expired"),
        ("expired reusable", &reusable, "expired"),
        ("no such id", &no_such, "is unknown"),
        ("used, wrong secret", &without_secret(&once), "is unknown"),
        ("expired, wrong secret", &without_secret(&short), "is unknown"),
    ] {
        let error = redeem(token).await.expect_err(case).to_string();
        assert!(error.contains(want), "{case}: {error}");
    }
    let other = world.token(bind(Some("billing"), None)).await;
    let error = redeem(&other).await.expect_err("another namespace").to_string();
    assert_eq!(error, "the join token is for namespace billing, not for orders.shop");
    assert!(!tokens.list().is_empty());
}

#[tokio::test]
async fn of_many_uses_at_once_one_wins() {
    let world = World::new().await;
    let token = world.token(NewToken::default()).await;
    let uses = (0..100).map(|_| {
        let (authority, token) = (Arc::clone(&world.authority), token.clone());
        tokio::spawn(async move { authority.tokens().redeem(&token, &orders()).await })
    });
    let mut won = 0;
    for outcome in uses.collect::<Vec<_>>() {
        match outcome.await.expect("no panic") {
            Ok(()) => won += 1,
            Err(error) => assert!(matches!(error, TokenError::Used), "{error}"),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn two_authorities_on_one_store_share_root_and_tokens() {
    let directory = tempfile::tempdir().expect("a directory");
    let store: Arc<dyn Store> = Arc::new(RedbStore::open(directory.path()).expect("a store"));
    let open = || Authority::open(Arc::clone(&store), Settings::default());
    let (one, two) = tokio::join!(open(), open());
    let (one, two) = (one.expect("an authority"), two.expect("an authority"));
    assert_eq!(one.info().root_sha256, two.info().root_sha256);
    let stop = CancellationToken::new();
    let follower = {
        let (two, stop) = (Arc::clone(&two), stop.clone());
        tokio::spawn(async move { two.tokens().follow(stop).await })
    };
    let (token, _) = one.tokens().create(NewToken::default()).await.expect("a token");
    let seen = async {
        while two.tokens().list().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), seen).await.expect("the other registry learns of it");
    let service = orders();
    let (first, second) =
        tokio::join!(one.tokens().redeem(&token, &service), two.tokens().redeem(&token, &service));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    stop.cancel();
    follower.await.expect("ends");
}

#[tokio::test]
async fn limits_on_new_tokens_are_named_by_field() {
    let world = World::new().await;
    let binding = Binding { namespace: Some("Shop".into()), service: None };
    for (new, want) in [
        (NewToken { ttl: Some(Duration::from_secs(1)), ..NewToken::default() }, "ttl: got 1s"),
        (NewToken { ttl: Some(TWO_YEARS), ..NewToken::default() }, "ttl: got"),
        (NewToken { binding, ..NewToken::default() }, "namespace: has 'S' at position 0"),
    ] {
        let error = world.authority.tokens().create(new).await.expect_err(want).to_string();
        assert!(error.starts_with(want), "{error}");
    }
    let (token, info) = world.authority.tokens().create(NewToken::default()).await.expect("a token");
    assert!(world.authority.tokens().delete(&info.id).await.expect("deleted"));
    assert!(!world.authority.tokens().delete(&info.id).await.expect("gone"));
    let error = world.authority.tokens().redeem(&token, &orders()).await.expect_err("deleted");
    assert!(matches!(error, TokenError::Unknown), "{error}");
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

/// Whether somebody who trusts `roots` accepts the chain of a leaf.
fn accepts(roots: &[CertificateDer<'static>], chain: &[CertificateDer<'static>], at: SystemTime) -> bool {
    let trust_domain = TrustDomain::default();
    let bundle = TrustBundle { trust_domain, roots: roots.to_vec(), revoked: Arc::default() };
    let roots = pillion_net::tls::Roots::mesh(&bundle).expect("roots");
    let since = at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let at = rustls_pki_types::UnixTime::since_unix_epoch(since);
    pillion_net::tls::verify_svid(chain, &roots, at).is_ok()
}

/// Nobody is waited for.
fn nobody() -> Alive {
    Arc::new(Live::default)
}

#[tokio::test]
async fn a_root_is_rotated_step_by_step_and_each_survives_a_restart() {
    let mut world = World::new().await;
    let start = SystemTime::now();
    let first = world.authority.roots();
    let early = world.authority.issue(&orders_1(), &csr()).expect("signed").chain;
    world.authority.rotate(false).await.expect("announces");
    world = world.reopen().await;
    let both = world.authority.roots();
    assert_eq!((both.len(), &both[..1]), (2, &first[..]));
    let error = world.authority.rotate(false).await.expect_err("one at a time").to_string();
    assert!(error.contains("a rotation is under way"), "{error}");
    let announced = world.authority.issue(&orders_1(), &csr()).expect("signed").chain;
    assert!(accepts(&first, &announced, start), "the old root signs");

    let alive: Alive = Arc::new(|| Live { nodes: vec!["shop/web/web-1".into()], ..Live::default() });
    world.advance(Duration::from_secs(60));
    world.authority.drive(&alive, start).await.expect("looks");
    let status = world.authority.status(&alive()).await.expect("known");
    assert!(matches!(status.step, Step::Announced { .. }));
    assert_eq!((status.pending, status.pending_total), (vec!["shop/web/web-1".to_owned()], 1));
    let error = world.authority.rotate(true).await.expect_err("they have ten minutes").to_string();
    assert!(error.contains("may be switched to by force in"), "{error}");
    world.advance(Duration::from_secs(600));
    world.authority.rotate(true).await.expect("by force");

    world = world.reopen().await;
    let next = &both[1..];
    let switched = world.authority.issue(&orders_1(), &csr()).expect("signed");
    assert_eq!(switched.roots.len(), 2);
    let now = start + Duration::from_secs(661);
    for (who, roots) in [("who knows the old root", &first[..]), ("who knows the new one", next)] {
        assert!(accepts(roots, &switched.chain, now), "{who}");
    }
    assert!(accepts(&switched.roots, &early, now), "leaves of the old root stay good");
    world.advance(Duration::from_secs(24 * 3600));
    world.authority.drive(&nobody(), start).await.expect("looks");
    assert_eq!(world.authority.roots().len(), 2, "clocks differ");
    world.advance(Duration::from_secs(301));
    world.authority.drive(&nobody(), start).await.expect("retires");
    world = world.reopen().await;
    assert_eq!(world.authority.roots(), next);
    let alone = world.authority.issue(&orders_1(), &csr()).expect("signed").chain;
    let later = now + Duration::from_secs(24 * 3600 + 301);
    assert!(accepts(next, &alone, later) && !accepts(&first, &alone, later));
    let registry = world.authority.registry_identity(&RegistryNames::new(&[])).expect("an identity");
    assert!(accepts(&first, &registry.svid.chain, later), "the way from the old root to the registry");
}

#[tokio::test]
async fn a_token_of_a_former_root_still_finds_the_registry() {
    let world = World::new().await;
    let token = || world.token(NewToken::default());
    let (announced, switched, retired) = (token().await, token().await, token().await);
    world.authority.rotate(false).await.expect("announces");
    let next = world.authority.roots()[1].clone();
    let registry = Registry::start(&world.authority, false).await;
    let join = async |token: JoinToken| {
        let joined = registry.join(&Credential::Token(token), "shop/orders/orders-1").await;
        joined.expect("joins").bundle.roots
    };
    assert_eq!(join(announced).await.len(), 2);
    let start = SystemTime::now() - Duration::from_secs(60);
    world.advance(Duration::from_secs(30));
    world.authority.drive(&nobody(), start).await.expect("switches");
    let renewed = async || {
        let status = world.authority.status(&Live::default()).await.expect("known");
        status.roots.into_iter().map(|root| root.role).collect::<Vec<_>>()
    };
    assert_eq!(renewed().await, ["active", "old"]);
    assert_eq!(join(switched).await.len(), 2);
    let material = world.authority.material();
    world.authority.replace(&material, material.retire()).await.expect("retires");
    assert_eq!(renewed().await, ["active", "retired"]);
    assert_eq!(join(retired).await, [next]);
    registry.end().await;
}

#[tokio::test]
async fn what_is_revoked_is_refused_until_it_is_taken_back() {
    let mut world = World::new().await;
    let id = "spiffe://mesh.internal/ns/shop/svc/orders";
    let issue = |world: &World| world.authority.issue(&orders_1(), &csr()).map(drop);
    for what in [id, "shop/orders/orders-1"] {
        world.authority.revoke(what, "lost").await.expect("revoked");
        world.authority.revoke(what, "again").await.expect("no change");
        world = world.reopen().await;
        let list = world.authority.revocations();
        assert_eq!(list.iter().map(|it| (&*it.what, &*it.reason)).collect::<Vec<_>>(), [(what, "lost")]);
        let error = issue(&world).expect_err(what).to_string();
        assert!(error.starts_with(&format!("{what} is revoked")), "{error}");
        assert!(world.authority.unrevoke(what).await.expect("taken back"));
        assert!(!world.authority.unrevoke(what).await.expect("gone"));
        issue(&world).expect(what);
    }
    let serial = world.authority.issue(&orders_1(), &csr()).expect("signed").serial;
    world.authority.revoke(&serial, "").await.expect("revoked");
    world.advance(Duration::from_secs(26 * 3600));
    world.authority.revoke(id, "").await.expect("revoked");
    let list: Vec<_> = world.authority.revocations().into_iter().map(|it| it.what).collect();
    assert_eq!(list, [id], "a certificate that is over is not kept");
}

#[tokio::test]
async fn a_sealed_key_needs_the_key_that_sealed_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let store: Arc<dyn Store> = Arc::new(RedbStore::open(directory.path()).expect("a store"));
    let seal = |digit: &str| {
        let file = directory.path().join(format!("seal-{digit}"));
        std::fs::write(&file, format!("{}\n", digit.repeat(64))).expect("written");
        Seal::open_file(&file).expect("a key")
    };
    let open = |seal| Authority::open_sealed(Arc::clone(&store), Settings::default(), seal);
    let kept = async || {
        let state = store.load_space(Space::Ca).await.expect("read");
        String::from_utf8(state.entries[&Material::key()].value.to_vec()).expect("JSON")
    };
    let root = open(None).await.expect("plain").info().root_sha256;
    assert!(kept().await.contains("\"key\"") && !kept().await.contains("sealedKey"));
    let sealed = open(Some(seal("a"))).await.expect("seals what was plain");
    assert!(!kept().await.contains("\"key\"") && kept().await.contains("sealedKey"));
    sealed.rotate(false).await.expect("announces");
    assert!(!kept().await.contains("\"key\""), "the next one, too");
    assert_eq!(open(Some(seal("a"))).await.expect("again").info().root_sha256, root);
    for (with, want) in
        [(None, "start the registry with the --seal-key-file"), (Some(seal("b")), "another key")]
    {
        let error = open(with).await.expect_err(want).to_string();
        assert!(error.contains(want), "{error}");
    }
    let short = directory.path().join("short");
    std::fs::write(&short, "abc").expect("written");
    let error = Seal::open_file(&short).expect_err("too short").to_string();
    assert!(error.contains("openssl rand -hex 32"), "{error}");
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
