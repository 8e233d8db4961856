//! HTTP/1 pools.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::Request;
use pillion_model::cluster::RetryBudget;
use pillion_model::retry::Reset;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::support::*;
use crate::body::Body;
use crate::upstream::{Attempt, Cause, Priority};

#[test]
fn a_connection_is_used_again() {
    on_worker(async {
        let (address, seen) = http1_origin(async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        for _ in 0..5 {
            assert_eq!(proxy.text(&cluster).await, "hello");
        }
        assert_eq!(seen.connections.get(), 1);
        let endpoint = &cluster.hosts().hosts[0].endpoint;
        assert_eq!(endpoint.active(), 0);
        assert_eq!(endpoint.stats.rq_success.load(Relaxed), 5);
        assert_eq!(endpoint.stats.cx_active.load(Relaxed), 1);
        proxy.pools.shutdown().await;
        assert_eq!(endpoint.stats.cx_active.load(Relaxed), 0);
    });
}

#[test]
fn a_connection_ends_after_its_requests() {
    on_worker(async {
        let (address, seen) = http1_origin(async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let mut config = config("web");
        config.requests_per_connection_max = 2;
        let cluster = proxy.cluster(config, &[address]);
        for _ in 0..5 {
            proxy.text(&cluster).await;
        }
        assert_eq!(seen.connections.get(), 3);
        assert_eq!(cluster.state.stats.upstream_cx_max_requests.load(Relaxed), 2);
    });
}

/// Answers the first request of each connection, and closes when the second one comes.
async fn once(mut stream: TcpStream) {
    read_head(&mut stream).await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    stream.write_all(answer).await.expect("written");
    read_head(&mut stream).await;
}

async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_end) => return,
        }
    }
}

#[test]
fn a_stale_connection_costs_an_idempotent_request_nothing() {
    on_worker(async {
        let address = origin(once).await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        for _ in 0..4 {
            assert_eq!(proxy.text(&cluster).await, "ok");
        }
        assert_eq!(cluster.state.stats.upstream_rq_stale_replay.load(Relaxed), 3);
    });
}

/// Nobody can tell whether an upstream that closes a connection for idleness has seen a POST on it.
#[test]
fn a_post_goes_on_no_connection_that_was_idle_for_long() {
    on_worker(async {
        let (address, seen) = http1_origin(async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let mut config = config("web");
        config.limits.connections_max = 1;
        let cluster = proxy.cluster(config, &[address]);
        let post = async || {
            let mut post =
                Request::post("/").header("host", "test").body(Body::full("pay")).expect("a request");
            read(proxy.pools.send(&cluster, &mut Attempt::default(), &mut post).await.expect("an answer"))
                .await
        };
        for (idle, what, connections) in
            [(0, "GET", 1), (100, "POST", 1), (600, "GET", 1), (600, "POST", 2), (100, "POST", 2)]
        {
            tokio::time::pause();
            tokio::time::advance(Duration::from_millis(idle)).await;
            tokio::time::resume();
            let answer = if what == "GET" { proxy.text(&cluster).await } else { post().await };
            assert_eq!(answer, "hello");
            assert_eq!(seen.connections.get(), connections, "{what} after {idle} ms");
        }
    });
}

#[test]
fn a_stale_connection_is_told_where_repeating_is_not_safe() {
    on_worker(async {
        let address = origin(once).await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        proxy.text(&cluster).await;
        let mut post = Request::post("/").header("host", "test").body(Body::full("pay")).expect("a request");
        let failure =
            proxy.pools.send(&cluster, &mut Attempt::default(), &mut post).await.expect_err("not repeated");
        assert_eq!(failure.cause, Cause::Reset(Reset::ConnectionTermination));
        assert!(failure.stale_connection && failure.request_sent && matches!(post.body(), Body::Empty));
    });
}

#[test]
fn a_refused_connection_says_so_and_leaves_the_request_whole() {
    on_worker(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound above");
        drop(listener);
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        let mut request = Request::post("/").body(Body::full("pay")).expect("a request");
        let sent = proxy.pools.send(&cluster, &mut Attempt::default(), &mut request).await;
        let failure = sent.expect_err("nobody listens");
        assert_eq!(failure.cause, Cause::Reset(Reset::ConnectFailure));
        assert_eq!(failure.detail, "delayed connect error: Connection refused");
        assert!(!failure.request_sent && matches!(request.body(), Body::Full(_)));
        let endpoint = failure.endpoint.expect("one was chosen");
        assert_eq!(endpoint.stats.cx_connect_fail.load(Relaxed), 1);
        assert_eq!(endpoint.stats.cx_active.load(Relaxed), 0);
        assert_eq!(cluster.state.usage(Priority::Default).connections.load(Relaxed), 0);
    });
}

