//! What the long runs found, one by one.

use pillion_tests::support::{App, DEADLINE, Registry, Sidecar, eventually};

const ORDERS: &str = "kind: Service\nname: orders\nports: [{name: http, port: 80, protocol: http}]\n";
const NAME: &str = "orders.default.mesh.internal";

/// A caller's sidecar shows its renewed certificate also to services of which nothing has changed since:
/// the one before is soon good for nothing.
#[tokio::test]
async fn calls_are_made_with_the_certificate_of_the_moment() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start_with(data.path(), &["--open", "--certificate-lifetime", "16s"]).await;
    registry.apply(ORDERS).await;
    let app = App::start("orders").await;
    let _orders = Sidecar::beside(&registry, "orders.default", app.address).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    let shown = async || {
        let page = web.get_until(NAME, "/", 200).await.json();
        page["headers"]["x-forwarded-client-cert"].as_str().expect("told by the sidecar").to_owned()
    };
    let first = shown().await;
    assert!(first.contains("Hash="), "{first}");
    eventually("the caller shows another certificate", DEADLINE, || async {
        let now = shown().await;
        if now == first { Err(now) } else { Ok(()) }
    })
    .await;
}
