//! Draining, replacing configuration, access logs, malformed requests, admin pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::Response;
use pillion_model::http::{AccessLog, LogFormat};
use pillion_model::route::RouteMatch;
use pillion_proxy::admin::AdminOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

fn to(cluster: &str) -> pillion_model::route::RouteConfiguration {
    routes(vec![route("all", RouteMatch::default(), forward(cluster))])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_loses_no_request() {
    let origin = Origin::named("o").await;
    let proxy = Proxy::http(to("o"), vec![cluster("o", &[origin.address])]);
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for _ in 0..8 {
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        let mut client = proxy.client1().await;
        clients.push(tokio::spawn(async move {
            while !stop.load(SeqCst) {
                client.ready().await.unwrap();
                let response = client.send_request(get("/")).await.unwrap();
                let close = response.headers().get("connection").is_some_and(|value| value == "close");
                assert_eq!(response.status(), 200);
                body_text(response).await;
                done.fetch_add(1, SeqCst);
                if close {
                    return;
                }
            }
        }));
    }
    eventually("every client is at work", || done.load(SeqCst) > 80).await;
    assert_eq!(proxy.runtime.drain(Duration::from_secs(10)).await, 0);
    stop.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    assert!(TcpStream::connect(proxy.address).await.is_err());
    assert_eq!(done.load(SeqCst), origin.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_flight_outlives_its_listener() {
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&release);
    let origin = Origin::start(move |_request| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Response::new(text("late"))
        }
    })
    .await;
    let proxy = Proxy::http(to("o"), vec![cluster("o", &[origin.address])]);
    let mut client = proxy.client2().await;
    let answer =
        tokio::spawn(client.send_request(http::Request::get("http://t/").body(Default::default()).unwrap()));
    eventually("the request is upstream", || origin.seen() == 1).await;
    let none = resources(Vec::new(), vec![cluster("o", &[origin.address])]);
    assert_eq!(proxy.runtime.publish(none, &no_secrets()).rejected, []);
    eventually("nobody accepts any more", || std::net::TcpStream::connect(proxy.address).is_err()).await;
    release.add_permits(1);
    assert_eq!(body_text(answer.await.unwrap().unwrap()).await, "late");
    eventually("the connection has ended", || proxy.runtime.connections() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_change_under_open_connections() {
    let (a, b) = (Origin::named("a").await, Origin::named("b").await);
    let clusters = || vec![cluster("a", &[a.address]), cluster("b", &[b.address])];
    let proxy = Proxy::http(to("a"), clusters());
    let mut client = proxy.client1().await;
    assert_eq!(body_text(client.send_request(get("/")).await.unwrap()).await, "a");
    let http = pillion_model::listener::Terminal::Http(Box::new(manager(to("b"))));
    assert_eq!(
        proxy.runtime.publish(resources(vec![listener("main", http)], clusters()), &no_secrets()).rejected,
        []
    );
    assert_eq!(proxy.runtime.bound("main"), Some(proxy.address));
    client.ready().await.unwrap();
    let response = client.send_request(get("/")).await.unwrap();
    assert!(!response.headers().contains_key("connection"));
    assert_eq!(body_text(response).await, "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_resource_is_refused_and_the_others_apply() {
    let origin = Origin::named("o").await;
    let proxy = Proxy::http(to("o"), vec![cluster("o", &[origin.address])]);
    let mut bad = manager(to("o"));
    bad.filters.clear();
    let mut second = listener("second", pillion_model::listener::Terminal::Http(Box::new(manager(to("o")))));
    second.filter_chains[0].name = "other".to_owned();
    let next = resources(
        vec![listener("main", pillion_model::listener::Terminal::Http(Box::new(bad))), second],
        vec![cluster("o", &[origin.address])],
    );
    let published = proxy.runtime.publish(next, &no_secrets());
    let reasons: Vec<String> = published.rejected.iter().map(ToString::to_string).collect();
    assert_eq!(reasons, ["listener `main`: filter chain `main`: the last HTTP filter has to be the router"]);
    assert_eq!(proxy.get("/").await.0, 200);
    assert!(proxy.runtime.bound("second").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn access_logs_are_written_as_envoy_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let origin = Origin::named("hello").await;
    let mut manager = manager(to("o"));
    let json = [
        ("code", "%RESPONSE_CODE%"),
        ("path", "%REQ(:PATH)%"),
        ("flags", "%RESPONSE_FLAGS%"),
        ("sni", "%REQUESTED_SERVER_NAME%"),
    ];
    manager.access_logs = vec![
        AccessLog { path: path("text"), format: LogFormat::Text(None), filter: None },
        AccessLog {
            path: path("json"),
            format: LogFormat::Json(
                json.iter().map(|&(key, format)| (key.to_owned(), format.to_owned())).collect(),
            ),
            filter: None,
        },
    ];
    let proxy = Proxy::manager(manager, vec![cluster("o", &[origin.address])]);
    let mut request = get("/x?y=1");
    request.headers_mut().insert("x-request-id", "the-id".parse().unwrap());
    request.headers_mut().insert("user-agent", "tester".parse().unwrap());
    proxy.send(request).await;
    let read = |name: &str| std::fs::read_to_string(path(name)).unwrap_or_default();
    eventually("both lines are written", || read("text").ends_with('\n') && read("json").ends_with('\n'))
        .await;
    let line = read("text");
    let (time, rest) = line.split_once("] ").unwrap();
    assert!(time.starts_with("[20") && time.ends_with('Z'), "{time}");
    assert!(rest.starts_with("\"GET /x?y=1 HTTP/1.1\" 200 - 0 5 "), "{rest}");
    assert!(
        rest.ends_with(&format!("\"-\" \"tester\" \"the-id\" \"test\" \"{}\"\n", origin.address)),
        "{rest}"
    );
    let json: serde_json::Value = serde_json::from_str(&read("json")).unwrap();
    assert_eq!(json, serde_json::json!({"code": 200, "path": "/x?y=1", "flags": "-", "sni": null}));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_never_reach_the_origin() {
    let origin = Origin::named("o").await;
    let proxy = Proxy::http(to("o"), vec![cluster("o", &[origin.address])]);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", "400"),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n", "426"),
        ("GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n", "501"),
        ("GET / HTTP/1.1\r\nhost: a\r\nconnection: x-forwarded-for\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", "400"),
    ] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        let read = stream.read_exact(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(read.is_ok() && answer.ends_with(status), "{request:?}: {answer:?}");
    }
    let many: String = (0..200).map(|index| format!("x-{index}: y\r\n")).collect();
    let large = format!("x: {}\r\n", "y".repeat(70_000));
    for headers in [many, large] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let _ = stream.write_all(format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n").as_bytes()).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 431");
    }
    assert_eq!(origin.seen(), 0);
}

/// With both framings nothing is sent on and the connection ends (RFC 9112 section 6.3), so that nothing
/// behind the request can pass for another one.
#[tokio::test(flavor = "multi_thread")]
async fn two_framings_cannot_smuggle() {
    let origin = Origin::named("o").await;
    let proxy = Proxy::http(to("o"), vec![cluster("o", &[origin.address])]);
    let (length, chunked) = ("content-length: 6\r\n", "transfer-encoding: chunked\r\n");
    for framing in [format!("{length}{chunked}"), format!("{chunked}{length}")] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n0\r\n\r\n{smuggled}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("connection: close"), "{answer}");
        assert_eq!(origin.seen(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_idle_connections_are_cut_and_busy_ones_are_not() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let wait = Arc::clone(&gate);
    let origin = Origin::start(move |_request| {
        let wait = Arc::clone(&wait);
        async move {
            wait.acquire().await.unwrap().forget();
            Response::new(text("done"))
        }
    })
    .await;
    let mut manager = manager(to("o"));
    manager.request_headers_timeout = Some(Duration::from_millis(100));
    manager.idle_timeout = Some(Duration::from_millis(200));
    let proxy = Proxy::manager(manager, vec![cluster("o", &[origin.address])]);
    let mut busy = proxy.client1().await;
    let answer = tokio::spawn(async move { body_text(busy.send_request(get("/")).await.unwrap()).await });
    eventually("the request is upstream", || origin.seen() == 1).await;
    for (begun, told) in [
        ("GET / HT", "HTTP/1.1 408 "),
        ("PRI * HTTP/2", ""),
        ("", ""),
        ("GET / HTTP/1.1\r\nhost: a\r\n", "HTTP/1.1 408 "),
    ] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(closed.is_ok() && answer.starts_with(told), "{begun:?}: {answer}");
        assert!(!told.is_empty() || answer.is_empty(), "{begun:?}: {answer}");
    }
    gate.add_permits(1);
    assert_eq!(answer.await.unwrap(), "done");
    eventually("the idle connection is gone", || proxy.runtime.connections() == 0).await;
}

/// A client that resets most of many streams before they are answered loses its connection, and only
/// its own (CVE-2023-44487).
#[tokio::test(flavor = "multi_thread")]
async fn rapid_resets_end_the_connection() {
    let origin = Origin::start(|_request| std::future::pending::<Response<Body>>()).await;
    let mut to_origin = cluster("o", &[origin.address]);
    to_origin.limits.connections_max = 10_000;
    to_origin.limits.pending_max = 10_000;
    to_origin.limits.requests_max = 10_000;
    let proxy = Proxy::http(to("o"), vec![to_origin]);
    let mut client = proxy.client2().await;
    let mut sent = 0;
    while sent < 5000 && client.ready().await.is_ok() {
        let before = origin.seen();
        let request = http::Request::get("http://t/").body(Default::default()).unwrap();
        let answer = tokio::spawn(client.send_request(request));
        sent += 1;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while origin.seen() == before && !answer.is_finished() && tokio::time::Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        answer.abort();
    }
    assert!((500..1000).contains(&sent), "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_pages_show_what_runs() {
    let origin = Origin::named("o").await;
    let proxy = Proxy::http(to("o"), vec![cluster("o", &[origin.address])]);
    assert_eq!(proxy.get("/").await.0, 200);
    let readiness = pillion_net::readiness::Readiness::new();
    let part = readiness.part("first snapshot");
    let any = Some("127.0.0.1:0".parse().unwrap());
    let options = AdminOptions { admin: any, metrics: any, readiness, ..AdminOptions::default() };
    let drain = options.drain.clone();
    let admin = proxy.runtime.serve_admin(options).unwrap();
    let (pages, metrics) = (admin.admin.unwrap(), admin.metrics.unwrap());
    assert!(ask(metrics, "GET", "/ready").await.contains("not ready: first snapshot"));
    drop(part);
    assert!(ask(metrics, "GET", "/ready").await.starts_with("HTTP/1.1 200"));
    assert!(ask(metrics, "GET", "/metrics").await.contains("pillion_request_duration_seconds_bucket{"));
    assert!(ask(metrics, "GET", "/config_dump").await.starts_with("HTTP/1.1 404"));
    let dump = ask(pages, "GET", "/config_dump").await;
    assert!(
        dump.contains("envoy.config.listener.v3.Listener") && dump.contains("\"applied\": true"),
        "{dump}"
    );
    assert!(ask(pages, "GET", "/clusters").await.contains(&format!("o::{}::rq_success::1", origin.address)));
    assert!(ask(pages, "GET", "/drain").await.starts_with("HTTP/1.1 405"));
    assert!(!drain.is_cancelled());
    assert!(ask(pages, "POST", "/drain").await.starts_with("HTTP/1.1 200"));
    assert!(drain.is_cancelled());
}
