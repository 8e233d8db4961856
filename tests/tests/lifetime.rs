//! Certificates that end while sidecars live, and a registry that is away meanwhile.

use std::time::Duration;

use pillion_tests::support::{App, DEADLINE, Load, Plan, Registry, Sidecar, eventually};

const HELLO: &str = "kind: Service\nname: hello\nports: [{name: http, port: 80, protocol: http}]\n";
const NAME: &str = "hello.default.mesh.internal";
const LIFETIME: Duration = Duration::from_secs(30);
/// Requests per second meanwhile.
const RATE: u32 = 20;

/// Waits until the sidecar has renewed its certificate so often; its log then.
async fn renewed(sidecar: &Sidecar, count: usize) -> String {
    eventually(&format!("{count} renewals"), LIFETIME + DEADLINE, || async {
        let log = sidecar.process.output();
        if log.matches("identity renewed").count() >= count { Ok(log) } else { Err(log) }
    })
    .await
}

#[tokio::test]
async fn nobody_loses_its_identity_while_the_registry_is_away_for_half_a_lifetime() {
    let data = tempfile::tempdir().expect("a folder");
    let lifetime = format!("{}s", LIFETIME.as_secs());
    let registry = Registry::start_with(data.path(), &["--open", "--certificate-lifetime", &lifetime]).await;
    registry.apply(HELLO).await;
    let app = App::start("hello").await;
    let _hello = Plan::new(registry.mesh, "hello.default", &app.port()).start().await;
    registry.serving("hello.default", 1).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    web.get_until(NAME, "/", 200).await;
    let load = Load::start(web.outbound, NAME, RATE);

    // With another certificate the configuration comes over another connection, before the first one ends.
    renewed(&web, 1).await;
    web.process
        .line("another connection", |line| line.contains("another connection is made").then_some(()))
        .await;
    let log = web.process.output();
    assert!(!log.contains("no connection to the registry"), "{log}");

    // From one renewal until the next one is due, and some.
    let away = registry.crash().await;
    let due = || web.process.output().contains("could not be renewed");
    eventually("a renewal fails", LIFETIME + DEADLINE, || async {
        due().then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    let _registry = away.restart().await;
    renewed(&web, 2).await;
    load.stop().await.expect_no_failure();
}
