//! Tools that ask a registry first what it can be asked.

use pillion_tests::support::peer::script;
use pillion_tests::support::process::{finish, run};
use pillion_tests::support::{Registry, peer};
use serde_json::{Value, json};

#[tokio::test]
async fn a_registry_describes_its_services_to_members_of_the_mesh() {
    let Some(python) = peer("python-reflection") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let (mesh, out) = (registry.mesh.to_string(), files.path().display().to_string());
    let words =
        ["generate", "grpc", "--registry", &mesh, "--service", "web", "--namespace", "shop", "--out", &out];
    let written = run(words).await;
    assert_eq!(written.code, 0, "{written:?}");

    let said = finish(&python, [script("reflection_client.py"), mesh, out]).await;
    let said: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let services = said["services"].as_array().expect("a list");
    for service in [
        "envoy.service.discovery.v3.AggregatedDiscoveryService",
        "envoy.service.load_stats.v3.LoadReportingService",
        "envoy.service.status.v3.ClientStatusDiscoveryService",
        "grpc.health.v1.Health",
        "pillion.mesh.v1.Identity",
        "pillion.mesh.v1.Registration",
    ] {
        assert!(services.contains(&json!(service)), "no {service}: {said:#}");
    }
    assert!(said["v1"].as_array().is_some_and(|v1| v1.contains(&json!("grpc.health.v1.Health"))), "{said:#}");
    assert_eq!(said["methods"]["pillion.mesh.v1.Identity"], json!(["Issue", "Follow"]), "{said:#}");
    assert_eq!(said["anonymous"], "UNAUTHENTICATED", "{said:#}");
}
