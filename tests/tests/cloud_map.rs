//! The part of AWS Cloud Map's API that programs use, called by AWS' own client library.

use std::path::Path;

use pillion_tests::support::peer::script;
use pillion_tests::support::process::{Finished, finish};
use pillion_tests::support::{Registry, http, peer};
use serde_json::json;

async fn client(python: &Path, endpoint: &str, secret: &str) -> Finished {
    finish(python, [script("cloud_map_client.py").as_str(), endpoint, secret]).await
}

#[tokio::test]
async fn botocore_registers_and_discovers() {
    let Some(python) = peer("python-botocore") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let done = client(&python, &format!("http://{}", registry.api), "an open registry needs none").await;
    assert!(done.code == 0 && done.stdout.ends_with("done\n"), "{done:?}");

    // What it registered is an instance like any other, except that nobody has to renew it.
    let path = "/v1/namespaces/shop/services/orders/instances/orders-1";
    let instance = registry.get(path).await.json();
    assert_eq!(instance["ttl"], "never", "{instance}");
    assert_eq!(instance["labels"]["version"], "v1", "{instance}");
    assert_eq!(instance["zone"], "eu-west-1a", "{instance}");
    assert_eq!(instance["ports"], json!({"http": {"port": 8080, "protocol": "http"}}), "{instance}");
    // It is there after a restart, and its like can be registered without Cloud Map.
    let registry = registry.crash_and_restart().await;
    assert_eq!(registry.get(path).await.json()["ttl"], "never");
    let body = json!({"address": "10.0.0.7", "port": 9090, "ttl": "never"});
    let kept = registry.put("/v1/namespaces/shop/services/static/instances/s-1", &body).await;
    assert_eq!(kept.json()["beatInterval"], "never", "{kept:?}");
}

#[tokio::test]
async fn the_secret_access_key_is_the_operators_token() {
    let Some(python) = peer("python-botocore") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start_with(data.path(), &[]).await;
    let token = std::fs::read_to_string(data.path().join("operator.token")).expect("made at the start");
    let endpoint = format!("http://{}", registry.api);
    let refused = client(&python, &endpoint, "another").await;
    assert!(refused.code == 1 && refused.stderr.contains("AccessDeniedException"), "{refused:?}");
    let done = client(&python, &endpoint, token.trim()).await;
    assert!(done.code == 0 && done.stdout.ends_with("done\n"), "{done:?}");

    let unsigned = ::http::Request::post("/")
        .header("host", registry.api.to_string())
        .header("x-amz-target", "Route53AutoNaming_v20170314.ListNamespaces")
        .body(bytes::Bytes::from_static(b"{}"));
    let unsigned = http::send(registry.api, unsigned.expect("a request")).await.expect("an answer");
    assert_eq!(unsigned.status, 403, "{unsigned:?}");
    assert_eq!(unsigned.json()["__type"], "AccessDeniedException", "{unsigned:?}");
}
