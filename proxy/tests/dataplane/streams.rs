//! Trailers, upgrades, tunnels and plain TCP.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use pillion_model::cluster::UpstreamProtocol;
use pillion_model::listener::{TcpProxy, Terminal};
use pillion_model::route::RouteMatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

fn to(cluster: &str) -> pillion_model::route::RouteConfiguration {
    routes(vec![route("all", RouteMatch::default(), forward(cluster))])
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_cross_both_ways() {
    let origin = Origin::start(|request: Request<Incoming>| async move {
        let collected = request.into_body().collect().await.unwrap();
        let echoed = collected.trailers().cloned().unwrap_or_default();
        let data = collected.to_bytes();
        let frames = [Ok(Frame::data(data)), Ok(Frame::trailers(echoed))];
        Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames))))
    })
    .await;
    let mut cluster = cluster("o", &[origin.address]);
    cluster.protocol = UpstreamProtocol::Http2;
    let proxy = Proxy::http(to("o"), vec![cluster]);
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("42"));
    let frames = [
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"data"))),
        Ok(Frame::trailers(trailers.clone())),
    ];
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let response = client.send_request(Request::post("http://t/").body(body).unwrap()).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
    assert_eq!(collected.to_bytes(), "data");
}

/// Accepts `websocket` in either HTTP version and echoes what comes.
async fn echo() -> Origin {
    Origin::start(|mut request: Request<Incoming>| async move {
        let extended = request.method() == Method::CONNECT
            && request
                .extensions()
                .get::<Protocol>()
                .is_some_and(|protocol| protocol.as_str() == "websocket");
        let upgrade = request.headers().get("upgrade").is_some_and(|value| value == "websocket");
        if !extended && !upgrade {
            return Response::builder().status(400).body(text("no websocket")).unwrap();
        }
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgraded.await.unwrap());
            let mut buffer = [0; 64];
            while let Ok(read) = stream.read(&mut buffer).await
                && read > 0
            {
                stream.write_all(&buffer[..read]).await.unwrap();
            }
            let _ = stream.shutdown().await;
        });
        let response = Response::builder();
        if extended {
            return response.status(200).body(text("")).unwrap();
        }
        let response = response.status(101).header("connection", "upgrade").header("upgrade", "websocket");
        response.body(text("")).unwrap()
    })
    .await
}

fn websocket_proxy(origin: &Origin, protocol: UpstreamProtocol, allowed: bool) -> Proxy {
    let mut manager = manager(to("o"));
    if allowed {
        manager.upgrades.push("websocket".to_owned());
    }
    let mut cluster = cluster("o", &[origin.address]);
    cluster.protocol = protocol;
    Proxy::manager(manager, vec![cluster])
}

async fn talk(upgraded: hyper::upgrade::Upgraded) {
    let mut stream = TokioIo::new(upgraded);
    for word in ["hello", "again"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut echoed = [0; 5];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, word.as_bytes());
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_cross_every_pair_of_versions() {
    let origin = echo().await;
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let proxy = websocket_proxy(&origin, protocol, true);
        let mut client = proxy.client1().await;
        let request = Request::get("/chat").header("host", "t").header("connection", "Upgrade");
        let request = request.header("upgrade", "websocket");
        // The key and answer of RFC 6455 section 1.3.
        let request = request.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let mut response = client.send_request(request.body(Full::default()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 101, "{protocol:?}");
        assert_eq!(response.headers()["upgrade"], "websocket");
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            "{protocol:?}"
        );
        talk(hyper::upgrade::on(&mut response).await.unwrap()).await;

        let mut client = proxy.client2().await;
        let mut request = Request::connect("http://t/chat").body(Full::<Bytes>::default()).unwrap();
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        client.ready().await.unwrap();
        let mut response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200, "{protocol:?}");
        talk(hyper::upgrade::on(&mut response).await.unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_not_allowed_is_refused() {
    let origin = echo().await;
    let proxy = websocket_proxy(&origin, UpstreamProtocol::Http1, false);
    let request =
        Request::get("/").header("host", "t").header("connection", "upgrade").header("upgrade", "websocket");
    let response = proxy.send(request.body(Full::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(response.headers()["connection"], "close");
    assert_eq!(origin.seen(), 0);
}

fn tcp_listener(clusters: &[(&str, u32)]) -> pillion_model::listener::Listener {
    listener(
        "main",
        Terminal::Tcp(TcpProxy {
            stat_prefix: "tcp".to_owned(),
            clusters: clusters.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect(),
            idle_timeout: Some(Duration::from_secs(3600)),
            connect_attempts: 1,
            access_logs: Vec::new(),
        }),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_is_carried_and_one_sides_end_is_passed_on() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        all.reverse();
        stream.write_all(&all).await.unwrap();
    });
    let proxy = Proxy::start(resources(vec![tcp_listener(&[("o", 1)])], vec![cluster("o", &[address])]));
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(b"abc").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"cba");
    eventually("the connection is counted", || {
        proxy.runtime.metrics().contains("pillion_tcp_connections_total{")
    })
    .await;
    let metrics = proxy.runtime.metrics();
    let sent = metrics.lines().find(|line| line.starts_with("pillion_tcp_sent_bytes_total{")).unwrap();
    assert!(sent.ends_with(" 3"), "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_client_without_upstream_is_closed() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::start(resources(vec![tcp_listener(&[("o", 1)])], vec![cluster("o", &[dead])]));
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
}
