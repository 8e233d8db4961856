//! Mistakes are all reported in one run, each at its place, in every format.

#![expect(clippy::unwrap_used, reason = "a test file")]

use pillion_config::{Diagnostics, Resource, ResourceSet, Source, Style, check, check_among, locate, parse};

/// The mistakes of a file, or those of its resources among each other; one line each.
fn mistakes(name: &str, text: &str) -> Vec<String> {
    let lines = |found: Diagnostics| found.0.iter().map(ToString::to_string).collect();
    match parse(&[Source::new(name, text)]) {
        Err(found) => lines(found),
        Ok(resources) => {
            let set: ResourceSet = resources.iter().map(|resource| resource.value.clone()).collect();
            lines(locate(&check(&set), &resources))
        }
    }
}

fn one(yaml: &str, want: &str) {
    let found = mistakes("a.yaml", yaml);
    assert_eq!(found.len(), 1, "{yaml}\n{found:#?}");
    assert!(found[0].contains(want), "{yaml}\n got {}\nwant {want}", found[0]);
}

#[test]
fn three_mistakes_in_one_file_are_three_lines() {
    let yaml = "\
kind: Service
name: orders
ports:
- {name: http, port: 99999}
- {name: grpc, port: 81, protocl: grpc}
---
kind: Route
name: r
to: orders
rules:
- timeout: {request: 15}
";
    assert_eq!(
        mistakes("mesh.yaml", yaml),
        [
            "mesh.yaml:4:22: ports[0].port: got the number 99999, want a whole number from 1 to 65535",
            "mesh.yaml:5:26: ports[1].protocl: unknown field; did you mean `protocol`?",
            "mesh.yaml:11:22: rules[0].timeout.request: got the number 15, want a duration such as 250ms, 15s or 5m",
        ]
    );
}

#[test]
fn a_missing_field_hides_nothing() {
    let yaml = "kind: Service\nnam: s\nhots: [a]\nmtls: off\n";
    let found = mistakes("a.yaml", yaml);
    let paths: Vec<_> = found.iter().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(paths, ["name", "ports", "nam", "hots", "mtls"], "{found:#?}");
}

#[test]
fn every_format_tells_the_place() {
    let json = "[\n  {\"kind\": \"Service\", \"name\": \"a\",\n   \"ports\": [{\"nam\": \"http\", \"port\": 80}]}\n]";
    assert_eq!(
        mistakes("a.json", json),
        [
            "a.json:3:14: [0].ports[0].name: is missing",
            "a.json:3:15: [0].ports[0].nam: unknown field; did you mean `name`?",
        ]
    );
    let toml = "[[resource]]\nkind = \"Service\"\nname = \"a\"\n\n[[resource.ports]]\nname = \"http\"\nport = \"80\"\n";
    assert_eq!(
        mistakes("a.toml", toml),
        ["a.toml:7:8: resource[0].ports[0].port: got \"80\", want a whole number from 1 to 65535"]
    );
    for (name, text, want) in [
        ("a.yaml", "kind: [Service\n", "a.yaml:"),
        ("a.json", "{\"kind\": }", "a.json:1:10: got '}', want a JSON value"),
        ("a.toml", "kind = \n", "a.toml:1:"),
        ("a.yaml", "kind: Service\nkind: Route\n", "a.yaml:2:1: "),
    ] {
        let found = mistakes(name, text);
        assert!(found.len() == 1 && found[0].starts_with(want), "{text}\n{found:?}");
    }
}

#[test]
fn a_broken_file_does_not_hide_the_mistakes_of_another() {
    let sources = [Source::new("a.yaml", "a: [\n"), Source::new("b.yaml", "kind: Servce\n")];
    let found = parse(&sources).unwrap_err();
    assert_eq!(found.0.len(), 2, "{found}");
    assert_eq!(
        found.0[1].to_string(),
        "b.yaml:1:7: kind: unknown kind \"Servce\", want one of Mesh, Service, Route, AuthorizationPolicy, Federation; did you mean `Service`?"
    );
}

const SERVICE: &str =
    "kind: Service\nname: s\nports: [{name: http, port: 80}, {name: db, port: 81, protocol: tcp}]\n";

