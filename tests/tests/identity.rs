//! Who gets in: certificates at a sidecar's inbound port, and tokens at the registry.

use std::path::Path;
use std::time::Duration;

use pillion_tests::support::process::{Finished, finish, finish_command, run};
use pillion_tests::support::{App, DEADLINE, Plan, Process, Registry, Sidecar, eventually, peer};
use tokio::process::Command;

const HELLO: &str = "kind: Service\nname: hello\nports: [{name: http, port: 80, protocol: http}]\n";
const SERVER_NAME: &str = "http.hello.default.mesh.internal";

/// Obtains the files of an identity of `service` in namespace `default`, by a token or by openness.
async fn join(registry: &Registry, service: &str, token: Option<&str>, folder: &Path) -> Finished {
    let (mesh, out) = (registry.mesh.to_string(), folder.display().to_string());
    let arguments = ["generate", "envoy", "--registry", &mesh, "--service", service, "--out", &out];
    let mut command = Command::new(pillion_tests::support::pillion());
    command.args(arguments).kill_on_drop(true);
    if let Some(token) = token {
        command.env("PILLION_JOIN_TOKEN", token);
    }
    finish_command(command).await
}

/// The files of an identity, as curl and openssl take them.
async fn identity(registry: &Registry, service: &str, folder: &Path) -> Vec<String> {
    let joined = join(registry, service, None, folder).await;
    assert_eq!(joined.code, 0, "{joined:?}");
    let file = |name: &str| folder.join(name).display().to_string();
    vec!["--cert".into(), file("chain.pem"), "--key".into(), file("key.pem")]
}

async fn hello(registry: &Registry) -> (App, Sidecar) {
    registry.apply(HELLO).await;
    let app = App::start("hello").await;
    let sidecar = Sidecar::beside(registry, "hello.default", app.address).await;
    (app, sidecar)
}

/// Talks TLS to `sidecar` as openssl does, with `more` arguments; what it says.
async fn s_client(openssl: &Path, sidecar: &Sidecar, more: &[&str]) -> String {
    let server = sidecar.inbound.to_string();
    let fixed = ["s_client", "-connect", &server, "-servername", SERVER_NAME];
    let finished = finish(openssl, fixed.iter().chain(more)).await;
    format!("{}{}", finished.stdout, finished.stderr)
}

#[tokio::test]
async fn openssl_sees_tls_1_3_and_one_name_and_it_is_the_services_identity() {
    let Some(openssl) = peer("openssl") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let (_app, sidecar) = hello(&registry).await;
    identity(&registry, "web", files.path()).await;
    let file = |name: &str| files.path().join(name).display().to_string();
    let (chain, key, roots) = (file("chain.pem"), file("key.pem"), file("roots.pem"));
    let ours = ["-cert", &chain, "-key", &key, "-CAfile", &roots, "-verify_return_error"];
    let said = s_client(&openssl, &sidecar, &ours).await;
    for want in ["TLSv1.3", "Verification: OK", "BEGIN CERTIFICATE"] {
        assert!(said.contains(want), "no `{want}` in\n{said}");
    }
    let shown = files.path().join("shown.pem");
    std::fs::write(&shown, &said).expect("written");
    let shown = shown.display().to_string();
    let names = finish(&openssl, ["x509", "-in", &shown, "-noout", "-ext", "subjectAltName"]).await;
    let names: Vec<&str> = names.stdout.lines().skip(1).map(str::trim).collect();
    assert_eq!(names, ["URI:spiffe://mesh.internal/ns/default/svc/hello"]);

    let older = s_client(&openssl, &sidecar, &[&ours[..], &["-tls1_2"]].concat()).await;
    assert!(older.contains("alert protocol version"), "{older}");
}

