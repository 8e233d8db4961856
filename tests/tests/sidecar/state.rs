//! The state directory: a start without the registry, and whose it is.

use pillion_tests::support::process::run;
use pillion_tests::support::{App, DEADLINE, Plan, Registry, Sidecar, eventually};

#[tokio::test]
async fn a_sidecar_killed_at_once_starts_without_the_registry() {
    let (data, state) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let app = App::start("orders").await;
    let _orders = Sidecar::beside(&registry, "orders.shop", app.address).await;
    let host = format!("orders.shop.mesh.internal:{}", app.port());
    let plan = Plan::caller(registry.mesh, "web.shop").state(state.path());
    let web = plan.start().await;
    web.get_until(&host, "/", 200).await;
    eventually("what was learnt is on disk", DEADLINE, || async {
        let saved = std::fs::read(state.path().join("config.bin")).map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&saved).into_owned();
        if text.contains("orders.shop.mesh.internal") { Ok(()) } else { Err(text) }
    })
    .await;
    web.process.kill().await;
    registry.process.kill().await;
    let web = plan.start().await;
    web.get_until(&host, "/", 200).await;
    let unknown = web.get("other.shop.mesh.internal", "/").await.expect("answered");
    assert_eq!(unknown.status, 503, "{unknown:?}");
    assert!(unknown.body.contains("the registry has not answered"), "{unknown:?}");
}

#[tokio::test]
async fn a_state_directory_keeps_its_instance_and_is_one_sidecars() {
    let (data, state) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let (first, second) = (App::start("web").await, App::start("web").await);
    let plan = |service: &str, app: &App| Plan::new(registry.mesh, service, &app.port()).state(state.path());
    let web = plan("web.shop", &first).start().await;
    registry.serving("web.shop", 1).await;
    let instances = async || {
        let listed = registry.cli(&["get", "instances", "web.shop", "-o", "json"]).await;
        let listed: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
        listed.as_array().into_iter().flatten().map(|instance| instance["id"].to_string()).collect::<Vec<_>>()
    };
    let before = instances().await;
    let refused = run(plan("web.shop", &second).arguments()).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("in use by another sidecar"), "{refused:?}");
    web.process.kill().await;

    let refused = run(plan("orders.shop", &second).arguments()).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("belongs to shop/web/"), "{refused:?}");

    // On another port it is the same instance still.
    let _web = plan("web.shop", &second).start().await;
    registry.serving("web.shop", 1).await;
    assert_eq!(instances().await, before);
}
