//! Real sockets on loopback: who the server thinks the client is, failover, leaving.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::routing::get;
use http_body_util::BodyExt as _;
use pillion_model::name::SpiffeId;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::{Service as _, ServiceExt as _};

use super::*;
use crate::identity::IdentityWatch;
use crate::listen::{Reuse, bind_tcp};
use crate::resolve::{Resolver, Target};
use crate::testing::TestCa;
use crate::tls::{ClientTls, ServerTls, mesh_client_context, mesh_server_context};

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn target(&self) -> Target {
        Target { host: self.address.ip().to_string(), port: self.address.port() }
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.task).await.expect("ends").expect("no panic");
    }
}

fn start(router: axum::Router, security: ServerSecurity) -> Running {
    let socket = bind_tcp("test", ([127, 0, 0, 1], 0).into(), Reuse::Exclusive).expect("a port");
    let address = socket.local_addr().expect("bound");
    let (stop, listener) = (CancellationToken::new(), TcpListener::from_std(socket).expect("tokio"));
    let task = tokio::spawn(Serve::new("test", security, router).run(listener, stop.clone()));
    Running { address, stop, task }
}

fn who_am_i() -> axum::Router {
    axum::Router::new().route(
        "/who",
        get(async |request: Request| {
            let incoming = request.extensions().get::<Incoming>().expect("always there");
            let id = request.extensions().get::<SpiffeId>().map(ToString::to_string);
            format!("{} tls={} {:?}", id.unwrap_or_default(), incoming.tls, request.version())
        }),
    )
}

fn mesh_server(ca: &TestCa, required: bool) -> ServerSecurity {
    let mut context = mesh_server_context(&["h2"]);
    context.require_client_certificate = required;
    ServerSecurity::Mesh(Arc::new(ServerTls::new(context, IdentityWatch::fixed(Arc::new(ca.registry())))))
}

fn mesh_client(ca: &TestCa) -> Security {
    let context = mesh_client_context(&[ca.registry().svid.id.clone()], "", &["h2"]);
    let identity = IdentityWatch::fixed(Arc::new(ca.service("shop", "web")));
    Security::Mesh(Arc::new(ClientTls::new(context, identity)))
}

async fn ask(channel: &tonic::transport::Channel, path: &str) -> (http::StatusCode, String) {
    let request = http::Request::get(path).body(tonic::body::Body::empty()).expect("a request");
    let mut channel = channel.clone();
    let response = channel.ready().await.expect("ready").call(request).await.expect("an answer");
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn the_server_learns_who_the_client_is() {
    let ca = TestCa::new("mesh.internal");
    let server = start(who_am_i(), mesh_server(&ca, true));
    let dialer = Dialer::new(vec![server.target()], mesh_client(&ca), Resolver::system());
    assert!(dialer.source_address().await.expect("a route").is_loopback());
    let (_, body) = ask(&dialer.connect().await.expect("connects"), "/who").await;
    assert_eq!(body, "spiffe://mesh.internal/ns/shop/svc/web tls=true HTTP/2.0");
    server.end().await;

    let plain = start(who_am_i(), ServerSecurity::Plaintext);
    let channel = Dialer::new(vec![plain.target()], Security::Plaintext, Resolver::system()).lazy();
    assert_eq!(ask(&channel, "/who").await.1, " tls=false HTTP/2.0");
    plain.end().await;
}

#[tokio::test]
async fn a_registry_that_is_away_is_passed_over() {
    let ca = TestCa::new("mesh.internal");
    let server = start(who_am_i(), mesh_server(&ca, true));
    let closed = bind_tcp("test", ([127, 0, 0, 1], 0).into(), Reuse::Exclusive).expect("a port");
    let away = Target { host: "127.0.0.1".into(), port: closed.local_addr().expect("bound").port() };
    drop(closed);
    for targets in [vec![away.clone(), server.target()], vec![server.target(), away.clone()]] {
        let dialer = Dialer::new(targets, mesh_client(&ca), Resolver::system());
        assert_eq!(ask(&dialer.connect().await.expect("connects"), "/who").await.0, 200);
    }
    let error =
        Dialer::new(vec![away], mesh_client(&ca), Resolver::system()).connect().await.expect_err("away");
    assert!(matches!(error, ConnectError::Tcp { .. }), "{error}");
    server.end().await;
}

#[tokio::test]
async fn a_registry_of_another_mesh_is_refused_with_the_reason() {
    let (ours, theirs) = (TestCa::new("mesh.internal"), TestCa::new("mesh.internal"));
    let server = start(who_am_i(), mesh_server(&theirs, true));
    let error = Dialer::new(vec![server.target()], mesh_client(&ours), Resolver::system())
        .connect()
        .await
        .expect_err("another root");
    assert!(error.to_string().ends_with("not signed by a root that we trust"), "{error}");
    server.end().await;
}

#[tokio::test]
async fn without_a_certificate_nothing_behind_require_peer_answers() {
    let ca = TestCa::new("mesh.internal");
    let server = start(require_peer(who_am_i()), mesh_server(&ca, false));
    let pin = crate::tls::public_key_sha256(&ca.root()).expect("a certificate");
    let anonymous = Security::Fixed(crate::tls::pinned_client_config(vec![pin]), String::new());
    let channel = Dialer::new(vec![server.target()], anonymous, Resolver::system()).lazy();
    let (status, body) = ask(&channel, "/who").await;
    assert_eq!(status, 401);
    assert!(body.contains("join token"), "{body}");
    let member = Dialer::new(vec![server.target()], mesh_client(&ca), Resolver::system()).lazy();
    assert_eq!(ask(&member, "/who").await.0, 200);
    server.end().await;
}

#[tokio::test]
async fn a_channel_finds_its_way_back_after_a_restart() {
    let ca = TestCa::new("mesh.internal");
    let server = start(who_am_i(), mesh_server(&ca, true));
    let address = server.address;
    let channel = Dialer::new(vec![server.target()], mesh_client(&ca), Resolver::system())
        .connect()
        .await
        .expect("connects");
    assert_eq!(ask(&channel, "/who").await.0, 200);
    server.end().await;
    let socket = bind_tcp("test", address, Reuse::Exclusive).expect("free again");
    let stop = CancellationToken::new();
    let serve = Serve::new("test", mesh_server(&ca, true), who_am_i());
    let task = tokio::spawn(serve.run(TcpListener::from_std(socket).expect("tokio"), stop.clone()));
    assert_eq!(ask(&channel, "/who").await.0, 200);
    Running { address, stop, task }.end().await;
}

#[tokio::test]
async fn requests_in_flight_are_finished_when_the_server_stops() {
    let (entered, wait) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let router = {
        let (entered, wait) = (Arc::clone(&entered), Arc::clone(&wait));
        axum::Router::new().route(
            "/slow",
            get(async move || {
                entered.notify_one();
                wait.notified().await;
                "done"
            }),
        )
    };
    let server = start(router, ServerSecurity::Plaintext);
    let channel = Dialer::new(vec![server.target()], Security::Plaintext, Resolver::system()).lazy();
    let asking = tokio::spawn(async move { ask(&channel, "/slow").await });
    entered.notified().await;
    server.stop.cancel();
    wait.notify_one();
    assert_eq!(asking.await.expect("no panic"), (http::StatusCode::OK, "done".to_owned()));
    server.end().await;
}
