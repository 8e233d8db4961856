//! Sidecars that prove who they are without a join token, to a registry that takes no other word for it.

use std::path::Path;

use pillion_tests::support::ports::free_address;
use pillion_tests::support::process::{Finished, finish, finish_command};
use pillion_tests::support::sidecar::sum;
use pillion_tests::support::{App, DEADLINE, Plan, Process, Registry, eventually, http, peer};
use tokio::process::Command;

const METRIC: &str = "pillion_registry_attestations_total";

/// Asks for the identity of `service` (`name.namespace`), proving who it is by these flags.
async fn join(
    registry: &Registry,
    service: &str,
    out: &Path,
    flags: &[&str],
    env: &[(&str, &str)],
) -> Finished {
    let (name, namespace) = service.split_once('.').expect("name.namespace");
    let (mesh, out) = (registry.mesh.to_string(), out.join(name).display().to_string());
    let mut command = Command::new(pillion_tests::support::pillion());
    command.args(["generate", "envoy", "--registry", &mesh, "--service", name, "--namespace", namespace]);
    command.args(["--out", &out]).args(flags).envs(env.iter().copied()).kill_on_drop(true);
    finish_command(command).await
}

/// A registry with these rules, that asks everybody for a proof.
async fn registry(data: &Path, settings: &str) -> Registry {
    let file = data.join("attestation.yaml");
    std::fs::write(&file, settings).expect("written");
    let file = file.display().to_string();
    Registry::start_with(data, &["--open", "--attestation", &file, "--audit-log", "-"]).await
}

async fn counted(registry: &Registry, method: &str, outcome: &str) -> f64 {
    let text = registry.get("/metrics").await.body;
    sum(&text, METRIC, &[("method", method), ("outcome", outcome)])
}

fn accepted(joined: &Finished) {
    assert_eq!(joined.code, 0, "{joined:?}");
}

fn refused(joined: &Finished, want: &str) {
    assert!(joined.code == 1 && joined.stderr.contains(want), "no `{want}` in {joined:?}");
}

async fn made(program: &Path, arguments: &[&str]) {
    let made = finish(program, arguments).await;
    assert_eq!(made.code, 0, "{made:?}");
}

#[tokio::test]
async fn by_a_certificate_of_the_company() {
    let Some(openssl) = peer("openssl") else { return };
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let [data, other_data, files] = &folders;
    let file = |name: &str| files.path().join(name).display().to_string();
    let config = file("openssl.cnf");
    std::fs::write(&config, "[req]\ndistinguished_name=dn\n[dn]\n").expect("written");
    let (ca, ca_key, leaf, key) = (file("ca.pem"), file("ca.key"), file("leaf.pem"), file("leaf.key"));
    let fixed = ["req", "-config", &config, "-x509", "-nodes", "-newkey", "ec", "-pkeyopt"];
    let fixed = [&fixed[..], &["ec_paramgen_curve:P-256", "-days", "2"]].concat();
    let root = ["-subj", "/CN=company", "-keyout", &ca_key, "-out", &ca, "-addext"];
    made(&openssl, &[&fixed[..], &root, &["basicConstraints=critical,CA:TRUE"]].concat()).await;
    let names = "subjectAltName=URI:spiffe://company/web,DNS:web-1.company.com";
    let signed = ["-subj", "/OU=Web", "-keyout", &key, "-out", &leaf, "-CA", &ca, "-CAkey", &ca_key];
    let signed =
        [&fixed[..], &signed, &["-addext", names, "-addext", "extendedKeyUsage=clientAuth"]].concat();
    made(&openssl, &signed).await;
    let rule = "{x509: 'dns:*.company.com', service: web.shop, instance: '{1}'}";
    let registry = registry(data.path(), &format!("x509: {{ca: {ca}}}\nrules: [{rule}]\n")).await;

    let roots = data.path().join("roots.pem").display().to_string();
    let flags =
        ["--attest", "x509", "--attest-cert", &leaf, "--attest-key", &key, "--registry-roots", &roots];
    let ours = [&flags[..], &["--instance-id", "web-1"]].concat();
    accepted(&join(&registry, "web.shop", files.path(), &ours, &[]).await);
    let another = join(&registry, "web.shop", files.path(), &flags, &[]).await;
    refused(&another, "may not be shop/web/envoy: it may be web.shop as instance web-1");
    let another = join(&registry, "orders.shop", files.path(), &ours, &[]).await;
    refused(&another, "it may be web.shop");
    // Nothing is proven to a registry that is another.
    let stranger = Registry::start(other_data.path()).await;
    refused(&join(&stranger, "web.shop", files.path(), &ours, &[]).await, "of another mesh?");
    let audit = registry.process.output();
    assert!(audit.contains("x509 `uri:spiffe://company/web`"), "{audit}");
    assert_eq!(counted(&registry, "x509", "accepted").await, 1.0);
    assert_eq!(counted(&registry, "x509", "not-allowed").await, 2.0);

    // And a sidecar.
    let app = App::start("web").await;
    let plan = Plan::new(registry.mesh, "web.shop", &app.port()).instance("web-1");
    let _web = plan.with(&flags).start().await;
    registry.serving("web.shop", 1).await;
}

