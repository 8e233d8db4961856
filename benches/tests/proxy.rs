//! The proxy's bench, some scenarios and one short round: what it measures is not held against anything here.

use std::time::Duration;

use pillion_benches::proxy::server::Programs;
use pillion_benches::proxy::{origin, run};
use pillion_tests::support::{peer, pillion};

#[test]
fn carrying_costs_something_with_each_proxy() {
    let others = ["wrk", "h2load", "haproxy"].map(peer);
    let (Some(envoy), true) = (peer("envoy"), others.iter().all(Option::is_some)) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let programs = Programs { pillion: pillion().to_owned(), envoy };
    let (origin, second) = (origin::start().expect("an origin"), Duration::from_secs(1));
    for name in ["one plaintext hop, 1 connection", "gRPC pair, 32 calls at once", "TCP, 32 connections"] {
        let report = run::all(&programs, origin, folder.path(), name, 1, second).expect("measures");
        for proxy in ["Pillion", "Envoy", "HAProxy"] {
            for figure in ["CPU per request", "requests", "p50", "p99", "memory"] {
                let what = format!("{name}: {proxy}: {figure}");
                let row = report.rows.iter().find(|row| row.what == what);
                assert!(row.is_some_and(|row| row.value > 0.0), "{what}: {:?}", report.rows);
            }
        }
    }
}
