//! Questions and answers.

use super::*;
use crate::resolve::tests::{Mesh, instance};

const YAML: &str = "
kind: Service
name: orders
namespace: shop
hosts: [orders.legacy.local]
ports: [{name: http, port: 80, targetPort: 8080}]
subsets: {v1: {version: \"1\"}, v2: {version: \"2\"}}
---
kind: Route
name: canary
namespace: shop
to: orders
rules:
  - match: {path: {prefix: /v2}}
    split: [{subset: v1, weight: 3}, {subset: v2, weight: 1}]
    timeout: {request: 1s}
  - match: {path: {exact: /gone}}
    respond: {status: 410}
---
kind: AuthorizationPolicy
name: callers
namespace: shop
to: orders
action: allow
rules: [{from: [{service: web}], methods: [GET], paths: [/v2/*, /gone]}]
---
{kind: AuthorizationPolicy, name: no-admin, namespace: shop, to: orders, action: deny, rules: [{paths: [/v2/admin*]}]}
---
{kind: AuthorizationPolicy, name: later, namespace: shop, to: orders, action: deny, dryRun: true, rules: [{methods: [GET]}]}
";

fn mesh() -> MeshModel {
    Mesh::new(YAML)
        .with(instance("orders.shop", "o-1", &[("version", "1")]))
        .with(instance("orders.shop", "o-2", &[("version", "2")]))
        .model()
}

fn ask(caller: &str, method: &str, path: &str) -> Explanation {
    let question = Question {
        caller: (!caller.is_empty()).then(|| caller.to_owned()),
        service: "orders.shop".to_owned(),
        method: Some(method.to_owned()),
        path: Some(path.to_owned()),
        ..Question::default()
    };
    explain(&mesh(), &question).expect("a service and a port that exist")
}

#[test]
fn a_caller_that_is_not_known_is_told_from_one_that_is() {
    for (caller, known) in [("orders.shop", true), ("web.shop", false), ("", false)] {
        assert_eq!(ask(caller, "GET", "/v2/x").caller_known, known, "{caller}");
    }
}

#[test]
fn the_outcome_says_what_the_proxies_would_do() {
    for (caller, method, path, route, want) in [
        ("web.shop", "GET", "/v2/x?a=b", "canary[0]", "allowed"),
        ("web.shop", "GET", "//v2/./y/../x", "canary[0]", "allowed"),
        ("web.shop", "GET", "/v2/x/../admin", "canary[0]", "refused: denied by no-admin[0]"),
        ("web.shop", "POST", "/v2/x", "canary[0]", "refused: there are allow policies, and none matches"),
        ("cron.shop", "GET", "/v2/x", "canary[0]", "refused: there are allow policies, and none matches"),
        ("web.shop", "GET", "/other", "default", "refused: there are allow policies, and none matches"),
        ("web.shop", "GET", "/gone", "canary[1]", "answered by the caller's own sidecar: respond with 410"),
        (
            "",
            "GET",
            "/v2/x",
            "canary[0]",
            "refused: the port demands mutual TLS, and the caller has no identity",
        ),
        ("web.shop", "GET", "/../x", "default", "refused: there are allow policies, and none matches"),
        ("web.shop", "GET", "/x%00", "", "refused with 400: the path \"/x%00\" has no normal form"),
    ] {
        let answer = ask(caller, method, path);
        assert_eq!(answer.outcome, want, "{caller} {method} {path}\n{answer}");
        assert_eq!(answer.route.map(|step| step.name).unwrap_or_default(), route, "{method} {path}");
    }
}

#[test]
fn every_step_is_shown() {
    let answer = ask("web.shop", "POST", "/v2/x");
    assert_eq!(
        answer.to_string(),
        "\
caller     spiffe://mesh.internal/ns/shop/svc/web
service    orders.shop, port http (http 80)
request    POST /v2/x
route      canary[0] in http.orders.shop: forward
timeout    1s
retries    2 on connect-failure, refused-stream, unavailable, 503
to         orders.shop, subset v1: 75 %, mtls strict
           o-1 10.0.0.1:15006 serving weight 100 zone a priority 0
policy     no-admin[0] (deny) does not match: not so: path /v2/admin*
policy     later[0] (deny, dry run) does not match: not so: method GET
policy     callers[0] (allow) does not match: not so: method GET
decision   refused: there are allow policies, and none matches
to         orders.shop, subset v2: 25 %, mtls strict
           o-2 10.0.0.2:15006 serving weight 100 zone a priority 0
policy     no-admin[0] (deny) does not match: not so: path /v2/admin*
policy     later[0] (deny, dry run) does not match: not so: method GET
policy     callers[0] (allow) does not match: not so: method GET
decision   refused: there are allow policies, and none matches
outcome    refused: there are allow policies, and none matches"
    );
    let json = serde_json::to_value(&answer).expect("texts and numbers only");
    assert_eq!(json["destinations"][0]["authorization"]["policies"][1]["dryRun"], true);
}

#[test]
fn no_endpoint_is_said() {
    let question = Question {
        service: "ORDERS.legacy.local.".to_owned(),
        caller: Some("web.shop".to_owned()),
        path: Some("/v2/x".to_owned()),
        ..Question::default()
    };
    let mesh = Mesh::new(YAML).with(instance("orders.shop", "o-1", &[("version", "1")])).model();
    let answer = explain(&mesh, &question).expect("a further name");
    assert_eq!(
        answer.outcome,
        "allowed, but outbound|http|v2|orders.shop has no endpoint that takes traffic: 503"
    );
}

#[test]
fn what_does_not_exist_is_named() {
    for (question, want) in [
        (Question { service: "nope".to_owned(), ..Question::default() }, "there is no service \"nope\""),
        (
            Question {
                service: "orders.shop".to_owned(),
                port: Some("81".to_owned()),
                ..Question::default()
            },
            "service orders.shop has no port \"81\", want one of http (80)",
        ),
        (
            Question {
                service: "orders.shop".to_owned(),
                caller: Some("Web".to_owned()),
                ..Question::default()
            },
            "\"Web\" has 'W' at position 0",
        ),
    ] {
        let error = explain(&mesh(), &question).expect_err(want).to_string();
        assert!(error.starts_with(want), "{error}");
    }
}
