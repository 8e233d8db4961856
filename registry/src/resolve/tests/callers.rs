//! What callers are told: routes, clusters, endpoints.

use super::*;

fn route_of(model: &MeshModel, service: &str, request: &Request<'_>) -> pillion_model::route::Route {
    let service = &model.services[&name(service)];
    let table = RouteTable::compile(service.routes[0].clone()).expect("valid domains");
    let found = table.find(request, 0).expect("the default route takes everything");
    table.at(found).1.clone()
}

fn forward(route: &pillion_model::route::Route) -> &Forward {
    match &route.action {
        RouteAction::Forward(forward) => forward,
        other => panic!("{}: {other:?}", route.name),
    }
}

fn cluster<'a>(model: &'a MeshModel, name: &str) -> &'a Cluster {
    let mut clusters = model.services.values().flat_map(|service| &service.clusters);
    clusters.find(|cluster| cluster.name == name).expect(name)
}

fn endpoints<'a>(model: &'a MeshModel, name: &str) -> &'a LoadAssignment {
    let mut all = model.services.values().flat_map(|service| &service.endpoints);
    all.find(|assignment| assignment.cluster == name).expect(name)
}

/// `priority zone hostname address health`, one per endpoint.
fn listed(assignment: &LoadAssignment) -> Vec<String> {
    let line = |locality: &pillion_model::endpoint::LocalityEndpoints| {
        let (priority, zone) = (locality.priority, locality.locality.zone.clone());
        locality
            .endpoints
            .iter()
            .map(move |endpoint| {
                let HostAddress::Socket(address) = endpoint.address else { panic!("{:?}", endpoint.address) };
                format!("{priority} {zone} {} {address} {}", endpoint.hostname, endpoint.health.as_str())
            })
            .collect::<Vec<_>>()
    };
    assignment.localities.iter().flat_map(line).collect()
}

#[test]
fn without_a_route_everything_goes_to_the_whole_service() {
    let model = Mesh::new(ORDERS).with(instance("orders.shop", "o-1", &[])).model();
    let route = route_of(&model, "orders.shop", &Request("POST", "/any?thing", &[]));
    assert_eq!(route.name, "default");
    let forward = forward(&route);
    assert_eq!(forward.to, ClusterChoice::Cluster("outbound|http||orders.shop".to_owned()));
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));
    let retry = forward.retry.as_ref().expect("retries by default");
    assert_eq!((retry.retries, retry.only_safe, retry.avoid_previous_hosts), (2, true, true));
    assert!(retry.on.has(RetryOn::CONNECT_FAILURE) && retry.on.has(RetryOn::STATUS_CODES));
    assert_eq!(retry.status_codes, [503]);
}

