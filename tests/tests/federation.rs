//! Two meshes, each with a registry and a trust domain of its own: who is known to whom, who may call what,
//! and what ends when it is taken back.

use std::net::SocketAddr;

use pillion_tests::support::app::caller;
use pillion_tests::support::peer::script;
use pillion_tests::support::ports::free_address;
use pillion_tests::support::process::finish;
use pillion_tests::support::sidecar::sum;
use pillion_tests::support::{App, DEADLINE, Registry, Sidecar, eventually, peer};
use serde_json::Value;

/// A mesh: its registry, and where other meshes find it.
struct Mesh {
    domain: &'static str,
    registry: Registry,
    federation: SocketAddr,
    data: tempfile::TempDir,
}

impl Mesh {
    async fn start(domain: &'static str) -> Self {
        Self::start_with(domain, &[]).await
    }

    async fn start_with(domain: &'static str, more: &[&str]) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let federation = free_address();
        let federation = federation.to_string();
        let arguments = ["--open", "--trust-domain", domain, "--federation", &federation];
        let registry = Registry::start_with(data.path(), &[&arguments, more].concat()).await;
        let federation = registry.process.bound("federation").await;
        registry.apply(&format!("kind: Mesh\ntrustDomain: {domain}\n")).await;
        Self { domain, registry, federation, data }
    }

    /// The Federation by which others know this mesh.
    async fn known_as(&self) -> String {
        let printed = self.registry.cli(&["ca", "bundle"]).await;
        assert_eq!(printed.code, 0, "{printed:?}");
        let (domain, at, trusted) = (self.domain, self.federation, printed.stdout.trim());
        let name = domain.split('.').next().expect("a label");
        format!(
            "---\nkind: Federation\nname: {name}\ntrustDomain: {domain}\nservices: {at}\n\
             bundle: {{url: 'https://{at}/', trusted: '{trusted}'}}\n"
        )
    }

    /// What is known here of the other mesh.
    async fn knows(&self, other: &Self) -> Value {
        let list = self.registry.get("/v1/federations").await.json();
        let mut all = list["federations"].as_array().into_iter().flatten();
        all.find(|one| one["trustDomain"] == other.domain).cloned().unwrap_or_default()
    }

    async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        sum(&self.registry.get("/metrics").await.body, name, labels)
    }
}

/// What `acme.example` has: `orders`, exported to `umbrella.example`.
const ORDERS: &str = "\
kind: Service
name: orders
export: [umbrella.example]
ports: [{name: http, port: 80, protocol: http}]
";
/// What `umbrella.example` makes of it.
const IMPORTED: &str = "\
kind: Service
name: acme-orders
import: {trustDomain: acme.example, service: orders.default}
ports: [{name: http, port: 80, protocol: http}]
";
const NAME: &str = "acme-orders.default.mesh.internal";

fn policy(callers: &str) -> String {
    format!(
        "kind: AuthorizationPolicy\nname: orders-callers\nto: orders\naction: allow\nrules: [{{from: [{callers}]}}]\n"
    )
}

async fn two_meshes() -> (Mesh, Mesh) {
    // A tenth of the lifetime is how often others look at the bundle.
    let acme = Mesh::start_with("acme.example", &["--certificate-lifetime", "60s"]);
    let (acme, umbrella) = tokio::join!(acme, Mesh::start("umbrella.example"));
    acme.registry.apply(&format!("{ORDERS}{}", umbrella.known_as().await)).await;
    umbrella.registry.apply(&format!("{IMPORTED}{}", acme.known_as().await)).await;
    eventually("the exports are known", DEADLINE, || async {
        let known = umbrella.knows(&acme).await;
        let back = acme.knows(&umbrella).await;
        let is_known = known["offered"][0] == "orders.default" && known["roots"] == 1 && back["roots"] == 1;
        if is_known { Ok(()) } else { Err(format!("{known} {back}")) }
    })
    .await;
    (acme, umbrella)
}

#[tokio::test]
async fn a_caller_of_another_mesh_reaches_what_is_exported_to_it_and_names_it() {
    let (acme, umbrella) = two_meshes().await;
    let app = App::start("orders").await;
    let _orders = Sidecar::beside(&acme.registry, "orders.default", app.address).await;
    let ours = Sidecar::caller(&acme.registry, "web.default").await;
    let (theirs, other) = tokio::join!(
        Sidecar::caller(&umbrella.registry, "web.default"),
        Sidecar::caller(&umbrella.registry, "other.default")
    );

    // Exported, and no policy: our own callers only.
    ours.get_until("orders.default.mesh.internal", "/", 200).await;
    theirs.get_until(NAME, "/", 403).await;
    // A policy that names a service of ours means ours, not theirs of the same name.
    acme.registry.apply(&policy("{service: web}")).await;
    ours.get_until("orders.default.mesh.internal", "/", 200).await;
    theirs.get_until(NAME, "/", 403).await;
    // One that names theirs.
    acme.registry.apply(&policy("{trustDomain: umbrella.example, service: web.default}")).await;
    let before = app.seen().len();
    theirs.get_until(NAME, "/named", 200).await;
    let seen = app.seen();
    let callers: Vec<_> = seen[before..].iter().filter_map(caller).collect();
    assert_eq!(callers, ["spiffe://umbrella.example/ns/default/svc/web"]);
    ours.get_until("orders.default.mesh.internal", "/", 403).await;
    other.get_until(NAME, "/", 403).await;
    for (service, allowed) in [("web", true), ("other", false)] {
        let id = format!("spiffe://umbrella.example/ns/default/svc/{service}");
        let told = acme.registry.cli(&["explain", "orders.default", "--caller", &id]).await;
        assert_eq!(told.stdout.contains("allowed by orders-callers[0]"), allowed, "{told:?}");
    }
    let stranger = "spiffe://initech.example/ns/default/svc/web";
    let told = acme.registry.cli(&["explain", "orders.default", "--caller", stranger]).await;
    assert!(told.stdout.contains("is not exported"), "{told:?}");
    let told = umbrella.registry.cli(&["explain", "acme-orders.default", "--caller", "web.default"]).await;
    assert!(told.stdout.contains("spiffe://acme.example/ns/default/svc/orders"), "{told:?}");
    let shown = umbrella.registry.cli(&["get", "federations"]).await;
    assert!(shown.stdout.contains("acme-orders.default"), "{shown:?}");

    // No longer exported: their callers get no further than the handshake, and are told of no endpoint.
    let mut taken_back = ORDERS.replace("export: [umbrella.example]\n", "");
    taken_back.push_str("---\n");
    taken_back.push_str(&policy("{service: web}"));
    acme.registry.apply(&taken_back).await;
    theirs.get_until(NAME, "/", 503).await;
    ours.get_until("orders.default.mesh.internal", "/", 200).await;
}

