//! Instances come and go under load, in order and not.

use std::sync::Arc;
use std::time::Duration;

use pillion_tests::support::app::echo;
use pillion_tests::support::ports::free_port;
use pillion_tests::support::process::finish;
use pillion_tests::support::{
    App, DEADLINE, Load, Plan, Process, Registry, Sidecar, eventually, peer, pillion,
};
use rustix::process::Signal;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

const ORDERS: &str = "kind: Service\nname: orders\nports: [{name: http, port: 80, protocol: http}]\n";
const NAME: &str = "orders.default.mesh.internal";

/// An instance of orders as users run them: the program by `pillion run`.
fn instance(registry: &Registry, id: &str) -> Process {
    let (mesh, port) = (registry.mesh.to_string(), free_port().to_string());
    let listen = format!("127.0.0.1:{port}");
    let binary = pillion().display().to_string();
    let sidecar = ["run", "--registry", &mesh, "--advertise", "127.0.0.1", "--names", "none"];
    let us = ["--service", "orders", "--instance-id", id, "--port", &port, "--"];
    let application = [&binary, "demo-service", "orders", "--instance", id, "--listen", &listen];
    Process::pillion(id, sidecar.iter().chain(&us).chain(&application))
}

#[tokio::test]
async fn a_rolling_restart_under_load_loses_no_request() {
    const IDS: [&str; 3] = ["orders-1", "orders-2", "orders-3"];
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    registry.apply(ORDERS).await;
    let mut instances: Vec<Process> = IDS.iter().map(|id| instance(&registry, id)).collect();
    registry.serving("orders.default", IDS.len()).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    web.get_until(NAME, "/", 200).await;
    let load = Load::start(web.outbound, NAME, 200);
    for (id, running) in IDS.iter().zip(&mut instances) {
        running.signal(Signal::TERM);
        let status = running.exit(DEADLINE).await;
        // The application ends in order when it is told.
        assert!(status.success(), "{status}: {}", running.output());
        registry.serving("orders.default", IDS.len() - 1).await;
        *running = instance(&registry, id);
        registry.serving("orders.default", IDS.len()).await;
        let before = load.so_far().of(id);
        eventually(&format!("{id} serves again"), DEADLINE, || async {
            let now = load.so_far().of(id);
            if now > before { Ok(()) } else { Err(format!("{now} answers as before")) }
        })
        .await;
    }
    let tally = load.stop().await;
    println!("{} requests, {:?} slowest, {:?}", tally.sent, tally.slowest, tally.by_name);
    tally.expect_no_failure();
}

#[tokio::test]
async fn a_request_in_flight_survives_its_sidecars_end_and_new_ones_go_elsewhere() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    registry.apply(ORDERS).await;
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let slow = App::with(move |seen| {
        let gate = Arc::clone(&opened);
        async move {
            if seen.uri().path() == "/wait" {
                let _open = gate.acquire().await;
            }
            echo("slow", &seen)
        }
    })
    .await;
    let quick = App::start("quick").await;
    let plan = |app: &App, id: &str| Plan::new(registry.mesh, "orders.default", &app.port()).instance(id);
    let mut ending = plan(&slow, "slow").start().await;
    let _staying = plan(&quick, "quick").start().await;
    registry.serving("orders.default", 2).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    web.get_until(NAME, "/", 200).await;

    let mut in_flight = JoinSet::new();
    let outbound = web.outbound;
    eventually("a request waits at the slow instance", DEADLINE, || {
        in_flight.spawn(async move { pillion_tests::support::http::get(outbound, NAME, "/wait").await });
        let waits = slow.seen().iter().any(|seen| seen.uri().path() == "/wait");
        async move { if waits { Ok(()) } else { Err("none yet") } }
    })
    .await;
    ending.process.signal(Signal::TERM);
    registry.serving("orders.default", 1).await;
    // A second at most until callers know; what comes meanwhile is served as well.
    eventually("new requests go elsewhere", DEADLINE, || async {
        for _ in 0..20 {
            let answer = web.get(NAME, "/").await?;
            assert_eq!(answer.status, 200, "{answer:?}");
            if answer.json()["name"] != "quick" {
                return Err(format!("{answer:?}"));
            }
        }
        Ok(())
    })
    .await;
    gate.add_permits(1000);
    let mut names = Vec::new();
    while let Some(answer) = in_flight.join_next().await {
        let answer = answer.expect("no panic").expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        names.push(answer.json()["name"].clone());
    }
    assert!(names.contains(&"slow".into()), "{names:?}");
    let status = ending.process.exit(DEADLINE).await;
    assert!(status.success(), "{status}: {}", ending.process.output());
}

#[tokio::test]
async fn a_killed_instance_is_out_of_dns_in_time_and_then_missed_by_nobody() {
    const LEASE: Duration = Duration::from_secs(2);
    /// Beyond the lease: what the design allows, and what a busy machine may take to ask.
    const MORE: Duration = Duration::from_secs(2);
    let Some(dig) = peer("dig") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    registry.apply(ORDERS).await;
    let (first, second) = (App::start("first").await, App::start("second").await);
    let plan = |app: &App, id: &str, host: u8| {
        let plan = Plan::new(registry.mesh, "orders.default", &app.port()).instance(id);
        plan.inbound(([127, 0, 2, host], 0).into()).with(&["--ttl", &LEASE.as_secs().to_string()])
    };
    let dying = plan(&first, "first", 1).start().await;
    let _staying = plan(&second, "second", 2).start().await;
    registry.serving("orders.default", 2).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    web.get_until(NAME, "/", 200).await;
    let port = registry.dns.port().to_string();
    let addresses = async || {
        let answer = finish(&dig, ["@127.0.0.1", "-p", &port, "+short", NAME, "A"]).await;
        let mut addresses: Vec<String> = answer.stdout.lines().map(str::to_owned).collect();
        addresses.sort();
        addresses
    };
    assert_eq!(addresses().await, ["127.0.2.1", "127.0.2.2"]);

    let killed = Instant::now();
    dying.process.kill().await;
    drop(first);
    eventually("the killed instance is out of DNS", DEADLINE, || async {
        let found = addresses().await;
        if found == ["127.0.2.2"] { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let after = killed.elapsed();
    assert!(after <= LEASE + MORE, "it took {after:?}");
    let load = Load::start(web.outbound, NAME, 200);
    eventually("enough was asked", DEADLINE, || async {
        let sent = load.so_far().sent;
        if sent >= 400 { Ok(()) } else { Err(sent) }
    })
    .await;
    let tally = load.stop().await;
    tally.expect_no_failure();
    assert_eq!(tally.of("second"), tally.sent, "{tally:?}");
}