/// Endpoints that are gone and not yet known to be: one retry must be enough.
#[test]
fn a_retry_finds_who_answers_among_many_who_do_not() {
    on_worker(async {
        let (alive, _seen) = http1_origin(async |_| ok("hello")).await;
        let mut addresses = vec![alive];
        for _ in 0..8 {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            addresses.push(listener.local_addr().expect("bound above"));
        }
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &addresses);
        let answered = async |tries: usize| {
            let mut attempt = Attempt::default();
            for _ in 0..tries {
                if let Ok(sent) = proxy.pools.send(&cluster, &mut attempt, &mut get("/")).await {
                    read(sent).await;
                    return true;
                }
            }
            false
        };
        // Until each has been met.
        let gone = &cluster.hosts();
        while gone.hosts.iter().any(|host| host.endpoint.stats.cx_total.load(Relaxed) == 0) {
            answered(addresses.len()).await;
        }
        for _ in 0..100 {
            assert!(answered(2).await);
        }
    });
}

#[test]
fn limits_are_kept_and_told() {
    on_worker(async {
        let (address, _seen) = http1_origin(async |_| std::future::pending().await).await;
        let proxy = Proxy::new();
        let mut none = config("none");
        none.limits.pending_max = 0;
        let none = proxy.cluster(none, &[address]);
        let failure = proxy.get(&none).await.expect_err("no place to wait");
        assert_eq!(failure.cause, Cause::Reset(Reset::Overflow));
        assert_eq!(none.state.stats.upstream_rq_pending_overflow.load(Relaxed), 1);

        let mut one = config("one");
        one.limits.requests_max = 1;
        let one = proxy.cluster(one, &[address]);
        let endpoint = std::sync::Arc::clone(&one.hosts().hosts[0].endpoint);
        let mut first = std::pin::pin!(proxy.get(&one));
        tokio::select! {
            _ = &mut first => panic!("the origin does not answer"),
            () = until("the first is on its way", || endpoint.active() == 1) => {}
        }
        let failure = proxy.get(&one).await.expect_err("one is in flight");
        assert_eq!(failure.cause, Cause::Reset(Reset::Overflow));
        assert_eq!(one.state.stats.upstream_rq_active_overflow.load(Relaxed), 1);
        assert_eq!(endpoint.active(), 1);
    });
}

