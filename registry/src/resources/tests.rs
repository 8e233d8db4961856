use std::sync::Arc;

use pillion_config::{Format, Source, parse};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::store::redb::RedbStore;

async fn with_catalog<F: AsyncFnOnce(Arc<Catalog>)>(test: F) {
    let directory = tempfile::tempdir().expect("tempdir");
    let store = Arc::new(RedbStore::open(directory.path()).expect("opens"));
    let catalog = Catalog::open(store).await.expect("loads");
    catalog.adopt();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (following, token) = (Arc::clone(&catalog), stop.clone());
    tasks.spawn(async move { following.follow(token).await });
    test(catalog).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

fn put(yaml: &str) -> Change {
    let source = Source { name: "test".into(), text: yaml.into(), format: Format::Yaml };
    let put = parse(&[source]).expect("valid").into_iter().map(|resource| resource.value).collect();
    Change { put, ..Change::default() }
}

const ORDERS: &str = "
kind: Service
name: orders
namespace: shop
ports: [{name: http, port: 80, targetPort: 8080, protocol: http}]
subsets: {v1: {version: '1'}}
";
const CANARY: &str = "
kind: Route
name: canary
namespace: shop
to: orders
rules: [{split: [{subset: v1, weight: 1}]}]
";

fn orders() -> ResourceKey {
    ResourceKey::new(Kind::Service, "shop", "orders")
}

#[tokio::test]
async fn what_is_applied_is_seen_and_applying_it_again_changes_nothing() {
    with_catalog(async |catalog| {
        let both = put(&format!("{ORDERS}---{CANARY}"));
        let first = catalog.apply_resources(&both, Mode::Commit).await.expect("applies");
        assert!(first.outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Created));
        let world = catalog.world();
        assert_eq!(world.resources.entries.len(), 2);
        let name = ServiceName::new("shop", "orders").expect("valid");
        assert!(world.indexes.contains_key(&name), "an explicit service has an index");
        assert!(!world.catalog.services.contains_key(&name), "nobody registered it");
        let again = catalog.apply_resources(&both, Mode::Commit).await.expect("applies");
        assert_eq!(again.revision, first.revision);
        assert!(again.outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Unchanged));
    })
    .await;
}

#[tokio::test]
async fn a_change_that_does_not_fit_changes_nothing_and_says_where() {
    with_catalog(async |catalog| {
        let wrong = CANARY.replace("v1", "v9");
        let change = put(&format!("{ORDERS}---{wrong}"));
        let error = catalog.apply_resources(&change, Mode::Commit).await.expect_err("does not fit");
        let ApplyError::Invalid(problems) = error else { panic!("{error}") };
        assert_eq!(problems[0].path, "rules[0].split[0].subset");
        assert!(catalog.world().resources.entries.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    with_catalog(async |catalog| {
        let applied = catalog.apply_resources(&put(ORDERS), Mode::DryRun).await.expect("fits");
        assert_eq!(applied.outcomes, [(orders(), Outcome::Created)]);
        assert_eq!(catalog.world().revision, 0);
    })
    .await;
}

#[tokio::test]
async fn what_others_need_cannot_be_deleted() {
    with_catalog(async |catalog| {
        catalog.apply_resources(&put(&format!("{ORDERS}---{CANARY}")), Mode::Commit).await.expect("applies");
        let delete = Change { delete: vec![orders()], ..Change::default() };
        let error = catalog.apply_resources(&delete, Mode::Commit).await.expect_err("needed");
        let ApplyError::Invalid(problems) = error else { panic!("{error}") };
        assert_eq!(problems[0].key.name, "canary");
        let canary = ResourceKey::new(Kind::Route, "shop", "canary");
        let both = Change { delete: vec![canary, orders()], ..Change::default() };
        catalog.apply_resources(&both, Mode::Commit).await.expect("deletes");
        let world = catalog.world();
        assert!(world.resources.entries.is_empty() && world.indexes.is_empty());
        let error = catalog.apply_resources(&delete, Mode::Commit).await.expect_err("gone");
        assert!(matches!(error, ApplyError::Unknown(key) if key == orders()));
    })
    .await;
}

#[tokio::test]
async fn conditions_are_kept() {
    with_catalog(async |catalog| {
        let applied = catalog.apply_resources(&put(ORDERS), Mode::Commit).await.expect("applies");
        let next = put(&ORDERS.replace("8080", "9090"));
        for (condition, holds) in
            [(None, false), (Some(applied.revision + 7), false), (Some(applied.revision), true)]
        {
            let change = Change { conditions: vec![(orders(), condition)], ..next.clone() };
            let result = catalog.apply_resources(&change, Mode::Commit).await;
            match result {
                Ok(_) => assert!(holds, "{condition:?}"),
                Err(ApplyError::Condition { found, .. }) => {
                    assert!(!holds && found == Some(applied.revision));
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn of_many_changes_at_once_each_sees_the_others() {
    with_catalog(async |catalog| {
        let changes: Vec<_> = (0..30).map(|n| put(&ORDERS.replace("orders", &format!("s{n}")))).collect();
        let all = changes.iter().map(|change| catalog.apply_resources(change, Mode::Commit));
        for result in futures_util::future::join_all(all).await {
            result.expect("applies");
        }
        assert_eq!(catalog.world().resources.entries.len(), 30);
    })
    .await;
}