#[test]
fn values_that_are_not_valid_say_what_would_be() {
    for (field, want) in [
        (
            "hosts: [Orders.Local]",
            "hosts[0]: \"Orders.Local\" is not a DNS name: a part of it has 'O' at position 0",
        ),
        ("hosts: [10.0.0.1]", "hosts[0]: \"10.0.0.1\" is an address, want a DNS name"),
        (
            "mtls: strikt",
            "mtls: got \"strikt\", want one of strict, permissive, disabled; did you mean `strict`?",
        ),
        (
            "subsets: {v1: {version: 1}}",
            "subsets.v1.version: got the number 1, want a text; put it in quotes: \"1\"",
        ),
        ("subsets: {v1: {}}", "subsets.v1: is empty"),
        ("subsets: {all: {a: b}}", "key \"all\" is reserved"),
        (
            "retry: {on: [unavailble]}",
            "is not a retry condition, want a status code (400 to 599) or one of 5xx",
        ),
        ("retry: {attempts: -1}", "retry.attempts: got the number -1, want a whole number from 0 to 100"),
        ("retry: {budgetPercent: 120}", "want a percentage from 0 to 100"),
        ("timeout: {perTry: 0s}", "timeout.perTry: got \"0s\", want a duration from 1ms to 1h"),
        ("loadBalancing: {policy: maglev}", "nothing to hash"),
        ("loadBalancing: {zoneAware: true}", "zone-aware load balancing is not supported yet"),
        ("rateLimits: [{requests: 100, per: 1s, by: caller}]", "rate limits are not supported yet"),
        ("healthCheck: {grpc: x, tcp: true}", "gRPC health checks are not supported yet"),
        ("healthCheck: {http: healthz}", "healthCheck.http: \"healthz\" does not begin with `/`"),
        ("sni: a.example.com", "has `sni` but no `endpoints`"),
        ("apiVersion: pillion/v2", "want one of pillion/v1"),
        ("namespace: svc", "`svc` is reserved for DNS names"),
        ("endpoints: [{address: \"not a name\"}]", "endpoints[0].address: \"not a name\" is not a DNS name"),
        (
            "healthCheck: {http: /, port: htp}",
            "has no port \"htp\", want one of http, db; did you mean `http`?",
        ),
        ("healthCheck: {http: /, port: db}", "port \"db\" is tcp"),
        ("hosts: [s.mesh.internal]", "is a name of this service already"),
        ("hosts: [other.mesh.internal]", "is in the mesh's zone mesh.internal"),
        ("endpoints: [{address: 192.0.2.1, port: 1}]", "is ambiguous, the service has several ports"),
    ] {
        one(&format!("{SERVICE}{field}\n"), want);
    }
}

#[test]
fn rules_of_routes_are_checked() {
    for (rule, want) in [
        ("{match: {path: {prefix: v2}}}", "path.prefix: \"v2\" does not begin with `/`"),
        ("{match: {path: {prefix: /v2, exact: /v2}}}", "has prefix and exact; want only one of them"),
        ("{match: {path: {}}}", "want one of prefix, exact, regex"),
        ("{match: {path: {regex: \"(\"}}}", "is not a regular expression: "),
        ("{match: {method: [get]}}", "methods are upper case: GET"),
        (
            "{match: {headers: [{name: x-a}]}}",
            "want one of exact, prefix, suffix, contains, regex, present, range",
        ),
        ("{match: {headers: [{name: x-a, range: {start: 2, end: 2}}]}}", "no number is from 2"),
        ("{match: {query: [{name: a, range: {start: 1, end: 2}}]}}", "which only headers have"),
        ("{match: {source: {service: web}}}", "matching by caller is not supported yet"),
        ("{match: {grpc: {method: Get}}}", "has `method` without `service`"),
        ("{split: [{subset: v1, weight: 0}]}", "has only weights of 0"),
        (
            "{split: [{subset: v3}]}",
            "split[0].subset: service s.default has no subset \"v3\", want one of v1, v2; did you mean `v1`?",
        ),
        (
            "{split: [{service: t}]}",
            "split[0].service: there is no service \"t\" in namespace \"default\"; did you mean `s`?",
        ),
        ("{split: [{service: s.shop}]}", "there is no service \"s\" in namespace \"shop\""),
        ("{mirror: {service: nobody, percent: 5}}", "mirror.service: there is no service \"nobody\""),
        ("{retry: {budgetPercent: 10}}", "belongs to the Service"),
        (
            "{redirect: {path: /x}, split: [{subset: v1}]}",
            "has redirect and split; redirect answers by itself",
        ),
        ("{redirect: {status: 301}}", "redirects to the same place"),
        ("{redirect: {path: /x, status: 304}}", "got 304, want 301, 302, 303, 307 or 308"),
        ("{respond: {status: 99}}", "want a whole number from 200 to 599"),
        ("{headers: {request: {set: {host: a}}}}", "want `rewrite: {host: …}`"),
        ("{headers: {request: {set: {\"a b\": c}}}}", "is not a header name"),
        (
            "{match: {path: {regex: /a}}, rewrite: {prefix: /}}",
            "the match is a regular expression; want `regex`",
        ),
        ("{cors: {allowOrigins: [\"https://*.a\"]}}", "has a `*` that is not at the end"),
        ("{fault: {abort: {status: 503, percent: 101}}}", "want a percentage"),
        ("{rateLimits: []}", "rate limits are not supported yet"),
        ("{}, {}", "rules[0]: matches every request, so rules[1] is never reached"),
    ] {
        let subsets = "subsets: {v1: {v: \"1\"}, v2: {v: \"2\"}}\n";
        one(&format!("{SERVICE}{subsets}---\nkind: Route\nname: r\nto: s\nrules: [{rule}]\n"), want);
    }
}