#[tokio::test]
async fn without_a_certificate_of_the_mesh_nobody_reaches_the_application() {
    let (Some(curl), Some(openssl)) = (peer("curl"), peer("openssl")) else { return };
    let folders = [(); 4].map(|()| tempfile::tempdir().expect("a folder"));
    let [data, other_data, files, other_files] = &folders;
    let registry = Registry::start(data.path()).await;
    let other =
        Registry::start_with(other_data.path(), &["--open", "--trust-domain", "other.internal"]).await;
    let (app, sidecar) = hello(&registry).await;
    let ours = identity(&registry, "web", files.path()).await;
    let foreign = identity(&other, "web", other_files.path()).await;
    let at = format!("{SERVER_NAME}:443:{}", sidecar.inbound);
    let url = format!("https://{SERVER_NAME}/");
    let https = async |certificate: &[String]| {
        let fixed = ["-sS", "-k", "--max-time", "10", "--connect-to", &at, &url].map(str::to_owned);
        finish(&curl, fixed.iter().chain(certificate)).await
    };
    let nobody = https(&[]).await;
    assert!(nobody.code != 0 && nobody.stdout.is_empty(), "no certificate: {nobody:?}");
    let stranger = https(&foreign).await;
    assert!(stranger.code != 0 && stranger.stdout.is_empty(), "a foreign domain's: {stranger:?}");
    let plain = format!("http://{}/", sidecar.inbound);
    let plain = finish(&curl, ["-sS", "--max-time", "10", &plain]).await;
    assert!(plain.code != 0 && plain.stdout.is_empty(), "no TLS: {plain:?}");
    let alert = s_client(&openssl, &sidecar, &["-ign_eof"]).await;
    assert!(alert.contains("certificate required"), "{alert}");
    assert!(app.seen().is_empty(), "{:?}", app.seen());

    // The same call with a certificate of the mesh: it was not the call that was wrong.
    let member = https(&ours).await;
    assert_eq!(member.code, 0, "{member:?}");
    let page: serde_json::Value = serde_json::from_str(&member.stdout).expect("JSON");
    assert_eq!(page["caller"], "spiffe://mesh.internal/ns/default/svc/web", "{page}");
    assert_eq!(app.seen().len(), 1, "{:?}", app.seen());
}

/// A registry that asks for tokens, and one such.
async fn token(registry: &Registry, more: &[&str]) -> String {
    let created = registry.cli(&[&["token", "create"], more].concat()).await;
    assert_eq!(created.code, 0, "{created:?}");
    created.stdout.trim().to_owned()
}

#[tokio::test]
async fn a_token_is_good_once_and_for_whom_it_was_made() {
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start_with(data.path(), &[]).await;
    let once = token(&registry, &[]).await;
    let reusable = token(&registry, &["--reusable"]).await;
    let for_web = token(&registry, &["--service", "web", "-n", "default"]).await;
    let (id, secret_and_pin) = once.split_once('.').expect("an id");
    let pin = secret_and_pin.split_once('.').expect("a pin").1;
    let unknown = format!("{id}.wrong-secret.{pin}");
    let elsewhere = format!("{}.{}", once.rsplit_once('.').expect("a pin").0, "0".repeat(64));
    for (service, token, want) in [
        ("web", None, Some("a join token is needed")),
        ("web", Some("scribble"), Some("this is no join token")),
        ("web", Some(unknown.as_str()), Some("the join token is unknown")),
        ("web", Some(&elsewhere), Some("registry")),
        ("web", Some(&once), None),
        ("web", Some(&once), Some("was used already")),
        ("web", Some(&reusable), None),
        ("orders", Some(&reusable), None),
        ("orders", Some(&for_web), Some("is for web.default, not for orders.default")),
        ("web", Some(&for_web), None),
    ] {
        let joined = join(&registry, service, token, &files.path().join(service)).await;
        match want {
            None => assert_eq!(joined.code, 0, "{service} by {token:?}: {joined:?}"),
            Some(want) => {
                assert_eq!(joined.code, 1, "{service} by {token:?}: {joined:?}");
                assert!(joined.stderr.contains(want), "{service} by {token:?}: no `{want}` in {joined:?}");
            }
        }
    }
    let secret = secret_and_pin.split_once('.').expect("a secret").0;
    let printed = registry.process.output();
    assert!(!printed.contains(secret), "the secret is in the log: {printed}");
}

