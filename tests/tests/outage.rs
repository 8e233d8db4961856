//! The registry away: traffic goes on, sidecars restart, and nothing is lost when it is back.

use std::time::Duration;

use pillion_tests::support::load::Tally;
use pillion_tests::support::ports::free_address;
use pillion_tests::support::wait::length;
use pillion_tests::support::{App, DEADLINE, Load, Plan, Registry, Sidecar, eventually};

/// How long the registry is away, unless `PILLION_TEST_OUTAGE` says another time, such as `60s`.
const OUTAGE: Duration = Duration::from_secs(10);
/// Requests per second meanwhile.
const RATE: u32 = 500;
/// How long after its return anything that was wrongly given up would be gone: the leases of the
/// instances, and some.
const AFTERWARDS: Duration = Duration::from_secs(4);
/// How long the registrations live unrenewed: shorter than the registry is away.
const LEASE_SECONDS: &str = "2";
/// No breaker: on a machine that is busy with other things, requests are late and pile up.
const SERVICES: &str = "\
kind: Service
name: orders
ports: [{name: http, port: 80, protocol: http}]
circuitBreaker: {maxConnections: 100000, maxPending: 100000, maxRequests: 100000}
---
kind: Service
name: stock
ports: [{name: http, port: 80, protocol: http}]
";
const ORDERS: &str = "orders.default.mesh.internal";
const STOCK: &str = "stock.default.mesh.internal";

fn outage() -> Duration {
    length("PILLION_TEST_OUTAGE", OUTAGE)
}

/// Waits until the load has had so much more time, as told by what came back of it.
async fn pass(load: &Load, time: Duration) {
    let before = load.so_far().sent;
    let due = before + u64::from(RATE) * time.as_secs();
    eventually("the load goes on", time + DEADLINE, || async {
        let sent = load.so_far().sent;
        if sent >= due { Ok(()) } else { Err(format!("{sent} of {due} requests came back")) }
    })
    .await;
}

/// How long a sidecar gathers changes before it writes them, and a moment.
const GATHERED: Duration = Duration::from_millis(1500);

/// Waits until the configuration that a sidecar keeps in `folder` speaks of `text`, and what belongs to
/// it has been written too.
async fn on_disk(folder: &std::path::Path, text: &str) {
    let file = folder.join("config.bin");
    eventually(&format!("{} holds {text}", file.display()), DEADLINE, || async {
        let kept = std::fs::read(&file).map_err(|error| error.to_string())?;
        let written =
            std::fs::metadata(&file).and_then(|of| of.modified()).map_err(|error| error.to_string())?;
        let found = kept.windows(text.len()).any(|window| window == text.as_bytes());
        let rests = written.elapsed().is_ok_and(|since| since >= GATHERED);
        if found && rests { Ok(()) } else { Err(format!("{} bytes; with it: {found}", kept.len())) }
    })
    .await;
}

#[tokio::test]
async fn no_request_fails_while_the_registry_is_dead() {
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let [data, shop_state, stock_state] = &folders;
    let registry = Registry::start(data.path()).await;
    registry.apply(SERVICES).await;
    let (orders, stock) = (App::start("orders").await, App::start("stock").await);
    let lease = ["--ttl", LEASE_SECONDS];
    let plan = |service: &str, port: &str| Plan::new(registry.mesh, service, port).with(&lease);
    let _orders = plan("orders.default", &orders.port()).start().await;
    let address = free_address();
    let stock_plan = plan("stock.default", &stock.port()).inbound(address).state(stock_state.path());
    let stock_sidecar = stock_plan.start().await;
    let shop_plan = plan("shop.default", "1").state(shop_state.path());
    let shop = shop_plan.start().await;
    let web = plan("web.default", "1").start().await;
    for service in ["orders.default", "stock.default"] {
        registry.serving(service, 1).await;
    }
    for (sidecar, host) in [(&web, ORDERS), (&shop, STOCK)] {
        sidecar.get_until(host, "/", 200).await;
    }

    for (folder, kept) in [(stock_state, "stock.default"), (shop_state, "stock.default.mesh.internal")] {
        on_disk(folder.path(), kept).await;
    }

    let load = Load::start(web.outbound, ORDERS, RATE);
    let crashed = registry.crash().await;
    let begin = tokio::time::Instant::now();
    // Both sides of a call crash and come back with what they had on disk.
    stock_sidecar.process.kill().await;
    shop.process.kill().await;
    let _stock: Sidecar = stock_plan.start().await;
    let shop = shop_plan.start().await;
    let page = shop.get_until(STOCK, "/", 200).await;
    assert_eq!(page.json()["caller"], "spiffe://mesh.internal/ns/default/svc/shop", "{page:?}");
    pass(&load, outage().saturating_sub(begin.elapsed())).await;
    let registry = crashed.restart().await;
    pass(&load, AFTERWARDS).await;
    let tally = load.stop().await;
    let Tally { sent, slowest, slowest_at, .. } = &tally;
    println!("away for {:?}: {sent} requests, {slowest:?} slowest (after {slowest_at:?})", outage());
    tally.expect_no_failure();
    let due = u64::from(RATE) * outage().as_secs();
    assert!(tally.sent >= due, "{} requests were sent, {due} were due", tally.sent);
    for service in ["orders.default", "stock.default"] {
        registry.serving(service, 1).await;
    }
    for (sidecar, host) in [(&web, ORDERS), (&shop, STOCK), (&web, STOCK)] {
        sidecar.get_until(host, "/", 200).await;
    }
}

#[tokio::test]
async fn a_taken_port_is_told_with_the_flag_that_chooses_another() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("a bound socket has an address").to_string();
    for flag in ["--inbound", "--outbound", "--admin", "--metrics", "--dns"] {
        let mut words = Plan::caller(registry.mesh, "web.default").arguments();
        let at = words.iter().position(|word| word == flag).expect("the flag is given");
        words[at + 1] = address.clone();
        let refused = pillion_tests::support::process::run(&words).await;
        assert_eq!(refused.code, 1, "{flag}: {refused:?}");
        for want in [address.as_str(), "is taken", flag] {
            assert!(refused.stderr.contains(want), "{flag}: no `{want}` in {refused:?}");
        }
    }
}
