//! What commands say of sidecars and tokens.

use pillion_tests::support::process::run;
use pillion_tests::support::{Registry, Sidecar};

#[tokio::test]
async fn proxies_tell_their_version_and_a_token_its_mistake_once() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let _web = Sidecar::caller(&registry, "web.shop").await;
    let listed = registry.cli(&["get", "proxies"]).await;
    let row = listed.stdout.lines().find(|row| row.contains("shop/web/")).expect("listed");
    assert!(row.contains(env!("CARGO_PKG_VERSION")), "{listed:?}");

    let refused = registry.cli(&["token", "create", "--ttl", "1s"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("ttl: got 1s, want 1 min to 366 days"), "{refused:?}");
    assert_eq!(refused.stderr.matches("ttl").count(), 1, "said once: {refused:?}");
}

#[tokio::test]
async fn a_registry_is_waited_for_by_its_api_or_its_address() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let (url, address) = (format!("http://{}", registry.api), registry.api.to_string());
    for (flag, value) in [("--api", &url), ("--api", &address), ("--address", &address)] {
        for command in ["wait", "ready"] {
            let finished = run([command, flag, value]).await;
            assert_eq!(finished.code, 0, "{command} {flag} {value}: {finished:?}");
        }
    }
}
