//! Silence, and what does not count as silence: real registries, instances that beat over HTTP.

use std::net::Ipv4Addr;
use std::time::Duration;

use pillion_tests::support::sidecar::sum;
use pillion_tests::support::wait::length;
use pillion_tests::support::{Beats, DEADLINE, Registry, dns, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

/// The shortest lease there is.
const TTL: Duration = Duration::from_secs(2);
/// How long the registry sleeps, unless `PILLION_TEST_PAUSE` says another time, such as `120s`.
const PAUSE: Duration = Duration::from_secs(7);
/// How much later than it is right a test may notice, on a machine that is busy with other things.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);

fn address(service: usize, instance: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, u8::try_from(service).expect("few"), u8::try_from(instance).expect("few"))
}

/// Registers so many instances of a service, with the shortest lease; their heartbeats begin.
async fn register(registry: &Registry, service: usize, count: usize) -> Vec<(String, String)> {
    let mut instances = Vec::new();
    for n in 1..=count {
        let (name, id) = (format!("s{service}"), format!("s{service}-{n}"));
        let body = json!({"address": address(service, n).to_string(), "port": 80, "ttl": "2s"});
        let path = format!("/v1/namespaces/default/services/{name}/instances/{id}");
        let answer = registry.put(&path, &body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        instances.push((name, id));
    }
    instances
}

async fn metric(registry: &Registry, name: &str) -> f64 {
    sum(&registry.get("/metrics").await.body, name, &[])
}

async fn brake(registry: &Registry) -> Value {
    registry.get("/v1/brake").await.json()["overall"].clone()
}

#[tokio::test]
async fn a_registry_that_was_asleep_expires_nobody() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let instances = register(&registry, 1, 20).await;
    let _beats = Beats::start(vec![registry.api], instances);
    registry.serving("s1.default", 20).await;
    registry.process.signal(Signal::STOP);
    tokio::time::sleep(length("PILLION_TEST_PAUSE", PAUSE)).await; // nothing happens: it sleeps
    registry.process.signal(Signal::CONT);
    let woke = Instant::now();
    eventually("several leases have passed", DEADLINE, || async {
        assert_eq!(metric(&registry, "pillion_registry_expired_total").await, 0.0);
        if woke.elapsed() > TTL * 3 { Ok(()) } else { Err("not yet") }
    })
    .await;
    registry.serving("s1.default", 20).await;
    assert_eq!(brake(&registry).await["departed"], 0);
    let slept = metric(&registry, "pillion_registry_asleep_seconds_total").await;
    assert!(slept > 5.0, "it knows how long it slept: {slept}");
}

#[tokio::test]
async fn of_mass_silence_only_a_few_leave_and_the_rest_are_back_when_they_are_heard() {
    const ALL: usize = 20;
    const SILENT: usize = 12;
    /// 15 % of them.
    const BUDGET: usize = 3;
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let instances = register(&registry, 1, ALL).await;
    let beats = Beats::start(vec![registry.api], instances.clone());
    registry.serving("s1.default", ALL).await;
    for (service, id) in &instances[..SILENT] {
        beats.mute(service, id);
    }
    let left = eventually("all silent ones have left or are held", DEADLINE, || async {
        let state = brake(&registry).await;
        let count = |name: &str| state[name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let (left, held) = (count("departed"), count("protected"));
        if left + held == SILENT { Ok(left) } else { Err(state.to_string()) }
    })
    .await;
    assert!((1..=BUDGET).contains(&left), "{left} left");
    // And so it stays for the rest of the minute.
    let held = Instant::now();
    eventually("several leases have passed", DEADLINE, || async {
        assert_eq!(brake(&registry).await["departed"], left);
        if held.elapsed() > TTL * 3 { Ok(()) } else { Err("not yet") }
    })
    .await;
    let shown = registry.cli(&["get", "brake"]).await;
    assert!(shown.code == 0 && shown.stdout.contains(&(SILENT - left).to_string()), "{shown:?}");
    assert_eq!(metric(&registry, "pillion_registry_protected_instances").await, (SILENT - left) as f64);
    assert_eq!(metric(&registry, "pillion_registry_expired_total").await, left as f64);
    let answer = dns::ask(registry.dns, "s1.default.mesh.internal").await.expect("answers");
    assert!(answer.code == 0 && !answer.addresses.is_empty(), "{answer:?}");

    let recovered = Instant::now();
    for (service, id) in &instances[..SILENT] {
        beats.unmute(service, id);
    }
    eventually("the brake is released", DEADLINE, || async {
        let state = brake(&registry).await;
        if state["protected"] == 0 { Ok(()) } else { Err(state.to_string()) }
    })
    .await;
    let took = recovered.elapsed();
    assert!(took <= TTL + NOTICED_WITHIN, "released after {took:?}");
    registry.serving("s1.default", ALL - left).await;
    assert_eq!(metric(&registry, "pillion_registry_expired_total").await, left as f64, "nobody else left");
}

#[tokio::test]
async fn one_of_a_few_that_dies_is_out_of_dns_within_its_lease_and_a_second() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let sizes = [1, 2, 3, 6, 7];
    let mut instances = Vec::new();
    for size in sizes {
        instances.extend(register(&registry, size, size).await);
    }
    let beats = Beats::start(vec![registry.api], instances);
    for size in sizes {
        registry.serving(&format!("s{size}.default"), size).await;
    }
    let mut dying = tokio::task::JoinSet::new();
    for size in sizes {
        let (service, server) = (format!("s{size}"), registry.dns);
        let last = beats.mute(&service, &format!("s{size}-1"));
        dying.spawn(async move {
            let name = format!("{service}.default.mesh.internal");
            eventually(&format!("one of {size} is gone"), DEADLINE, || async {
                let answer = dns::ask(server, &name).await?;
                assert_eq!(answer.code, 0, "{name}: {answer:?}");
                if answer.addresses.contains(&address(size, 1)) { Err(format!("{answer:?}")) } else { Ok(()) }
            })
            .await;
            (size, last.elapsed())
        });
    }
    while let Some(gone) = dying.join_next().await {
        let (size, after) = gone.expect("no panic");
        println!("one of {size}: out of DNS {after:?} after its last heartbeat");
        let most = TTL + Duration::from_secs(1) + NOTICED_WITHIN;
        assert!(after >= TTL - Duration::from_millis(500) && after <= most, "one of {size}: {after:?}");
    }
    for size in sizes {
        registry.serving(&format!("s{size}.default"), size - 1).await;
    }
    assert_eq!(metric(&registry, "pillion_registry_expired_total").await, 5.0);
}
