//! Changing the root, taking identities back, sealing keys.

use super::*;

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
    let open = async |seal: Option<Seal>| match seal {
        None => Authority::open(Arc::clone(&store), Settings::default()).await,
        Some(seal) => Authority::open_sealed(Arc::clone(&store), Settings::default(), seal).await,
    };
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