#[test]
fn rules_of_policies_are_checked() {
    for (fields, want) in [
        ("action: permit, rules: [{}]", "action: got \"permit\", want one of allow, deny, audit"),
        ("action: allow", "rules: is missing"),
        ("action: allow, rules: []", "rules: is empty, want at least one item"),
        ("action: allow, rules: [{from: []}]", "rules[0].from: is empty"),
        ("action: allow, rules: [{from: [{}]}]", "names nobody; want `service` or `namespace`"),
        ("action: allow, rules: [{from: [{service: a.b, namespace: c}]}]", "names two namespaces"),
        ("action: allow, rules: [{ports: [http], paths: [/a*b]}]", "has a `*` that is not at the end"),
        (
            "action: allow, rules: [{ports: [http], when: {jwt.claims.role: [admin]}}]",
            "tokens (JWT) are not checked",
        ),
        (
            "action: allow, rules: [{ports: [http], when: {source.ip: [a]}}]",
            "is not a condition; want `request.headers[NAME]`",
        ),
        ("action: deny, rules: [{methods: [GET]}]", "port \"db\" is tcp, where there are no methods"),
        ("action: deny, rules: [{ports: [htp]}]", "ports[0]: service \"s\" has no port \"htp\""),
    ] {
        one(&format!("{SERVICE}---\n{{kind: AuthorizationPolicy, name: p, to: s, {fields}}}\n"), want);
    }
    let missing = format!(
        "{SERVICE}---\n{{kind: AuthorizationPolicy, name: p, to: nobody, action: deny, rules: [{{}}]}}\n"
    );
    one(&missing, "to: there is no service \"nobody\" in namespace \"default\"");
}

#[test]
fn kinds_and_names_are_checked() {
    for (yaml, want) in [
        ("kind: Gateway\nname: edge\n", "a.yaml:1:7: kind: kind Gateway is not supported yet"),
        ("kind: Workload\nservice: web\n", "kind Workload is not supported yet"),
        ("name: x\n", "a.yaml:1:1: kind: is missing"),
        ("- 1\n", "[0]: got the number 1, want a map"),
        ("kind: Mesh\nname: prod\n", "name: got \"prod\", want one of mesh"),
        (
            "kind: Mesh\n---\nkind: Mesh\n",
            "a.yaml:3:7: kind: Mesh default/mesh is already defined in a.yaml:1",
        ),
        (
            "{kind: Service, name: a, hosts: [x.org], ports: [{name: p, port: 1}]}\n---\n{kind: Service, name: b, hosts: [x.org], ports: [{name: p, port: 1}]}\n",
            "a.yaml:3:34: hosts[0]: \"x.org\" is a name of service a.default already",
        ),
        (
            "{kind: Service, name: a, ports: [{name: p, port: 1}, {name: p, port: 2}]}",
            "ports[1].name: port name \"p\" is already that of ports[0]",
        ),
        (
            "{kind: Service, name: a, ports: [{name: p, port: 1}, {name: q, port: 1}]}",
            "ports[1].port: port 1 is already that of ports[0]",
        ),
        (
            "{kind: Service, name: a, ports: [{name: p, port: 1}]}\n---\n{kind: Route, name: a, to: a, rules: [{}]}\n---\n{kind: Route, name: b, to: a, rules: [{}]}",
            "is never reached: route \"a\" comes first by name",
        ),
    ] {
        one(yaml, want);
    }
}

