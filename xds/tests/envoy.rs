//! A real Envoy judges what we send Envoys.

#![expect(clippy::unwrap_used, reason = "a test")]

mod fixtures;

use std::path::{Path, PathBuf};
use std::process::Command;

use pillion_model::mesh::Resources;
use pillion_model::name::{SpiffeId, TrustDomain};
use pillion_xds::bootstrap::{BootstrapOptions, generate_bootstrap, sds_files, to_static_bootstrap};
use pillion_xds::encode::{EnvoyOptions, EnvoySecrets};
use serde_json::{Value, json};

/// A certificate of `orders.shop`, its key, and the root: good for a hundred years.
const PEM: [(&str, &str); 3] = [
    ("chain.pem", include_str!("fixtures/chain.pem")),
    ("key.pem", include_str!("fixtures/key.pem")),
    ("roots.pem", include_str!("fixtures/roots.pem")),
];

/// Envoy, as `cargo xtask peers` installs it. Missing: says so, and fails where peers are required.
fn envoy() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/peers/bin");
    let folder = std::env::var_os("PILLION_PEERS_BIN").map_or(installed, PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::iter::once(folder).chain(std::env::split_paths(&path));
    let found = places.find_map(|folder| Some(folder.join("envoy")).filter(|file| file.is_file()));
    report(if found.is_some() { "ran" } else { "skipped" });
    if found.is_none() {
        let required = ["PILLION_REQUIRE_PEERS", "CI"].iter().any(|name| std::env::var_os(name).is_some());
        assert!(!required, "envoy is missing and required; `cargo xtask peers` installs it");
        eprintln!("SKIPPED: envoy is missing; `cargo xtask peers` installs it");
    }
    found
}

/// Tells `cargo xtask test` which peer took part.
fn report(what: &str) {
    use std::io::Write;
    let Some(file) = std::env::var_os("PILLION_PEER_REPORT") else { return };
    let test = std::thread::current().name().unwrap_or("unnamed test").to_owned();
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
    file.write_all(format!("{what}\tenvoy\t{test}\n").as_bytes()).unwrap();
}

/// A folder with a certificate, its key and the roots, as an Envoy of the mesh has them.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in PEM {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn pem(&self) -> EnvoyOptions {
        EnvoyOptions {
            secrets: EnvoySecrets::Pem {
                certificate: self.path("chain.pem"),
                key: self.path("key.pem"),
                roots: self.path("roots.pem"),
            },
        }
    }

    fn sds(&self) -> EnvoyOptions {
        let file = |name| self.folder.path().join(name);
        let (own, trusted) = sds_files(&file("chain.pem"), &file("key.pem"), &file("roots.pem"));
        std::fs::write(file("svid.json"), own.to_string()).unwrap();
        std::fs::write(file("roots.json"), trusted.to_string()).unwrap();
        EnvoyOptions {
            secrets: EnvoySecrets::Sds {
                certificate: self.path("svid.json"),
                roots: self.path("roots.json"),
            },
        }
    }

    /// Asks Envoy whether it would run this.
    fn validate(&self, envoy: &Path, bootstrap: &Value) -> Result<(), String> {
        let file = self.path("bootstrap.json");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let output = Command::new(envoy)
            .args(["--mode", "validate", "--log-level", "warning", "-c", &file])
            .output()
            .unwrap();
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn check(name: &str, resources: &Resources) {
    let Some(envoy) = envoy() else { return };
    let machine = Machine::new();
    for options in [machine.pem(), machine.sds()] {
        let bootstrap = to_static_bootstrap(resources, &options).unwrap();
        if let Err(error) = machine.validate(&envoy, &bootstrap) {
            panic!("{name}: Envoy refuses it: {error}\n{bootstrap:#}");
        }
    }
}

#[test]
fn envoy_takes_an_inbound_sidecar() {
    check("inbound", &fixtures::inbound());
}

#[test]
fn envoy_takes_outbound_routes_and_balancers() {
    check("outbound", &fixtures::outbound());
}

#[test]
fn envoy_refuses_what_is_wrong() {
    let Some(envoy) = envoy() else { return };
    let mut resources = fixtures::outbound();
    for routes in resources.routes.values_mut() {
        for host in &mut routes.virtual_hosts {
            host.domains = vec!["*".to_owned(), "*".to_owned()];
        }
    }
    let machine = Machine::new();
    let bootstrap = to_static_bootstrap(&resources, &machine.pem()).unwrap();
    assert!(machine.validate(&envoy, &bootstrap).is_err(), "a judge that agrees to everything is none");
}

#[test]
fn envoy_takes_the_bootstrap_it_joins_with() {
    let Some(envoy) = envoy() else { return };
    let machine = Machine::new();
    for envoy_options in [machine.pem(), machine.sds()] {
        let options = BootstrapOptions {
            node_id: "shop/orders/orders-1".to_owned(),
            node_cluster: "orders.shop".to_owned(),
            metadata: json!({"pillion": {"instance": {"ports": {"http": 8080}}}}),
            registries: vec![pillion_model::endpoint::HostAddress::Name {
                host: "registry.internal".to_owned(),
                port: 7071,
            }],
            registry_id: SpiffeId::registry(TrustDomain::parse("mesh.internal").unwrap()),
            envoy: envoy_options,
            admin: Some("127.0.0.1:0".parse().unwrap()),
        };
        let bootstrap = generate_bootstrap(&options).unwrap();
        if let Err(error) = machine.validate(&envoy, &bootstrap) {
            panic!("Envoy refuses it: {error}\n{bootstrap:#}");
        }
    }
}
