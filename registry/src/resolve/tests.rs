//! Tables of resources and instances, and what they resolve to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pillion_config::{ResourceSet, Source, check, locate, parse};
use pillion_model::cluster::{Cluster, Discovery, LoadBalancing, UpstreamProtocol};
use pillion_model::endpoint::{HostAddress, LoadAssignment};
use pillion_model::health::{Lease, Reported};
use pillion_model::http::HttpFilter;
use pillion_model::instance::{Instance, InstancePort, Protocol, TTL_DEFAULT};
use pillion_model::listener::{ConnectionFacts, FilterChain, Terminal, choose};
use pillion_model::matcher::RequestView;
use pillion_model::mesh::Resources;
use pillion_model::name::{InstanceId, ServiceName};
use pillion_model::rbac::Peer;
use pillion_model::retry::RetryOn;
use pillion_model::route::{ClusterChoice, Forward, PathRewrite, RouteAction, RouteTable};

use super::*;
use crate::catalog::ServicePort;

/// Resources and instances under construction.
#[derive(Default)]
pub(crate) struct Mesh {
    resources: ResourceSet,
    catalog: CatalogView,
    indexes: BTreeMap<ServiceName, u16>,
}

impl Mesh {
    pub(crate) fn new(yaml: &str) -> Self {
        let resources = parse(&[Source::new("test.yaml", yaml)]).unwrap_or_else(|errors| panic!("{errors}"));
        Self { resources: resources.into_iter().map(|resource| resource.value).collect(), ..Self::default() }
    }

    pub(crate) fn with(mut self, instance: Instance) -> Self {
        let services = &mut self.catalog.services;
        let service = Arc::make_mut(services.entry(instance.service.clone()).or_default());
        for (name, port) in &instance.ports {
            let declared = ServicePort { port: port.port, protocol: port.protocol };
            service.ports.entry(name.clone()).or_insert(declared);
        }
        service.instances.insert(instance.id.clone(), Arc::new(instance));
        let names: BTreeSet<_> =
            self.resources.services().keys().chain(self.catalog.services.keys()).cloned().collect();
        self.indexes = names.into_iter().zip(1..).collect();
        self
    }

    pub(crate) fn input(&self) -> Input<'_> {
        Input { resources: &self.resources, catalog: &self.catalog, indexes: &self.indexes }
    }

    pub(crate) fn model(&self) -> MeshModel {
        resolve(&self.input())
    }
}

pub(crate) fn name(text: &str) -> ServiceName {
    text.parse().expect(text)
}

/// A ready instance with a sidecar and one port `http` on 8080.
pub(crate) fn instance(service: &str, id: &str, labels: &[(&str, &str)]) -> Instance {
    let port = InstancePort { port: 8080, protocol: Protocol::Http, app_address: None };
    let last = id.bytes().last().unwrap_or(b'0') - b'0';
    Instance {
        service: name(service),
        id: InstanceId::parse(id).expect(id),
        address: [10, 0, 0, last].into(),
        ports: [("http".to_owned(), port)].into(),
        inbound_port: Some(15006),
        metrics_port: None,
        labels: labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        metadata: BTreeMap::new(),
        weight: 100,
        zone: "a".to_owned(),
        ttl: TTL_DEFAULT,
        generation: 1,
        health: Default::default(),
    }
}

/// A request as `explain` and the proxy show it to matchers.
pub(crate) struct Request<'a>(pub(crate) &'a str, pub(crate) &'a str, pub(crate) &'a [(&'a str, &'a str)]);

impl RequestView for Request<'_> {
    fn method(&self) -> &str {
        self.0
    }
    fn path(&self) -> &str {
        self.1.split('?').next().unwrap_or_default()
    }
    fn query(&self) -> Option<&str> {
        self.1.split_once('?').map(|(_, query)| query)
    }
    fn authority(&self) -> &str {
        "orders.shop.mesh.internal"
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.2.iter().filter(|(have, _)| *have == name).for_each(|(_, value)| each(value.as_bytes()));
    }
}

