//! gRPC clients and servers without a proxy, by grpcio.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use pillion_tests::support::peer::script;
use pillion_tests::support::ports::free_address;
use pillion_tests::support::process::run;
use pillion_tests::support::{DEADLINE, Plan, Process, Registry, Sidecar, eventually, http, peer};
use serde_json::Value;

const MESH: &str = "
kind: Service
name: orders
namespace: shop
ports: [{name: grpc, port: 9000, protocol: grpc}]
subsets: {v1: {version: v1}, v2: {version: v2}}
---
kind: Route
name: canary
namespace: shop
to: orders
rules:
  - split: [{subset: v1, weight: 80}, {subset: v2, weight: 20}]
---
kind: Service
name: open
namespace: shop
ports: [{name: grpc, port: 9000, protocol: grpc}]
mtls: disabled
";

/// What a client met.
#[derive(Debug)]
struct Tally {
    names: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
}

/// A client that runs.
struct Client {
    process: Process,
    control: SocketAddr,
}

impl Client {
    /// Joins as `service` and calls `target`.
    async fn join(
        python: &Path,
        registry: &Registry,
        service: &str,
        target: &str,
        credentials: &str,
        folder: &Path,
    ) -> Self {
        let more: &[&str] = if credentials == "plaintext" { &["--plaintext"] } else { &[] };
        let bootstrap = generate(registry, service, more, folder).await;
        let words = [script("grpc_xds_client.py"), bootstrap, target.to_owned(), credentials.to_owned()];
        let process = Process::program(&format!("client {service}"), python, words);
        let control = process.bound("listening on").await;
        Self { process, control }
    }

    async fn ask(&self, count: u32) -> Result<Tally, String> {
        let page = http::get(self.control, "control", &format!("/ask?n={count}")).await?.json();
        let counts = |value: &Value| {
            let counts = value.as_object().into_iter().flatten();
            counts.map(|(name, count)| (name.clone(), count.as_u64().unwrap_or_default())).collect()
        };
        Ok(Tally { names: counts(&page["names"]), failures: counts(&page["failures"]) })
    }

    /// Waits until its calls are answered by these, and by nobody else.
    async fn reaches(&self, want: &[&str]) {
        eventually(&format!("calls reach {want:?}"), DEADLINE, || async {
            let tally = self.ask(50).await?;
            let names: Vec<&str> = tally.names.keys().map(String::as_str).collect();
            let is_right = tally.failures.is_empty() && names == want;
            if is_right { Ok(()) } else { Err(format!("{tally:?}\n{}", self.process.output())) }
        })
        .await;
    }
}

/// EDS responses that these nodes were sent.
async fn pushes(registry: &Registry, nodes: [&str; 2]) -> [u64; 2] {
    let all = registry.get("/v1/proxies").await.json();
    let all = all["proxies"].as_array().cloned().unwrap_or_default();
    nodes.map(|node| {
        let own = all.iter().filter(|proxy| proxy["node"] == node);
        let types = own.flat_map(|proxy| proxy["types"].as_array().into_iter().flatten());
        types.filter(|kind| kind["name"] == "endpoints").filter_map(|kind| kind["pushes"].as_u64()).sum()
    })
}

/// What `pillion generate grpc` writes for a member.
async fn generate(registry: &Registry, service: &str, more: &[&str], folder: &Path) -> String {
    let (name, namespace) = service.split_once('.').expect("name.namespace");
    let (mesh, out) = (registry.mesh.to_string(), folder.join(service).display().to_string());
    let words = ["generate", "grpc", "--registry", &mesh, "--service", name, "--namespace", namespace];
    let written = run(words.iter().chain(&["--out", &out]).chain(more)).await;
    assert_eq!(written.code, 0, "{written:?}");
    format!("{out}/grpc.json")
}

/// An application without a mesh.
async fn who(python: &Path, name: &str) -> (Process, SocketAddr) {
    let words = [script("grpc_who.py"), name.to_owned(), "127.0.0.1:0".to_owned()];
    let process = Process::program(name, python, words);
    let address = process.bound("listening on").await;
    (process, address)
}

/// An application with a sidecar beside it.
async fn instance(
    python: &Path,
    registry: &Registry,
    service: &str,
    name: &str,
    version: &str,
) -> (Process, Sidecar) {
    let (process, address) = who(python, name).await;
    let port = format!("grpc={}:grpc", address.port());
    let label = format!("version={version}");
    let plan = Plan::new(registry.mesh, service, &port).instance(name).with(&["--label", &label]);
    (process, plan.start().await)
}

