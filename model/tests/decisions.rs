//! Route match, authorization, filter chain choice and retry rules, as tables.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;

use pillion_model::endpoint::Fraction;
use pillion_model::http::HttpConnectionManager;
use pillion_model::http::RouteSource;
use pillion_model::listener::{ConnectionFacts, FilterChain, FilterChainMatch, Terminal, choose};
use pillion_model::matcher::{
    HeaderMatcher, HeaderValueMatch, Pattern, QueryMatcher, Regex, RequestView, StringMatcher,
};
use pillion_model::rbac::{Action, Peer, Permission, Policy, Principal, Rbac};
use pillion_model::retry::{Outcome, Reset, RetryOn, RetryPolicy};
use pillion_model::route::{
    ClusterChoice, DomainError, FilterOverrides, Forward, HeaderChanges, PathMatch, Route, RouteAction,
    RouteConfiguration, RouteMatch, RouteTable, VirtualHost, WeightedCluster,
};

struct Request {
    method: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    authority: &'static str,
    headers: &'static [(&'static str, &'static str)],
}

impl RequestView for Request {
    fn method(&self) -> &str {
        self.method
    }
    fn path(&self) -> &str {
        self.path
    }
    fn query(&self) -> Option<&str> {
        self.query
    }
    fn authority(&self) -> &str {
        self.authority
    }
    fn scheme(&self) -> &'static str {
        "http"
    }
    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        for (have, value) in self.headers {
            if *have == name {
                each(value.as_bytes());
            }
        }
    }
}

fn get(path: &'static str, headers: &'static [(&'static str, &'static str)]) -> Request {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    Request { method: "GET", path, query, authority: "orders.shop", headers }
}

fn route(name: &str, matches: RouteMatch) -> Route {
    Route {
        name: name.to_owned(),
        matches,
        action: RouteAction::Forward(Box::new(Forward::to(name))),
        headers: HeaderChanges::default(),
        filters: Default::default(),
    }
}

fn at(path: PathMatch) -> RouteMatch {
    RouteMatch { path, ..RouteMatch::default() }
}

#[test]
fn the_most_specific_domain_decides() {
    let host = |name: &str, domains: &[&str]| VirtualHost {
        name: name.to_owned(),
        domains: domains.iter().map(|&domain| domain.to_owned()).collect(),
        ..VirtualHost::default()
    };
    let table = RouteTable::compile(RouteConfiguration {
        name: "t".into(),
        virtual_hosts: vec![
            host("any", &["*"]),
            host("suffix", &["*.example.com"]),
            host("longer", &["*.api.example.com"]),
            host("prefix", &["api.*"]),
            host("exact", &["API.example.com", "api.example.com:8080"]),
        ],
        ..RouteConfiguration::default()
    })
    .unwrap();
    for (authority, want) in [
        ("api.example.com", "exact"),
        ("Api.Example.COM", "exact"),
        ("api.example.com:8080", "exact"),
        ("x.example.com", "suffix"),
        ("x.api.example.com", "longer"),
        (".example.com", "any"),
        ("api.other", "prefix"),
        ("api.", "any"),
        ("other", "any"),
    ] {
        let found = table.virtual_host(authority).unwrap();
        assert_eq!(table.configuration().virtual_hosts[found].name, want, "{authority}");
    }
}

#[test]
fn a_domain_may_stand_once() {
    let twice = |a: &str, b: &str| {
        RouteTable::compile(RouteConfiguration {
            name: "t".into(),
            virtual_hosts: [a, b]
                .iter()
                .map(|domain| VirtualHost { domains: vec![(*domain).to_owned()], ..VirtualHost::default() })
                .collect(),
            ..RouteConfiguration::default()
        })
    };
    for (a, b) in [("a", "A"), ("*", "*"), ("*.a", "*.a"), ("a.*", "a.*")] {
        assert!(matches!(twice(a, b), Err(DomainError::Duplicate { .. })), "{a} {b}");
    }
    assert!(matches!(twice("a*b", "c"), Err(DomainError::Wildcard { .. })));
    assert!(twice("*.a", "a.*").is_ok());
}

