//! The whole mesh: what refers to what, foreign Envoys, and the cost of a change.

use super::*;

/// Everything of `config/examples/`, with instances.
fn examples() -> Mesh {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples");
    let sources: Vec<Source> = std::fs::read_dir(folder)
        .expect(folder)
        .map(|entry| entry.expect("readable").path())
        .map(|path| Source::new(&path.to_string_lossy(), &std::fs::read_to_string(&path).expect("text")))
        .collect();
    let resources = parse(&sources).unwrap_or_else(|errors| panic!("{errors}"));
    let set: ResourceSet = resources.iter().map(|resource| resource.value.clone()).collect();
    let problems = check(&set);
    assert!(problems.is_empty(), "{}", locate(&problems, &resources));
    Mesh { resources: set, ..Mesh::default() }
        .with(instance("orders.shop", "o-1", &[("version", "1")]))
        .with(instance("orders.shop", "o-2", &[("version", "2")]))
        .with(instance("web.shop", "w-1", &[]))
        .with(instance("registered-only.shop", "r-1", &[]))
}

#[test]
fn what_is_referred_to_exists_and_names_are_unique() {
    let model = examples().model();
    let mut clusters = BTreeSet::new();
    let mut routes = BTreeSet::new();
    for (name, service) in &model.services {
        for cluster in &service.clusters {
            assert!(clusters.insert(cluster.name.clone()), "{} twice", cluster.name);
        }
        for configuration in &service.routes {
            assert!(routes.insert(configuration.name.clone()), "{} twice", configuration.name);
            RouteTable::compile(configuration.clone()).expect("valid domains");
        }
        let of_eds =
            service.clusters.iter().filter(|cluster| matches!(cluster.discovery, Discovery::Eds { .. }));
        let mut wanted: Vec<_> = of_eds.map(|cluster| cluster.name.clone()).collect();
        let mut have: Vec<_> =
            service.endpoints.iter().map(|assignment| assignment.cluster.clone()).collect();
        wanted.sort();
        have.sort();
        assert_eq!(wanted, have, "{name}");
    }
    for service in model.services.values() {
        for port in &service.service.ports {
            for cluster in &port.clusters {
                assert!(clusters.contains(cluster), "{}: {cluster} does not exist", service.service.service);
            }
            assert_eq!(port.protocol.is_http(), routes.contains(&port.route_configuration));
        }
        for name in &service.service.names {
            assert_eq!(model.names[name], service.service.service, "{name}");
        }
    }
}

#[test]
fn a_foreign_envoy_gets_everything_under_real_domains() {
    let mesh = examples();
    let model = mesh.model();
    let own = instance("web.shop", "w-1", &[]);
    let options = EnvoyOptions { outbound: ([127, 0, 0, 1], 15001).into(), vip_slot: Some(2) };
    let resources = envoy(&model, Some(&own), &options);
    let table = RouteTable::compile(resources.routes["outbound"].clone()).expect("no domain twice");
    for (authority, want) in [
        ("orders.shop.mesh.internal", Some("http.orders.shop")),
        ("ORDERS.shop.mesh.internal:80", Some("http.orders.shop")),
        ("orders.shop.mesh.internal:9000", Some("admin.orders.shop")),
        ("orders.legacy.local", Some("http.orders.shop")),
        ("orders.shop.svc.mesh.internal", Some("http.orders.shop")),
        ("payments.billing.mesh.internal", Some("grpc.payments.billing")),
        ("elsewhere.example.com", None),
    ] {
        let host =
            table.virtual_host(authority).map(|at| table.configuration().virtual_hosts[at].name.as_str());
        assert_eq!(host, want, "{authority}");
    }
    assert!(resources.clusters.contains_key("inbound|http"));
    let tcp = &resources.listeners["outbound|pg|ledger-db.billing"];
    assert_eq!(tcp.address.map(|address| address.port()), Some(5432));
    for cluster in resources.clusters.values() {
        if cluster.protocol == UpstreamProtocol::Auto {
            let all_tls = cluster.transports.iter().all(|transport| transport.tls.is_some());
            assert!(all_tls && (cluster.tls.is_some() || !cluster.transports.is_empty()), "{}", cluster.name);
        }
    }
}

#[test]
fn what_did_not_change_is_not_made_again() {
    let mesh = examples();
    let mut resolver = Resolver::default();
    let before = Arc::clone(resolver.all(&mesh.input()));
    let different = resolver.some(&mesh.input(), &[name("orders.shop")].into());
    assert!(different.is_empty() && Arc::ptr_eq(&before, resolver.model()), "nothing came out different");

    let mesh = mesh.with(instance("orders.shop", "o-3", &[("version", "2")]));
    assert_eq!(resolver.some(&mesh.input(), &[name("orders.shop")].into()), [name("orders.shop")].into());
    let after = Arc::clone(resolver.model());
    assert_eq!(*after, mesh.model(), "the same as from nothing");
    for (name, service) in &after.services {
        let kept = Arc::ptr_eq(service, &before.services[name]);
        assert_eq!(kept, name.to_string() != "orders.shop", "{name}");
    }

    // A service that others' routes split to changes its ports: theirs change too.
    let yaml = "
{kind: Service, name: a, ports: [{name: web, port: 80}]}
---
{kind: Route, name: r, to: a, rules: [{split: [{service: b}]}]}
";
    let mesh = Mesh::new(yaml);
    resolver.all(&mesh.input());
    let mesh = mesh.with(instance("b", "b-1", &[]));
    let different = resolver.some(&mesh.input(), &[name("b")].into());
    assert_eq!(different, [name("a"), name("b")].into());
    let after = resolver.model();
    let port = &after.services[&name("a")].service.ports[0];
    assert!(port.clusters.contains(&"outbound|http||b.default".to_owned()), "{:?}", port.clusters);
    assert_eq!(after.names["b.mesh.internal"], name("b"));
}
