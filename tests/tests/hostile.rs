//! Clients that mean harm, or are broken: the API goes on for all others, and takes no more memory than
//! it allows itself.

use std::net::SocketAddr;
use std::time::Duration;

use pillion_tests::support::{DEADLINE, Registry, eventually, http};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connections that say nothing, if the process may have so many.
const IDLE: u64 = 10_000;
/// What all of this may cost the registry.
const GROWTH_MAX_KIB: u64 = 256 << 10;

async fn connect(address: SocketAddr, said: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("the kernel takes it");
    stream.write_all(said).await.expect("the kernel takes it");
    stream
}

/// What comes back until the connection is closed.
async fn answer(address: SocketAddr, said: &[u8]) -> String {
    let mut stream = connect(address, said).await;
    let mut text = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut text)).await;
    assert!(read.is_ok(), "not closed: {}", String::from_utf8_lossy(&text));
    String::from_utf8_lossy(&text).into_owned()
}

fn resident_kib(registry: &Registry) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", registry.process.id()));
    let status = status.expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn descriptors() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.unwrap_or(u64::MAX)
}

/// Writes and reads are answered.
async fn others_are_served(registry: &Registry, when: &str) {
    let id = format!("/v1/namespaces/shop/services/orders/instances/{when}");
    let work = async {
        let put = registry.put(&id, &json!({"address": "10.0.0.5", "port": 8080})).await;
        let read = registry.get(&id).await;
        (put.status, read.status)
    };
    let served = tokio::time::timeout(DEADLINE, work).await;
    assert_eq!(served.ok(), Some((201, 200)), "{when}");
}

#[tokio::test]
async fn garbage_is_refused_and_harms_nobody() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let put = |body: &str| {
        format!(
            "PUT /v1/namespaces/shop/services/orders/instances/a HTTP/1.1\r\nhost: localhost\r\nconnection: \
             close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let deep = format!("{{\"labels\":{}", "[".repeat(1 << 20));
    let twice = r#"{"address": "10.0.0.5", "address": 7, "port": 8080}"#;
    for (said, want) in [
        (put(&deep), "HTTP/1.1 400"),
        (put(&"{\"a\":".repeat(100_000)), "HTTP/1.1 400"),
        (put("\u{0}\u{1}\u{2}"), "HTTP/1.1 400"),
        (put(twice), "HTTP/1.1 400"),
        ("\u{16}\u{3}\u{1} this is no HTTP\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        (format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(1 << 20)), "HTTP/1.1 4"),
        // Refused before it is sent, also where the length is not told.
        (
            "POST /v1/instances HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000000000\r\n\r\n".to_owned(),
            "HTTP/1.1 413",
        ),
        (
            "POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 70000\r\n\r\n"
                .to_owned(),
            "HTTP/1.1 413",
        ),
    ] {
        let got = answer(registry.api, said.as_bytes()).await;
        let (said, got) = (&said[..said.len().min(80)], &got[..got.len().min(400)]);
        assert!(got.starts_with(want), "{said}: {got}");
    }
    let mut endless = connect(
        registry.api,
        b"POST /v1/instances HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n",
    )
    .await;
    let chunk = [b"10000\r\n".as_slice(), &[b'['; 1 << 16], b"\r\n"].concat();
    let mut sent = 0;
    while sent < 64 << 20 && endless.write_all(&chunk).await.is_ok() {
        sent += 1 << 16;
    }
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    others_are_served(&registry, "afterwards").await;
}

#[tokio::test]
async fn slow_and_silent_clients_do_not_keep_others_out() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    others_are_served(&registry, "before").await;
    let before = resident_kib(&registry);
    let idle = IDLE.min(descriptors().saturating_sub(4096).max(descriptors() / 2) * 3 / 4);
    let mut held = Vec::new();
    for _ in 0..idle {
        held.push(connect(registry.api, b"").await);
    }
    for _ in 0..200 {
        // A head that does not end, a body that does not come, an answer that nobody reads.
        held.push(connect(registry.api, b"GET /v1/services HTTP/1.1\r\nhost: localhost\r\nx-a: ").await);
        let body =
            b"PUT /v1/namespaces/a/services/b/instances/c HTTP/1.1\r\nhost: localhost\r\ncontent-length: \
                     60000\r\n\r\n{";
        held.push(connect(registry.api, body).await);
        let many = b"GET /v1/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(20);
        held.push(connect(registry.api, &many).await);
    }
    others_are_served(&registry, "meanwhile").await;
    let ready = http::get(registry.api, "localhost", "/readyz").await;
    assert_eq!(ready.as_ref().map(|ready| ready.status), Ok(200), "{ready:?}");
    let grown = resident_kib(&registry).saturating_sub(before);
    println!("{} connections cost {grown} KiB", held.len());
    assert!(grown < GROWTH_MAX_KIB, "{} connections cost {grown} KiB", held.len());

    // Who has said nothing is closed after its time.
    let mut silent = held.swap_remove(0);
    let closed = tokio::time::timeout(DEADLINE + Duration::from_secs(30), silent.read(&mut [0])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    drop(held);
    eventually("the registry is as before", DEADLINE, || async {
        let open =
            std::fs::read_dir(format!("/proc/{}/fd", registry.process.id())).map_or(0, Iterator::count);
        if open < 200 { Ok(()) } else { Err(format!("{open} open files")) }
    })
    .await;
    others_are_served(&registry, "afterwards").await;
}
