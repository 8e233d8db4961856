//! What applications speak, through two sidecars, with real programs at both ends.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pillion_tests::support::app::{App, Reply, echo};
use pillion_tests::support::peer::script;
use pillion_tests::support::process::{Finished, finish};
use pillion_tests::support::{Plan, Process, Registry, Sidecar, peer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

const NAME: &str = "echo.default.mesh.internal";
const WEB: &str = "spiffe://mesh.internal/ns/default/svc/web";
/// The port that callers dial.
const PORT: u16 = 8080;

/// A registry, the service `echo` of this protocol beside an application, and the sidecar of `web`.
async fn mesh(data: &tempfile::TempDir, protocol: &str, app: SocketAddr) -> (Registry, Sidecar, Sidecar) {
    let registry = Registry::start(data.path()).await;
    let port = format!("{{name: main, port: {PORT}, protocol: {protocol}}}");
    registry.apply(&format!("kind: Service\nname: echo\nports: [{port}]\n")).await;
    let port = format!("main={}:{protocol}", app.port());
    let echo = Plan::new(registry.mesh, "echo.default", &port).start().await;
    registry.serving("echo.default", 1).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    (registry, echo, web)
}

/// An application in Python.
async fn python(name: &str, python: &Path) -> (Process, SocketAddr) {
    let process = Process::program(name, python, [script(name)]);
    let address = process.bound("listening on").await;
    (process, address)
}

fn succeeded(finished: &Finished) -> &str {
    assert_eq!(finished.code, 0, "{finished:?}");
    &finished.stdout
}

#[tokio::test]
async fn grpc_calls_of_every_kind() {
    let (Some(grpc), Some(dig)) = (peer("python-grpc"), peer("dig")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let (_app, address) = python("grpc_server.py", &grpc).await;
    let (_registry, _echo, web) = mesh(&data, "grpc", address).await;
    let authority = format!("{NAME}:{PORT}");
    let vip = format!("{}:{PORT}", web.vip(&dig, NAME).await);
    for address in [vip, web.outbound.to_string()] {
        let client = finish(&grpc, [script("grpc_client.py"), address.clone(), authority.clone()]).await;
        let said = succeeded(&client);
        assert!(said.contains(WEB), "{address}: {said}");
        for kind in [
            "download",
            "upload",
            "chat",
            "fail",
            "deadline",
            "unimplemented",
            "hundred",
            "cancelled",
            "large",
        ] {
            assert!(said.lines().any(|line| line == kind), "{address}: no {kind} in {said}");
        }
    }
}

#[tokio::test]
async fn websockets() {
    let (Some(python_websockets), Some(dig)) = (peer("python-websockets"), peer("dig")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let (_app, address) = python("websocket_server.py", &python_websockets).await;
    let (_registry, _echo, web) = mesh(&data, "http", address).await;
    let url = format!("ws://{NAME}:{PORT}/chat?room=1");
    let (host, port) = (web.outbound.ip().to_string(), web.outbound.port().to_string());
    let (vip, dialled) = (web.vip(&dig, NAME).await.to_string(), PORT.to_string());
    for words in [["direct", &host, &port], ["direct", &vip, &dialled], ["proxy", &host, &port]] {
        let client = script("websocket_client.py");
        let client = finish(&python_websockets, [client.as_str(), &url].iter().chain(&words)).await;
        let said = succeeded(&client);
        for want in ["/chat?room=1", WEB, "closed 1000"] {
            assert!(said.contains(want), "{words:?}: no `{want}` in {said}");
        }
    }
}

#[tokio::test]
async fn raw_tcp_in_both_directions_and_a_half_closed_connection() {
    let (Some(dig), Some(_)) = (peer("dig"), peer("curl")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let clock = Process::pillion("clock", ["demo-service", "clock", "--instance", "clock-1"]);
    let (_registry, _echo, web) = mesh(&data, "tcp", clock.bound("listening on").await).await;
    let vip = web.vip(&dig, NAME).await;
    let by_vip = TcpStream::connect((vip, PORT)).await.expect("the virtual address accepts");
    let mut tunnel = TcpStream::connect(web.outbound).await.expect("the outbound port accepts");
    let connect = format!("CONNECT {NAME}:{PORT} HTTP/1.1\r\nhost: {NAME}:{PORT}\r\n\r\n");
    tunnel.write_all(connect.as_bytes()).await.expect("sent");
    for (way, stream) in [("virtual address", by_vip), ("CONNECT", tunnel)] {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let mut greeting = String::new();
        if way == "CONNECT" {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                let read = reader.read_line(&mut head).await.expect("an answer");
                assert!(read > 0, "{head}");
            }
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
        reader.read_line(&mut greeting).await.expect("a greeting");
        assert!(greeting.starts_with("clock clock-1 "), "{way}: {greeting}");
        // More than buffers hold, so that both directions must flow at once; then our side ends.
        let sent: Vec<u8> = (0..4_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let mut received = Vec::new();
        let (written, read) = tokio::join!(
            async {
                writer.write_all(&sent).await?;
                writer.shutdown().await
            },
            reader.read_to_end(&mut received)
        );
        written.expect("all is sent");
        read.expect("all comes back");
        assert!(received == sent, "{way}: {} of {} bytes came back", received.len(), sent.len());
    }
}

#[tokio::test]
async fn uploads_in_chunks_and_large_bodies_both_ways() {
    const LARGE: usize = 20 << 20;
    let Some(curl) = peer("curl") else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let body: Bytes = (0..LARGE).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
    let answer = body.clone();
    let app = App::with(move |seen| {
        let reply = match seen.uri().path() {
            "/large" => Reply::new(answer.clone()),
            _ => echo("echo", &seen),
        };
        std::future::ready(reply)
    })
    .await;
    let (_registry, _echo, web) = mesh(&data, "http", app.address).await;
    let (sent, got) = (files.path().join("sent"), files.path().join("got"));
    std::fs::write(&sent, &body).expect("written");
    let (sent, got_file) = (format!("@{}", sent.display()), got.display().to_string());
    let outbound = format!("http://{}", web.outbound);
    let url = format!("http://{NAME}:{PORT}/upload");
    let chunked = "transfer-encoding: chunked";
    for more in [&["-H", chunked][..], &["-H", "x-framing: length"], &["-H", "expect: 100-continue"]] {
        let fixed = ["-sS", "-x", &outbound, "--data-binary", &sent, &url];
        let uploaded = finish(&curl, fixed.iter().chain(more)).await;
        let page: serde_json::Value = serde_json::from_str(succeeded(&uploaded)).expect("JSON");
        assert_eq!((&page["bytes"], &page["caller"]), (&LARGE.into(), &WEB.into()), "{more:?}: {page}");
        let arrived = app.seen().last().map(|seen| seen.body().clone()).unwrap_or_default();
        assert!(arrived == body, "{more:?}: other bytes arrived");
    }
    let large = format!("http://{NAME}:{PORT}/large");
    let fetched = finish(&curl, ["-sS", "-x", &outbound, "-o", &got_file, &large]).await;
    succeeded(&fetched);
    assert!(std::fs::read(&got).expect("readable") == body, "other bytes came back");
}

#[tokio::test]
async fn an_application_that_speaks_only_http2_is_reached_from_both_versions() {
    let (Some(curl), Some(nghttp), Some(dig)) = (peer("curl"), peer("nghttp"), peer("dig")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let app = App::start("echo").await;
    let (_registry, _echo, web) = mesh(&data, "http2", app.address).await;
    let url = format!("http://{}:{PORT}/", web.vip(&dig, NAME).await);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let fetched = finish(&curl, ["-sS", version, "-d", "some body", &url]).await;
        let page: serde_json::Value = serde_json::from_str(succeeded(&fetched)).expect("JSON");
        assert_eq!(
            (&page["version"], &page["caller"]),
            (&"HTTP/2.0".into(), &WEB.into()),
            "{version}: {page}"
        );
        assert_eq!(page["bytes"], 9, "{version}: {page}");
    }
    let frames = finish(&nghttp, ["-nv", "--no-dep", &url]).await;
    for want in [":status: 200", "recv DATA frame", "END_STREAM"] {
        assert!(succeeded(&frames).contains(want), "no `{want}` in {frames:?}");
    }
}

#[tokio::test]
async fn a_thousand_streams_of_one_connection_are_in_flight_at_once() {
    let (Some(h2load), Some(dig)) = (peer("h2load"), peer("dig")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    // Nobody is answered until a thousand have asked: one by one, none would be.
    let all = Arc::new(Barrier::new(1000));
    let app = App::with(move |seen| {
        let all = Arc::clone(&all);
        async move {
            all.wait().await;
            echo("echo", &seen)
        }
    })
    .await;
    for protocol in ["http", "http2"] {
        let data = data.path().join(protocol);
        std::fs::create_dir(&data).expect("a folder");
        let data = tempfile::tempdir_in(data).expect("a folder");
        let (_registry, _echo, web) = mesh(&data, protocol, app.address).await;
        let url = format!("http://{}:{PORT}/", web.vip(&dig, NAME).await);
        let words = ["-n", "3000", "-c", "1", "-m", "1000", "--connection-active-timeout", "20s", &url];
        let load = finish(&h2load, words).await;
        assert!(succeeded(&load).contains("3000 2xx"), "{protocol}: {load:?}");
    }
}
