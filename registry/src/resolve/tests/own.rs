//! What a service's own sidecar enforces.

use super::*;

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
    own.ports = Arc::new(
        [("pg".to_owned(), InstancePort { port: 5432, protocol: Protocol::Tcp, app_address: None })].into(),
    );
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
        Arc::make_mut(&mut own.ports).insert("b".to_owned(), second);
        let yaml = format!("kind: Service\nname: orders\nnamespace: shop\n{ports}\n");
        let resources = inbound(&Mesh::new(&yaml).with(own.clone()).model(), &own);
        let got = admits(&resources, &facts, caller, &Request("GET", path, &[]));
        assert_eq!(got, want, "{ports} {facts:?} {path}");
    }
}

#[test]
fn the_application_is_reached_where_it_registered() {
    let mut own = instance("orders.shop", "o-1", &[]);
    Arc::make_mut(&mut own.ports).get_mut("http").expect("http").app_address =
        Some(([127, 0, 0, 3], 9999).into());
    let resources = inbound(&Mesh::new(ORDERS).with(own.clone()).model(), &own);
    let Discovery::Static(assignment) = &resources.clusters["inbound|http"].discovery else {
        panic!("static")
    };
    let want = HostAddress::Socket(([127, 0, 0, 3], 9999).into());
    assert_eq!(assignment.localities[0].endpoints[0].address, want);
    own.inbound_port = None;
    assert_eq!(inbound(&Mesh::new(ORDERS).with(own.clone()).model(), &own), Resources::default());
}
