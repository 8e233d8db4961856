//! What each request decides: path normalisation, route match, authorization.
//!
//! `cargo bench -p pillion-benches` prints the times. They compare two states of this code on one
//! machine; they say nothing of a proxy's speed.
#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::net::SocketAddr;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pillion_model::matcher::{RequestView, StringMatcher};
use pillion_model::path::{Normalization, normalize};
use pillion_model::rbac::{Action, Peer, Permission, Policy, Principal, Rbac};
use pillion_model::route::{
    Forward, HeaderChanges, PathMatch, Route, RouteAction, RouteConfiguration, RouteMatch, RouteTable,
    VirtualHost,
};

criterion_group!(benches, paths, routes, hosts, policies);
criterion_main!(benches);

struct Get {
    authority: String,
    path: String,
}

impl RequestView for Get {
    fn method(&self) -> &'static str {
        "GET"
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn authority(&self) -> &str {
        &self.authority
    }
    fn scheme(&self) -> &'static str {
        "http"
    }
    fn header(&self, _name: &str, _each: &mut dyn FnMut(&[u8])) {}
}

fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("normalize");
    for path in ["/", "/v2/orders/12345/items", "/v2/./orders/../orders/%31%32"] {
        group.bench_function(path, |bench| {
            bench.iter(|| normalize(black_box(path), Normalization::default()));
        });
    }
}

/// The last of this many routes is the one that matches.
fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for count in [1, 10, 100] {
        let table = table(1, count);
        let request = Get { authority: "s0.shop".to_owned(), path: format!("/r{}/x", count - 1) };
        assert!(table.find(&request, 0).is_some(), "the last route matches");
        group.bench_with_input(BenchmarkId::from_parameter(count), &count, |bench, _| {
            bench.iter(|| table.find(black_box(&request), 0));
        });
    }
}

/// One virtual host of this many is the request's.
fn hosts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("virtual host");
    for count in [1, 100, 10_000] {
        let table = table(count, 1);
        let request = Get { authority: format!("s{}.shop", count / 2), path: "/r0".to_owned() };
        assert!(table.find(&request, 0).is_some(), "the host is there");
        group.bench_with_input(BenchmarkId::from_parameter(count), &count, |bench, _| {
            bench.iter(|| table.find(black_box(&request), 0));
        });
    }
}

/// The last of this many policies admits the caller.
fn policies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("authorize");
    let address = SocketAddr::from(([127, 0, 0, 1], 80));
    let request = Get { authority: "orders.shop".to_owned(), path: "/orders/1".to_owned() };
    for count in [1, 10, 100] {
        let rbac = rbac(count);
        let names = [identity(count - 1)];
        let peer = Peer {
            names: Some(&names),
            direct_remote: address,
            remote: address,
            local: address,
            server_name: None,
        };
        assert!(rbac.authorize(&peer, Some(&request)).allowed, "the last policy admits");
        group.bench_with_input(BenchmarkId::from_parameter(count), &count, |bench, _| {
            bench.iter(|| rbac.authorize(black_box(&peer), Some(&request)));
        });
    }
}

fn table(hosts: usize, routes: usize) -> RouteTable {
    let route = |number: usize| Route {
        name: format!("r{number}"),
        matches: RouteMatch {
            path: PathMatch::SegmentPrefix(format!("/r{number}")),
            ..RouteMatch::default()
        },
        action: RouteAction::Forward(Box::new(Forward::to("orders"))),
        headers: HeaderChanges::default(),
        filters: Default::default(),
    };
    let host = |number: usize| VirtualHost {
        name: format!("s{number}"),
        domains: vec![format!("s{number}.shop")],
        routes: (0..routes).map(route).collect(),
        ..VirtualHost::default()
    };
    let configuration = RouteConfiguration {
        name: "bench".to_owned(),
        virtual_hosts: (0..hosts).map(host).collect(),
        ..RouteConfiguration::default()
    };
    RouteTable::compile(configuration).expect("every domain stands once")
}

fn rbac(count: usize) -> Rbac {
    let policy = |number| Policy {
        permissions: vec![Permission::UrlPath(StringMatcher::prefix("/orders/"))],
        principals: vec![Principal::Authenticated(Some(StringMatcher::exact(identity(number))))],
    };
    let policies = (0..count).map(|number| (format!("p{number:03}"), policy(number)));
    Rbac { action: Action::Allow, policies: policies.collect() }
}

fn identity(number: usize) -> String {
    format!("spiffe://mesh.internal/ns/shop/svc/caller-{number}")
}
