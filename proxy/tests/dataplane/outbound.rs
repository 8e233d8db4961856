//! The application's own traffic: by host, by virtual address, by CONNECT, and out of the mesh.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use http::Request;
use http_body_util::Full;
use pillion_model::instance::Protocol;
use pillion_model::mesh::{MeshPort, MeshService, Resources};
use pillion_model::name::ServiceName;
use pillion_model::route::RouteMatch;
use pillion_proxy::{Egress, Found, OnDemand, Options, OutboundOptions, Runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

fn service(http_port: u16) -> MeshService {
    let port = |name: &str, port, protocol, cluster: &str| MeshPort {
        name: name.to_owned(),
        port,
        protocol,
        route_configuration: "routes".to_owned(),
        clusters: vec![cluster.to_owned()],
    };
    MeshService {
        service: ServiceName::new("shop", "orders").unwrap(),
        names: vec!["orders.shop.mesh.internal".to_owned()],
        index: 7,
        ports: vec![port("http", http_port, Protocol::Http, "orders"), port("db", 5432, Protocol::Tcp, "db")],
    }
}

fn with_service(http: SocketAddr, tcp: SocketAddr, http_port: u16) -> Resources {
    let mut resources = resources(Vec::new(), vec![cluster("orders", &[http]), cluster("db", &[tcp])]);
    let configuration = routes(vec![route("all", RouteMatch::default(), forward("orders"))]);
    resources.routes.insert(configuration.name.clone(), configuration);
    resources.services.insert("orders.shop.mesh.internal".to_owned(), service(http_port));
    resources
}

/// Answers every connection with its name.
async fn tcp_server() -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            stream.write_all(b"database").await.unwrap();
        }
    });
    address
}

fn start(options: OutboundOptions, resources: Resources) -> Proxy {
    let runtime = Runtime::start(&Options::default()).unwrap();
    assert_eq!(runtime.publish(resources, &no_secrets()).rejected, []);
    let options = OutboundOptions { listen: Some("127.0.0.1:0".parse().unwrap()), ..options };
    assert_eq!(runtime.outbound(options).rejected, []);
    let address = runtime.bound("outbound").unwrap();
    Proxy { runtime, address }
}

