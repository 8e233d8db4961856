//! The root rotates under load, and nobody notices.

use std::time::Duration;

use pillion_tests::support::process::run;
use pillion_tests::support::wait::length;
use pillion_tests::support::{App, DEADLINE, Etcd, Load, Plan, Registry, Sidecar, eventually};

/// How long certificates live: the shortest that a registry gives.
const LIFETIME: &str = "10s";
/// A rotation takes a lifetime and a little more.
const ROTATION: Duration = Duration::from_secs(30);
/// Requests per second meanwhile.
const RATE: u32 = 200;
const HELLO: &str = "kind: Service\nname: hello\nports: [{name: http, port: 80, protocol: http}]\n";
const NAME: &str = "hello.default.mesh.internal";

/// Waits until the rotation stands at this step, and everybody knows the root that signs; the status then.
async fn reaches(registry: &Registry, step: &str) -> serde_json::Value {
    eventually(&format!("the rotation is {step}"), ROTATION + DEADLINE, || async {
        let status = registry.cli(&["ca", "status", "-o", "json"]).await;
        let json: serde_json::Value =
            serde_json::from_str(&status.stdout).map_err(|error| format!("{error}: {status:?}"))?;
        // Whoever has just renewed is on its way to another stream, and missing for a moment.
        let known = step != "switched" || json["pendingTotal"] == 0;
        if json["step"] == step && known { Ok(json) } else { Err(status.stdout) }
    })
    .await
}

async fn rotate(registry: &Registry) {
    let begun = registry.cli(&["ca", "rotate"]).await;
    assert_eq!(begun.code, 0, "{begun:?}");
}

fn roles(status: &serde_json::Value) -> Vec<&str> {
    status["roots"].as_array().into_iter().flatten().filter_map(|root| root["role"].as_str()).collect()
}

/// As many rotations as fit into `PILLION_TEST_ROTATIONS` (such as `600s`), at least one.
#[tokio::test]
async fn roots_rotate_under_load_and_no_request_fails() {
    let time = length("PILLION_TEST_ROTATIONS", Duration::from_secs(1));
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let [data, state, away_state] = &folders;
    let registry = Registry::start_with(data.path(), &["--open", "--certificate-lifetime", LIFETIME]).await;
    registry.apply(HELLO).await;
    let app = App::start("hello").await;
    let port = app.address.port().to_string();
    let hello = Plan::new(registry.mesh, "hello.default", &port).state(state.path()).start().await;
    registry.serving("hello.default", 1).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    let plan = Plan::caller(registry.mesh, "away.default").state(away_state.path()).with(&["--ttl", "2"]);
    let mut away = plan.start().await;
    web.get_until(NAME, "/", 200).await;
    let load = Load::start(web.outbound, NAME, RATE);
    let begun = tokio::time::Instant::now();
    let mut rotations = 0;
    while rotations == 0 || begun.elapsed() < time {
        // It misses a whole rotation, and joins again as its certificate is over by then.
        away.process.kill().await;
        rotate(&registry).await;
        let status = reaches(&registry, "switched").await;
        assert_eq!(roles(&status)[..2], ["active", "old"], "{status}");
        let status = reaches(&registry, "steady").await;
        assert_eq!(roles(&status)[..2], ["active", "retired"], "{status}");
        away = plan.start().await;
        away.get_until(NAME, "/", 200).await;
        rotations += 1;
    }
    load.stop().await.expect_no_failure();
    drop(hello);
}

#[tokio::test]
async fn a_sidecar_that_missed_the_switch_comes_back_with_its_old_certificate() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [data, state] = &folders;
    let registry = Registry::start_with(data.path(), &["--certificate-lifetime", "60s"]).await;
    registry.apply(HELLO).await;
    let created = registry.cli(&["token", "create"]).await;
    let token = created.stdout.trim();
    let app = App::start("hello").await;
    let plan = Plan::new(registry.mesh, "hello.default", &app.address.port().to_string());
    let plan = plan.state(state.path()).instance("hello-1");
    let first = plan.clone().with(&["--join-token", token]).start().await;
    first.process.kill().await;
    rotate(&registry).await;
    // It is registered still, so it is waited for; somebody who is sure of it need not wait.
    let status = reaches(&registry, "announced").await;
    assert_eq!(status["pending"], serde_json::json!(["default/hello/hello-1"]), "{status}");
    let early = registry.cli(&["ca", "rotate", "--force"]).await;
    assert!(early.code == 1 && early.stderr.contains("by force in"), "{early:?}");
    // The token is used up: its certificate lets it in.
    let registry = registry.crash_and_restart().await;
    let again = plan.start().await;
    reaches(&registry, "switched").await;
    let log = again.process.output();
    assert!(log.contains("whom to trust has changed"), "{log}");
}

#[tokio::test]
async fn of_two_registries_one_takes_each_step_and_both_know() {
    let Some(etcd) = Etcd::start().await else { return };
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let [data, other_data, files] = &folders;
    let store = etcd.store("mesh");
    let ours = ["--open", "--store", &store, "--certificate-lifetime", LIFETIME];
    let one = Registry::start_with(data.path(), &ours).await;
    let two = Registry::start_with(other_data.path(), &ours).await;
    one.apply(HELLO).await;
    let app = App::start("hello").await;
    let _hello = Plan::new(one.mesh, "hello.default", &app.port()).start().await;
    two.serving("hello.default", 1).await;
    let web = Sidecar::caller(&two, "web.default").await;
    web.get_until(NAME, "/", 200).await;
    let before = two.get("/v1/ca").await.body;
    rotate(&two).await;
    for registry in [&one, &two] {
        eventually("the root has rotated", ROTATION + DEADLINE, || async {
            let status = registry.cli(&["ca", "status", "-o", "json"]).await.stdout;
            let json: serde_json::Value = serde_json::from_str(&status).map_err(|error| error.to_string())?;
            let done = json["step"] == "steady" && roles(&json) == ["active", "retired"];
            if done { Ok(()) } else { Err(status) }
        })
        .await;
    }
    let after = one.get("/v1/ca").await.body;
    assert!(after != before && after == two.get("/v1/ca").await.body, "{before} {after}");
    web.get_until(NAME, "/", 200).await;

    // What one takes back, the other does not give.
    let revoked = one.cli(&["ca", "revoke", "spiffe://mesh.internal/ns/default/svc/late"]).await;
    assert_eq!(revoked.code, 0, "{revoked:?}");
    eventually("the other refuses it", DEADLINE, || async {
        let (mesh, out) = (two.mesh.to_string(), files.path().display().to_string());
        let join = ["generate", "envoy", "--registry", &mesh, "--service", "late", "--out", &out];
        let refused = run(join).await;
        let good = refused.code == 1 && refused.stderr.contains("is revoked");
        if good { Ok(()) } else { Err(format!("{refused:?}")) }
    })
    .await;
}
