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
        (&["get", "teapots"], 2, "want services, instances, proxies, federations, brake, resources"),
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
async fn many_are_registered_at_once_and_each_has_its_own_outcome() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let mut instances: Vec<_> = (0..1000)
        .map(|n| json!({"namespace": "shop", "service": "orders", "id": format!("orders-{n}"), "address": "10.0.0.5", "port": 1000 + n}))
        .collect();
    instances[17]["port"] = json!(null);
    instances[17]["ports"] = json!({"http": {"port": 99_999}});
    instances[18]["id"] = json!("Orders");
    instances[19] = json!(7);
    instances[20] = instances[21].clone();
    instances[22]["labels"] = json!({"a/b": "1\n2"});
    instances[23]["ports"] = json!({"http": {"port": 80, "protocol": "tcp"}});
    instances[23]["port"] = json!(null);
    let answer = registry.post("/v1/instances", &json!({"instances": instances})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.json()["results"].as_array().cloned().expect("a list");
    assert_eq!(results.len(), instances.len());
    for (at, status, field) in [
        (16, 201, None),
        (17, 422, Some("/instances/17/ports/http/port")),
        (18, 422, Some("/instances/18/id")),
        (19, 422, Some("/instances/19")),
        (20, 201, None),
        (21, 200, None),
        (22, 422, Some("/instances/22/labels/a~1b")),
        (23, 409, Some("/instances/23/ports/http/protocol")),
        (999, 201, None),
    ] {
        let result = &results[at];
        assert_eq!(result["status"], status, "{at}: {result}");
        assert_eq!(result["problem"]["errors"][0]["field"].as_str(), field, "{at}: {result}");
        assert_eq!(result["beatInterval"].as_str(), field.is_none().then_some("10s"), "{at}: {result}");
    }
    registry.serving("orders.shop", 994).await;

    for (body, status, want) in [
        (json!({"instances": vec![0; 10_001]}), 413, "at most 10000"),
        (json!({"instances": {"a": 1}}), 422, "want a list"),
        (json!({"instances": [], "more": 1}), 422, "is not a field"),
    ] {
        let refused = registry.post("/v1/instances", &body).await;
        assert!(refused.status == status && refused.body.contains(want), "{want}: {refused:?}");
    }
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
    let good = std::fs::read(&store).expect("readable");
    let torn = good[..good.len() / 3].to_vec();
    let zeroed = [&good[..4096], &vec![0; good.len() - 4096]].concat();
    let folder = data.path().display().to_string();
    for damaged in [b"this is no store".to_vec(), torn, zeroed] {
        std::fs::write(&store, &damaged).expect("written");
        let finished =
            run(["registry", "--open", "--data-dir", &folder, "--api", ANY, "--mesh", ANY, "--dns", ANY])
                .await;
        assert_eq!(finished.code, 1, "{finished:?}");
        for part in [&*store.display().to_string(), "is damaged", "move it aside"] {
            assert!(finished.stderr.contains(part), "{part}: {finished:?}");
        }
        assert!(!finished.stderr.contains("panicked"), "{finished:?}");
        // Opening notes in the first page that the file was not closed; all others stay.
        let left = std::fs::read(&store).expect("readable");
        assert_eq!(left.len(), damaged.len(), "it is left as it is");
        assert!(left.iter().skip(4096).eq(damaged.iter().skip(4096)), "it is left as it is");
    }
}