fn to_host(host: &str) -> Request<Full<bytes::Bytes>> {
    Request::get("/").header("host", host).body(Full::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_reached_by_name_in_every_form() {
    let origin = Origin::named("orders").await;
    let proxy = start(OutboundOptions::default(), with_service(origin.address, tcp_server().await, 80));
    for host in ["orders.shop.mesh.internal", "ORDERS.shop.mesh.internal:80"] {
        let response = proxy.send(to_host(host)).await;
        assert_eq!(
            (response.status().as_u16(), body_text(response).await),
            (200, "orders".to_owned()),
            "{host}"
        );
    }
    let absolute =
        Request::get("http://orders.shop.mesh.internal/").header("host", "orders.shop.mesh.internal");
    assert_eq!(proxy.send(absolute.body(Full::default()).unwrap()).await.status(), 200);
    let wrong = proxy.send(to_host("orders.shop.mesh.internal:81")).await;
    assert_eq!(wrong.status(), 404);
    assert_eq!(body_text(wrong).await, "service `orders.shop` has no port 81; it has 80 (http), 5432 (db)");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_carries_tcp_services() {
    let origin = Origin::named("orders").await;
    let proxy = start(OutboundOptions::default(), with_service(origin.address, tcp_server().await, 80));
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let name = "orders.shop.mesh.internal:5432";
    stream.write_all(format!("CONNECT {name} HTTP/1.1\r\nhost: {name}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\ndatabase"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_through_a_tunnel_to_an_http_service_are_routed() {
    let origin = Origin::named("orders").await;
    let proxy = start(OutboundOptions::default(), with_service(origin.address, tcp_server().await, 80));
    let mut client = proxy.client1().await;
    let name = "orders.shop.mesh.internal:80";
    let connect = Request::connect(name).header("host", name).body(Full::default()).unwrap();
    let mut response = client.send_request(connect).await.unwrap();
    assert_eq!(response.status(), 200);
    let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
    let (mut inner, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), upgraded).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        let request = Request::get("http://whatever/").body(Full::<bytes::Bytes>::default()).unwrap();
        assert_eq!(body_text(inner.send_request(request).await.unwrap()).await, "orders");
    }
    assert_eq!(origin.seen(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn destinations_outside_follow_the_egress_policy() {
    let outside = Origin::named("outside").await;
    let none = || resources(Vec::new(), Vec::new());
    let host = format!("localhost:{}", outside.address.port());
    let proxy = start(OutboundOptions::default(), none());
    let response = proxy.send(to_host(&host)).await;
    assert_eq!((response.status().as_u16(), body_text(response).await), (200, "outside".to_owned()));
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let tunnelled = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(format!("CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    stream.write_all(tunnelled.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("outside"), "{answer}");

    let proxy = start(OutboundOptions { egress: Egress::Deny, ..OutboundOptions::default() }, none());
    let response = proxy.send(to_host(&host)).await;
    assert_eq!(response.status(), 502);
    assert!(body_text(response).await.contains("`localhost` is not a service of the mesh"));
    assert_eq!(outside.seen(), 2);
}

/// Knows one service, and publishes its parts when asked.
struct Late {
    publish: tokio::sync::mpsc::UnboundedSender<()>,
}

impl OnDemand for Late {
    fn lookup<'a>(&'a self, host: &'a str) -> Pin<Box<dyn Future<Output = Found> + Send + 'a>> {
        let found = match host {
            "orders.shop.mesh.internal" => {
                self.publish.send(()).unwrap();
                Found::Service(Arc::new(service(80)))
            }
            "late.example.com" => Found::Unanswered,
            _ => Found::NoService,
        };
        Box::pin(async move { found })
    }

    fn touch(&self, _host: &str) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_is_asked_for_and_its_parts_awaited() {
    let origin = Origin::named("orders").await;
    let (publish, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let on_demand: Arc<dyn OnDemand> = Arc::new(Late { publish });
    let options = OutboundOptions {
        on_demand: Some(on_demand),
        zone: "mesh.internal".to_owned(),
        ..OutboundOptions::default()
    };
    let proxy = Arc::new(start(options, resources(Vec::new(), Vec::new())));
    let (publisher, late) = (Arc::clone(&proxy), with_service(origin.address, origin.address, 80));
    tokio::spawn(async move {
        asked.recv().await.unwrap();
        publisher.runtime.publish(late, &no_secrets());
    });
    assert_eq!(proxy.send(to_host("orders.shop.mesh.internal")).await.status(), 200);
    for (host, status, want) in [
        ("other.shop.mesh.internal", 404, "no service of this mesh is called `other.shop.mesh.internal`"),
        ("orders.shop.mesh.internal:81", 404, "service `orders.shop` has no port 81; it has 80 (http)"),
        // It may be a service's further name: not one to look for outside.
        ("late.example.com", 503, "the registry has not answered, and `late.example.com` is not known here"),
        ("nowhere.invalid", 503, "cannot resolve `nowhere.invalid`"),
    ] {
        let response = proxy.send(to_host(host)).await;
        assert_eq!(response.status(), status, "{host}");
        let body = body_text(response).await;
        assert!(body.contains(want) && !body.contains("Query"), "{host}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_opened_at_virtual_addresses() {
    let origin = Origin::named("orders").await;
    let free = std::net::TcpListener::bind("127.64.0.7:0").unwrap().local_addr().unwrap().port();
    let proxy = start(OutboundOptions::default(), with_service(origin.address, tcp_server().await, free));
    let vip = "127.64.0.7".parse().unwrap();
    assert_eq!(proxy.runtime.open_vip(vip, &service(free)).rejected, []);
    let bound = proxy.runtime.bound(&format!("vip|127.64.0.7:{free}")).unwrap();
    let mut stream = TcpStream::connect(bound).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: anything\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("orders"), "{answer}");
    let mut stream = TcpStream::connect("127.64.0.7:5432").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "database");
}
