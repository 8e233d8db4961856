//! What the long runs found, one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bytes::Bytes;
use http::{Method, Request};
use pillion_tests::support::{App, DEADLINE, Plan, Registry, Sidecar, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const ORDERS: &str = "kind: Service\nname: orders\nports: [{name: http, port: 80, protocol: http}]\n";
const BODY: &[u8] = b"pay";
const NAME: &str = "orders.default.mesh.internal";

/// An application that answers GET and, once it has a POST, closes without a word.
async fn vanishes_at_posts(listener: TcpListener, posts: Arc<AtomicU32>) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _peer)) = listener.accept().await {
        let posts = Arc::clone(&posts);
        connections.spawn(async move {
            let mut bytes = Vec::new();
            while stream.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
                if bytes.starts_with(b"POST") && bytes.ends_with(BODY) {
                    posts.fetch_add(1, Relaxed);
                    return;
                }
                if bytes.starts_with(b"GET") && bytes.ends_with(b"\r\n\r\n") {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    // Who does not read it asks again.
                    let _gone = stream.write_all(answer).await;
                    bytes.clear();
                }
            }
        });
    }
}

/// The sidecar's answer to a POST that the application took and did not answer must not look like one
/// of which the application has seen nothing: the caller's sidecar would send it again.
#[tokio::test]
async fn a_post_that_the_application_has_seen_is_not_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound above").port().to_string();
    let posts = Arc::new(AtomicU32::new(0));
    let (mut server, counted) = (JoinSet::new(), Arc::clone(&posts));
    server.spawn(vanishes_at_posts(listener, counted));
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    registry.apply(ORDERS).await;
    let _orders = Plan::new(registry.mesh, "orders.default", &port).start().await;
    let web = Sidecar::caller(&registry, "web.default").await;
    web.get_until(NAME, "/", 200).await;
    let post = Request::builder().method(Method::POST).uri("/").header("host", NAME);
    let answer = web.send(post.body(Bytes::from_static(BODY)).expect("a request")).await;
    assert_eq!(answer.expect("an answer").status, 503);
    assert_eq!(posts.load(Relaxed), 1);
}

/// A caller's sidecar shows its renewed certificate also to services of which nothing has changed since:
/// the one before is soon good for nothing.
#[tokio::test]
async fn calls_are_made_with_the_certificate_of_the_moment() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start_with(data.path(), &["--open", "--certificate-lifetime", "16s"]).await;
    registry.apply(ORDERS).await;
    let app = App::start("orders").await;
    let _orders = Sidecar::beside(&registry, "orders.default", app.address).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    let shown = async || {
        let page = web.get_until(NAME, "/", 200).await.json();
        page["headers"]["x-forwarded-client-cert"].as_str().expect("told by the sidecar").to_owned()
    };
    let first = shown().await;
    assert!(first.contains("Hash="), "{first}");
    eventually("the caller shows another certificate", DEADLINE, || async {
        let now = shown().await;
        if now == first { Err(now) } else { Ok(()) }
    })
    .await;
}
