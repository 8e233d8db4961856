//! What leaves the mesh: as the Mesh resource says, also while the registry is away.

use pillion_tests::support::{App, DEADLINE, Plan, Registry, eventually};

use super::apply;

const DENY: &str = "kind: Mesh\nname: mesh\negress: deny\n";
const ALLOW: &str = "kind: Mesh\nname: mesh\negress: allow\n";

#[tokio::test]
async fn the_meshs_egress_reaches_sidecars_and_outlives_the_registry() {
    let (data, state) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let outside = App::start("outside").await;
    let host = format!("localhost:{}", outside.port());
    let plan = Plan::caller(registry.mesh, "web.default").state(state.path());
    let web = plan.start().await;
    web.get_until(&host, "/", 200).await;
    apply(&registry, DENY).await;
    let denied = web.get_until(&host, "/", 502).await;
    assert!(denied.body.contains("egress policy denies"), "{denied:?}");
    apply(&registry, ALLOW).await;
    web.get_until(&host, "/", 200).await;

    // The stricter one decides.
    let strict = Plan::caller(registry.mesh, "strict.default").with(&["--egress", "deny"]).start().await;
    assert_eq!(strict.get(&host, "/").await.expect("answered").status, 502);

    apply(&registry, DENY).await;
    web.get_until(&host, "/", 502).await;
    let asked = outside.seen().len();
    eventually("the denial is on disk", DEADLINE, || async {
        let saved = std::fs::read(state.path().join("config.bin")).map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&saved).into_owned();
        if text.contains("the mesh denies") { Ok(()) } else { Err(text) }
    })
    .await;
    web.process.kill().await;
    registry.process.kill().await;
    let web = plan.start().await;
    let denied = web.get(&host, "/").await.expect("answered");
    assert_eq!(denied.status, 502, "{denied:?}");
    assert_eq!(outside.seen().len(), asked, "nothing left");
}
