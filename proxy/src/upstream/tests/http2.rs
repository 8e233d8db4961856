//! HTTP/2 pools.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use http::{Method, Version};
use pillion_model::cluster::{Cluster as Config, UpstreamProtocol};
use tokio::sync::Semaphore;

use super::support::*;
use crate::upstream::Attempt;

fn http2(name: &str) -> Config {
    Config { protocol: UpstreamProtocol::Http2, ..config(name) }
}

#[test]
fn requests_share_one_connection() {
    on_worker(async {
        let (address, seen) = http2_origin(|_| {}, async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(http2("web"), &[address]);
        let all = (0..50).map(|_| proxy.text(&cluster));
        assert_eq!(futures_util::future::join_all(all).await, vec!["hello"; 50]);
        assert_eq!(seen.connections.get(), 1);
        let requests = seen.requests.borrow();
        assert_eq!(requests[0].version, Version::HTTP_2);
        assert_eq!(requests[0].uri.authority().map(|it| it.as_str()), Some("test"));
        assert!(requests[0].headers.get("host").is_none());
        assert_eq!(cluster.hosts().hosts[0].endpoint.active(), 0);
    });
}

#[test]
fn the_peers_stream_limit_opens_further_connections() {
    on_worker(async {
        let gate = Rc::new(Semaphore::new(0));
        let open = Rc::clone(&gate);
        let (address, seen) = http2_origin(
            |builder| {
                builder.max_concurrent_streams(2);
            },
            move |_| {
                let gate = Rc::clone(&open);
                async move {
                    let _permit = gate.acquire().await;
                    ok("hello")
                }
            },
        )
        .await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(http2("web"), &[address]);
        gate.add_permits(1);
        proxy.text(&cluster).await; // Its SETTINGS have arrived.
        gate.acquire().await.expect("open").forget();
        let all = futures_util::future::join_all((0..4).map(|_| proxy.text(&cluster)));
        let mut all = std::pin::pin!(all);
        tokio::select! {
            _ = &mut all => panic!("the gate is closed"),
            () = until("four are there", || seen.requests.borrow().len() == 5) => {}
        }
        assert_eq!(seen.connections.get(), 2);
        gate.add_permits(4);
        all.await;
    });
}

/// Also those that waited for the same connection.
#[test]
fn a_connection_takes_no_more_requests_than_it_may() {
    on_worker(async {
        let (address, seen) = http2_origin(|_| {}, async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let mut config = http2("web");
        config.requests_per_connection_max = 1;
        let cluster = proxy.cluster(config, &[address]);
        tokio::join!(proxy.text(&cluster), proxy.text(&cluster), proxy.text(&cluster));
        assert_eq!(seen.connections.get(), 3);
    });
}

#[test]
fn after_goaway_streams_end_and_new_ones_go_elsewhere() {
    on_worker(async {
        let gate = Rc::new(Semaphore::new(0));
        let open = Rc::clone(&gate);
        let (address, seen) = http2_origin(
            |_| {},
            move |request| {
                let gate = Rc::clone(&open);
                async move {
                    if request.uri().path() == "/slow" {
                        gate.acquire().await.expect("open").forget();
                    }
                    ok("hello")
                }
            },
        )
        .await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(http2("web"), &[address]);
        let slow = async {
            let sent = proxy.pools.send(&cluster, &mut Attempt::default(), &mut get("/slow")).await;
            read(sent.expect("an answer")).await
        };
        let mut slow = std::pin::pin!(slow);
        tokio::select! {
            _ = &mut slow => panic!("the gate is closed"),
            () = until("it is there", || seen.requests.borrow().len() == 1) => {}
        }
        seen.goaway.notify_one();
        // Whether or not GOAWAY has arrived when they start: none fails.
        for _ in 0..20 {
            assert_eq!(proxy.text(&cluster).await, "hello");
            tokio::task::yield_now().await;
        }
        assert_eq!(seen.connections.get(), 2);
        gate.add_permits(1);
        assert_eq!(slow.await, "hello");
        let endpoint = &cluster.hosts().hosts[0].endpoint;
        until("the old connection is closed", || endpoint.stats.cx_active.load(Relaxed) == 1).await;
        assert_eq!(endpoint.stats.rq_error.load(Relaxed), 0);
    });
}

#[test]
fn a_request_given_up_resets_its_stream_only() {
    on_worker(async {
        let (address, seen) = http2_origin(
            |_| {},
            async |request: http::Request<_>| {
                if request.uri().path() == "/never" {
                    std::future::pending::<()>().await;
                }
                ok("hello")
            },
        )
        .await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(http2("web"), &[address]);
        assert_eq!(proxy.text(&cluster).await, "hello");
        let mut attempt = Attempt::default();
        {
            let mut request = get("/never");
            let mut never = std::pin::pin!(proxy.pools.send(&cluster, &mut attempt, &mut request));
            tokio::select! {
                _ = &mut never => panic!("it never answers"),
                () = until("it is there", || seen.requests.borrow().len() == 2) => {}
            }
        }
        assert_eq!(proxy.text(&cluster).await, "hello");
        assert_eq!(seen.connections.get(), 1);
        assert_eq!(seen.requests.borrow()[1].method, Method::GET);
        assert_eq!(cluster.hosts().hosts[0].endpoint.active(), 0);
    });
}