#[test]
fn routes_are_tried_in_the_order_of_their_names_and_rules() {
    let model = Mesh::new(&format!(
        "{ORDERS}
---
{{kind: Route, name: b, namespace: shop, to: orders, rules: [{{match: {{path: {{prefix: /v2}}}}, split: [{{subset: v2}}]}}]}}
---
kind: Route
name: a
namespace: shop
to: orders
rules:
  - match: {{path: {{prefix: /v2/beta}}, method: [GET, HEAD], headers: [{{name: X-Beta, exact: \"1\"}}]}}
    split: [{{subset: v1, weight: 90}}, {{subset: v2, weight: 10}}]
  - match: {{path: {{exact: /old}}}}
    redirect: {{path: /new, status: 308}}
  - match: {{query: [{{name: teapot, present: true}}]}}
    respond: {{status: 418, body: short and stout}}
  - match: {{grpc: {{service: shop.Orders, method: Get}}}}
    timeout: {{request: 0s}}
"
    ))
    .model();
    let grpc = [("content-type", "application/grpc")];
    for (method, path, headers, want) in [
        ("GET", "/v2/beta/x", &[("x-beta", "1")][..], "a[0]"),
        ("HEAD", "/v2/beta", &[("x-beta", "1")], "a[0]"),
        ("POST", "/v2/beta", &[("x-beta", "1")], "b[0]"),
        ("GET", "/v2/beta", &[], "b[0]"),
        ("GET", "/v2", &[], "b[0]"),
        ("GET", "/v20", &[], "default"),
        ("GET", "/old", &[], "a[1]"),
        ("GET", "/old/", &[], "default"),
        ("GET", "/x?teapot", &[], "a[2]"),
        ("POST", "/shop.Orders/Get", &grpc, "a[3]"),
        ("POST", "/shop.Orders/Get", &[], "default"),
        ("POST", "/shop.Orders/Put", &grpc, "default"),
    ] {
        let route = route_of(&model, "orders.shop", &Request(method, path, headers));
        assert_eq!(route.name, want, "{method} {path} {headers:?}");
    }
    let weighted = route_of(&model, "orders.shop", &Request("GET", "/v2/beta", &[("x-beta", "1")]));
    let ClusterChoice::Weighted(clusters) = &forward(&weighted).to else { panic!("{weighted:?}") };
    let shares: Vec<_> = clusters.iter().map(|one| (one.cluster.as_str(), one.weight)).collect();
    assert_eq!(shares, [("outbound|http|v1|orders.shop", 90), ("outbound|http|v2|orders.shop", 10)]);
    let unlimited = route_of(&model, "orders.shop", &Request("POST", "/shop.Orders/Get", &grpc));
    assert_eq!(forward(&unlimited).timeout, None, "0s is no limit");
}

#[test]
fn rewritten_prefixes_meet_with_one_slash() {
    for (from, to, path, want) in [
        ("/v2", "/", "/v2/x", "/x"),
        ("/v2", "/", "/v2", "/"),
        ("/v2", "/v3", "/v2/x", "/v3/x"),
        ("/v2", "/v3", "/v2", "/v3"),
        ("/v2/", "/v3", "/v2/x", "/v3/x"),
        ("/v2/", "/", "/v2/x", "/x"),
        ("/", "/api", "/x", "/api/x"),
        ("/a.b", "/", "/a.b/x", "/x"),
    ] {
        let yaml = format!(
            "{ORDERS}\n---\n{{kind: Route, name: r, namespace: shop, to: orders, \
             rules: [{{match: {{path: {{prefix: {from}}}}}, rewrite: {{prefix: {to}}}}}]}}"
        );
        let route = route_of(&Mesh::new(&yaml).model(), "orders.shop", &Request("GET", path, &[]));
        assert_eq!(route.name, "r[0]", "{from} {path}");
        let rewritten = match forward(&route).rewrite.as_ref().expect("a rewrite") {
            PathRewrite::Prefix(to) => format!("{to}{}", &path[from.len()..]),
            PathRewrite::Regex { pattern, substitution } => {
                let matched = regex_find(pattern, path);
                format!("{substitution}{}", &path[matched..])
            }
        };
        assert_eq!(rewritten, want, "{from} -> {to}: {path}");
    }
}

/// Length of the longest beginning of `path` that all of `pattern` matches.
fn regex_find(pattern: &str, path: &str) -> usize {
    let regex = pillion_model::matcher::Regex::new(pattern).expect(pattern);
    (0..=path.len()).rev().find(|&end| regex.is_match(&path.as_bytes()[..end])).expect("matches")
}

#[test]
fn times_and_retries_come_from_the_nearest_level_that_says_something() {
    let yaml = "
kind: Mesh
defaults: {timeout: 9s, idleTimeout: 1m, retry: {attempts: 4, on: [reset], budgetPercent: 50}}
---
kind: Service
name: s
ports: [{name: http, port: 80}, {name: grpc, port: 81, protocol: grpc}]
timeout: {perTry: 100ms}
retry: {on: [5xx], budgetPercent: 30}
---
{kind: Route, name: r, to: s, rules: [{match: {path: {exact: /off}}, retry: {attempts: 0}},
  {match: {path: {exact: /long}}, timeout: {request: 1m}, retry: {attempts: 1, nonIdempotent: true}}]}
";
    let model = Mesh::new(yaml).model();
    let plain = route_of(&model, "s", &Request("GET", "/", &[]));
    let forward_plain = forward(&plain);
    assert_eq!(forward_plain.timeout, Some(Duration::from_secs(9)));
    assert_eq!(forward_plain.idle_timeout, Some(Duration::from_secs(60)));
    let retry = forward_plain.retry.as_ref().expect("retries");
    assert_eq!((retry.retries, retry.on, retry.only_safe), (4, RetryOn::SERVER_ERROR, true));
    assert_eq!(retry.per_try_timeout, Some(Duration::from_millis(100)));
    assert_eq!(forward(&route_of(&model, "s", &Request("GET", "/off", &[]))).retry, None);
    let long = route_of(&model, "s", &Request("GET", "/long", &[]));
    assert_eq!(forward(&long).timeout, Some(Duration::from_secs(60)));
    assert!(!forward(&long).retry.as_ref().expect("retries").only_safe);
    let budget = cluster(&model, "outbound|http||s.default").limits.retry_budget.expect("a budget");
    assert!((budget.percent - 30.0).abs() < f64::EPSILON);
    // gRPC: no 15 s default, the call's own limit counts.
    let grpc = &model.services[&name("s")].routes[1];
    let grpc = grpc.virtual_hosts[0].routes.last().expect("a default route");
    assert_eq!((forward(grpc).timeout, forward(grpc).grpc_timeout_max), (None, Some(Duration::ZERO)));
}

#[test]
fn endpoints_carry_health_zone_and_sidecar() {
    let with = |id: &str, change: &dyn Fn(&mut Instance)| {
        let mut instance = instance("orders.shop", id, &[("version", "1")]);
        change(&mut instance);
        instance
    };
    let mesh = Mesh::new(ORDERS)
        .with(with("o-1", &|_| {}))
        .with(with("o-2", &|i| i.zone = "b".to_owned()))
        .with(with("o-3", &|i| i.health.lease = Lease::Protected))
        .with(with("o-4", &|i| i.health.reported = Reported::Draining))
        .with(with("o-5", &|i| i.health.reported = Reported::NotReady))
        .with(with("o-6", &|i| i.weight = 0))
        .with(with("o-7", &|i| i.inbound_port = None))
        .with(with("o-8", &|i| i.labels = Arc::new([("version".to_owned(), "2".to_owned())].into())))
        .with(with("o-9", &|i| i.ports = Arc::default()));
    let model = mesh.model();
    let want = [
        "0 a o-1 10.0.0.1:15006 serving",
        "0 a o-4 10.0.0.4:15006 draining",
        "0 a o-8 10.0.0.8:15006 serving",
        "0 b o-2 10.0.0.2:15006 serving",
        "1 a o-3 10.0.0.3:15006 stale",
    ];
    assert_eq!(listed(endpoints(&model, "outbound|http||orders.shop")), want);
    let v2 = listed(endpoints(&model, "outbound|http|v2|orders.shop"));
    assert_eq!(v2, ["0 a o-8 10.0.0.8:15006 serving"]);
    // Where all is stale, stale is the best there is.
    let stale = Mesh::new(ORDERS).with(with("o-3", &|i| i.health.lease = Lease::Protected)).model();
    let want = ["0 a o-3 10.0.0.3:15006 stale"];
    assert_eq!(listed(endpoints(&stale, "outbound|http||orders.shop")), want);
}

#[test]
fn mutual_tls_decides_who_is_dialled_where() {
    for (mode, want, tls, transports, protocol) in [
        ("strict", vec!["0 a o-1 10.0.0.1:15006 serving"], true, 0, UpstreamProtocol::Auto),
        (
            "permissive",
            vec!["0 a o-1 10.0.0.1:15006 serving", "0 a o-2 10.0.0.2:8080 serving"],
            false,
            2,
            UpstreamProtocol::Auto,
        ),
        (
            "disabled",
            vec!["0 a o-1 10.0.0.1:8080 serving", "0 a o-2 10.0.0.2:8080 serving"],
            false,
            0,
            UpstreamProtocol::Http1,
        ),
    ] {
        let mut bare = instance("orders.shop", "o-2", &[]);
        bare.inbound_port = None;
        let model = Mesh::new(&format!("{ORDERS}mtls: {mode}\n"))
            .with(instance("orders.shop", "o-1", &[]))
            .with(bare)
            .model();
        assert_eq!(listed(endpoints(&model, "outbound|http||orders.shop")), want, "{mode}");
        let cluster = cluster(&model, "outbound|http||orders.shop");
        assert_eq!(cluster.tls.is_some(), tls, "{mode}");
        assert_eq!(cluster.transports.len(), transports, "{mode}");
        assert_eq!(cluster.protocol, protocol, "{mode}");
        let context =
            cluster.tls.iter().chain(cluster.transports.iter().filter_map(|t| t.tls.as_ref())).next();
        if let Some(context) = context {
            assert_eq!(context.sni, "http.orders.shop.mesh.internal");
            let names = &context.validation.as_ref().expect("the server is verified").names;
            assert!(names[0].matcher.is_match("spiffe://mesh.internal/ns/shop/svc/orders"), "{mode}");
            assert!(!names[0].matcher.is_match("spiffe://mesh.internal/ns/shop/svc/orders2"), "{mode}");
        }
    }
}

#[test]
fn a_service_that_only_registered_has_the_ports_of_its_instances() {
    let mut grpc = instance("cache.shop", "c-1", &[]);
    Arc::make_mut(&mut grpc.ports)
        .insert("admin".to_owned(), InstancePort { port: 9000, protocol: Protocol::Tcp, app_address: None });
    let model = Mesh::default().with(grpc).model();
    let service = &model.services[&name("cache.shop")].service;
    let ports: Vec<_> =
        service.ports.iter().map(|port| (port.name.as_str(), port.port, port.protocol)).collect();
    assert_eq!(ports, [("admin", 9000, Protocol::Tcp), ("http", 8080, Protocol::Http)]);
    assert_eq!(service.ports[0].route_configuration, "");
    assert_eq!(service.ports[0].clusters, ["outbound|admin||cache.shop"]);
    assert_eq!(service.ports[1].route_configuration, "http.cache.shop");
    assert_eq!(service.index, 1);
    assert_eq!(model.names["cache.shop.svc.mesh.internal"], name("cache.shop"));
}

#[test]
fn services_outside_the_mesh_hold_their_addresses() {
    let model = Mesh::new(
        "
kind: Service
name: db
hosts: [db.example.com]
sni: db.example.com
ports: [{name: pg, port: 5432, protocol: tcp}]
endpoints: [{address: db.example.com}]
---
kind: Service
name: rates
ports: [{name: http, port: 80, targetPort: 8443}]
subsets: {near: {zone: a}}
endpoints: [{address: 192.0.2.1, labels: {zone: a}, weight: 3}, {address: 192.0.2.2}]
loadBalancing: {policy: roundRobin}
",
    )
    .model();
    let db = cluster(&model, "outbound|pg||db.default");
    let Discovery::StrictDns { assignment, .. } = &db.discovery else { panic!("{db:?}") };
    let want = HostAddress::Name { host: "db.example.com".to_owned(), port: 5432 };
    assert_eq!(assignment.localities[0].endpoints[0].address, want);
    let tls = db.tls.as_ref().expect("sni means TLS");
    assert_eq!(tls.validation.as_ref().expect("verified").roots, pillion_model::tls::Roots::System);
    assert_eq!(model.names["db.example.com"], name("db"));
    let near = cluster(&model, "outbound|http|near|rates.default");
    let Discovery::Static(assignment) = &near.discovery else { panic!("{near:?}") };
    assert_eq!(listed(assignment), ["0  192.0.2.1 192.0.2.1:8443 serving"]);
    assert_eq!((near.tls.is_none(), &near.load_balancing), (true, &LoadBalancing::RoundRobin));
    assert!(model.services.values().all(|service| service.endpoints.is_empty()));
}
