//! `pillion cert watch`: certificates of programs that are not ours are renewed in time.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pillion_tests::support::process::finish;
use pillion_tests::support::{App, DEADLINE, Envoy, Process, Registry, Sidecar, eventually, peer};
use rustix::process::Signal;

const ORDERS: &str =
    "kind: Service\nname: orders\nnamespace: shop\nports: [{name: http, port: 80, protocol: http}]\n";
/// Renewed after some seven seconds.
const SHORT: [&str; 3] = ["--open", "--certificate-lifetime", "16s"];

fn watch(registry: &Registry, folder: &Path, more: &[&str]) -> Process {
    let (mesh, folder) = (registry.mesh.to_string(), folder.display().to_string());
    let fixed = ["cert", "watch", "--registry", &mesh, "--dir", &folder];
    Process::pillion("cert watch", fixed.iter().chain(more))
}

async fn end(mut watch: Process) {
    watch.signal(Signal::TERM);
    let status = watch.exit(DEADLINE).await;
    assert!(status.success(), "{status:?}: {}", watch.output());
}

#[tokio::test]
async fn pem_files_are_renewed_and_always_belong_together() {
    let Some(openssl) = peer("openssl") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start_with(data.path(), &SHORT).await;
    let folder = files.path().join("web");
    let file = |name: &str| folder.join(name).display().to_string();
    let named = ["--service", "web", "--namespace", "shop", "--instance-id", "web-7"];
    let first = watch(&registry, &folder, &named);
    let told = "spiffe://mesh.internal/ns/shop/svc/web";
    first.line("the identity", |line| line.ends_with(told).then_some(())).await;
    let chain = std::fs::read(file("chain.pem")).expect("written");
    end(first).await;

    // Again, without a word on the service and the instance: the files know them, and are good until they
    // are renewed.
    let second = watch(&registry, &folder, &[]);
    second.line("the identity", |line| line.ends_with(told).then_some(())).await;
    assert_eq!(std::fs::read(file("chain.pem")).expect("there"), chain, "still good");
    eventually("the certificate is another", DEADLINE, || async {
        let now = std::fs::read(file("chain.pem")).map_err(|error| error.to_string())?;
        if now == chain { Err("the first one".to_owned()) } else { Ok(()) }
    })
    .await;
    end(second).await;

    let (chain, key, roots) = (file("chain.pem"), file("key.pem"), file("roots.pem"));
    let verified =
        finish(&openssl, ["verify", "-x509_strict", "-CAfile", &roots, "-untrusted", &chain, &chain]);
    let verified = verified.await;
    assert_eq!(verified.code, 0, "{verified:?}");
    let subject = finish(&openssl, ["x509", "-in", &chain, "-noout", "-subject"]).await;
    assert!(subject.stdout.contains("web-7"), "{subject:?}");
    let of_chain = finish(&openssl, ["x509", "-in", &chain, "-noout", "-pubkey"]).await;
    let of_key = finish(&openssl, ["pkey", "-in", &key, "-pubout"]).await;
    assert_eq!(of_chain.stdout, of_key.stdout, "{of_chain:?} {of_key:?}");
    let mode = std::fs::metadata(&key).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn without_a_service_or_a_certificate_it_says_what_is_needed() {
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    let mut watch = watch(&registry, files.path(), &[]);
    let status = watch.exit(DEADLINE).await;
    assert_eq!(status.code(), Some(2), "{}", watch.output());
    watch.line("what is needed", |line| line.contains("--service is needed").then_some(())).await;
}

#[tokio::test]
async fn an_envoy_takes_each_renewed_certificate_and_goes_on() {
    let Some(envoy) = peer("envoy") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start_with(data.path(), &SHORT).await;
    registry.apply(ORDERS).await;
    let app = App::start("orders").await;
    let _orders = Sidecar::beside(&registry, "orders.shop", app.address).await;
    let web = Envoy::join(&envoy, &registry, "web.shop", None, files.path()).await;
    let watch = watch(&registry, &files.path().join("web"), &[]);

    let serial = async || {
        let certificates = web.page("/certs").await.json();
        certificates["certificates"][0]["cert_chain"][0]["serial_number"].to_string()
    };
    let mut last = serial().await;
    // The third is there after the first has ended.
    for _ in 0..3 {
        last = eventually("Envoy has another certificate", DEADLINE, || async {
            let now = serial().await;
            if now == last { Err(now) } else { Ok(now) }
        })
        .await;
        let page = pillion_tests::support::http::get(web.outbound, "orders.shop.mesh.internal", "/").await;
        let page = page.expect("an answer");
        assert_eq!(page.json()["caller"], "spiffe://mesh.internal/ns/shop/svc/web", "{page:?}");
    }
    let failed = web.stats("key_rotation_failed").await;
    assert!(failed.iter().all(|(_, count)| *count == 0), "{failed:?}");
    end(watch).await;
}