#[test]
fn at_most_connections_requests_wait_their_turn() {
    on_worker(async {
        let (address, seen) = http1_origin(async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let mut config = config("web");
        config.limits.connections_max = 1;
        let cluster = proxy.cluster(config, &[address]);
        let all = (0..10).map(|_| proxy.text(&cluster));
        assert_eq!(futures_util::future::join_all(all).await, vec!["hello"; 10]);
        assert_eq!(seen.connections.get(), 1);
        assert_eq!(cluster.state.usage(Priority::Default).pending.load(Relaxed), 0);
    });
}

#[test]
fn a_burst_opens_a_connection_for_each_request() {
    on_worker(async {
        let (address, seen) = http1_origin(async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        for _ in 0..2 {
            let all = (0..10).map(|_| proxy.text(&cluster));
            assert_eq!(futures_util::future::join_all(all).await, vec!["hello"; 10]);
        }
        assert!((1..=10).contains(&seen.connections.get()), "{}", seen.connections.get());
    });
}

#[test]
fn a_removed_endpoint_finishes_what_it_has() {
    on_worker(async {
        let release = std::rc::Rc::new(tokio::sync::Notify::new());
        let wait = std::rc::Rc::clone(&release);
        let (address, seen) = http1_origin(move |_| {
            let wait = std::rc::Rc::clone(&wait);
            async move {
                wait.notified().await;
                ok("late")
            }
        })
        .await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        let endpoint = std::sync::Arc::clone(&cluster.hosts().hosts[0].endpoint);
        let mut answer = std::pin::pin!(proxy.text(&cluster));
        tokio::select! {
            _ = &mut answer => panic!("the origin waits"),
            () = until("the origin has it", || !seen.requests.borrow().is_empty()) => {}
        }
        let same = proxy.cluster(config("web"), &[]);
        assert!(std::sync::Arc::ptr_eq(&same, &cluster), "only endpoints changed");
        proxy.pools.sweep();
        assert!(endpoint.is_removed());
        assert_eq!(proxy.get(&cluster).await.expect_err("none left").cause, Cause::NoHealthyUpstream);
        release.notify_one();
        assert_eq!(answer.await, "late");
        until("its connection is closed", || endpoint.stats.cx_active.load(Relaxed) == 0).await;
    });
}

#[test]
fn idle_connections_are_closed_in_time() {
    on_worker(async {
        let (address, _seen) = http1_origin(async |_| ok("hello")).await;
        let proxy = Proxy::new();
        let mut config = config("web");
        config.idle_timeout = Some(Duration::ZERO);
        let cluster = proxy.cluster(config, &[address]);
        proxy.text(&cluster).await;
        let endpoint = &cluster.hosts().hosts[0].endpoint;
        assert_eq!(endpoint.stats.cx_active.load(Relaxed), 1);
        proxy.pools.sweep();
        until("it is closed", || endpoint.stats.cx_active.load(Relaxed) == 0).await;
        assert_eq!(cluster.state.stats.upstream_cx_idle_timeout.load(Relaxed), 1);
    });
}

#[test]
fn a_timeout_is_the_callers_to_report() {
    on_worker(async {
        let (address, _seen) = http1_origin(async |_| std::future::pending().await).await;
        let proxy = Proxy::new();
        let cluster = proxy.cluster(config("web"), &[address]);
        let (mut attempt, mut request) = (Attempt::default(), get("/"));
        let sent = tokio::time::timeout(
            Duration::from_millis(5),
            proxy.pools.send(&cluster, &mut attempt, &mut request),
        );
        assert!(sent.await.is_err());
        attempt.timed_out();
        let endpoint = &cluster.hosts().hosts[0].endpoint;
        assert_eq!(endpoint.stats.rq_timeout.load(Relaxed), 1);
        assert_eq!(endpoint.active(), 0);
        until("its connection is closed", || endpoint.stats.cx_active.load(Relaxed) == 0).await;
    });
}

#[test]
fn retries_have_a_budget_or_a_limit() {
    let proxy = Proxy::new();
    let mut limited = config("limited");
    limited.limits.retries_max = 2;
    let limited = proxy.cluster(limited, &[]);
    let held: Vec<_> =
        (0..2).map(|_| limited.retry_permit(Priority::Default, true).expect("within")).collect();
    assert!(limited.retry_permit(Priority::Default, true).is_none());
    assert!(limited.retry_permit(Priority::Default, false).is_none(), "without a budget, each counts");
    assert!(limited.retry_permit(Priority::High, true).is_some(), "each priority has its own");
    drop(held);
    assert!(limited.retry_permit(Priority::Default, true).is_some());

    let mut budget = config("budget");
    budget.limits.retry_budget = Some(RetryBudget { percent: 20.0, concurrency_min: 3 });
    let budget = proxy.cluster(budget, &[]);
    budget.state.usage(Priority::Default).requests.store(40, Relaxed);
    budget.state.usage(Priority::Default).pending.store(10, Relaxed);
    let held: Vec<_> = (0..20).map_while(|_| budget.retry_permit(Priority::Default, true)).collect();
    assert_eq!(held.len(), 10, "20 % of 50");
    assert!(budget.retry_permit(Priority::Default, false).is_some(), "no upstream has seen it");
    assert_eq!(budget.state.stats.upstream_rq_retry_overflow.load(Relaxed), 1);
}
