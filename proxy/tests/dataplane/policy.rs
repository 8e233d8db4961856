//! Authorization, mutual TLS and what the next hop is told of the client.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pillion_model::http::{ClientCertDetails, ForwardClientCert, HttpFilter};
use pillion_model::listener::Terminal;
use pillion_model::matcher::StringMatcher;
use pillion_model::rbac::{Action, Permission, Policy, Principal, Rbac};
use pillion_model::route::RouteMatch;
use pillion_net::identity::Identity;
use pillion_net::testing::TestCa;
use pillion_net::tls::{Secrets, client_config, mesh_client_context, mesh_server_context, server_name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::*;

fn rbac(action: Action, permission: Permission, principal: Principal) -> Rbac {
    let policy = Policy { permissions: vec![permission], principals: vec![principal] };
    Rbac { action, policies: BTreeMap::from([("the policy".to_owned(), policy)]) }
}

fn path(path: &str) -> Permission {
    Permission::UrlPath(StringMatcher::prefix(path))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_routed_is_what_is_authorised() {
    let origin = Origin::named("o").await;
    let mut manager = manager(routes(vec![route("all", RouteMatch::default(), forward("o"))]));
    manager.normalize_path = true;
    manager.merge_slashes = true;
    let rules = rbac(Action::Deny, path("/admin"), Principal::Any);
    manager.filters.insert(0, HttpFilter::Rbac { rules: Some(rules), shadow_rules: None });
    let proxy = Proxy::manager(manager, vec![cluster("o", &[origin.address])]);
    for target in
        ["/admin", "/admin/x", "/a/../admin", "/%61dmin", "//admin", "/x/..;y/admin", "/x\\..\\admin"]
    {
        // hyper's client refuses some of these, so they are written by hand.
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let head = format!("GET {target} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let refused = answer.starts_with("HTTP/1.1 403") && answer.ends_with("RBAC: access denied");
        assert!(refused || answer.starts_with("HTTP/1.1 400"), "{target}: {answer}");
    }
    assert_eq!(proxy.get("/public").await.0, 200);
    assert_eq!(origin.seen(), 1);
    let request = Request::post("/admin").header("host", "t").header("content-type", "application/grpc");
    let response = proxy.send(request.body(Full::default()).unwrap()).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"7".parse().unwrap())
    );
    assert_eq!(response.headers()["grpc-message"], "RBAC: access denied");
}

/// An mTLS listener `main` in front of an origin that shows `x-forwarded-client-cert`.
async fn mtls(ca: &TestCa) -> (Proxy, Origin) {
    let origin = Origin::start(|request: Request<Incoming>| async move {
        let xfcc =
            request.headers().get("x-forwarded-client-cert").map(|value| value.to_str().unwrap().to_owned());
        Response::new(text(xfcc.unwrap_or_default()))
    })
    .await;
    let mut manager = manager(routes(vec![route("all", RouteMatch::default(), forward("o"))]));
    manager.client_cert = ForwardClientCert::SanitizeSet;
    manager.client_cert_details =
        ClientCertDetails { uri: true, subject: true, ..ClientCertDetails::default() };
    let name = StringMatcher::exact("spiffe://mesh.internal/ns/shop/svc/web");
    let rules = rbac(Action::Allow, Permission::Any, Principal::Authenticated(Some(name)));
    manager.filters.insert(0, HttpFilter::Rbac { rules: Some(rules), shadow_rules: None });
    let mut listener = listener("main", Terminal::Http(Box::new(manager)));
    listener.tls_inspector = true;
    listener.filter_chains[0].tls = Some(mesh_server_context(&["h2", "http/1.1"]));
    listener.filter_chains[0].matches.server_names = vec!["http.orders.shop.mesh.internal".to_owned()];
    let secrets: Arc<dyn Secrets> = Arc::new(identity(ca, "orders"));
    let proxy = Proxy::start_with(resources(vec![listener], vec![cluster("o", &[origin.address])]), &secrets);
    (proxy, origin)
}

fn identity(ca: &TestCa, service: &str) -> Identity {
    ca.service("shop", service)
}

async fn connect(
    proxy: &Proxy,
    ca: &TestCa,
    service: &str,
    sni: &str,
) -> std::io::Result<http1::SendRequest<Full<Bytes>>> {
    let identity = identity(ca, service);
    let expected = vec!["spiffe://mesh.internal/ns/shop/svc/orders".parse().unwrap()];
    let config = client_config(&mesh_client_context(&expected, sni, &["http/1.1"]), &identity).unwrap();
    let stream = TcpStream::connect(proxy.address).await?;
    let stream = TlsConnector::from(config).connect(server_name(sni, proxy.address.ip()), stream).await?;
    let (client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    Ok(client)
}

const SNI: &str = "http.orders.shop.mesh.internal";

#[tokio::test(flavor = "multi_thread")]
async fn the_application_is_told_who_calls_and_nobody_else_gets_in() {
    let ca = TestCa::new("mesh.internal");
    let (proxy, origin) = mtls(&ca).await;
    let mut request = get("/");
    request
        .headers_mut()
        .insert("x-forwarded-client-cert", "URI=spiffe://mesh.internal/ns/a/svc/liar".parse().unwrap());
    let mut web = connect(&proxy, &ca, "web", SNI).await.unwrap();
    let response = web.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let xfcc = body_text(response).await;
    assert!(
        xfcc.starts_with("By=spiffe://mesh.internal/ns/shop/svc/orders;Hash=")
            && xfcc.contains(";URI=spiffe://mesh.internal/ns/shop/svc/web"),
        "{xfcc}"
    );
    assert!(!xfcc.contains("liar"), "{xfcc}");

    let mut other = connect(&proxy, &ca, "other", SNI).await.unwrap();
    assert_eq!(other.send_request(get("/")).await.unwrap().status(), 403);
    assert_eq!(origin.seen(), 1);

    let unknown = connect(&proxy, &ca, "web", "nobody.mesh.internal").await.expect_err("no such server name");
    assert!(unknown.to_string().contains("UnrecognisedName"), "{unknown}");
    let stranger = TestCa::new("mesh.internal");
    let refused = match connect(&proxy, &stranger, "web", SNI).await {
        // With TLS 1.3 the client hears of it only when it reads.
        Ok(mut client) => client.send_request(get("/")).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    let mut plain = TcpStream::connect(proxy.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert_eq!(answer, b"");
    let metrics = proxy.runtime.metrics();
    assert!(metrics.contains("source=\"web.shop\""), "{metrics}");
    assert!(metrics.contains(
        "pillion_connection_failures_total{direction=\"inbound\",reason=\"no_filter_chain_match\"}"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_policy_acts_on_open_connections_and_a_new_identity_drains_them() {
    let ca = TestCa::new("mesh.internal");
    let (proxy, origin) = mtls(&ca).await;
    let mut web = connect(&proxy, &ca, "web", SNI).await.unwrap();
    assert_eq!(web.send_request(get("/")).await.unwrap().status(), 200);
    let _ = origin;
    let secrets: Arc<dyn Secrets> = Arc::new(identity(&ca, "orders"));
    let mut manager = manager(routes(vec![route("all", RouteMatch::default(), forward("o"))]));
    let rules = Rbac { action: Action::Allow, policies: BTreeMap::new() };
    manager.filters.insert(0, HttpFilter::Rbac { rules: Some(rules), shadow_rules: None });
    let mut listener = listener("main", Terminal::Http(Box::new(manager)));
    listener.tls_inspector = true;
    listener.filter_chains[0].tls = Some(mesh_server_context(&["h2", "http/1.1"]));
    listener.filter_chains[0].matches.server_names = vec![SNI.to_owned()];
    let next = resources(vec![listener], vec![cluster("o", &[origin.address])]);
    // Another identity: connections under the old one say goodbye with their next response.
    assert_eq!(proxy.runtime.publish(next, &secrets).rejected, []);
    eventually("the proxy lets the connection go", || proxy.runtime.connections() == 1).await;
    web.ready().await.unwrap();
    let response = web.send_request(get("/")).await.unwrap();
    assert_eq!(response.headers()["connection"], "close");
    let mut fresh = connect(&proxy, &ca, "web", SNI).await.unwrap();
    assert_eq!(fresh.send_request(get("/")).await.unwrap().status(), 403);
}
