//! Mutual TLS to endpoints.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pillion_model::cluster::{Cluster as Config, TransportMatch, UpstreamProtocol};
use pillion_model::endpoint::TRANSPORT_MTLS;
use pillion_model::name::SpiffeId;
use pillion_model::retry::Reset;
use pillion_net::identity::Identity;
use pillion_net::testing::TestCa;
use pillion_net::tls::{NoSecrets, mesh_client_context, mesh_server_context, server_config};
use tokio_rustls::TlsAcceptor;

use super::support::*;
use crate::upstream::Cause;

/// An origin that speaks what ALPN says and answers with the HTTP version.
async fn mesh_origin(identity: Identity) -> (SocketAddr, Rc<Cell<usize>>) {
    slow_mesh_origin(identity, Duration::ZERO).await
}

/// The same, whose handshakes take a while.
async fn slow_mesh_origin(identity: Identity, handshake: Duration) -> (SocketAddr, Rc<Cell<usize>>) {
    let config =
        server_config(&mesh_server_context(&["h2", "http/1.1"]), &identity).expect("a configuration");
    let connections = Rc::new(Cell::new(0));
    let count = Rc::clone(&connections);
    let address = origin(move |stream| {
        let acceptor = TlsAcceptor::from(Arc::clone(&config));
        let count = Rc::clone(&count);
        async move {
            tokio::time::sleep(handshake).await;
            let Ok(stream) = acceptor.accept(stream).await else { return };
            count.set(count.get() + 1);
            let service = service_fn(async |request: http::Request<_>| {
                let text = format!("{:?}", request.version());
                let _: &hyper::body::Incoming = request.body();
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(text)))
            });
            let io = TokioIo::new(stream);
            let _ = hyper::server::conn::http2::Builder::new(Local).serve_connection(io, service).await;
        }
    })
    .await;
    (address, connections)
}

fn mesh(expected: &str) -> Config {
    let expected: SpiffeId = expected.parse().expect("a SPIFFE id");
    let tls = mesh_client_context(&[expected], "http.orders.shop.mesh.internal", &["h2"]);
    Config { protocol: UpstreamProtocol::Auto, tls: Some(tls), ..config("orders") }
}

const ORDERS: &str = "spiffe://mesh.internal/ns/shop/svc/orders";

#[test]
fn alpn_decides_and_the_identity_is_checked() {
    on_worker(async {
        let ca = TestCa::new("mesh.internal");
        let (address, _) = mesh_origin(ca.service("shop", "orders")).await;
        let web = ca.service("shop", "web");
        let proxy = Proxy::new();
        let cluster = proxy.secured(mesh(ORDERS), assignment(&[address]), &web);
        assert_eq!(proxy.text(&cluster).await, "HTTP/2.0");
        assert_eq!(cluster.state.stats.ssl_handshake.load(Relaxed), 1);

        let other = Proxy::new();
        let payments = "spiffe://mesh.internal/ns/shop/svc/payments";
        let cluster = other.secured(mesh(payments), assignment(&[address]), &web);
        let failure = other.get(&cluster).await.expect_err("not payments");
        assert_eq!(failure.cause, Cause::Reset(Reset::ConnectFailure));
        assert!(failure.detail.starts_with("TLS_error: "), "{}", failure.detail);
        assert!(failure.detail.contains(ORDERS) && failure.detail.contains(payments), "{}", failure.detail);
        assert_eq!(cluster.state.stats.ssl_fail_verify_san.load(Relaxed), 1);
    });
}

#[test]
fn rotation_drains_connections_of_the_identity_before() {
    on_worker(async {
        let ca = TestCa::new("mesh.internal");
        let (address, connections) = mesh_origin(ca.service("shop", "orders")).await;
        let proxy = Proxy::new();
        let cluster = proxy.secured(mesh(ORDERS), assignment(&[address]), &NoSecrets);
        let failure = proxy.get(&cluster).await.expect_err("no identity yet");
        assert!(failure.detail.contains("secret"), "{}", failure.detail);

        assert_eq!(proxy.clusters.rotate(&ca.service("shop", "web")), []);
        assert_eq!(proxy.text(&cluster).await, "HTTP/2.0");
        assert_eq!(proxy.text(&cluster).await, "HTTP/2.0");
        assert_eq!(connections.get(), 1);

        assert_eq!(proxy.clusters.rotate(&ca.service("shop", "web")), []);
        assert_eq!(proxy.text(&cluster).await, "HTTP/2.0");
        assert_eq!(connections.get(), 2);
        proxy.pools.sweep();
        let endpoint = &cluster.hosts().hosts[0].endpoint;
        until("the first connection is closed", || endpoint.stats.cx_active.load(Relaxed) == 1).await;
    });
}

