//! What resolve makes of `config/examples/` survives the wire, and a real Envoy runs it.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use pillion_config::{ResourceSet, Source, parse};
use pillion_model::instance::{Instance, InstancePort, Protocol, TTL_DEFAULT};
use pillion_model::mesh::Resources;
use pillion_model::name::InstanceId;
use pillion_registry::catalog::{CatalogService, CatalogView, ServicePort};
use pillion_registry::resolve::{EnvoyOptions, Input, MeshModel, envoy, inbound, resolve};
use pillion_xds::bootstrap::to_static_bootstrap;
use pillion_xds::decode::{decode_cluster, decode_endpoints, decode_listener, decode_routes, decode_service};
use pillion_xds::encode::{
    Dialect, EnvoyOptions as Machine, EnvoySecrets, encode_cluster, encode_endpoints, encode_listener,
    encode_routes, encode_service,
};

fn instance(service: &str, id: &str, port: (&str, u16, Protocol), label: &str) -> Instance {
    let (name, number, protocol) = port;
    Instance {
        service: service.parse().unwrap(),
        id: InstanceId::parse(id).unwrap(),
        address: [10, 0, 0, 1].into(),
        ports: Arc::new(
            [(name.to_owned(), InstancePort { port: number, protocol, app_address: None })].into(),
        ),
        inbound_port: Some(15006),
        metrics_port: None,
        labels: Arc::new([("version".to_owned(), label.to_owned())].into()),
        metadata: Arc::default(),
        weight: 100,
        zone: "eu-1a".to_owned(),
        ttl: TTL_DEFAULT,
        generation: 1,
        health: Default::default(),
    }
}

/// The examples with some instances of their services.
fn mesh() -> (MeshModel, Vec<Instance>) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples");
    let sources: Vec<Source> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| Source::new(path.to_str().unwrap(), &std::fs::read_to_string(&path).unwrap()))
        .collect();
    let resources: ResourceSet = parse(&sources).unwrap().into_iter().map(|found| found.value).collect();
    let instances = vec![
        instance("orders.shop", "o-1", ("http", 8080, Protocol::Http), "1"),
        instance("orders.shop", "o-2", ("http", 8080, Protocol::Http), "2"),
        instance("orders.shop", "o-3", ("admin", 9000, Protocol::Grpc), "2"),
        instance("payments.billing", "p-1", ("grpc", 9090, Protocol::Grpc), "1"),
        instance("cache.shop", "c-1", ("redis", 6379, Protocol::Tcp), "1"),
    ];
    let mut catalog = CatalogView::default();
    for instance in &instances {
        let service = catalog.services.get(&instance.service).cloned();
        let mut service: CatalogService = service.map(Arc::unwrap_or_clone).unwrap_or_default();
        for (name, port) in instance.ports.iter() {
            service.ports.insert(name.clone(), ServicePort { port: port.port, protocol: port.protocol });
        }
        service.instances.insert_mut(instance.id.clone(), Arc::new(instance.clone()));
        catalog.services.insert_mut(instance.service.clone(), Arc::new(service));
    }
    let names: BTreeSet<_> = resources.services().keys().chain(catalog.services.keys()).cloned().collect();
    let indexes = names.into_iter().zip(1..).collect();
    let imports = Default::default();
    let input = Input { resources: &resources, catalog: &catalog, indexes: &indexes, imports: &imports };
    (resolve(&input), instances)
}

#[test]
fn a_pillion_proxy_reads_what_was_resolved() {
    let (model, instances) = mesh();
    for instance in &instances {
        let own = inbound(&model, instance);
        assert!(!own.listeners.is_empty(), "{} has no listener", instance.id);
        for listener in own.listeners.values() {
            let read = decode_listener(&encode_listener(listener, Dialect::Pillion).body.value).unwrap();
            assert_eq!(read.value, *listener);
        }
        for cluster in own.clusters.values() {
            let read = decode_cluster(&encode_cluster(cluster, Dialect::Pillion).body.value).unwrap();
            assert_eq!(read.value, *cluster);
        }
    }
    for service in model.services.values() {
        for cluster in &service.clusters {
            let read = decode_cluster(&encode_cluster(cluster, Dialect::Pillion).body.value).unwrap();
            assert_eq!(read.value, *cluster);
        }
        for routes in &service.routes {
            let read = decode_routes(&encode_routes(routes, Dialect::Pillion).body.value).unwrap();
            assert_eq!(read.value, *routes);
        }
        for endpoints in &service.endpoints {
            let read = decode_endpoints(&encode_endpoints(endpoints, Dialect::Pillion).body.value).unwrap();
            assert_eq!(read.value, *endpoints);
        }
        let name = &service.service.names[0];
        let read = decode_service(&encode_service(&service.service, name).body.value).unwrap();
        assert_eq!(read.value, service.service);
    }
}

#[test]
fn a_real_envoy_runs_what_was_resolved() {
    let Some(program) = program() else { return };
    let (model, instances) = mesh();
    let options = EnvoyOptions { outbound: ([127, 0, 0, 1], 15001).into(), vip_slot: Some(0) };
    validate(&program, &envoy(&model, None, &options));
    for instance in &instances {
        validate(&program, &envoy(&model, Some(instance), &options));
    }
}

/// Asks Envoy whether it would run this.
fn validate(program: &Path, resources: &Resources) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let machine = Machine {
        secrets: EnvoySecrets::Pem {
            certificate: file("chain.pem", include_str!("../../xds/tests/fixtures/chain.pem")),
            key: file("key.pem", include_str!("../../xds/tests/fixtures/key.pem")),
            roots: file("roots.pem", include_str!("../../xds/tests/fixtures/roots.pem")),
        },
    };
    let bootstrap = to_static_bootstrap(resources, &machine).unwrap();
    let path = file("bootstrap.json", &bootstrap.to_string());
    let output = Command::new(program)
        .args(["--mode", "validate", "--log-level", "warning", "-c", &path])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "Envoy refuses it: {said}\n{bootstrap:#}");
}

/// Envoy, as `cargo xtask peers` installs it. Missing: says so, and fails where peers are required.
fn program() -> Option<PathBuf> {
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