#[tokio::test]
async fn by_a_service_account_of_a_cluster() {
    let (Some(python), Some(_openssl)) = (peer("python3"), peer("openssl")) else { return };
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [data, files] = &folders;
    let folder = files.path().display().to_string();
    made(&python, &[&pillion_tests::support::peer::script("cluster_tokens.py"), &folder]).await;
    let keys = std::fs::read(files.path().join("jwks.json")).expect("written");
    let cluster = App::with(move |_| {
        let keys = bytes::Bytes::from(keys.clone());
        async move { ::http::Response::new(keys) }
    })
    .await;
    let settings = format!(
        "kubernetes: {{issuer: 'https://cluster.example', jwks: 'http://{}/openid/v1/jwks'}}\n\
         rules: [{{kubernetes: 'shop/*', service: '{{1}}.shop'}}]\n",
        cluster.address
    );
    let registry = registry(data.path(), &settings).await;
    let roots = data.path().join("roots.pem").display().to_string();
    for (token, service, want) in [
        ("good", "web.shop", None),
        ("good", "orders.shop", Some("`shop/web` may not be shop/orders/envoy: it may be web.shop")),
        ("foreign", "web.shop", Some("the signature is not one of key `one`")),
        ("elsewhere", "web.shop", Some("want `pillion`")),
        ("over", "web.shop", Some("the token expired")),
        ("none", "web.shop", Some("--attest kubernetes: read")),
    ] {
        let file = files.path().join(token).display().to_string();
        let flags = ["--attest", "kubernetes", "--attest-token-file", &file, "--registry-roots", &roots];
        let joined = join(&registry, service, files.path(), &flags, &[]).await;
        match want {
            None => accepted(&joined),
            Some(want) => refused(&joined, want),
        }
    }
    let asked: Vec<_> = cluster.seen().iter().map(|seen| seen.uri().path().to_owned()).collect();
    assert_eq!(asked, ["/openid/v1/jwks"], "keys are kept");
}

#[tokio::test]
async fn by_a_role_of_aws() {
    let (Some(moto), Some(python)) = (peer("moto_server"), peer("python-botocore")) else { return };
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [data, files] = &folders;
    let address = free_address();
    let mut command = Command::new(moto);
    // After what makes the role, signatures are checked.
    command
        .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
        .env("INITIAL_NO_AUTH_ACTION_COUNT", "3");
    let _sts = Process::spawn("moto", command);
    // It takes seconds to load, and longer where others load the machine.
    eventually("moto answers", DEADLINE * 3, || http::get(address, "moto", "/moto-api/")).await;
    let endpoint = format!("http://{address}");
    let script = pillion_tests::support::peer::script("aws_role.py");
    let role = finish(&python, [script.as_str(), &endpoint, "web"]).await;
    assert_eq!(role.code, 0, "{role:?}");
    let mut env: Vec<_> = role.stdout.lines().filter_map(|line| line.split_once('=')).collect();
    env.extend([("AWS_ENDPOINT_URL_STS", endpoint.as_str()), ("AWS_REGION", "eu-central-1")]);
    let settings = format!(
        "aws: {{sts: '{endpoint}'}}\nrules:\n- {{aws: 'arn:aws:iam::123456789012:role/web', service: web.shop}}\n"
    );
    let registry = registry(data.path(), &settings).await;
    let roots = data.path().join("roots.pem").display().to_string();
    let flags = ["--attest", "aws", "--registry-roots", &roots];
    accepted(&join(&registry, "web.shop", files.path(), &flags, &env).await);
    let another = join(&registry, "orders.shop", files.path(), &flags, &env).await;
    refused(&another, "assumed-role/web/task-1` may not be shop/orders/envoy: it may be web.shop");
    let forged = [&env[..], &[("AWS_SECRET_ACCESS_KEY", "another")]].concat();
    let forged = join(&registry, "web.shop", files.path(), &flags, &forged).await;
    refused(&forged, "does not know who signed it");
    let without = join(&registry, "web.shop", files.path(), &flags, &[("AWS_ACCESS_KEY_ID", "")]).await;
    refused(&without, "--attest aws: no credentials");
    assert_eq!(counted(&registry, "aws", "accepted").await, 1.0);
}