const ORDERS: &str = "
kind: Service
name: orders
namespace: shop
ports: [{name: http, port: 80, targetPort: 8080}]
subsets: {v1: {version: \"1\"}, v2: {version: \"2\"}}
";

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
        .with(with("o-8", &|i| i.labels = [("version".to_owned(), "2".to_owned())].into()))
        .with(with("o-9", &|i| i.ports = BTreeMap::new()));
    let model = mesh.model();
    let want = [
        "0 a o-1 10.0.0.1:15006 serving",
        "0 a o-4 10.0.0.4:15006 draining",
        "0 a o-5 10.0.0.5:15006 down",
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
    grpc.ports
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

/// What the RBAC filters of `resources`' chain for a connection say to a request.
fn admits(
    resources: &Resources,
    facts: &ConnectionFacts<'_>,
    caller: Option<&str>,
    request: &Request<'_>,
) -> Option<bool> {
    let listener = &resources.listeners["inbound"];
    let chain: &FilterChain = choose(&listener.filter_chains, |chain| &chain.matches, facts)?;
    assert_eq!(chain.tls.is_some(), facts.is_tls, "{}", chain.name);
    let names: Option<Vec<String>> = caller.map(|caller| vec![caller.to_owned()]);
    let peer = Peer {
        names: names.as_deref(),
        direct_remote: facts.source,
        remote: facts.source,
        local: facts.destination,
        server_name: facts.server_name,
    };
    let by_network = chain.rbac.iter().all(|rbac| rbac.authorize(&peer, None).allowed);
    let by_request = match &chain.terminal {
        Terminal::Tcp(_) => true,
        Terminal::Http(manager) => manager.filters.iter().all(|filter| match filter {
            HttpFilter::Rbac { rules: Some(rules), .. } => rules.authorize(&peer, Some(request)).allowed,
            _ => true,
        }),
    };
    Some(by_network && by_request)
}

fn tls_facts(server_name: &str) -> ConnectionFacts<'_> {
    ConnectionFacts {
        destination: ([10, 0, 0, 1], 15006).into(),
        source: ([10, 0, 0, 9], 40000).into(),
        server_name: Some(server_name).filter(|name| !name.is_empty()),
        is_tls: true,
        alpn: &["h2"],
    }
}

#[test]
fn policies_decide_at_the_services_own_sidecar() {
    const WEB: &str = "spiffe://mesh.internal/ns/shop/svc/web";
    const WEBS: &str = "spiffe://mesh.internal/ns/shop/svc/web2";
    const BILL: &str = "spiffe://mesh.internal/ns/billing/svc/any";
    const FAKE: &str = "spiffe://mesh.internal/ns/billing2/svc/any";
    let policies = "
---
kind: AuthorizationPolicy
name: callers
namespace: shop
to: orders
action: allow
rules:
  - {from: [{service: web}], methods: [GET], paths: [/orders/*, /exact]}
  - {from: [{namespace: billing}], when: {\"request.headers[X-Tenant]\": [acme, \"test-*\"]}}
---
{kind: AuthorizationPolicy, name: no-admin, namespace: shop, to: orders, action: deny, rules: [{paths: [/orders/admin*]}]}
---
{kind: AuthorizationPolicy, name: try, namespace: shop, to: orders, action: deny, dryRun: true, rules: [{}]}
---
{kind: AuthorizationPolicy, name: log, namespace: shop, to: orders, action: audit, rules: [{methods: [GET]}]}
";
    let own = instance("orders.shop", "o-1", &[]);
    let model = Mesh::new(&format!("{ORDERS}{policies}")).with(own.clone()).model();
    let resources = inbound(&model, &own);
    let tenant = [("x-tenant", "test-1")];
    for (caller, method, path, headers, want) in [
        (Some(WEB), "GET", "/orders/1", &[][..], true),
        (Some(WEB), "GET", "/exact", &[], true),
        (Some(WEB), "GET", "/exact/", &[], false),
        (Some(WEB), "POST", "/orders/1", &[], false),
        (Some(WEB), "GET", "/other", &[], false),
        (Some(WEB), "GET", "/orders/admin/x", &[], false),
        (Some(WEBS), "GET", "/orders/1", &[], false),
        (Some(BILL), "POST", "/x", &tenant, true),
        (Some(BILL), "POST", "/x", &[("x-tenant", "other")], false),
        (Some(BILL), "POST", "/x", &[], false),
        (Some(FAKE), "POST", "/x", &tenant, false),
        (None, "GET", "/orders/1", &[], false),
    ] {
        let facts = tls_facts("http.orders.shop.mesh.internal");
        let got = admits(&resources, &facts, caller, &Request(method, path, headers));
        assert_eq!(got, Some(want), "{caller:?} {method} {path} {headers:?}");
    }
    let Terminal::Http(manager) = &resources.listeners["inbound"].filter_chains[0].terminal else {
        panic!("http")
    };
    let shadows = manager.filters.iter().filter(|filter| {
        matches!(filter, HttpFilter::Rbac { shadow_rules: Some(shadow), .. }
            if shadow.policies.contains_key("try[0]"))
    });
    assert_eq!(shadows.count(), 1, "a dry run is evaluated and enforces nothing");
}

#[test]
fn the_mesh_can_deny_by_default() {
    let own = instance("orders.shop", "o-1", &[]);
    let caller = Some("spiffe://mesh.internal/ns/shop/svc/web");
    for (mesh, want) in [("allow", true), ("deny", false)] {
        let yaml = format!("{ORDERS}\n---\n{{kind: Mesh, authorization: {mesh}}}");
        let resources = inbound(&Mesh::new(&yaml).with(own.clone()).model(), &own);
        let facts = tls_facts("http.orders.shop.mesh.internal");
        assert_eq!(admits(&resources, &facts, caller, &Request("GET", "/", &[])), Some(want), "{mesh}");
    }
}

#[test]
fn on_tcp_a_rule_that_cannot_be_judged_never_opens() {
    let web = Some("spiffe://mesh.internal/ns/default/svc/web");
    let mut own = instance("db", "d-1", &[]);
    own.ports =
        [("pg".to_owned(), InstancePort { port: 5432, protocol: Protocol::Tcp, app_address: None })].into();
    for (action, rule, want) in [
        ("allow", "{from: [{service: web}]}", true),
        ("allow", "{from: [{service: other}]}", false),
        ("allow", "{from: [{service: web}], methods: [GET]}", false),
        ("deny", "{from: [{service: web}], methods: [GET]}", false),
        ("deny", "{from: [{service: other}]}", true),
        ("allow", "{from: [{service: web}], ports: [other]}", false),
    ] {
        let yaml =
            format!("{{kind: AuthorizationPolicy, name: p, to: db, action: {action}, rules: [{rule}]}}");
        let resources = inbound(&Mesh::new(&yaml).with(own.clone()).model(), &own);
        let facts = tls_facts("pg.db.default.mesh.internal");
        let got = admits(&resources, &facts, web, &Request("GET", "/", &[]));
        assert_eq!(got, Some(want), "{action} {rule}");
    }
}

#[test]
fn connections_find_the_chain_that_is_meant_for_them() {
    let web = Some("spiffe://mesh.internal/ns/shop/svc/web");
    let strict = "ports: [{name: http, port: 80, targetPort: 8080, probes: [/healthz]}]";
    let permissive = "ports: [{name: http, port: 80, targetPort: 8080, mtls: permissive}]";
    let two = "ports: [{name: http, port: 80, targetPort: 8080}, {name: b, port: 81, targetPort: 8081}]";
    let plain = |port| ConnectionFacts {
        destination: ([10, 0, 0, 1], port).into(),
        server_name: None,
        is_tls: false,
        alpn: &[],
        ..tls_facts("")
    };
    let captured = ConnectionFacts { destination: ([10, 0, 0, 1], 8080).into(), ..tls_facts("x") };
    for (ports, facts, caller, path, want) in [
        (strict, tls_facts("http.orders.shop.mesh.internal"), web, "/", Some(true)),
        (strict, tls_facts(""), web, "/", Some(true)),
        (strict, tls_facts("orders.shop:80"), web, "/", Some(true)),
        (strict, plain(15006), None, "/healthz", None),
        (strict, plain(8080), None, "/healthz", Some(true)),
        (strict, plain(8080), None, "/", Some(false)),
        (strict, captured, web, "/", Some(true)),
        (permissive, plain(8080), None, "/", Some(true)),
        (permissive, plain(15006), None, "/", None),
        (permissive, captured, web, "/", Some(true)),
        (two, tls_facts("b.orders.shop.mesh.internal"), web, "/", Some(true)),
        (two, tls_facts(""), web, "/", None),
        (two, tls_facts("c.orders.shop.mesh.internal"), web, "/", None),
        (two, plain(8080), None, "/", None),
    ] {
        let mut own = instance("orders.shop", "o-1", &[]);
        let second = InstancePort { port: 8081, ..own.ports["http"].clone() };
        own.ports.insert("b".to_owned(), second);
        let yaml = format!("kind: Service\nname: orders\nnamespace: shop\n{ports}\n");
        let resources = inbound(&Mesh::new(&yaml).with(own.clone()).model(), &own);
        let got = admits(&resources, &facts, caller, &Request("GET", path, &[]));
        assert_eq!(got, want, "{ports} {facts:?} {path}");
    }
}

#[test]
fn the_application_is_reached_where_it_registered() {
    let mut own = instance("orders.shop", "o-1", &[]);
    own.ports.get_mut("http").expect("http").app_address = Some(([127, 0, 0, 3], 9999).into());
    let resources = inbound(&Mesh::new(ORDERS).with(own.clone()).model(), &own);
    let Discovery::Static(assignment) = &resources.clusters["inbound|http"].discovery else {
        panic!("static")
    };
    let want = HostAddress::Socket(([127, 0, 0, 3], 9999).into());
    assert_eq!(assignment.localities[0].endpoints[0].address, want);
    own.inbound_port = None;
    assert_eq!(inbound(&Mesh::new(ORDERS).with(own.clone()).model(), &own), Resources::default());
}

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
    let again = Arc::clone(resolver.some(&mesh.input(), &[name("orders.shop")].into()));
    assert!(Arc::ptr_eq(&before, &again), "nothing came out different");

    let mesh = mesh.with(instance("orders.shop", "o-3", &[("version", "2")]));
    let after = Arc::clone(resolver.some(&mesh.input(), &[name("orders.shop")].into()));
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
    let after = resolver.some(&mesh.input(), &[name("b")].into());
    let port = &after.services[&name("a")].service.ports[0];
    assert!(port.clusters.contains(&"outbound|http||b.default".to_owned()), "{:?}", port.clusters);
    assert_eq!(after.names["b.mesh.internal"], name("b"));
}