#[tokio::test]
async fn one_services_identity_is_no_other_services() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [data, state] = &folders;
    let registry = Registry::start_with(data.path(), &[]).await;
    let for_web = token(&registry, &["--service", "web", "-n", "default"]).await;
    let web =
        Plan::caller(registry.mesh, "web.default").state(state.path()).with(&["--join-token", &for_web]);
    let running = web.start().await;
    running.process.kill().await;
    // Its state directory holds its identity, which is good for another start of itself ...
    let again = Plan::caller(registry.mesh, "web.default").state(state.path()).start().await;
    again.process.kill().await;
    // ... and of nobody else.
    let orders = Plan::caller(registry.mesh, "orders.default").state(state.path());
    let refused = run(orders.arguments()).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("belongs to default/web"), "{refused:?}");
    let bare = run(Plan::caller(registry.mesh, "orders.default").arguments()).await;
    assert_eq!(bare.code, 1, "{bare:?}");
    assert!(bare.stderr.contains("a join token is needed"), "{bare:?}");
    let registered = registry
        .put("/v1/namespaces/default/services/orders/instances/o", &serde_json::json!({"port": 80}))
        .await;
    assert_eq!(registered.status, 401, "{registered:?}");
    eventually("orders has no instance", DEADLINE, || async {
        let listed = registry.cli(&["get", "instances", "orders", "-o", "json"]).await;
        if listed.stdout.contains("127.0.0.1") { Err(format!("{listed:?}")) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn the_registry_asks_whose_identity_it_is_that_registers() {
    let Some(python) = peer("python-grpc") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    identity(&registry, "web", files.path()).await;
    let folder = files.path().display().to_string();
    for (service, want) in [("orders", "refused"), ("web", "registered")] {
        let script = pillion_tests::support::peer::script("register.py");
        let said = finish(&python, [script, registry.mesh.to_string(), folder.clone(), service.into()]).await;
        assert!(said.stdout.starts_with(want), "{service}: want {want}: {said:?}");
        if want == "refused" {
            assert!(said.stdout.contains("svc/web"), "the message names the identity: {said:?}");
        }
    }
    let listed = registry.cli(&["get", "instances", "orders", "-o", "json"]).await;
    assert!(!listed.stdout.contains("10.6.6.6"), "{listed:?}");
}

#[tokio::test]
async fn a_token_that_has_expired_is_refused() {
    /// The shortest life of a token, and some.
    const LIFE_MAX: Duration = Duration::from_secs(90);
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start_with(data.path(), &[]).await;
    let token = token(&registry, &["--reusable", "--ttl", "1m"]).await;
    let joined = join(&registry, "web", Some(&token), files.path()).await;
    assert_eq!(joined.code, 0, "{joined:?}");
    eventually("the token has expired", LIFE_MAX, || async {
        let listed = registry.cli(&["token", "list"]).await.stdout;
        if listed.contains("expired") { Ok(()) } else { Err(listed) }
    })
    .await;
    let refused = join(&registry, "web", Some(&token), files.path()).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("the join token expired"), "{refused:?}");
}

#[tokio::test]
async fn a_token_of_another_mesh_ends_the_sidecar_at_once() {
    let (data, other_data) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let other = Registry::start(other_data.path()).await;
    let created = other.cli(&["token", "create"]).await;
    assert_eq!(created.code, 0, "{created:?}");
    let token = created.stdout.split_whitespace().next().expect("a token").to_owned();
    let plan = Plan::caller(registry.mesh, "web.default").with(&["--join-token", &token]);
    let mut process = Process::pillion("sidecar", plan.arguments());
    let status = process.exit(DEADLINE).await;
    assert_eq!(status.code(), Some(1), "{}", process.output());
    assert!(process.output().contains("is this token of another mesh?"), "{}", process.output());
}
