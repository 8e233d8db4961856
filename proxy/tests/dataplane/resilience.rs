//! Retries, timeouts, faults, mirrors.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use pillion_model::endpoint::Fraction;
use pillion_model::http::{FaultPolicy, HttpFilter};
use pillion_model::retry::{RetryOn, RetryPolicy};
use pillion_model::route::{Forward, Mirror, RouteAction, RouteMatch};

use crate::support::*;

fn retrying(cluster: &str, on: RetryOn, retries: u32) -> Forward {
    let mut forward = Forward::to(cluster);
    forward.retry = Some(RetryPolicy { on, retries, ..RetryPolicy::default() });
    forward
}

fn all(forward: Forward) -> pillion_model::route::RouteConfiguration {
    routes(vec![route("all", RouteMatch::default(), RouteAction::Forward(Box::new(forward)))])
}

/// Answers 503 that many times, then echoes the request's body.
async fn failing(times: usize) -> Origin {
    let left = Arc::new(AtomicUsize::new(times));
    Origin::start(move |request: Request<Incoming>| {
        let left = Arc::clone(&left);
        async move {
            let attempt = request.headers().get("x-envoy-attempt-count").cloned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let fail = left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
            let mut response = Response::new(text(body));
            if fail {
                *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            }
            if let Some(attempt) = attempt {
                response.headers_mut().insert("x-attempt", attempt);
            }
            response
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_its_body_is_tried_again() {
    let origin = failing(2).await;
    let proxy =
        Proxy::http(all(retrying("o", RetryOn::GATEWAY_ERROR, 2)), vec![cluster("o", &[origin.address])]);
    let body = Bytes::from(vec![b'x'; 100_000]);
    let request = Request::post("/").header("host", "t").body(Full::new(body.clone())).unwrap();
    let response = proxy.send(request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    assert_eq!(origin.seen(), 3);
    let metrics = proxy.runtime.metrics();
    assert!(
        metrics.contains("pillion_retries_total{service=\"o\",subset=\"\",outcome=\"retry\"} 2"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_are_limited_by_policy_and_by_headers() {
    for (policy_retries, header, seen) in [(1, None, 2), (3, Some("0"), 1), (0, None, 1)] {
        let origin = failing(100).await;
        let forward = retrying("o", RetryOn::SERVER_ERROR, policy_retries);
        let mut manager = manager(all(forward));
        manager.use_remote_address = true;
        manager.internal_addresses = vec!["127.0.0.0/8".parse().unwrap()];
        let proxy = Proxy::manager(manager, vec![cluster("o", &[origin.address])]);
        let mut request = get("/");
        if let Some(header) = header {
            request.headers_mut().insert("x-envoy-max-retries", header.parse().unwrap());
        }
        assert_eq!(proxy.send(request).await.status(), 503);
        assert_eq!(origin.seen(), seen, "{policy_retries} {header:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_larger_than_the_buffer_is_sent_once() {
    let origin = failing(1).await;
    let proxy =
        Proxy::http(all(retrying("o", RetryOn::SERVER_ERROR, 3)), vec![cluster("o", &[origin.address])]);
    let body = Bytes::from(vec![b'x'; (1 << 20) + 1]);
    let request = Request::post("/").header("host", "t").body(Full::new(body)).unwrap();
    assert_eq!(proxy.send(request).await.status(), 503);
    assert_eq!(origin.seen(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn route_and_try_timeouts_answer_504() {
    let origin = Origin::start(|_request| std::future::pending::<Response<Body>>()).await;
    let mut slow = Forward::to("o");
    slow.timeout = Some(Duration::from_millis(50));
    let proxy = Proxy::http(all(slow), vec![cluster("o", &[origin.address])]);
    assert_eq!(proxy.get("/").await, (504, "upstream request timeout".to_owned()));

    let mut tried = retrying("o", RetryOn::GATEWAY_ERROR, 1);
    if let Some(retry) = &mut tried.retry {
        retry.per_try_timeout = Some(Duration::from_millis(30));
    }
    let proxy = Proxy::http(all(tried), vec![cluster("o", &[origin.address])]);
    let before = origin.seen();
    assert_eq!(proxy.get("/").await, (504, "upstream request timeout".to_owned()));
    assert_eq!(origin.seen() - before, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_stalls_is_cut_by_the_route_timeout() {
    let origin = Origin::start(|_request| async {
        let first = futures_util::stream::iter([Ok(http_body::Frame::data(Bytes::from_static(b"first")))]);
        let stalled = futures_util::StreamExt::chain(first, futures_util::stream::pending());
        Response::new(BodyExt::boxed(http_body_util::StreamBody::new(SyncStream(Box::pin(stalled)))))
    })
    .await;
    let mut slow = Forward::to("o");
    slow.timeout = Some(Duration::from_millis(100));
    let proxy = Proxy::http(all(slow), vec![cluster("o", &[origin.address])]);
    let response = proxy.send(get("/")).await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err());
}

/// A stream that may be shared because nobody reads it twice at once.
struct SyncStream<S>(S);

impl<S: futures_util::Stream + Unpin> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        std::pin::Pin::new(&mut self.0).poll_next(cx)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_injected() {
    let origin = Origin::named("o").await;
    let mut manager = manager(all(Forward::to("o")));
    let always = Fraction { numerator: 100, denominator: 100 };
    let fault = FaultPolicy {
        abort: Some((418, always)),
        delay: Some((Duration::from_millis(10), always)),
        ..FaultPolicy::default()
    };
    manager.filters.insert(0, HttpFilter::Fault(fault));
    let proxy = Proxy::manager(manager, vec![cluster("o", &[origin.address])]);
    assert_eq!(proxy.get("/").await, (418, "fault filter abort".to_owned()));
    assert_eq!(origin.seen(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_mirrored_with_their_bodies() {
    let origin = failing(0).await;
    let hosts = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&hosts);
    let shadow = Origin::start(move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let host = request.headers()["host"].to_str().unwrap().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            seen.lock().unwrap().push((host, body));
            Response::new(text("forgotten"))
        }
    })
    .await;
    let mut forward = Forward::to("o");
    forward.mirrors.push(Mirror { cluster: "shadow".to_owned(), share: None });
    let clusters = vec![cluster("o", &[origin.address]), cluster("shadow", &[shadow.address])];
    let proxy = Proxy::http(all(forward), clusters);
    let request =
        Request::post("/").header("host", "t:80").body(Full::new(Bytes::from_static(b"copy me"))).unwrap();
    assert_eq!(body_text(proxy.send(request).await).await, "copy me");
    eventually("the mirror has the request", || !hosts.lock().unwrap().is_empty()).await;
    assert_eq!(*hosts.lock().unwrap(), [("t-shadow:80".to_owned(), Bytes::from_static(b"copy me"))]);
}