#[test]
fn the_first_route_that_matches_decides() {
    let header = |name: &str, value| HeaderMatcher {
        name: name.to_owned(),
        value,
        invert: false,
        treat_missing_as_empty: false,
    };
    let table = RouteTable::compile(RouteConfiguration {
        name: "t".into(),
        virtual_hosts: vec![VirtualHost {
            domains: vec!["*".into()],
            routes: vec![
                route("segment", at(PathMatch::SegmentPrefix("/seg".into()))),
                route("exact", at(PathMatch::Exact("/exact".into()))),
                route(
                    "nocase",
                    RouteMatch { case_sensitive: false, ..at(PathMatch::Prefix("/NoCase".into())) },
                ),
                route("regex", at(PathMatch::Regex(Regex::new("/v[0-9]+").unwrap()))),
                route(
                    "header",
                    RouteMatch {
                        headers: vec![header("x-beta", HeaderValueMatch::Text(StringMatcher::exact("1,2")))],
                        ..RouteMatch::default()
                    },
                ),
                route(
                    "range",
                    RouteMatch {
                        headers: vec![header("x-n", HeaderValueMatch::Range { start: 1, end: 3 })],
                        ..RouteMatch::default()
                    },
                ),
                route(
                    "query",
                    RouteMatch {
                        query: vec![QueryMatcher {
                            name: "q".into(),
                            value: Some(StringMatcher::exact("1")),
                        }],
                        ..RouteMatch::default()
                    },
                ),
                route("grpc", RouteMatch { grpc: true, ..RouteMatch::default() }),
                route("rest", RouteMatch::default()),
            ],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    })
    .unwrap();
    for (request, want) in [
        (get("/seg", &[]), "segment"),
        (get("/seg/x", &[]), "segment"),
        (get("/segx", &[]), "rest"),
        (get("/exact?a=b", &[]), "exact"),
        (get("/exact/", &[]), "rest"),
        (get("/nocase/x", &[]), "nocase"),
        (get("/v12", &[]), "regex"),
        (get("/v12/x", &[]), "rest"),
        (get("/h", &[("x-beta", "1"), ("x-beta", "1,2")]), "header"),
        (get("/h", &[("x-beta", "1"), ("x-beta", "2")]), "rest"),
        (get("/h", &[("x-beta", "1")]), "rest"),
        (get("/h", &[("x-n", "2")]), "range"),
        (get("/h", &[("x-n", "3")]), "rest"),
        (get("/h?q=1&q=2", &[]), "query"),
        (get("/h?q=2&q=1", &[]), "rest"),
        (get("/h", &[("content-type", "application/grpc+proto")]), "grpc"),
        (get("/h", &[("content-type", "application/grpcx")]), "rest"),
    ] {
        let found = table.find(&request, 0).unwrap();
        assert_eq!(table.at(found).1.name, want, "{} {:?}", request.path, request.headers);
    }
}

#[test]
fn a_missing_header_matches_only_inverted_presence_or_as_empty() {
    let matcher = |value, invert, treat_missing_as_empty| HeaderMatcher {
        name: "x".into(),
        value,
        invert,
        treat_missing_as_empty,
    };
    let exact = |text: &str| HeaderValueMatch::Text(StringMatcher::exact(text));
    for (matcher, want) in [
        (matcher(HeaderValueMatch::Present(true), false, false), false),
        (matcher(HeaderValueMatch::Present(true), true, false), true),
        (matcher(HeaderValueMatch::Present(false), false, false), true),
        (matcher(exact("a"), false, false), false),
        (matcher(exact("a"), true, false), false),
        (matcher(exact(""), false, true), true),
        (matcher(exact("a"), true, true), true),
    ] {
        assert_eq!(matcher.is_match(&get("/", &[])), want, "{matcher:?}");
    }
}

#[test]
fn weights_share_the_draws_exactly() {
    let cluster = |name: &str, weight| WeightedCluster {
        metadata_match: Default::default(),
        cluster: name.to_owned(),
        weight,
        headers: HeaderChanges::default(),
        filters: FilterOverrides::default(),
    };
    let choice = ClusterChoice::Weighted(vec![cluster("v1", 90), cluster("off", 0), cluster("v2", 10)]);
    let mut counts = BTreeMap::new();
    for draw in 0..1000 {
        *counts.entry(choice.weighted(draw).unwrap().cluster.clone()).or_insert(0) += 1;
    }
    assert_eq!(counts, BTreeMap::from([("v1".to_owned(), 900), ("v2".to_owned(), 100)]));
    assert!(ClusterChoice::Weighted(vec![cluster("off", 0)]).weighted(7).is_none());
    assert!(Fraction { numerator: 1, denominator: 100 }.hits(100));
    assert!(!Fraction { numerator: 1, denominator: 100 }.hits(101));
}

fn policy(permission: Permission, principal: Principal) -> Policy {
    Policy { permissions: vec![permission], principals: vec![principal] }
}

#[test]
fn rbac_decides_by_action_and_names_the_policy() {
    let web = ["spiffe://mesh.internal/ns/shop/svc/web".to_owned()];
    let peer = |names| Peer {
        names,
        direct_remote: "10.0.0.1:5000".parse().unwrap(),
        remote: "10.0.0.1:5000".parse().unwrap(),
        local: "10.0.0.2:15006".parse().unwrap(),
        server_name: Some("http.orders.shop.mesh.internal"),
    };
    let is_web = Principal::Authenticated(Some(StringMatcher::exact(web[0].clone())));
    let get_only = Permission::Header(HeaderMatcher {
        name: ":method".into(),
        value: HeaderValueMatch::Text(StringMatcher::exact("GET")),
        invert: false,
        treat_missing_as_empty: false,
    });
    let rbac = |action, policies: &[(&str, Policy)]| Rbac {
        action,
        policies: policies.iter().map(|(name, policy)| ((*name).to_owned(), policy.clone())).collect(),
    };
    let web_get = policy(
        Permission::And(vec![get_only.clone(), Permission::UrlPath(StringMatcher::prefix("/orders/"))]),
        is_web,
    );
    let cases = [
        (rbac(Action::Allow, &[]), false, None),
        (rbac(Action::Deny, &[]), true, None),
        (rbac(Action::Allow, &[("web", web_get.clone())]), true, Some("web")),
        (rbac(Action::Deny, &[("web", web_get.clone())]), false, Some("web")),
        (rbac(Action::Log, &[("web", web_get.clone())]), true, Some("web")),
    ];
    for (rules, allowed, by) in &cases {
        let decision = rules.authorize(&peer(Some(&web)), Some(&get("/orders/1", &[])));
        assert_eq!((decision.allowed, decision.policy), (*allowed, *by), "{rules:?}");
    }
    let allow = &cases[2].0;
    assert!(!allow.authorize(&peer(None), Some(&get("/orders/1", &[]))).allowed, "no certificate");
    assert!(!allow.authorize(&peer(Some(&web)), Some(&get("/admin", &[]))).allowed, "another path");
    assert!(!allow.authorize(&peer(Some(&web)), None).allowed, "no request: path rules do not match");
}

#[test]
fn the_most_specific_filter_chain_is_chosen_without_going_back() {
    let chain = |name: &str, names: &[&str], transport: &str, alpn: &[&str]| FilterChain {
        name: name.to_owned(),
        matches: FilterChainMatch {
            server_names: names.iter().map(|&name| name.to_owned()).collect(),
            transport_protocol: transport.to_owned(),
            application_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
            ..FilterChainMatch::default()
        },
        tls: None,
        rbac: Vec::new(),
        terminal: Terminal::Http(Box::new(HttpConnectionManager::new("t", RouteSource::Rds("r".into())))),
    };
    let chains = [
        chain("rest", &[], "", &[]),
        chain("wild", &["*.example.com"], "", &[]),
        chain("exact", &["a.example.com"], "tls", &["h2"]),
    ];
    let facts = |server_name, is_tls, alpn| ConnectionFacts {
        destination: "10.0.0.2:15006".parse().unwrap(),
        source: "10.0.0.1:5000".parse().unwrap(),
        server_name,
        is_tls,
        alpn,
    };
    for (facts, want) in [
        (facts(None, false, &[][..]), Some("rest")),
        (facts(Some("b.example.com"), true, &[]), Some("wild")),
        (facts(Some("a.example.com"), true, &["h2"]), Some("exact")),
        // The exact name is the best one; that its ALPN does not match is found too late.
        (facts(Some("a.example.com"), true, &["http/1.1"]), None),
    ] {
        let found = choose(&chains, |chain| &chain.matches, &facts).map(|chain| chain.name.as_str());
        assert_eq!(found, want, "{facts:?}");
    }
}

#[test]
fn retries_follow_the_conditions() {
    let policy = |tokens: &str| RetryPolicy {
        on: tokens.split(',').filter_map(RetryOn::parse_token).fold(RetryOn::empty(), RetryOn::with),
        status_codes: vec![404],
        ..RetryPolicy::default()
    };
    let response = |status, grpc_status, rate_limited| Outcome::Response {
        status,
        grpc_status,
        rate_limited,
        local_reply: false,
        headers: &|_| false,
    };
    let reset = |reason, request_sent| Outcome::Reset { reason, request_sent };
    for (tokens, outcome, want) in [
        ("5xx", response(500, None, false), true),
        ("5xx", response(499, None, false), false),
        ("5xx", response(503, None, true), false),
        ("5xx,envoy-ratelimited", response(503, None, true), true),
        ("gateway-error", response(500, None, false), false),
        ("gateway-error", response(504, None, false), true),
        ("retriable-4xx", response(409, None, false), true),
        ("retriable-status-codes", response(404, None, false), true),
        ("unavailable", response(200, Some(14), false), true),
        ("unavailable", response(200, Some(13), false), false),
        ("connect-failure", reset(Reset::ConnectFailure, false), true),
        ("connect-failure", reset(Reset::RemoteReset, true), false),
        ("refused-stream", reset(Reset::RefusedStream, true), true),
        ("reset", reset(Reset::ConnectionTermination, true), true),
        ("reset-before-request", reset(Reset::ConnectionTermination, true), false),
        ("reset-before-request", reset(Reset::ConnectionTermination, false), true),
        ("5xx", reset(Reset::RemoteReset, true), true),
        ("5xx,reset,connect-failure", reset(Reset::Overflow, false), false),
    ] {
        assert_eq!(policy(tokens).allows(outcome, true), want, "{tokens}");
    }
    let careful = RetryPolicy { only_safe: true, ..policy("5xx,connect-failure") };
    assert!(!careful.allows(response(503, None, false), false), "a POST is not repeated");
    assert!(careful.allows(reset(Reset::ConnectFailure, false), false), "nothing was sent");
    let marked = Outcome::Response {
        status: 503,
        grpc_status: None,
        rate_limited: false,
        local_reply: true,
        headers: &|_| false,
    };
    assert!(careful.allows(marked, false), "the application has not seen it");
}

#[test]
fn waits_grow_and_stay_below_the_bound() {
    let policy = RetryPolicy::default();
    for (retry, bound_ms) in [(1, 25), (2, 75), (3, 175), (4, 250), (30, 250)] {
        for draw in [0, 24_999, u64::MAX] {
            assert!(policy.backoff(retry, draw).as_micros() < bound_ms * 1000, "{retry} {draw}");
        }
        let bound = u64::try_from(bound_ms * 1000).unwrap();
        assert_eq!(policy.backoff(retry, bound - 1).as_micros(), bound_ms * 1000 - 1, "{retry}");
    }
}

#[test]
fn patterns_match_whole_parts() {
    let matcher = |pattern, ignore_case| StringMatcher { pattern, ignore_case };
    for (matcher, text, want) in [
        (matcher(Pattern::Exact("a".into()), false), "A", false),
        (matcher(Pattern::Exact("a".into()), true), "A", true),
        (matcher(Pattern::Prefix("ab".into()), true), "ABc", true),
        (matcher(Pattern::Suffix("bc".into()), false), "abc", true),
        (matcher(Pattern::Suffix("abcd".into()), false), "bcd", false),
        (matcher(Pattern::Contains("b".into()), false), "abc", true),
        (matcher(Pattern::Regex(Regex::new("a|ab").unwrap()), false), "ab", true),
        (matcher(Pattern::Regex(Regex::new("b").unwrap()), false), "ab", false),
    ] {
        assert_eq!(matcher.is_match(text), want, "{matcher:?} {text}");
    }
    assert!(Regex::new("(").is_err());
}
