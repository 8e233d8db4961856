//! A registry process: resources and registrations by command line and API, over a crash.

use pillion_tests::support::binary::repository;
use pillion_tests::support::process::run;
use pillion_tests::support::{DEADLINE, Process, Registry};
use rustix::process::Signal;
use serde_json::json;

/// A free port of loopback.
const ANY: &str = "127.0.0.1:0";
const ORDERS_1: &str = "/v1/namespaces/shop/services/orders/instances/orders-1";

fn shop() -> String {
    repository().join("examples/shop.yaml").display().to_string()
}

#[tokio::test]
async fn resources_are_applied_listed_compared_and_deleted() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let file = shop();
    for (arguments, code, want) in [
        (&["diff", "-f", &file][..], 1, "Service shop/orders"),
        (&["apply", "--dry-run", "-f", &file], 0, "created"),
        (&["get", "services"], 0, "NAMESPACE"),
        (&["apply", "-f", &file], 0, "created"),
        (&["apply", "-f", &file], 0, "unchanged"),
        (&["diff", "-f", &file], 0, ""),
        (&["get", "routes", "-n", "shop"], 0, "orders-canary"),
        (&["get", "route", "orders-canary.shop", "-o", "yaml"], 0, "weight: 90"),
        (&["describe", "service", "payments.shop"], 0, "payments-callers"),
        (&["delete", "service", "orders.shop"], 1, "still needed"),
        (&["delete", "route", "orders-canary.shop"], 0, "deleted"),
        (&["delete", "route", "orders-canary.shop"], 1, "404"),
        (&["get", "brake"], 0, "BUDGET"),
        (&["get", "teapots"], 2, "want services, instances, proxies, brake, resources"),
    ] {
        let finished = registry.cli(arguments).await;
        assert_eq!(finished.code, code, "{arguments:?}: {finished:?}");
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(said.contains(want), "{arguments:?}: no `{want}` in {said}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_crash() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let applied = registry.cli(&["apply", "-f", &shop()]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
    let registered = registry.put(ORDERS_1, &json!({"address": "10.0.0.5", "port": 8080})).await;
    assert_eq!(registered.status, 201, "{registered:?}");
    let registry = registry.crash_and_restart().await;
    let instance = registry.get(ORDERS_1).await;
    assert_eq!(instance.json()["health"], "serving", "{instance:?}");
    let listed = registry.cli(&["get", "instances", "orders.shop", "-o", "json"]).await;
    assert!(listed.stdout.contains("10.0.0.5"), "{listed:?}");
    let unchanged = registry.cli(&["diff", "-f", &shop()]).await;
    assert_eq!(unchanged.code, 0, "{unchanged:?}");
}

#[tokio::test]
async fn bad_registrations_name_the_field_and_change_nothing() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    for (body, field) in [
        (json!({"address": "not-an-address", "port": 8080}), "address"),
        (json!({"address": "10.0.0.5", "port": 8080, "ttl": "1s"}), "ttl"),
        (json!({"address": "10.0.0.5", "port": 8080, "ttl": "48h"}), "ttl"),
        (json!({"address": "10.0.0.5", "port": 99999}), "port"),
        (json!({"address": "10.0.0.5", "port": 8080, "wieght": 1}), "wieght"),
    ] {
        let answer = registry.put(ORDERS_1, &body).await;
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
        let problem = answer.json();
        let fields: Vec<_> =
            problem["errors"].as_array().into_iter().flatten().map(|e| e["field"].clone()).collect();
        assert!(fields.contains(&json!(field)), "{body}: {problem}");
    }
    assert_eq!(registry.get(ORDERS_1).await.status, 404);
}

#[tokio::test]
async fn a_taken_port_is_told_with_the_flag_that_chooses_another() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let other = tempfile::tempdir().expect("a folder");
    let (folder, api) = (other.path().display().to_string(), registry.api.to_string());
    let finished =
        run(["registry", "--open", "--data-dir", &folder, "--api", &api, "--mesh", ANY, "--dns", ANY]).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    for want in [&*api, "is taken", "--api"] {
        assert!(finished.stderr.contains(want), "no `{want}` in {finished:?}");
    }
}

#[tokio::test]
async fn the_operators_token_is_made_once_asked_for_and_found() {
    let data = tempfile::tempdir().expect("a folder");
    let folder = data.path().display().to_string();
    let mut registry = Process::pillion(
        "registry",
        ["registry", "--data-dir", &folder, "--api", ANY, "--mesh", ANY, "--dns", ANY],
    );
    let api = format!("http://{}", registry.bound("api").await);
    let elsewhere = tempfile::tempdir().expect("a folder").path().display().to_string();
    let refused = run(["get", "services", "--api", &api, "--data-dir", &elsewhere]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("401"), "{refused:?}");
    let found = run(["get", "services", "--api", &api, "--data-dir", &folder]).await;
    assert_eq!(found.code, 0, "{found:?}");
    registry.signal(Signal::TERM);
    let status = registry.exit(DEADLINE).await;
    assert!(status.success(), "{status}: {}", registry.output());
}

#[tokio::test]
async fn a_corrupted_store_is_refused_and_left_as_it_is() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    registry.process.kill().await;
    let entries = data.path().read_dir().expect("readable").map(|entry| entry.expect("readable").path());
    let store =
        entries.into_iter().find(|path| path.extension().is_some_and(|e| e == "redb")).expect("a store");
    std::fs::write(&store, b"this is no store").expect("written");
    let folder = data.path().display().to_string();
    let finished =
        run(["registry", "--open", "--data-dir", &folder, "--api", ANY, "--mesh", ANY, "--dns", ANY]).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stderr.contains(&store.display().to_string()), "{finished:?}");
    assert_eq!(std::fs::read(&store).expect("readable"), b"this is no store");
}
