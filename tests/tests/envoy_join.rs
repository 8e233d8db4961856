//! Real Envoys join a running mesh by what `pillion generate envoy` writes.

use pillion_tests::support::binary::repository;
use pillion_tests::support::{DEADLINE, Envoy, Process, Registry, eventually, http, peer};

const ORDERS: &str = "orders.shop.mesh.internal";
const PAYMENTS: &str = "payments.shop.mesh.internal";

async fn orders(name: &str) -> (Process, std::net::SocketAddr) {
    let process = Process::pillion(name, ["demo-service", "orders", "--instance", name]);
    let address = process.bound("listening on").await;
    (process, address)
}

#[tokio::test]
async fn envoys_call_each_other_over_mutual_tls_under_our_policies() {
    let Some(envoy) = peer("envoy") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let applied =
        registry.cli(&["apply", "-f", &repository().join("examples/shop.yaml").display().to_string()]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
    // The example's route splits by version, which an announced instance does not tell.
    let deleted = registry.cli(&["delete", "route", "orders-canary.shop"]).await;
    assert_eq!(deleted.code, 0, "{deleted:?}");

    let (_orders, orders_address) = orders("orders-1").await;
    let server = Envoy::join(&envoy, &registry, "orders.shop", Some(orders_address), files.path()).await;
    let (_payments, payments_address) = orders("payments-1").await;
    let payments =
        Envoy::join(&envoy, &registry, "payments.shop", Some(payments_address), files.path()).await;
    let web = Envoy::join(&envoy, &registry, "web.shop", None, files.path()).await;

    let page = eventually("web reaches orders", DEADLINE, || async {
        let page = http::get(web.outbound, ORDERS, "/").await?;
        if page.status == 200 { Ok(page) } else { Err(format!("{page:?}")) }
    })
    .await;
    assert_eq!(page.json()["caller"], "spiffe://mesh.internal/ns/shop/svc/web", "{page:?}");

    // Only the front may ask for payments.
    eventually("payments refuses web", DEADLINE, || async {
        let page = http::get(web.outbound, PAYMENTS, "/").await?;
        if page.status == 403 { Ok(()) } else { Err(format!("{page:?}")) }
    })
    .await;

    for one in [&web, &server, &payments] {
        let rejected = one.stats("update_rejected").await;
        assert!(!rejected.is_empty());
        assert!(rejected.iter().all(|(_, count)| *count == 0), "{rejected:?}");
        let said = one.process.output();
        assert!(!said.contains("deprecated"), "{said}");
    }
    let proxies = registry.cli(&["get", "proxies"]).await;
    assert!(proxies.stdout.contains("shop/web/envoy"), "{proxies:?}");

    // The stream registers the instance while it is open.
    server.process.kill().await;
    eventually("the instance of the killed Envoy is gone", DEADLINE, || async {
        let listed = registry.cli(&["get", "instances", "orders.shop", "-o", "json"]).await;
        if listed.stdout.trim() == "[]" { Ok(()) } else { Err(listed.stdout) }
    })
    .await;
    eventually("web is told", DEADLINE, || async {
        let page = http::get(web.outbound, ORDERS, "/").await?;
        if page.status == 503 { Ok(()) } else { Err(format!("{page:?}")) }
    })
    .await;
}
