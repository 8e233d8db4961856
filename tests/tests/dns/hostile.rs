//! Others who take all they can get.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pillion_tests::support::process::finish;
use pillion_tests::support::{DEADLINE, Registry, eventually, peer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};

/// Connections held open.
const IDLE: usize = 10_000;
/// Of the registry, for each connection.
const MEMORY_BYTES: u64 = 48 << 10;
/// Questions answered meanwhile.
const QUESTIONS: usize = 10;

#[tokio::test]
async fn ten_thousand_idle_connections_keep_nobody_out() {
    let Some(dig) = peer("dig") else { return };
    // The registry inherits it.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("up to the hard limit");
    let descriptors = maximum.unwrap_or(u64::MAX);
    if descriptors < 2 * 10_000 {
        return pillion_tests::support::peer::skip("dig", &format!("only {descriptors} descriptors allowed"));
    }
    let data = tempfile::tempdir().expect("a folder");
    let registry = serving(data.path()).await;
    let before = memory_bytes(registry.process.id());
    // From several addresses, as an attacker would, and for there to be ports enough.
    let mut held = Vec::with_capacity(IDLE);
    for at in 0..IDLE {
        let socket = TcpSocket::new_v4().expect("a socket");
        let from = [127, 0, 1, u8::try_from(at / 1000).expect("a byte")];
        socket.bind((from, 0).into()).expect("loopback");
        held.push(socket.connect(registry.dns).await.expect("connects"));
    }
    for _ in 0..QUESTIONS {
        for over in ["+tcp", "+notcp"] {
            answered(&dig, registry.dns, over).await;
        }
    }
    let grown = memory_bytes(registry.process.id()).saturating_sub(before);
    let limit = MEMORY_BYTES * u64::try_from(IDLE).expect("a number");
    assert!(grown < limit, "{grown} bytes more, at most {limit} wanted");
    let metrics = registry.get("/metrics").await.body;
    let accepted = metrics.lines().find_map(|line| line.strip_prefix("pillion_dns_connections_total "));
    let accepted: usize = accepted.and_then(|number| number.parse().ok()).expect("counted");
    assert!(accepted >= IDLE, "{accepted} connections were accepted");
    println!("{grown} bytes for {IDLE} connections");
    drop::<Vec<TcpStream>>(held);
    eventually("all are closed", DEADLINE, || async {
        let metrics = registry.get("/metrics").await.body;
        let open = metrics.lines().find_map(|line| line.strip_prefix("pillion_dns_connections "));
        if open == Some("0") { Ok(()) } else { Err(format!("{open:?} are open")) }
    })
    .await;
}

#[tokio::test]
async fn a_storm_of_rubbish_does_not_keep_dig_from_its_answers() {
    let Some(dig) = peer("dig") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = serving(data.path()).await;
    let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let storm = {
        let (stop, sent, server) = (Arc::clone(&stop), Arc::clone(&sent), registry.dns);
        tokio::task::spawn_blocking(move || rubbish(server, &stop, &sent))
    };
    let _calm = Calm(Arc::clone(&stop)); // also where an assertion fails
    for _ in 0..QUESTIONS {
        answered(&dig, registry.dns, "+notcp").await;
    }
    eventually("the storm has been a storm", DEADLINE, || async {
        let sent = sent.load(Ordering::Relaxed);
        if sent > 50_000 { Ok(()) } else { Err(format!("{sent} messages")) }
    })
    .await;
    answered(&dig, registry.dns, "+notcp").await;
    stop.store(true, Ordering::Relaxed);
    storm.await.expect("ended");
    let metrics = registry.get("/metrics").await.body;
    let malformed = metrics.lines().find_map(|line| line.strip_prefix("pillion_dns_malformed_total "));
    assert!(malformed.is_some_and(|count| count != "0"), "{malformed:?}");
}

/// Ends the storm when dropped.
struct Calm(Arc<AtomicBool>);

impl Drop for Calm {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Damaged questions and bytes at random, as fast as they can be sent.
fn rubbish(server: SocketAddr, stop: &AtomicBool, sent: &AtomicU64) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x06orders\x04shop\x04mesh\x08internal\x00\x00\x01\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x0812345678";
    let mut random = fastrand::Rng::with_seed(7);
    while !stop.load(Ordering::Relaxed) {
        let mut message = question.to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..message.len());
            message[at] = random.u8(..);
        }
        message.truncate(random.usize(..=question.len()));
        // Refused by the kernel when its buffer is full: sent again in other form.
        if socket.send_to(&message, server).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn serving(data: &std::path::Path) -> Registry {
    let registry = Registry::start(data).await;
    let body = json!({"address": "10.0.0.5", "port": 8080, "ttl": "1h"});
    let answer = registry.put("/v1/namespaces/shop/services/orders/instances/orders-1", &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    registry
}

/// Asks as often as dig does by itself, for a full buffer may lose a question.
async fn answered(dig: &std::path::Path, server: SocketAddr, over: &str) {
    let port = server.port().to_string();
    let patience = ["+tries=10", "+time=1"];
    let words = ["@127.0.0.1", "-p", &port, "+short", over, "orders.shop.mesh.internal", "A"];
    let answer = finish(dig, words.into_iter().chain(patience)).await.stdout;
    // Each try that was lost has a line of its own.
    assert_eq!(answer.lines().last(), Some("10.0.0.5"), "{over}: {answer}");
}

fn memory_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("running");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line");
    line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number") * 1024
}
