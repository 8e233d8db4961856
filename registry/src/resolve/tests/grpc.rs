//! What gRPC clients and servers without a proxy are told.

use pillion_model::endpoint::LocalityEndpoints;
use pillion_model::route::PathMatch;

use super::*;

fn orders(mtls: &str) -> Mesh {
    let service = format!("{ORDERS}mtls: {mtls}\n");
    let alone = Instance { inbound_port: None, ..instance("orders.shop", "o-2", &[]) };
    Mesh::new(&service).with(instance("orders.shop", "o-1", &[])).with(alone)
}

/// The addresses of the whole service's cluster, and whether it has TLS.
fn hops(model: &MeshModel, credentials: GrpcCredentials) -> (Vec<String>, bool) {
    let service = &model.services[&name("orders.shop")];
    let clusters = grpc_clusters(service, credentials);
    assert!(clusters.iter().all(|cluster| cluster.transports.is_empty()), "one transport for a cluster");
    let endpoints = grpc_endpoints(service, credentials);
    let of = |group: &LocalityEndpoints| {
        let socket = |address: &HostAddress| match address {
            HostAddress::Socket(socket) => socket.to_string(),
            other => panic!("{other:?}"),
        };
        group.endpoints.iter().map(|endpoint| socket(&endpoint.address)).collect::<Vec<_>>()
    };
    (endpoints[0].localities.iter().flat_map(of).collect(), clusters[0].tls.is_some())
}

#[test]
fn endpoints_are_those_that_the_credentials_fit() {
    use GrpcCredentials::{Plaintext, Xds};
    let (meshed, alone) = ("10.0.0.1:15006", "10.0.0.2:8080");
    for (mtls, credentials, want, has_tls) in [
        ("strict", Xds, vec![meshed], true),
        ("strict", Plaintext, vec![], false),
        ("permissive", Xds, vec![meshed], true),
        ("permissive", Plaintext, vec![alone], false),
        ("disabled", Xds, vec!["10.0.0.1:8080", alone], false),
        ("disabled", Plaintext, vec!["10.0.0.1:8080", alone], false),
    ] {
        let (addresses, tls) = hops(&orders(mtls).model(), credentials);
        assert_eq!(
            (addresses, tls),
            (want.iter().map(|one| (*one).to_owned()).collect(), has_tls),
            "{mtls} {credentials:?}"
        );
    }
}

#[test]
fn an_address_that_two_instances_have_is_told_once() {
    let twin =
        Instance { id: InstanceId::parse("twin").expect("an id"), ..instance("orders.shop", "o-1", &[]) };
    let (addresses, _) = hops(&orders("strict").with(twin).model(), GrpcCredentials::Xds);
    assert_eq!(addresses, ["10.0.0.1:15006"]);
}

#[test]
fn a_target_is_any_name_of_the_service_with_or_without_a_port() {
    let model = Mesh::new(
        "
kind: Service
name: orders
namespace: shop
hosts: [orders.legacy.local]
ports: [{name: http, port: 80}, {name: grpc, port: 9000, protocol: grpc}, {name: raw, port: 7000, protocol: tcp}]
---
kind: Service
name: outside
namespace: shop
ports: [{name: http, port: 80}]
endpoints: [{address: 192.0.2.1}]
",
    )
    .with(instance("orders.shop", "o-1", &[]))
    .model();
    for (target, want) in [
        ("orders.shop", Some("grpc.orders.shop")),
        ("Orders.Shop.mesh.internal", Some("grpc.orders.shop")),
        ("orders.legacy.local:80", Some("http.orders.shop")),
        ("orders.shop:9000", Some("grpc.orders.shop")),
        ("orders.shop:7000", None),
        ("orders.shop:1", None),
        ("nobody.shop", None),
        ("outside.shop", None),
        ("orders", None),
    ] {
        let listener = grpc_listener(&model, target);
        let routes = listener.map(|listener| {
            assert_eq!(listener.name, target);
            match listener.api_listener.expect("an API listener").routes {
                pillion_model::http::RouteSource::Rds(name) => name,
                inline => panic!("{inline:?}"),
            }
        });
        assert_eq!(routes.as_deref(), want, "{target}");
    }
}

#[test]
fn rules_that_no_call_meets_are_left_out_and_what_every_call_meets_is_no_condition() {
    let route = |matches: &str| {
        let yaml = format!(
            "{ORDERS}---\nkind: Route\nname: r\nnamespace: shop\nto: orders\nrules: [{{match: {matches}, split: [{{subset: v1}}]}}]\n"
        );
        let model = Mesh::new(&yaml).with(instance("orders.shop", "o-1", &[])).model();
        let routes = grpc_routes(&model.services[&name("orders.shop")]);
        let first = routes[0].virtual_hosts[0].routes[0].clone();
        (first.name != "default").then_some(first.matches)
    };
    assert_eq!(route("{method: [GET]}"), None);
    assert_eq!(route("{query: [{name: q, present: true}]}"), None);
    let posts = route("{method: [GET, POST], headers: [{name: x-beta, exact: \"1\"}]}").expect("calls match");
    assert_eq!(posts.headers.len(), 1, "only that of the caller's choice: {posts:?}");
    let path = route("{path: {prefix: /a.b}}").expect("calls match").path;
    let PathMatch::Regex(regex) = &path else { panic!("{path:?}") };
    for (path, want) in [("/a.b", true), ("/a.b/Call", true), ("/a.bc", false), ("/axb/Call", false)] {
        assert_eq!(regex.is_match(path.as_bytes()), want, "{path}");
    }
}

#[test]
fn a_server_takes_what_its_service_demands() {
    use GrpcCredentials::{Plaintext, Xds};
    let address = "0.0.0.0:8080".parse().expect("an address");
    for (mtls, credentials, want) in [
        ("strict", Xds, Some(true)),
        ("strict", Plaintext, None),
        ("permissive", Xds, Some(true)),
        ("permissive", Plaintext, Some(false)),
        ("disabled", Xds, Some(false)),
    ] {
        let model = orders(mtls).model();
        let own = instance("orders.shop", "o-1", &[]);
        let listener = grpc_server(&model, &own, "grpc/server/0.0.0.0:8080", address, credentials);
        let has_tls =
            listener.map(|listener| listener.default_filter_chain.expect("one chain").tls.is_some());
        assert_eq!(has_tls, want, "{mtls} {credentials:?}");
        let other = "0.0.0.0:9".parse().expect("an address");
        assert_eq!(grpc_server(&model, &own, "x", other, credentials), None, "no port of the instance");
    }
}
