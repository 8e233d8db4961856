//! Admin pages under Envoy's names.

use std::time::Duration;

use pillion_model::endpoint::Fraction;
use pillion_model::filter::HealthCheckFilter;
use pillion_model::http::HttpFilter;
use pillion_model::rate_limit::{LocalRateLimit, TokenBucket};
use pillion_model::route::RouteMatch;
use pillion_proxy::admin::AdminOptions;
use tokio::net::TcpStream;

use crate::support::*;

fn limit() -> HttpFilter {
    let all = Fraction { numerator: 100, denominator: 100 };
    HttpFilter::LocalRateLimit(Box::new(LocalRateLimit {
        stat_prefix: "two".to_owned(),
        bucket: Some(TokenBucket {
            max_tokens: 2,
            tokens_per_fill: 1,
            fill_interval: Duration::from_secs(3600),
        }),
        enabled: all,
        enforced: all,
        ..LocalRateLimit::default()
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_have_envoys_names() {
    let origin = Origin::named("o").await;
    let mut manager = manager(routes(vec![route("all", RouteMatch::default(), forward("o"))]));
    manager.filters.insert(0, HttpFilter::HealthCheck(HealthCheckFilter::default()));
    manager.filters.insert(0, limit());
    let HttpFilter::HealthCheck(check) = &mut manager.filters[1] else { unreachable!("inserted above") };
    check.pass_through = true;
    let prefix = manager.stat_prefix.clone();
    let proxy = Proxy::manager(manager, vec![cluster("o", &[origin.address])]);
    for want in [200, 200, 429] {
        assert_eq!(proxy.get("/").await.0, want);
    }
    let any = Some("127.0.0.1:0".parse().unwrap());
    let options = AdminOptions { admin: any, ..AdminOptions::default() };
    drop(options.readiness.part("all"));
    let admin = proxy.runtime.serve_admin(options).unwrap();
    let pages = admin.admin.unwrap();
    let stats = ask(pages, "GET", "/stats?usedonly").await;
    for line in [
        format!("http.{prefix}.downstream_rq_total: 3\n"),
        format!("http.{prefix}.downstream_rq_2xx: 2\n"),
        format!("http.{prefix}.downstream_rq_4xx: 1\n"),
        "cluster.o.upstream_rq_2xx: 2\n".to_owned(),
        "cluster.o.upstream_rq_total: 2\n".to_owned(),
        "cluster.o.membership_healthy: 1\n".to_owned(),
        "two.http_local_rate_limit.enforced: 1\n".to_owned(),
        "two.http_local_rate_limit.ok: 2\n".to_owned(),
    ] {
        assert!(stats.contains(&line), "{line}{stats}");
    }
    assert!(!stats.contains("upstream_rq_retry:"), "{stats}");
    let json = ask(pages, "GET", "/stats?format=json&filter=membership_total").await;
    assert!(json.contains(r#"{"stats":[{"name":"cluster.o.membership_total","value":1}]}"#), "{json}");
    let prometheus = ask(pages, "GET", "/stats/prometheus").await;
    for line in [
        "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"o\"} 2\n",
        "envoy_http_local_rate_limit_enforced{envoy_local_http_ratelimit_prefix=\"two\"} 1\n",
        "# TYPE envoy_cluster_membership_total gauge\n",
        "pillion_requests_total{",
    ] {
        assert!(prometheus.contains(line), "{line}{prometheus}");
    }
    assert!(ask(pages, "GET", "/stats?filter=(").await.starts_with("HTTP/1.1 400"));
    assert!(ask(pages, "GET", "/server_info").await.contains("\"state\": \"LIVE\""));
    assert!(ask(pages, "GET", "/listeners?format=json").await.contains("\"listener_statuses\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_fail_when_told_to_and_listeners_drain() {
    let origin = Origin::named("o").await;
    let mut manager = manager(routes(vec![route("all", RouteMatch::default(), forward("o"))]));
    let check = HealthCheckFilter { pass_through: true, ..HealthCheckFilter::default() };
    manager.filters.insert(0, HttpFilter::HealthCheck(check));
    let proxy = Proxy::manager(manager, vec![cluster("o", &[origin.address])]);
    let any = Some("127.0.0.1:0".parse().unwrap());
    let admin = proxy.runtime.serve_admin(AdminOptions { admin: any, ..AdminOptions::default() }).unwrap();
    let pages = admin.admin.unwrap();
    assert_eq!(proxy.get("/").await.0, 200);
    assert!(ask(pages, "GET", "/healthcheck/fail").await.starts_with("HTTP/1.1 405"));
    assert!(ask(pages, "POST", "/healthcheck/fail").await.starts_with("HTTP/1.1 200"));
    assert_eq!(proxy.get("/").await.0, 503);
    assert!(ask(pages, "POST", "/healthcheck/ok").await.starts_with("HTTP/1.1 200"));
    assert_eq!(proxy.get("/").await.0, 200);
    assert!(ask(pages, "POST", "/drain_listeners").await.starts_with("HTTP/1.1 200"));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(proxy.address).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the listener still accepts");
        tokio::task::yield_now().await;
    }
}
