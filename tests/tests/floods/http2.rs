//! Floods of HTTP/2 frames.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::beside;
use super::proxy::Proxy;
use pillion_tests::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, beginning, block, frame, get, post,
};

/// Connections that flood at the same time.
const ATTACKERS: usize = 4;
/// How soon who floods has to be closed.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);
/// When to give up.
const GIVE_UP: Duration = Duration::from_secs(15);

/// What is sent again and again; told how often it was already.
type Batch = fn(u32) -> Vec<u8>;

/// Sends until the connection is closed, and tells how long that took.
async fn flood(to: SocketAddr, first: Vec<u8>, batch: Batch) -> Option<Duration> {
    let stream = TcpStream::connect(to).await.expect("the kernel takes it");
    let begun = Instant::now();
    let (mut read, mut write) = stream.into_split();
    let send = async {
        if write.write_all(&first).await.is_err() {
            return;
        }
        for n in 0.. {
            if write.write_all(&batch(n)).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let receive = async {
        let mut bytes = vec![0; 64 << 10];
        while read.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    };
    let until_closed = async {
        tokio::select! { () = send => (), () = receive => () }
    };
    timeout(GIVE_UP, until_closed).await.ok().map(|()| begun.elapsed())
}

async fn closes(name: &str, first: Vec<u8>, batch: Batch) {
    let proxy = Proxy::start(":").await;
    let attack = async {
        let mut attackers = JoinSet::new();
        for _ in 0..ATTACKERS {
            attackers.spawn(flood(proxy.address, first.clone(), batch));
        }
        attackers.join_all().await
    };
    let closed = beside(name, &proxy, attack).await;
    println!("{name}: closed after {closed:?}");
    for after in closed {
        assert!(after.is_some_and(|after| after <= CLOSED_WITHIN), "{name}: closed after {after:?}");
    }
}

/// The `n`-th stream of a client.
fn stream(n: u32) -> u32 {
    2 * n + 1
}

/// 50 requests, each followed by what `bad` makes for its stream.
fn requests(n: u32, bad: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..50).map(|i| stream(n * 50 + i)).flat_map(|id| [get(id, "/hang"), bad(id)].concat()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset() {
    let batch: Batch = |n| requests(n, |id| frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
    closes("rapid reset", beginning(&[]), batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_we_are_made_to_reset() {
    let batches: [(&str, Batch); 5] = [
        ("window update of 0", |n| requests(n, |id| frame(WINDOW_UPDATE, 0, id, &[0; 4]))),
        ("window too large", |n| {
            requests(n, |id| frame(WINDOW_UPDATE, 0, id, &0x7fff_ffff_u32.to_be_bytes()))
        }),
        ("data after the end", |n| requests(n, |id| frame(DATA, 0, id, b"a"))),
        ("headers after the end", |n| requests(n, |id| frame(HEADERS, END_HEADERS, id, &[0x82]))),
        ("priority of itself", |n| {
            requests(n, |id| frame(PRIORITY, 0, id, &[id.to_be_bytes().as_slice(), &[0]].concat()))
        }),
    ];
    for (name, batch) in batches {
        closes(name, beginning(&[]), batch).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_ask_for_nothing() {
    let open = [beginning(&[]), post(1, "/ok")].concat();
    let batches: [(&str, Batch); 6] = [
        ("settings", |_| frame(SETTINGS, 0, 0, &[]).repeat(50)),
        ("ping", |_| frame(PING, 0, 0, &[7; 8]).repeat(50)),
        ("window update", |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(50)),
        ("priority", |_| frame(PRIORITY, 0, 9, &[0, 0, 0, 1, 0]).repeat(50)),
        ("empty data", |_| frame(DATA, 0, 1, &[]).repeat(50)),
        ("unknown", |_| frame(0xbb, 0, 1, &[1, 2, 3]).repeat(50)),
    ];
    for (name, batch) in batches {
        closes(name, open.clone(), batch).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_blocks_without_end() {
    let open = [beginning(&[]), frame(HEADERS, END_STREAM, 1, &block(false, "/ok"))].concat();
    let batches: [(&str, Batch); 2] = [
        ("continuation", |_| {
            // Fields that are not kept, with a name and a value of their own.
            let fields = [&[0_u8, 1, b'x', 100][..], &[b'a'; 100]].concat().repeat(100);
            frame(CONTINUATION, 0, 1, &fields)
        }),
        ("empty continuation", |_| frame(CONTINUATION, 0, 1, &[]).repeat(50)),
    ];
    for (name, batch) in batches {
        closes(name, open.clone(), batch).await;
    }
}

/// Connections whose client never opens its window, or never reads, hold no more than is theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes() {
    for (name, window) in [("window of 0", 0), ("window of 1", 1)] {
        let proxy = Proxy::start(":").await;
        let attack = async {
            let mut held = Vec::new();
            for _ in 0..ATTACKERS {
                let mut stream = TcpStream::connect(proxy.address).await.expect("the kernel takes it");
                stream.write_all(&beginning(&[(4, window)])).await.expect("taken");
                let asked: Vec<u8> = (0..100).flat_map(|n| get(self::stream(n), "/big")).collect();
                stream.write_all(&asked).await.expect("taken");
                held.push(stream);
            }
            held
        };
        drop(beside(name, &proxy, attack).await);
    }
}
