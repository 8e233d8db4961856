//! The command line from outside: exit codes, help, completions, and what `ready` says.

use pillion_tests::support::process::run;
use pillion_tests::support::{Process, Registry, http};

#[tokio::test]
async fn wrong_usage_is_exit_code_2_and_says_what_would_be_right() {
    for (arguments, want) in [
        (&["no-such-command"][..], "unrecognized subcommand"),
        (&["completions", "no-such-shell"], "possible values"),
        (&["wait", "--timeout", "soon"], "want seconds, or a duration"),
        (&["get", "services", "--api", "ftp://x"], "want http or https"),
        (&["get", "services", "orders.shop", "-n", "other"], "leave one of them out"),
        (&["registry", "--store", "http://x"], "want etcd://"),
        (&["registry", "--store-ca", "x.pem"], "--store <URL>"),
        (&["registry", "--trust-domain", "A"], "'A' at position 0"),
        (&["registry", "--log", "info=x=y"], "parsing level filter"),
        (&["registry", "--open", "--api", "0.0.0.0:0"], "listens on loopback only"),
        (&["registry", "--dns-forward", "resolver"], "want an IP address"),
        (&["registry", "--ca-cert", "x.pem"], "--ca-key <FILE>"),
        (&["token", "create", "--ttl", "5"], "the unit is missing; want 5s, 5m or 5h"),
        (&["cert", "show", "/"], "is a folder"),
        (&["proxy", "--service", "a", "--memory-max", "5"], "no proxy runs in less than 1MiB"),
        (&["proxy", "--service", "a", "--attest", "aws"], "--registry-roots <FILE>"),
        (&["proxy", "--service", "a", "--spiffe-socket", "tcp://x"], "want unix:///"),
        (&[], "Usage: pillion"),
    ] {
        let finished = run(arguments).await;
        assert_eq!(finished.code, 2, "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains(want), "{arguments:?}: {finished:?}");
    }
}

#[tokio::test]
async fn nobody_there_is_not_ready() {
    let finished = run(["ready", "--address", "127.0.0.1:1"]).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stderr.contains("cannot reach http://127.0.0.1:1"), "{finished:?}");
}

#[tokio::test]
async fn ready_asks_a_registry_behind_tls_and_believes_none_but_the_meshs() {
    let (data, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let start = |data: &std::path::Path| {
        let data = data.display().to_string();
        let any = ["--api", "0.0.0.0:0", "--mesh", "127.0.0.1:0", "--dns", "127.0.0.1:0"];
        Process::pillion("registry", ["registry", "--data-dir", &data].into_iter().chain(any))
    };
    let (registry, impostor) = (start(data.path()), start(other.path()));
    let folder = data.path().display().to_string();
    let ask = async |command: &str, registry: &Process, data: &str| {
        let address = format!("https://127.0.0.1:{}", registry.bound("api").await.port());
        run([command, "--address", &address, "--data-dir", data]).await
    };
    let finished = ask("wait", &registry, &folder).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    let finished = ask("ready", &registry, &folder).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    for (registry, data, want) in
        [(&impostor, &folder as &str, "invalid peer certificate"), (&registry, "/nowhere", "--cacert")]
    {
        let finished = ask("ready", registry, data).await;
        assert_eq!(finished.code, 1, "{finished:?}");
        assert!(finished.stderr.contains(want), "{finished:?}");
    }
}

#[tokio::test]
async fn completions_know_the_commands() {
    let finished = run(["completions", "bash"]).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert!(finished.stdout.contains("wait"), "{finished:?}");
}

#[tokio::test]
async fn a_sample_service_serves_and_fails_when_told_to() {
    let arguments = ["demo-service", "orders", "--instance", "orders-1", "--version", "v2"];
    let orders = Process::pillion("orders", arguments);
    let address = orders.bound("listening on").await;
    let page = http::get(address, "orders", "/orders").await.expect("served");
    assert_eq!((page.status, page.json()["version"].as_str()), (200, Some("v2")), "{page:?}");
    let told = ::http::Request::put("/fail?percent=100").header("host", "orders").body(bytes::Bytes::new());
    let told = http::send(address, told.expect("valid")).await.expect("told");
    assert_eq!(told.status, 200, "{told:?}");
    let page = http::get(address, "orders", "/orders").await.expect("served");
    assert_eq!(page.status, 503, "{page:?}");
}

#[tokio::test]
async fn who_takes_the_api_for_the_port_of_proxies_is_told() {
    let (data, out) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let (api, out) = (registry.api.to_string(), out.path().display().to_string());
    let finished = run(["generate", "envoy", "--registry", &api, "--service", "web", "--out", &out]).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stderr.contains("what answers does not speak TLS; a registry's port"), "{finished:?}");
}
