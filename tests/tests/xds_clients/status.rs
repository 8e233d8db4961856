//! How far clients got, and what they refuse: in the API, on the command line, in metrics and by CSDS.

use std::path::Path;

use pillion_tests::support::peer::script;
use pillion_tests::support::ports::{free_address, free_port};
use pillion_tests::support::process::{finish, run};
use pillion_tests::support::{App, DEADLINE, Process, Registry, Sidecar, eventually, peer};
use serde_json::Value;

/// An Envoy of `web.shop` that cannot listen where it is told to.
async fn envoy_at(envoy: &Path, registry: &Registry, outbound: &str, folder: &Path) -> Process {
    let (mesh, admin, out) =
        (registry.mesh.to_string(), free_address().to_string(), folder.display().to_string());
    let words = ["generate", "envoy", "--registry", &mesh, "--service", "web", "--namespace", "shop"];
    let more = ["--outbound", outbound, "--admin", &admin, "--out", &out];
    let written = run(words.iter().chain(&more)).await;
    assert_eq!(written.code, 0, "{written:?}");
    let (bootstrap, base) = (format!("{out}/envoy.json"), free_port().to_string());
    let words = ["-c", &bootstrap, "--base-id", &base, "--concurrency", "1", "-l", "warning"];
    Process::program("envoy", envoy, words)
}

#[tokio::test]
async fn what_a_client_refuses_is_shown_with_its_reason_beside_what_it_has() {
    let (Some(envoy), Some(python)) = (peer("envoy"), peer("python-grpc")) else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let app = App::start("orders").await;
    let _orders = Sidecar::beside(&registry, "orders.shop", app.address).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let outbound = taken.local_addr().expect("bound above").to_string();
    let envoy = envoy_at(&envoy, &registry, &outbound, files.path()).await;

    let detail = eventually("the listener is refused, and the rest is there", DEADLINE, || async {
        let shown = registry.cli(&["describe", "proxy", "web.shop", "-o", "json"]).await;
        let detail: Value =
            serde_json::from_str(&shown.stdout).map_err(|error| format!("{error}: {shown:?}"))?;
        let resources = detail["streams"][0]["resources"].as_array().cloned().unwrap_or_default();
        let is = |kind: &str, name: &str, state: &str| {
            resources.iter().any(|one| one["type"] == kind && one["name"] == name && one["state"] == state)
        };
        let cluster = "outbound|http||orders.shop";
        let is_right = is("listener", "outbound", "refused")
            && is("cluster", cluster, "acknowledged")
            && is("endpoints", cluster, "acknowledged");
        if is_right { Ok(detail) } else { Err(format!("{detail:#}\n{}", envoy.output())) }
    })
    .await;
    let refused = detail["streams"][0]["resources"].as_array().into_iter().flatten();
    let refused: Vec<&Value> = refused.filter(|one| one["state"] == "refused").collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0]["error"].as_str().is_some_and(|why| why.contains(&outbound)), "{refused:?}");

    let table = registry.cli(&["describe", "proxy", "shop/web/envoy"]).await;
    for want in ["proxy shop/web/envoy", "spiffe://mesh.internal/ns/shop/svc/web", "refused", "acknowledged"]
    {
        assert!(table.stdout.contains(want), "no `{want}` in {table:?}");
    }
    let listed = registry.cli(&["get", "proxies", "web.shop"]).await;
    assert_eq!(listed.stdout.lines().count(), 2, "{listed:?}");
    let metrics = registry.get("/metrics").await.body;
    assert!(metrics.contains("pillion_xds_refused_resources{type=\"listener\"} 1"), "{metrics}");
    let nobody = registry.cli(&["describe", "proxy", "shop/nobody/envoy"]).await;
    assert!(nobody.code == 1 && nobody.stderr.contains("shop/nobody/envoy"), "{nobody:?}");

    // The same by CSDS, with the client's own certificate; and health, without one.
    let words =
        [script("registry_services.py"), registry.mesh.to_string(), files.path().display().to_string()];
    let said = finish(&python, words).await;
    let said: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    assert_eq!(said["health"], "SERVING", "{said:#}");
    assert_eq!(said["watch"], "SERVING", "{said:#}");
    assert_eq!(said["unknown"], "NOT_FOUND", "{said:#}");
    assert_eq!(said["resources"]["outbound"], "ERROR", "{said:#}");
    assert_eq!(said["resources"]["outbound|http||orders.shop"], "SYNCED", "{said:#}");
    assert_eq!(said["nodes"], serde_json::json!(["shop/web/envoy"]), "nobody else's: {said:#}");
}
