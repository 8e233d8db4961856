//! Join tokens: once, for whom, how long.

use super::*;

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