#[tokio::test]
async fn grpc_clients_obey_a_canary_follow_endpoints_and_come_back_after_a_restart() {
    let Some(python) = peer("python-grpc") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    registry.apply(MESH).await;
    let (_one, _one_sidecar) = instance(&python, &registry, "orders.shop", "one", "v1").await;
    let (_two, two_sidecar) = instance(&python, &registry, "orders.shop", "two", "v2").await;
    registry.serving("orders.shop", 2).await;

    let client =
        Client::join(&python, &registry, "web.shop", "xds:///orders.shop", "xds", files.path()).await;
    client.reaches(&["one", "two"]).await;
    let tally = client.ask(1000).await.expect("answers");
    let one = tally.names.get("one").copied().unwrap_or_default();
    println!("split 80 to 20 over 1000 calls: {tally:?}");
    assert!(tally.failures.is_empty() && (740..860).contains(&one), "{tally:?}");

    // By other names, with the port.
    for target in ["xds:///orders.shop:9000", "xds:///orders.shop.mesh.internal"] {
        let other = Client::join(&python, &registry, "other.shop", target, "xds", files.path()).await;
        other.reaches(&["one", "two"]).await;
    }

    // A split that changes, an endpoint more.
    registry.apply(&MESH.replace("weight: 80", "weight: 0")).await;
    client.reaches(&["two"]).await;
    let (_open, _open_sidecar) = instance(&python, &registry, "open.shop", "open", "v1").await;
    let apart = Client::join(&python, &registry, "apart.shop", "xds:///open.shop", "xds", files.path()).await;
    apart.reaches(&["open"]).await;
    let nodes = ["shop/web/grpc", "shop/apart/grpc"];
    let before = pushes(&registry, nodes).await;
    let (_three, _three_sidecar) = instance(&python, &registry, "orders.shop", "three", "v2").await;
    client.reaches(&["three", "two"]).await;
    let after = pushes(&registry, nodes).await;
    println!(
        "EDS responses for one instance more: {}, to another's client {}",
        after[0] - before[0],
        after[1] - before[1]
    );
    assert!(after[0] > before[0] && after[1] == before[1], "{before:?} {after:?}");

    // The registry is away: calls go on. It comes back, and changes arrive again.
    let registry = registry.crash_and_restart().await;
    client.reaches(&["three", "two"]).await;
    two_sidecar.process.kill().await;
    client.reaches(&["three"]).await;
    let (_four, _four_sidecar) = instance(&python, &registry, "orders.shop", "four", "v2").await;
    client.reaches(&["four", "three"]).await;

    let proxies = registry.cli(&["get", "proxies", "-o", "json"]).await;
    let all: Value = serde_json::from_str(&proxies.stdout).expect("JSON");
    let own = all.as_array().into_iter().flatten().find(|proxy| proxy["node"] == "shop/web/grpc");
    let own = own.expect("listed");
    assert!(own["userAgent"].as_str().is_some_and(|agent| agent.starts_with("gRPC")), "{own}");
    assert_eq!(own["variant"], "sotw", "{own}");
    eventually("its load is reported", DEADLINE, || async {
        let metrics = registry.get("/metrics").await.body;
        let line =
            "pillion_xds_load_requests_total{cluster=\"outbound|grpc|v2|orders.shop\",outcome=\"success\"}";
        if metrics.contains(line) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let refused = own["types"].as_array().into_iter().flatten().filter(|kind| kind["nacks"] != 0);
    assert_eq!(refused.count(), 0, "{own}");
}

#[tokio::test]
async fn grpc_clients_without_credentials_reach_what_permits_that() {
    let Some(python) = peer("python-grpc") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    registry.apply(MESH).await;
    let (_plain, _plain_sidecar) = instance(&python, &registry, "open.shop", "plain", "v1").await;
    let (_strict, _strict_sidecar) = instance(&python, &registry, "orders.shop", "strict", "v1").await;
    registry.serving("open.shop", 1).await;
    registry.serving("orders.shop", 1).await;
    let join = async |service: &str, target: &str, credentials: &str| {
        Client::join(&python, &registry, service, target, credentials, files.path()).await
    };
    join("web.shop", "xds:///open.shop", "plaintext").await.reaches(&["plain"]).await;
    join("web2.shop", "xds:///open.shop", "xds").await.reaches(&["plain"]).await;
    // A strict service has no endpoint for whoever has no credentials.
    let refused = join("web3.shop", "xds:///orders.shop", "plaintext").await;
    let tally = refused.ask(1).await.expect("answers");
    assert!(
        tally.names.is_empty() && tally.failures.keys().all(|why| why.starts_with("UNAVAILABLE")),
        "{tally:?}"
    );
}

#[tokio::test]
async fn grpc_servers_serve_under_mutual_tls_and_our_policies() {
    let Some(python) = peer("python-grpc") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let policy = "
kind: Service
name: orders
namespace: shop
ports: [{name: grpc, port: 9000, protocol: grpc}]
---
kind: AuthorizationPolicy
name: orders-callers
namespace: shop
to: orders
action: allow
rules:
  - from: [{service: web}]
";
    registry.apply(policy).await;
    let address = free_address();
    let port = format!("grpc={}:grpc", address.port());
    let bootstrap =
        generate(&registry, "orders.shop", &["--port", &port, "--advertise", "127.0.0.1"], files.path())
            .await;
    let words = [script("grpc_who.py"), "server".to_owned(), address.to_string(), bootstrap];
    let server = Process::program("orders", &python, words);
    registry.serving("orders.shop", 1).await;

    let join = async |service: &str| {
        Client::join(&python, &registry, service, "xds:///orders.shop", "xds", files.path()).await
    };
    join("web.shop").await.reaches(&["server"]).await;
    let other = join("other.shop").await;
    eventually("others are refused", DEADLINE, || async {
        let tally = other.ask(1).await?;
        let is_refused = tally.failures.keys().any(|why| why.starts_with("PERMISSION_DENIED"));
        if is_refused { Ok(()) } else { Err(format!("{tally:?}\n{}", server.output())) }
    })
    .await;

    // A sidecar reaches it as well, and plaintext does not.
    let web = Sidecar::caller(&registry, "web.shop").await;
    eventually("a sidecar's caller is answered", DEADLINE, || async {
        let words =
            [script("grpc_call.py"), web.outbound.to_string(), "orders.shop.mesh.internal:9000".to_owned()];
        let called = pillion_tests::support::process::finish(&python, words).await;
        if called.stdout.trim() == "server" { Ok(()) } else { Err(format!("{called:?}")) }
    })
    .await;
    let words = [script("grpc_call.py"), address.to_string(), "orders.shop".to_owned()];
    let plain = pillion_tests::support::process::finish(&python, words).await;
    assert!(plain.stdout.contains("UNAVAILABLE"), "{plain:?}");

    // It leaves with its stream.
    server.kill().await;
    registry.serving("orders.shop", 0).await;
}
