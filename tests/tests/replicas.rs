//! Several registries on one etcd: equals, each of which may die, while etcd may be away.

use std::time::Duration;

use pillion_tests::support::process::{finish, run};
use pillion_tests::support::sidecar::sum;
use pillion_tests::support::{
    App, Beats, DEADLINE, Etcd, Load, Plan, Registry, Sidecar, dns, eventually, peer,
};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

const SERVICES: &str = "\
kind: Service
name: orders
ports: [{name: http, port: 80, protocol: http}]
";
const ORDERS: &str = "orders.default.mesh.internal";
const FIRST: &str = "/v1/namespaces/default/services/orders/instances/orders-1";
/// Several leases of two seconds.
const SEVERAL_LEASES: Duration = Duration::from_secs(6);

/// How often each registry's DNS is asked.
const ASK_EVERY: Duration = Duration::from_millis(50);

struct Mesh {
    etcd: Etcd,
    _folders: Vec<tempfile::TempDir>,
}

/// So many registries on one etcd.
async fn replicas(count: usize) -> Option<(Mesh, Vec<Registry>)> {
    let etcd = Etcd::start().await?;
    let folders: Vec<_> = (0..count).map(|_| tempfile::tempdir().expect("a folder")).collect();
    let mut registries = Vec::new();
    for folder in &folders {
        registries
            .push(Registry::start_with(folder.path(), &["--open", "--store", &etcd.store("mesh")]).await);
    }
    for registry in &registries {
        eventually("each knows all", DEADLINE, || async {
            let store = registry.get("/v1/store").await.json();
            let known = store["replicas"].as_array().map_or(0, Vec::len);
            if known == count { Ok(()) } else { Err(store.to_string()) }
        })
        .await;
    }
    Some((Mesh { etcd, _folders: folders }, registries))
}

async fn health(registry: &Registry) -> String {
    let instance = registry.get(FIRST).await.json();
    instance["health"].as_str().unwrap_or("gone").to_owned()
}

