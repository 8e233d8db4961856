//! Upgrades and CONNECT, over HTTP/1 and as extended CONNECT over HTTP/2.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pillion_model::cluster::UpstreamProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use crate::body::Body;
use crate::upstream::Attempt;

/// Sends back what comes through the tunnel.
fn echo(request: &mut Request<Incoming>) {
    let upgrade = hyper::upgrade::on(request);
    tokio::task::spawn_local(async move {
        let mut io = TokioIo::new(upgrade.await.expect("a tunnel"));
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = io.read(&mut buffer).await {
            io.write_all(&buffer[..length]).await.expect("written");
        }
    });
}

fn websocket() -> Request<Body> {
    Request::get("/chat")
        .header("host", "test")
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(Body::Empty)
        .expect("a request")
}

async fn check(
    proxy: &Proxy,
    cluster: &std::sync::Arc<crate::upstream::Cluster>,
    mut request: Request<Body>,
    status: StatusCode,
) {
    let mut sent = proxy.pools.send(cluster, &mut Attempt::default(), &mut request).await.expect("an answer");
    assert_eq!(sent.response.status(), status);
    let endpoint = std::sync::Arc::clone(&sent.endpoint);
    assert_eq!(endpoint.active(), 1, "a tunnel is an active request");
    let mut io = sent.tunnel.take().expect("a tunnel");
    io.write_all(b"ping").await.expect("written");
    let mut answer = [0; 4];
    io.read_exact(&mut answer).await.expect("read");
    assert_eq!(&answer, b"ping");
    drop((io, sent));
    assert_eq!(endpoint.active(), 0);
}

#[test]
fn an_http1_upgrade_becomes_a_tunnel() {
    on_worker(async {
        let address = origin(|stream| async move {
            let service = service_fn(|mut request: Request<Incoming>| async move {
                echo(&mut request);
                let mut response = Response::new(Empty::<Bytes>::new());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().insert(UPGRADE, "websocket".parse().expect("a value"));
                response.headers_mut().insert(CONNECTION, "upgrade".parse().expect("a value"));
                Ok::<_, Infallible>(response)
            });
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        })
        .await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        check(&proxy, &cluster, websocket(), StatusCode::SWITCHING_PROTOCOLS).await;
        // As it comes from an HTTP/2 downstream.
        let mut connect = Request::connect("http://test/chat").body(Body::Empty).expect("a request");
        connect.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        check(&proxy, &cluster, connect, StatusCode::SWITCHING_PROTOCOLS).await;
    });
}

#[test]
fn over_http2_it_is_an_extended_connect() {
    on_worker(async {
        let address = origin(|stream| async move {
            let service = service_fn(|mut request: Request<Incoming>| async move {
                let protocol = request.extensions().get::<hyper::ext::Protocol>().cloned();
                if request.uri().path() == "/chat" {
                    assert_eq!(protocol.as_ref().map(|it| it.as_str()), Some("websocket"));
                    assert!(request.headers().get(UPGRADE).is_none());
                    assert_eq!(request.headers()["sec-websocket-key"], "dGhlIHNhbXBsZSBub25jZQ==");
                } else {
                    assert_eq!(request.uri(), "db:5432");
                }
                echo(&mut request);
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            });
            let mut builder = hyper::server::conn::http2::Builder::new(Local);
            builder.enable_connect_protocol();
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        })
        .await;
        let proxy = Proxy::new();
        let mut config = config("web");
        config.protocol = UpstreamProtocol::Http2;
        let cluster = proxy.cluster(config, &[address]);
        check(&proxy, &cluster, websocket(), StatusCode::SWITCHING_PROTOCOLS).await;
        let connect = Request::connect("db:5432").body(Body::Empty).expect("a request");
        check(&proxy, &cluster, connect, StatusCode::OK).await;
    });
}