#[test]
fn a_registered_service_needs_no_resource() {
    let yaml = "{kind: AuthorizationPolicy, name: p, to: only, action: deny, rules: [{}]}";
    let set: ResourceSet =
        parse(&[Source::new("a.yaml", yaml)]).unwrap().into_iter().map(|resource| resource.value).collect();
    assert_eq!(check(&set).len(), 1);
    assert_eq!(check_among(&set, &|name| name.to_string() == "only.default"), []);
}

#[test]
fn json_of_the_api_is_checked_by_the_same_rules() {
    let json =
        serde_json::json!({"kind": "Service", "name": "a", "ports": [{"name": "p", "port": 0}], "x": 1});
    let found = Resource::from_json(&json).unwrap_err().to_string();
    assert!(found.contains("ports[0].port: got the number 0"), "{found}");
    assert!(found.contains("x: unknown field"), "{found}");
}

#[test]
fn terminals_get_the_source() {
    let yaml = "kind: Service\nname: s\nports:\n- {name: http, prt: 80}\n";
    let found = parse(&[Source::new("a.yaml", yaml)]).unwrap_err();
    let shown = found.render(Style::Plain);
    assert!(shown.contains("error: ports[0].prt: unknown field; did you mean `port`?"), "{shown}");
    assert!(shown.contains("--> a.yaml:4:16"), "{shown}");
    assert!(shown.contains("- {name: http, prt: 80}"), "{shown}");
    assert!(shown.contains("^^^"), "{shown}");
    assert!(!shown.contains('\u{1b}'));
    assert!(found.render(Style::Coloured).contains('\u{1b}'));
}

#[test]
fn the_schema_knows_every_field_of_the_examples() {
    let schema = pillion_config::schema();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let source = Source::new(path.to_str().unwrap(), &std::fs::read_to_string(&path).unwrap());
        for resource in parse(&[source]).unwrap() {
            let kind = resource.value.key().kind.as_str();
            known(&schema, &schema["$defs"][kind], &resource.value.to_json(), kind);
        }
    }
    for kind in ["Mesh", "Service", "Route", "AuthorizationPolicy"] {
        assert!(schema["$defs"][kind]["description"].is_string(), "{kind} has no description");
    }
}

/// Whether every key of `json` is a property in `schema`, followed through references and choices.
fn known(root: &serde_json::Value, schema: &serde_json::Value, json: &serde_json::Value, at: &str) {
    let mut shapes = vec![schema];
    let mut seen = 0;
    while seen < shapes.len() {
        let shape = shapes[seen];
        seen += 1;
        if let Some(name) = shape["$ref"].as_str() {
            let name = name.rsplit('/').next().unwrap();
            assert!(root["$defs"][name].is_object(), "{at}: {name} is not defined");
            shapes.push(&root["$defs"][name]);
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            shapes.extend(shape[key].as_array().into_iter().flatten());
        }
    }
    match json {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let below = shapes.iter().find_map(|shape| shape["properties"].get(key));
                let below =
                    below.or_else(|| shapes.iter().find_map(|shape| shape.get("additionalProperties")));
                let below = below.filter(|below| below.is_object() || **below == true);
                known(
                    root,
                    below.unwrap_or_else(|| panic!("{at}.{key} is not in the schema")),
                    value,
                    &format!("{at}.{key}"),
                );
            }
        }
        serde_json::Value::Array(items) => {
            let below = shapes.iter().find_map(|shape| shape.get("items"));
            for item in items {
                known(root, below.unwrap_or_else(|| panic!("{at} is not a list in the schema")), item, at);
            }
        }
        _ => {}
    }
}
