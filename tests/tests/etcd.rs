//! The etcd behind registries: of several members, away for long, and behind TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pillion_tests::support::etcd::EtcdTls;
use pillion_tests::support::sidecar::sum;
use pillion_tests::support::wait::length;
use pillion_tests::support::{App, Beats, DEADLINE, Etcd, Plan, Process, Registry, dns, eventually};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use serde_json::json;
use tokio::time::Instant;

const SERVICES: &str = "kind: Service\nname: orders\nports: [{name: http, port: 80, protocol: http}]\n";
const INSTANCES: &str = "/v1/namespaces/default/services/batch/instances";
/// How long etcd is away, unless `PILLION_TEST_STORE_OUTAGE` says another time, such as `600s`: several
/// leases, and more than half of a certificate's life.
const OUTAGE: Duration = Duration::from_secs(14);

async fn registers(registry: &Registry, id: &str) {
    let path = format!("{INSTANCES}/{id}");
    let body = json!({"address": "10.0.0.5", "port": 8080, "ttl": "2s"});
    eventually(&format!("{id} is registered"), DEADLINE, || async {
        let answer = registry.put(&path, &body).await;
        if [200, 201].contains(&answer.status) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

async fn expired(registry: &Registry) -> f64 {
    sum(&registry.get("/metrics").await.body, "pillion_registry_expired_total", &[])
}

#[tokio::test]
async fn any_member_of_etcd_may_die() {
    let Some(mut members) = Etcd::cluster(3).await else { return };
    let hosts: Vec<String> = members.iter().map(|member| member.address().to_string()).collect();
    let store = format!("etcd://{}/mesh", hosts.join(","));
    let folder = tempfile::tempdir().expect("a folder");
    let registry = Registry::start_with(folder.path(), &["--open", "--store", &store]).await;
    registers(&registry, "batch").await;
    let _beats = Beats::start(vec![registry.api], [("batch".to_owned(), "batch".to_owned())]);
    for (n, member) in members.iter_mut().enumerate() {
        member.stop().await;
        // It answers only once its view has the instance: the watch has moved too.
        registers(&registry, &format!("batch-{n}")).await;
        member.resume_from_disk().await;
    }
    let path = format!("{INSTANCES}/batch");
    assert_eq!(registry.get(&path).await.json()["health"], "serving");
}

#[tokio::test]
async fn etcd_away_for_long_hurts_nobody_who_is_there() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let store = etcd.store("mesh");
    let arguments = ["--open", "--store", &store, "--certificate-lifetime", "16s"];
    let a = Registry::start_with(folders[0].path(), &arguments).await;
    let b = Registry::start_with(folders[1].path(), &arguments).await;
    a.apply(SERVICES).await;
    let app = App::start("orders").await;
    let second = b.mesh.to_string();
    let plan = Plan::new(a.mesh, "orders.default", &app.port()).with(&["--ttl", "2"]);
    let orders = plan.with(&["--registry", &second]).start().await;
    registers(&a, "batch").await;
    let _beats = Beats::start(vec![a.api], [("batch".to_owned(), "batch".to_owned())]);
    for registry in [&a, &b] {
        registry.serving("orders.default", 1).await;
        registry.serving("batch.default", 1).await;
    }
    let renewals = || orders.process.output().matches("identity renewed").count();
    let renewed = renewals();
    etcd.stop().await;
    let (began, long) = (Instant::now(), length("PILLION_TEST_STORE_OUTAGE", OUTAGE));
    while began.elapsed() < long {
        for registry in [&a, &b] {
            for service in ["orders", "batch"] {
                let name = format!("{service}.default.mesh.internal");
                let answer = dns::ask(registry.dns, &name).await.expect("DNS goes on");
                assert!(answer.code == 0 && answer.addresses.len() == 1, "{name}: {answer:?}");
            }
            let watched = registry.get("/v1/health/service/orders.default?index=1&wait=1s").await;
            assert_eq!(watched.status, 200, "{watched:?}");
            let (path, body) = (format!("{INSTANCES}/new"), json!({"address": "10.0.0.6", "port": 1}));
            let refused = registry.put(&path, &body).await;
            assert!(refused.status == 503 && refused.body.contains("etcd"), "{refused:?}");
        }
    }
    assert!(renewals() > renewed, "certificates are renewed: {}", orders.process.output());
    assert_eq!((expired(&a).await, expired(&b).await), (0.0, 0.0));
    etcd.resume_from_disk().await;
    registers(&a, "after").await;
    eventually("the other knows it", DEADLINE, || async {
        let answer = b.get(&format!("{INSTANCES}/after")).await;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    for registry in [&a, &b] {
        registry.serving("orders.default", 1).await;
        let batch = registry.get(&format!("{INSTANCES}/batch")).await;
        assert_eq!(batch.json()["health"], "serving", "{batch:?}");
    }
}

/// An authority, and certificates of it, as files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("written");
        Self { issuer, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A certificate for 127.0.0.1, and its key.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        std::fs::write(&files.0, certificate.pem()).expect("written");
        std::fs::write(&files.1, key.serialize_pem()).expect("written");
        files
    }
}

/// What a registry says that does not start with this certificate.
async fn refusal(data: &Path, store: &str, more: &[&str]) -> String {
    let data = data.display().to_string();
    let any = "127.0.0.1:0";
    let fixed = ["registry", "--open", "--data-dir", &data, "--api", any, "--mesh", any, "--dns", any];
    let mut process = Process::pillion("registry", fixed.iter().chain(&["--store", store]).chain(more));
    let status = process.exit(DEADLINE).await;
    assert_eq!(status.code(), Some(1), "{}", process.output());
    process.output()
}

#[tokio::test]
async fn etcd_asks_for_a_certificate_and_its_lack_is_told() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let tls = EtcdTls { ca: ours.file("ca.pem"), certificate: ours.issue("etcd") };
    let Some(etcd) = Etcd::start_with_tls(tls).await else { return };
    let (store, folder) = (etcd.store("mesh"), tempfile::tempdir().expect("a folder"));
    let text = |path: &Path| path.display().to_string();
    let (ca, other_ca) = (text(&ours.file("ca.pem")), text(&theirs.file("ca.pem")));
    let ((good, good_key), (bad, bad_key)) = (ours.issue("registry"), theirs.issue("registry"));
    let (good, good_key, bad, bad_key) = (text(&good), text(&good_key), text(&bad), text(&bad_key));
    for (more, want) in [
        (&["--store-ca", &ca][..], "--store-cert"),
        (&["--store-ca", &ca, "--store-cert", &bad, "--store-key", &bad_key], "refuses"),
        (&["--store-ca", &other_ca, "--store-cert", &good, "--store-key", &good_key], "certificate"),
    ] {
        let said = refusal(folder.path(), &store, more).await;
        assert!(said.contains(want), "no `{want}` in:\n{said}");
    }
    let good =
        ["--open", "--store", &store, "--store-ca", &ca, "--store-cert", &good, "--store-key", &good_key];
    let registry = Registry::start_with(folder.path(), &good).await;
    registers(&registry, "batch").await;
    assert!(etcd.ctl(&["get", "mesh/", "--prefix", "--keys-only"]).await.stdout.contains("batch"));
}
