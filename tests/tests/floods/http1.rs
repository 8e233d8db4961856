//! Slow, silent and too many clients.

use std::time::Duration;

use pillion_tests::support::{DEADLINE, eventually, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::proxy::{Neighbour, Proxy};
use super::{LOOK, beside};

/// Clients that are slow at the same time.
const SLOW: usize = 300;
/// How many bytes each of them sends one by one, and how often.
const CRUMBS: usize = 10;
const CRUMB_EVERY: Duration = Duration::from_millis(100);
/// Connections that say nothing.
const SILENT: usize = 3000;

/// Opens connections that say this and no more.
async fn hold(proxy: &Proxy, count: usize, said: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(proxy.address).await.expect("the kernel takes it");
        // One that is closed at once takes nothing.
        let _closed = stream.write_all(said).await;
        held.push(stream);
    }
    held
}

/// Opens connections that say this, and then a byte now and then.
async fn crumbs(proxy: &Proxy, said: &[u8]) -> Vec<TcpStream> {
    let mut held = hold(proxy, SLOW, said).await;
    let mut pace = tokio::time::interval(CRUMB_EVERY);
    for _ in 0..CRUMBS {
        pace.tick().await;
        for stream in &mut held {
            let _closed = stream.write_all(b"a").await;
        }
    }
    held
}

/// What comes until the end, and when that was.
async fn rest(stream: &mut TcpStream) -> (String, Duration) {
    let (begun, mut text) = (Instant::now(), Vec::new());
    let read = timeout(DEADLINE, stream.read_to_end(&mut text)).await;
    assert!(read.is_ok(), "not closed; {:?}", String::from_utf8_lossy(&text));
    (String::from_utf8_lossy(&text).into_owned(), begun.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_in_crumbs() {
    let proxy = Proxy::start(":").await;
    let attack = crumbs(&proxy, b"GET /ok HTTP/1.1\r\nhost: a\r\nx-a: ");
    let mut held = beside("heads in crumbs", &proxy, attack).await;
    let (answer, after) = rest(&mut held[0]).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(after < Duration::from_secs(4), "closed after {after:?} more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_in_crumbs() {
    let proxy = Proxy::start(":").await;
    let head = b"POST /app HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
    let attack = crumbs(&proxy, head);
    let mut held = beside("bodies in crumbs", &proxy, attack).await;
    let (answer, after) = rest(&mut held[0]).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(after < Duration::from_secs(5), "closed after {after:?} more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_reads() {
    let proxy = Proxy::start(":").await;
    let attack = hold(&proxy, SLOW / 3, b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n");
    drop(beside("answers that nobody reads", &proxy, attack).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_too_large() {
    let proxy = Proxy::start(":").await;
    let large = [b"GET /ok HTTP/1.1\r\nhost: a\r\nx-a: ".as_slice(), &[b'a'; 100_000]].concat();
    let many = [b"GET /ok HTTP/1.1\r\nhost: a\r\n".as_slice(), &b"a: b\r\n".repeat(10_000)].concat();
    let attack = async {
        let mut answers = Vec::new();
        for said in [&large, &many].into_iter().cycle().take(40) {
            let mut stream = hold(&proxy, 1, said).await.remove(0);
            answers.push(rest(&mut stream).await.0);
        }
        answers
    };
    for answer in beside("heads that are too large", &proxy, attack).await {
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing() {
    let proxy = Proxy::start(":").await;
    let attack = hold(&proxy, SILENT, b"");
    let held = beside("connections that say nothing", &proxy, attack).await;
    Neighbour::connect(proxy.address).await.ask().await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_descriptor_left() {
    let proxy = Proxy::start("ulimit -n 200").await;
    let mut neighbour = Neighbour::connect(proxy.address).await;
    neighbour.ask().await;
    let held = hold(&proxy, 400, b"").await;
    // Who is connected is served, and the proxy does not spin.
    let ticks = proxy.ticks();
    let served = neighbour.ask_for(LOOK).await;
    println!("no descriptor left: p99 {:?}, {} ms", served.p99(), (proxy.ticks() - ticks) * 10);
    let health = http::get(proxy.admin, "admin", "/ready").await;
    assert!(health.as_ref().is_ok_and(|page| page.status == 200), "{health:?}");
    drop(held);
    eventually("newcomers are served again", DEADLINE, || async {
        http::get(proxy.address, "a", "/ok").await.map(drop)
    })
    .await;
}