#[test]
fn a_burst_opens_one_connection_where_http2_is_offered() {
    on_worker(async {
        let ca = TestCa::new("mesh.internal");
        let (address, connections) = mesh_origin(ca.service("shop", "orders")).await;
        let proxy = Proxy::new();
        let cluster = proxy.secured(mesh(ORDERS), assignment(&[address]), &ca.service("shop", "web"));
        let all = (0..30).map(|_| proxy.text(&cluster));
        assert_eq!(futures_util::future::join_all(all).await, vec!["HTTP/2.0"; 30]);
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn metadata_chooses_the_transport() {
    on_worker(async {
        let ca = TestCa::new("mesh.internal");
        let (meshed, _) = mesh_origin(ca.service("shop", "orders")).await;
        let (plain, _) =
            http1_origin(async |request| ok(if request.uri() == "/" { "plain" } else { "?" })).await;
        let mut config = mesh(ORDERS);
        let criteria = [(TRANSPORT_MTLS.0.to_owned(), TRANSPORT_MTLS.1.to_owned())].into();
        config.transports =
            vec![TransportMatch { name: "mesh".to_owned(), criteria, tls: config.tls.take() }];
        let mut endpoints = assignment(&[meshed, plain]);
        endpoints.localities[0].endpoints[0].transport =
            std::sync::Arc::new([(TRANSPORT_MTLS.0.to_owned(), TRANSPORT_MTLS.1.to_owned())].into());
        config.load_balancing = pillion_model::cluster::LoadBalancing::RoundRobin;
        let proxy = Proxy::new();
        let cluster = proxy.secured(config, endpoints, &ca.service("shop", "web"));
        let mut answers = vec![proxy.text(&cluster).await, proxy.text(&cluster).await];
        answers.sort();
        assert_eq!(answers, ["HTTP/2.0", "plain"]);
    });
}

#[test]
fn opening_a_connection_does_not_make_an_endpoint_slow() {
    const HANDSHAKE: Duration = Duration::from_millis(300);
    on_worker(async {
        let ca = TestCa::new("mesh.internal");
        let (address, _connections) = slow_mesh_origin(ca.service("shop", "orders"), HANDSHAKE).await;
        let proxy = Proxy::new();
        let cluster = proxy.secured(mesh(ORDERS), assignment(&[address]), &ca.service("shop", "web"));
        assert_eq!(proxy.text(&cluster).await, "HTTP/2.0");
        let latency = cluster.hosts().hosts[0].endpoint.latency();
        assert!(latency > Duration::ZERO && latency < HANDSHAKE, "{latency:?}");
    });
}

#[test]
fn requests_do_not_gather_where_a_connection_is_being_opened() {
    on_worker(async {
        let ca = TestCa::new("mesh.internal");
        let (quick, _) = mesh_origin(ca.service("shop", "orders")).await;
        let (never, _) = slow_mesh_origin(ca.service("shop", "orders"), Duration::from_secs(3600)).await;
        let (proxy, web) = (Proxy::new(), ca.service("shop", "web"));
        let cluster = proxy.secured(mesh(ORDERS), assignment(&[quick]), &web);
        proxy.text(&cluster).await;
        let cluster = proxy.secured(mesh(ORDERS), assignment(&[quick, never]), &web);
        let never = Arc::clone(&cluster.hosts().hosts[1].endpoint);
        let others = async {
            for _ in 0..50 {
                proxy.text(&cluster).await;
                assert_eq!(never.waiting.load(Relaxed), 1, "the first alone");
            }
        };
        // Whoever has not answered yet is asked first.
        tokio::select! {
            biased;
            first = proxy.get(&cluster) => panic!("{first:?}"),
            () = others => {}
        }
        assert_eq!(never.waiting.load(Relaxed), 0, "it gave up");
    });
}
