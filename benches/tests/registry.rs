//! Every scenario of the registry's bench, small: what it measures is not held against anything here.

use clap::Parser;
use pillion_benches::registry::{Arguments, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_measures_something() {
    let binary = pillion_tests::support::pillion();
    let arguments = Arguments::parse_from([
        "bench-registry",
        "--instances=200",
        "--streams=20",
        "--subscribers=20",
        "--proxies=20",
        "--services=10",
        "--changes=20",
        "--window=2s",
        "--beat=500ms",
        "registration",
        "heartbeats",
        "fanout",
        "proxies",
        "restart",
    ]);
    let report = run(&Arguments { binary: Some(binary.to_owned()), ..arguments }).await.expect("measures");
    for what in ["heartbeats on streams", "registrations per second", "delivered event", "restart: expired"] {
        assert!(report.rows.iter().any(|row| row.what.contains(what)), "{what}: {:?}", report.rows);
    }
    let of = |what: &str| report.rows.iter().find(|row| row.what == what).map(|row| row.value);
    assert_eq!(of("expired while beating"), Some(0.0));
    for name in ["HTTP/2", "HTTP/1.1", "HTTP/2 over TLS"] {
        assert_eq!(of(&format!("{name}: bytes about services not asked for")), Some(0.0), "{name}");
        assert_eq!(of(&format!("{name}: a service that all watch, events missed")), Some(0.0), "{name}");
    }
    assert_eq!(of("proxies: resources told of changes that nobody uses"), Some(0.0));
    assert!(of("proxies: resources told per change of a service").is_some_and(|told| told > 1.0));
    assert_eq!(of("restart: empty or negative answers"), Some(0.0));
    assert_eq!(of("restart: expired"), Some(0.0));
    assert_eq!(of("restart: instances known"), Some(200.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_into_etcd_are_measured() {
    let Some(_etcd) = pillion_tests::support::peer("etcd") else { return };
    let binary = pillion_tests::support::pillion();
    let arguments = Arguments::parse_from(["bench-registry", "etcd", "--instances=500"]);
    let report = run(&Arguments { binary: Some(binary.to_owned()), ..arguments }).await.expect("measures");
    let rate = report.rows.iter().find(|row| row.what == "etcd: durable registrations");
    assert!(rate.is_some_and(|row| row.value > 0.0), "{:?}", report.rows);
}
