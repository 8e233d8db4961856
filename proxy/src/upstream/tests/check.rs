//! Active health checks: who fails is left out, who passes is back.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use pillion_model::cluster::{LoadBalancing, OutlierDetection, UpstreamProtocol};
use pillion_model::health_check::{HealthCheck, HealthChecker, HttpHealthCheck, Pace};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::support::*;
use crate::upstream::state::Outcome;

fn check(checker: HealthChecker) -> HealthCheck {
    let often = Duration::from_millis(10);
    HealthCheck {
        checker,
        timeout: Duration::from_secs(2),
        reuse_connection: true,
        unhealthy_threshold: 2,
        healthy_threshold: 2,
        pace: Pace {
            interval: often,
            unhealthy: often,
            unhealthy_edge: often,
            healthy_edge: often,
            no_traffic: often,
            no_traffic_healthy: often,
            initial_jitter: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_percent: 0,
        },
    }
}

fn http(path: &str) -> HealthChecker {
    HealthChecker::Http(HttpHealthCheck {
        host: "checked".to_owned(),
        path: path.to_owned(),
        method: "GET".to_owned(),
        http2: false,
        expected: std::iter::once(200..201).collect(),
        retriable: std::iter::once(500..501).collect(),
        headers: vec![("x-a".to_owned(), "b".to_owned())],
    })
}

fn control(proxy: &Proxy) -> (CancellationToken, JoinHandle<()>) {
    let (clusters, stop) = (Arc::clone(&proxy.clusters), CancellationToken::new());
    let ending = stop.clone();
    (stop, tokio::task::spawn_local(async move { clusters.run(ending).await }))
}

/// An origin whose health is the code in the cell.
async fn origin_of(code: &Rc<Cell<u16>>, name: &'static str) -> (SocketAddr, Rc<Seen>) {
    let code = Rc::clone(code);
    http1_origin(move |request| {
        let mut response = ok(name);
        if request.uri().path() == "/healthz" {
            *response.status_mut() = StatusCode::from_u16(code.get()).expect("a code");
        }
        async move { response }
    })
    .await
}

#[test]
fn who_fails_its_check_is_left_out_until_it_passes() {
    on_worker(async {
        let (code, well) = (Rc::new(Cell::new(200)), Rc::new(Cell::new(200)));
        let ((one, seen), (other, seen_of_other)) =
            (origin_of(&code, "one").await, origin_of(&well, "other").await);
        let proxy = Proxy::new();
        let (stop, ended) = control(&proxy);
        let mut config = config("web");
        config.load_balancing = LoadBalancing::RoundRobin;
        config.health_check = Some(check(http("/healthz")));
        config.outlier_detection =
            Some(OutlierDetection { max_ejection_percent: 50, ..OutlierDetection::default() });
        let cluster = proxy.cluster(config, &[one, other]);
        let fails = || cluster.hosts().hosts[0].fails_check();
        assert!(fails(), "nobody asked it yet");
        proxy.clusters.first_checks().await;
        until("it passes", || !fails()).await;
        {
            let requests = seen.requests.borrow();
            let headers = &requests[0].headers;
            assert_eq!(
                ["host", "user-agent", "x-a"].map(|name| headers[name].to_str().expect("text")),
                ["checked", "Envoy/HC", "b"]
            );
            assert_eq!(requests[0].uri, "/healthz");
        }
        until("it is asked again", || seen.requests.borrow().len() > 2).await;
        assert_eq!(seen.connections.get(), 1, "one connection for all checks");
        // An answer that says no decides at once, one that may be passing decides when it is repeated.
        for code_of_failure in [503, 500] {
            code.set(code_of_failure);
            until("it fails", fails).await;
            for _ in 0..4 {
                assert_eq!(proxy.text(&cluster).await, "other");
            }
            code.set(200);
            until("it passes again", || !fails()).await;
            let answers = [proxy.text(&cluster).await, proxy.text(&cluster).await];
            assert!(answers.iter().any(|answer| answer == "one"), "{answers:?}");
        }

        // Whoever passes is not left out for what it did before.
        let endpoint = Arc::clone(&cluster.hosts().hosts[0].endpoint);
        code.set(500);
        until("it fails", fails).await;
        for _ in 0..5 {
            endpoint.report(Outcome::Failure, tokio::time::Instant::now());
        }
        until("it is ejected", || endpoint.is_ejected()).await;
        code.set(200);
        until("it has returned", || !endpoint.is_ejected() && !fails()).await;

        // An endpoint that is gone is not asked any more.
        proxy.cluster(cluster.config.clone(), &[other]);
        let asked_further = async |times: usize| {
            let before = seen_of_other.requests.borrow().len();
            until("the other is asked", || seen_of_other.requests.borrow().len() >= before + times).await;
        };
        asked_further(2).await; // a question may have been under way
        let asked = seen.requests.borrow().len();
        asked_further(5).await;
        assert_eq!(seen.requests.borrow().len(), asked);
        stop.cancel();
        ended.await.expect("it ends");
    });
}

#[test]
fn a_grpc_service_says_itself_whether_it_serves() {
    on_worker(async {
        let status = Rc::new(Cell::new(1_u8));
        let serving = Rc::clone(&status);
        let (address, seen) = http2_origin(
            |_| {},
            move |request: http::Request<hyper::body::Incoming>| {
                let body = Bytes::from(vec![0, 0, 0, 0, 2, 8, serving.get()]);
                async move {
                    let asked = request.into_body().collect().await.expect("a body").to_bytes();
                    assert_eq!(&asked[..], b"\0\0\0\0\x06\x0a\x04shop");
                    let response = Response::builder().header("grpc-status", "0");
                    response.body(Full::new(body)).expect("a response")
                }
            },
        )
        .await;
        let proxy = Proxy::new();
        let (stop, ended) = control(&proxy);
        let mut config = config("web");
        config.protocol = UpstreamProtocol::Http2;
        let checker = HealthChecker::Grpc { service: "shop".to_owned(), authority: String::new() };
        config.health_check = Some(check(checker));
        let cluster = proxy.cluster(config, &[address]);
        let fails = || cluster.hosts().hosts[0].fails_check();
        until("it serves", || !fails()).await;
        assert_eq!(seen.requests.borrow()[0].uri, "http://web/grpc.health.v1.Health/Check");
        status.set(2);
        until("it says that it does not", fails).await;
        stop.cancel();
        ended.await.expect("it ends");
    });
}