#[tokio::test]
async fn trust_follows_a_rotation_there_survives_restarts_and_ends_with_the_federation() {
    let (acme, umbrella) = two_meshes().await;
    let app = App::start("orders").await;
    let theirs = "{trustDomain: umbrella.example}";
    acme.registry.apply(&policy(theirs)).await;
    let _orders = Sidecar::beside(&acme.registry, "orders.default", app.address).await;
    let web = Sidecar::caller(&umbrella.registry, "web.default").await;
    web.get_until(NAME, "/", 200).await;

    // The last good is kept: over a restart, and while nobody can be asked.
    let (there, here) = (acme.registry.crash().await, umbrella.registry.crash().await);
    let umbrella = Mesh { registry: here.restart().await, ..umbrella };
    web.get_until(NAME, "/", 200).await;
    eventually("the trouble is told", DEADLINE, || async {
        let labels = [("trust_domain", "acme.example"), ("part", "bundle"), ("reason", "unreachable")];
        let refused = umbrella.metric("pillion_federation_refused_total", &labels).await;
        let roots = umbrella.metric("pillion_federation_bundle_roots", &labels[..1]).await;
        if refused > 0.0 && roots == 1.0 { Ok(()) } else { Err(format!("{refused} {roots}")) }
    })
    .await;
    let acme = Mesh { registry: there.restart().await, ..acme };
    eventually("the bundle is looked at again", DEADLINE, || async {
        let known = umbrella.knows(&acme).await;
        if known["bundleAge"].is_u64() && known["bundleError"].is_null() {
            Ok(())
        } else {
            Err(known.to_string())
        }
    })
    .await;

    // A new root there is known here before it signs, without anybody's doing.
    let begun = acme.registry.cli(&["ca", "rotate"]).await;
    assert_eq!(begun.code, 0, "{begun:?}");
    eventually("both roots are trusted", DEADLINE, || async {
        let known = umbrella.knows(&acme).await;
        if known["roots"] == 2 { Ok(()) } else { Err(known.to_string()) }
    })
    .await;
    web.get_until(NAME, "/", 200).await;

    // The other side changes its mind: whoever is of a mesh that is not federated is not trusted.
    let deleted = acme.registry.cli(&["delete", "authorizationpolicy", "orders-callers"]).await;
    assert_eq!(deleted.code, 0, "{deleted:?}");
    acme.registry.apply(&ORDERS.replace("export: [umbrella.example]\n", "")).await;
    let deleted = acme.registry.cli(&["delete", "federation", "umbrella"]).await;
    assert_eq!(deleted.code, 0, "{deleted:?}");
    web.get_until(NAME, "/", 503).await;
    eventually("nobody of that mesh is known", DEADLINE, || async {
        let text = acme.registry.get("/metrics").await.body;
        let known = text.lines().find(|line| line.starts_with("pillion_federation_bundle_roots{"));
        known.map_or(Ok(()), |line| Err(line.to_owned()))
    })
    .await;
}

#[tokio::test]
async fn the_bundle_endpoint_is_read_by_programs_we_did_not_write() {
    let mesh = Mesh::start("acme.example").await;
    let roots = mesh.data.path().join("roots.pem").display().to_string();
    let url = format!("https://{}/", mesh.federation);
    let Some(curl) = peer("curl") else { return };
    let fetched = finish(&curl, ["-sS", "--cacert", &roots, &url]).await;
    let bundle: Value = serde_json::from_str(&fetched.stdout).unwrap_or_else(|_| panic!("{fetched:?}"));
    assert!(bundle["spiffe_sequence"].as_u64().is_some_and(|it| it > 0), "{bundle}");
    assert_eq!(bundle["spiffe_refresh_hint"], 300, "{bundle}");
    // What is exported is for registries of federated meshes.
    let exports = format!("{url}v1/exports");
    let refused =
        finish(&curl, ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &roots, &exports]).await;
    assert_eq!(refused.stdout, "401", "{refused:?}");

    if let Some(openssl) = peer("openssl") {
        let at = mesh.federation.to_string();
        let arguments = ["s_client", "-connect", &at, "-CAfile", &roots, "-verify_return_error", "-brief"];
        let shown = finish(&openssl, arguments).await;
        assert!(format!("{shown:?}").contains("Verification: OK"), "{shown:?}");
    }
    let Some(python) = peer("python-jwcrypto") else { return };
    let file = mesh.data.path().join("bundle.json");
    std::fs::write(&file, &fetched.stdout).expect("written");
    let read = finish(&python, [&script("jwk_bundle.py"), &file.display().to_string(), &roots]).await;
    assert_eq!(read.stdout.trim(), "1 root, the same key", "{read:?}");
}
