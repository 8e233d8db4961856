//! An identity that is taken back is refused everywhere, and what it has open is cut.

use std::time::Duration;

use pillion_tests::support::{App, DEADLINE, Plan, Process, Registry, Sidecar, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

const RESOURCES: &str = "\
kind: Service
name: hello
ports: [{name: http, port: 80, protocol: http}]
---
kind: Service
name: clock
ports: [{name: tcp, port: 7000, protocol: tcp}]
";
const HELLO: &str = "hello.default.mesh.internal";
const WEB: &str = "spiffe://mesh.internal/ns/default/svc/web";
/// From the command to the cut.
const CUT_WITHIN: Duration = Duration::from_secs(5);

/// A connection to the clock, open and greeted.
async fn greeted(sidecar: &Sidecar) -> TcpStream {
    let mut stream = TcpStream::connect(sidecar.outbound).await.expect("the outbound port accepts");
    let name = "clock.default.mesh.internal:7000";
    let connect = format!("CONNECT {name} HTTP/1.1\r\nhost: {name}\r\n\r\n");
    stream.write_all(connect.as_bytes()).await.expect("sent");
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("clock clock-1") {
        let read = timeout(DEADLINE, stream.read_buf(&mut said)).await.expect("in time").expect("bytes");
        assert!(read > 0, "{}", String::from_utf8_lossy(&said));
    }
    stream
}

/// Waits for the end of a connection: its end, or a reset.
async fn ends(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest).await);
}

async fn ca(registry: &Registry, arguments: &[&str]) -> String {
    let finished = registry.cli(&[&["ca"], arguments].concat()).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    finished.stdout
}

#[tokio::test]
async fn what_a_revoked_identity_has_open_is_cut_and_it_gets_nothing_new() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    registry.apply(RESOURCES).await;
    let app = App::start("hello").await;
    let port = app.address.port().to_string();
    let hello = Plan::new(registry.mesh, "hello.default", &port).instance("hello-1").start().await;
    let clock = Process::pillion("clock", ["demo-service", "clock", "--instance", "clock-1"]);
    let port = format!("tcp={}:tcp", clock.bound("listening on").await.port());
    let clock = Plan::new(registry.mesh, "clock.default", &port).start().await;
    registry.serving("hello.default", 1).await;
    registry.serving("clock.default", 1).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    let front = Sidecar::caller(&registry, "front.default").await;
    web.get_until(HELLO, "/", 200).await;
    front.get_until(HELLO, "/", 200).await;
    let (mut of_web, mut of_front) = (greeted(&web).await, greeted(&front).await);

    let begun = Instant::now();
    ca(&registry, &["revoke", WEB, "--reason", "laptop lost"]).await;
    timeout(CUT_WITHIN, ends(&mut of_web)).await.expect("the connection is cut");
    web.get_until(HELLO, "/", 503).await;
    assert!(begun.elapsed() < CUT_WITHIN, "{:?}", begun.elapsed());
    eventually("the refusal is counted", DEADLINE, || async {
        // What was cut first may have been an attempt that never came this far.
        web.get(HELLO, "/").await.map_err(|error| format!("{error:?}"))?;
        let refused = hello.metric("pillion_peer_refused_total", &[("reason", "revoked")]).await;
        if refused > 0.0 { Ok(()) } else { Err(hello.scrape().await) }
    })
    .await;
    let log = hello.process.output();
    assert!(log.contains("refused a peer's certificate") && log.contains(WEB), "{log}");
    let status = ca(&registry, &["status"]).await;
    assert!(status.contains(WEB) && status.contains("laptop lost"), "{status}");
    eventually("the registry refuses it, too", DEADLINE, || async {
        let said = registry.get("/metrics").await;
        let text = said.body;
        let counted = pillion_tests::support::sidecar::sum(
            &text,
            "pillion_peer_refused_total",
            &[("reason", "revoked")],
        );
        if counted > 0.0 { Ok(()) } else { Err(text) }
    })
    .await;
    // Others are not touched.
    assert_eq!(front.get(HELLO, "/").await.expect("an answer").status, 200);
    of_front.write_all(b"still here\n").await.expect("sent");
    let mut echo = [0; 10];
    timeout(DEADLINE, of_front.read_exact(&mut echo)).await.expect("in time").expect("an echo");

    // A server that is revoked, by its instance, is called no more.
    ca(&registry, &["revoke", "default/hello/hello-1"]).await;
    front.get_until(HELLO, "/", 503).await;
    // After a restart of the registry, too.
    let registry = registry.crash_and_restart().await;
    front.get_until(HELLO, "/", 503).await;
    ca(&registry, &["unrevoke", "default/hello/hello-1"]).await;
    ca(&registry, &["unrevoke", WEB]).await;
    front.get_until(HELLO, "/", 200).await;
    web.get_until(HELLO, "/", 200).await;
    drop((of_front, clock));
}