async fn becomes(registry: &Registry, want: &str) {
    eventually(&format!("the instance is {want}"), DEADLINE, || async {
        let found = health(registry).await;
        if found == want { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test]
async fn what_one_registry_takes_all_know() {
    let Some((mesh, registries)) = replicas(2).await else { return };
    let [a, b] = &registries[..] else { unreachable!() };
    a.apply(SERVICES).await;
    let registered = b.put(FIRST, &json!({"address": "10.0.0.5", "port": 8080})).await;
    assert_eq!(registered.status, 201, "{registered:?}");
    becomes(a, "serving").await;
    assert_eq!(a.get("/v1/ca").await.body, b.get("/v1/ca").await.body, "one authority");
    let token = a.cli(&["token", "create"]).await;
    assert_eq!(token.code, 0, "{token:?}");
    let id = token.stdout.split('.').next().unwrap_or_default().trim().to_owned();
    eventually("the token is known to the other", DEADLINE, || async {
        let list = b.cli(&["token", "list"]).await.stdout;
        if list.contains(&id) { Ok(()) } else { Err(list) }
    })
    .await;
    // At rest, with an instance that beats, nothing is written.
    let beat = |registry: &Registry| {
        let path = format!("{FIRST}/heartbeat");
        let api = registry.api;
        async move {
            let request = http::Request::put(path).header("host", api.to_string()).body(bytes::Bytes::new());
            pillion_tests::support::http::send(api, request.expect("valid")).await.expect("answers").status
        }
    };
    let revision = mesh.etcd.revision().await;
    for _ in 0..50 {
        assert_eq!(beat(b).await, 200);
    }
    assert_eq!(mesh.etcd.revision().await, revision, "beats are no writes");
    if let Some(dig) = peer("dig") {
        let port = a.dns.port().to_string();
        let answer = finish(&dig, ["@127.0.0.1", "-p", &port, "+short", ORDERS, "A"]).await;
        assert_eq!(answer.stdout.trim(), "10.0.0.5", "{answer:?}");
    }
}

#[tokio::test]
async fn a_sidecar_moves_when_its_registry_dies_and_nobody_expires() {
    let Some((_mesh, mut registries)) = replicas(2).await else { return };
    registries[0].apply(SERVICES).await;
    let app = App::start("orders").await;
    let second = registries[1].mesh.to_string();
    let plan = Plan::new(registries[0].mesh, "orders.default", &app.port());
    let orders = plan.instance("orders-1").with(&["--ttl", "2", "--registry", &second]).start().await;
    becomes(&registries[0], "serving").await;
    let mut holds = Vec::new();
    for registry in &registries {
        holds.push(registry.get("/v1/proxies").await.body.contains("orders-1"));
    }
    let holder = holds.iter().position(|holds| *holds).expect("one of them has the stream");
    let dead = registries.remove(holder).crash().await;
    let [survivor] = &registries[..] else { unreachable!() };
    eventually("the sidecar has moved", DEADLINE, || async {
        let proxies = survivor.get("/v1/proxies").await.body;
        if proxies.contains("orders-1") { Ok(()) } else { Err(proxies) }
    })
    .await;
    // A lease is three beats.
    let beats = async || sum(&survivor.get("/metrics").await.body, "pillion_registry_heartbeats_total", &[]);
    let due = beats().await + 9.0;
    eventually("three leases of beats have been heard", DEADLINE, || async {
        let heard = beats().await;
        if heard >= due { Ok(()) } else { Err(format!("{heard} of {due}")) }
    })
    .await;
    assert_eq!(health(survivor).await, "serving");
    let metrics = survivor.get("/metrics").await.body;
    assert!(metrics.contains("pillion_registry_expired_total 0"), "{metrics}");
    let again = dead.restart().await;
    becomes(&again, "serving").await;
    let caller = Sidecar::caller(&again, "web.default").await;
    caller.get_until(ORDERS, "/", 200).await;
    drop(orders);
}

#[tokio::test]
async fn one_of_three_dies_under_load_and_only_what_nobody_beats_for_expires() {
    let Some((_mesh, mut registries)) = replicas(3).await else { return };
    registries[0].apply(SERVICES).await;
    let app = App::start("orders").await;
    let all: Vec<String> = registries.iter().map(|registry| registry.mesh.to_string()).collect();
    let more: Vec<&str> = all[1..].iter().flat_map(|mesh| ["--registry", mesh]).collect();
    let mut sidecars = Vec::new();
    for id in ["orders-1", "orders-2", "orders-3"] {
        let plan = Plan::new(registries[0].mesh, "orders.default", &app.port());
        sidecars.push(plan.instance(id).with(&more).start().await);
    }
    let web = Plan::caller(registries[0].mesh, "web.default").with(&more).start().await;
    for registry in &registries {
        registry.serving("orders.default", 3).await;
    }
    web.get_until(ORDERS, "/", 200).await;
    let load = Load::start(web.outbound, ORDERS, 50);
    let held = async |registry: &Registry| registry.get("/v1/proxies").await.body.matches("orders-").count();
    let mut counts = Vec::new();
    for registry in &registries {
        counts.push(held(registry).await);
    }
    let most = (0..3).max_by_key(|&n| counts[n]).expect("there are three");
    let dies = registries.remove(most);
    // Two more, by HTTP at the one that is to die: for one of them heartbeats go on elsewhere.
    for id in ["batch-1", "batch-2"] {
        let path = format!("/v1/namespaces/default/services/batch/instances/{id}");
        let body = json!({"address": "10.0.0.5", "port": 8080, "ttl": "2s"});
        assert_eq!(dies.put(&path, &body).await.status, 201);
    }
    let batch = |id: &str| ("batch".to_owned(), id.to_owned());
    let here = Beats::start(vec![dies.api], [batch("batch-1"), batch("batch-2")]);
    for registry in &registries {
        registry.serving("batch.default", 2).await;
    }
    let asking = ask_all_the_time(&registries);
    let died = Instant::now();
    drop(here);
    let _elsewhere = Beats::start(vec![registries[0].api], [batch("batch-2")]);
    let _dead = dies.crash().await;
    eventually("all sidecars have moved", DEADLINE, || async {
        let (a, b) = (held(&registries[0]).await, held(&registries[1]).await);
        if a + b == 3 { Ok(()) } else { Err(format!("{a} and {b}, of 3; held before: {counts:?}")) }
    })
    .await;
    let moved = died.elapsed();
    println!("the sidecars have moved after {moved:?}; held before: {counts:?}");
    assert!(moved < Duration::from_secs(10), "moved after {moved:?}");
    let expired = async || {
        let mut sum_of_all = 0.0;
        for registry in &registries {
            let metrics = registry.get("/metrics").await.body;
            sum_of_all += sum(&metrics, "pillion_registry_expired_total", &[]);
        }
        sum_of_all
    };
    // The dead one's lease, the time to find another registry, and the instance's own lease.
    eventually("the forgotten one has expired", Duration::from_secs(100), || async {
        match expired().await {
            1.0 => Ok(()),
            0.0 => Err("nobody".to_owned()),
            more => panic!("{more} have expired"),
        }
    })
    .await;
    let adopted = died.elapsed();
    println!("the forgotten one expired after {adopted:?}");
    assert!(adopted > Duration::from_secs(30), "it had time to find another registry: {adopted:?}");
    for registry in &registries {
        registry.serving("orders.default", 3).await;
        registry.serving("batch.default", 1).await;
        let kept = registry.get("/v1/namespaces/default/services/batch/instances/batch-2").await;
        assert_eq!(kept.json()["health"], "serving", "{kept:?}");
    }
    assert_eq!(expired().await, 1.0);
    let asked = asking.stop().await;
    assert!(asked > 100, "{asked} questions");
    load.stop().await.expect_no_failure();
}

/// Asks the DNS of each registry all the time.
fn ask_all_the_time(registries: &[Registry]) -> Asking {
    let stop = tokio::sync::watch::Sender::new(false);
    let mut work = tokio::task::JoinSet::new();
    for server in registries.iter().map(|registry| registry.dns) {
        let mut stopped = stop.subscribe();
        work.spawn(async move {
            let mut asked = 0;
            while tokio::time::timeout(ASK_EVERY, stopped.wait_for(|stopped| *stopped)).await.is_err() {
                let answer = dns::ask(server, ORDERS).await.expect("DNS answers");
                assert!(answer.code == 0 && !answer.addresses.is_empty(), "{answer:?}");
                asked += 1;
            }
            asked
        });
    }
    Asking { stop, work }
}

/// Questions that go on until they are stopped.
struct Asking {
    stop: tokio::sync::watch::Sender<bool>,
    work: tokio::task::JoinSet<usize>,
}

impl Asking {
    /// How many questions were asked and answered well.
    async fn stop(self) -> usize {
        self.stop.send_replace(true);
        self.work.join_all().await.into_iter().sum()
    }
}

#[tokio::test]
async fn while_etcd_is_away_everything_is_answered_and_nothing_is_changed() {
    let Some((mut mesh, registries)) = replicas(2).await else { return };
    let [a, b] = &registries[..] else { unreachable!() };
    a.apply(SERVICES).await;
    let body = json!({"address": "10.0.0.5", "port": 8080, "ttl": "2s"});
    assert_eq!(a.put(FIRST, &body).await.status, 201);
    becomes(b, "serving").await;
    mesh.etcd.stop().await;
    let refused = a.cli(&["token", "create"]).await;
    let reason = "503: the store does not accept writes: ";
    assert!(refused.code == 1 && refused.stderr.contains(reason), "{refused:?}");
    tokio::time::sleep(SEVERAL_LEASES).await; // silent so long, which leaves no trace to wait for
    for registry in [a, b] {
        assert_ne!(health(registry).await, "gone", "silence alone deletes nothing");
        let other = registry.put("/v1/namespaces/default/services/new/instances/new-1", &body).await;
        assert_eq!(other.status, 503, "{other:?}");
        let beat = registry.put(&format!("{FIRST}/heartbeat"), &json!({})).await;
        assert_eq!(beat.status, 200, "beats go on: {beat:?}");
        assert!(registry.get("/metrics").await.body.contains("pillion_registry_store_up 0"));
        assert_eq!(run(["ready", "--address", &registry.api.to_string()]).await.code, 0);
    }
    mesh.etcd.resume_from_disk().await;
    eventually("changes are taken again", DEADLINE, || async {
        let token = a.cli(&["token", "create"]).await;
        if token.code == 0 { Ok(()) } else { Err(token.stderr) }
    })
    .await;
    becomes(b, "gone").await;
}

#[tokio::test]
async fn a_store_moves_between_engines_and_keeps_indexes_authority_and_resources() {
    let Some(etcd) = Etcd::start().await else { return };
    let (first, second) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let files = tempfile::tempdir().expect("a folder");
    let file = |name: &str| files.path().join(name).display().to_string();
    let registry = Registry::start(first.path()).await;
    registry.apply(SERVICES).await;
    assert_eq!(registry.put(FIRST, &json!({"address": "10.0.0.5", "port": 8080})).await.status, 201);
    let saved = registry.cli(&["snapshot", "save", &file("saved")]).await;
    assert_eq!(saved.code, 0, "{saved:?}");
    let authority = registry.get("/v1/ca").await.body;
    registry.process.kill().await;

    let store = etcd.store("moved");
    let [first_folder, second_folder] = [&first, &second].map(|folder| folder.path().display().to_string());
    for arguments in [
        &["export", &file("embedded"), "--data-dir", &first_folder][..],
        &["import", "store", &file("embedded"), "--store", &store],
        &["export", &file("etcd"), "--store", &store],
        &["snapshot", "restore", &file("etcd"), "--data-dir", &second_folder],
        &["export", &file("again"), "--data-dir", &second_folder],
    ] {
        let finished = run(arguments.iter().copied()).await;
        assert_eq!(finished.code, 0, "{arguments:?}: {finished:?}");
    }
    let refused = run(["import", "store", &file("embedded"), "--store", &store]).await;
    assert!(refused.code == 1 && refused.stderr.contains("empty"), "{refused:?}");
    let values = |name: &str| {
        let text = std::fs::read_to_string(file(name)).expect("written");
        text.lines().filter(|line| line.starts_with("{\"key\"")).map(str::to_owned).collect::<Vec<_>>()
    };
    for name in ["embedded", "etcd", "again"] {
        assert_eq!(values(name), values("saved"), "{name}");
        for space in ["index/", "service/default/orders", "ca/", "resource/", "instance/"] {
            assert!(values(name).iter().any(|line| line.contains(space)), "{name} has no {space}");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let moved = Registry::start_with(folder.path(), &["--open", "--store", &store]).await;
    assert_eq!(moved.get("/v1/ca").await.body, authority);
    assert_eq!(moved.get(FIRST).await.json()["health"], "serving");
}

#[tokio::test]
async fn a_registry_that_starts_while_etcd_is_away_answers_from_what_it_knew() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let store = etcd.store("mesh");
    let mut registry = Registry::start_with(folder.path(), &["--open", "--store", &store]).await;
    registry.apply(SERVICES).await;
    assert_eq!(registry.put(FIRST, &json!({"address": "10.0.0.5", "port": 8080})).await.status, 201);
    let authority = registry.get("/v1/ca").await.body;
    registry.process.signal(Signal::TERM);
    assert!(registry.process.exit(DEADLINE).await.success());
    etcd.stop().await;
    let again = Registry::start_with(folder.path(), &["--open", "--store", &store]).await;
    assert_eq!(health(&again).await, "serving");
    assert_eq!(again.get("/v1/ca").await.body, authority);
    etcd.resume_from_disk().await;
    eventually("changes are taken again", DEADLINE, || async {
        let token = again.cli(&["token", "create"]).await;
        if token.code == 0 { Ok(()) } else { Err(token.stderr) }
    })
    .await;
}
