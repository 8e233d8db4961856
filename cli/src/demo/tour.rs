//! The tour: one claim per row, each true only if it was seen from outside.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use hickory_proto::op::ResponseCode;
use http::{Method, StatusCode};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::mesh::Mesh;
use super::workload::TTL_SECONDS;
use super::{calls, dns, stranger};
use crate::http::Origin;

const ORDERS: &str = "orders.shop.mesh.internal";
const PAYMENTS: &str = "payments.shop.mesh.internal";
const FRONT: &str = "front.shop.mesh.internal";
const CLOCK: &str = "clock.shop.mesh.internal";
const CLOCK_PORT: u16 = 7000;

/// How long a condition may take to come true.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a condition is looked at.
const CONDITION_INTERVAL: Duration = Duration::from_millis(100);
/// How long the registry stays away.
const REGISTRY_AWAY: Duration = Duration::from_secs(5);

type Observed<'a> = Pin<Box<dyn Future<Output = anyhow::Result<String>> + 'a>>;

/// A claim and how it is checked: what was seen, or why it does not hold.
pub(super) struct Stop {
    /// The claim.
    pub(super) claim: &'static str,
    /// The check.
    pub(super) look: fn(&mut Mesh) -> Observed<'_>,
}

/// The tour, in order: what breaks things comes last.
pub(super) const STOPS: [Stop; 10] = [
    Stop { claim: "services are found by DNS", look: |mesh| Box::pin(discovery(mesh)) },
    Stop { claim: "a call by name goes over mutual TLS", look: |mesh| Box::pin(mutual_tls(mesh)) },
    Stop { claim: "strangers are refused", look: |mesh| Box::pin(strangers(mesh)) },
    Stop { claim: "traffic is split 90 to 10", look: |mesh| Box::pin(split(mesh)) },
    Stop { claim: "policy refuses a caller", look: |mesh| Box::pin(policy(mesh)) },
    Stop { claim: "retries hide a flaky instance", look: |mesh| Box::pin(retries(mesh)) },
    Stop { claim: "raw TCP works by name", look: |mesh| Box::pin(raw_tcp(mesh)) },
    Stop { claim: "a killed instance is left out", look: |mesh| Box::pin(killed_instance(mesh)) },
    Stop { claim: "the registry may go away", look: |mesh| Box::pin(killed_registry(mesh)) },
    Stop { claim: "metrics can be scraped", look: |mesh| Box::pin(metrics(mesh)) },
];

async fn discovery(mesh: &mut Mesh) -> anyhow::Result<String> {
    let answer = dns::addresses(mesh.dns, ORDERS).await?;
    let mut found = answer.addresses;
    found.sort();
    let mut want: Vec<_> = of_service(mesh, "orders").map(|workload| workload.address).collect();
    want.sort();
    ensure!(found == want, "DNS answers {found:?}, the instances are at {want:?}");
    let unknown = dns::addresses(mesh.dns, "nobody.shop.mesh.internal").await?;
    ensure!(unknown.code == ResponseCode::NXDomain, "an unknown name is answered with {:?}", unknown.code);
    Ok(format!("{ORDERS} has {} addresses; an unknown name is NXDOMAIN", found.len()))
}

async fn mutual_tls(mesh: &mut Mesh) -> anyhow::Result<String> {
    let answer = calls::call(shopper(mesh)?, ORDERS, "/").await?;
    ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text().trim());
    let page: serde_json::Value = serde_json::from_slice(&answer.body).context("orders answers JSON")?;
    let caller = page["caller"].as_str().context("orders was not told who called")?.to_owned();
    ensure!(caller == "spiffe://mesh.internal/ns/shop/svc/shopper", "orders was called by {caller}");
    let inbound = mesh.workload("orders-v1-1")?.inbound;
    let (shown, _refused) = stranger::knock(inbound, &format!("http.{ORDERS}")).await?;
    let [server] = &shown.uri_sans[..] else {
        anyhow::bail!("orders shows {} URI names, want one", shown.uri_sans.len());
    };
    ensure!(server == "spiffe://mesh.internal/ns/shop/svc/orders", "orders shows {server}");
    Ok(format!("{caller} called {server}"))
}

async fn strangers(mesh: &mut Mesh) -> anyhow::Result<String> {
    let inbound = mesh.workload("orders-v1-1")?.inbound;
    let (_shown, refused) = stranger::knock(inbound, &format!("http.{ORDERS}")).await?;
    ensure!(refused, "{inbound} serves a client without a certificate");
    ensure!(stranger::plaintext_is_refused(inbound).await?, "{inbound} serves plain HTTP");
    Ok("no certificate: refused; plain HTTP: refused".to_owned())
}

async fn split(mesh: &mut Mesh) -> anyhow::Result<String> {
    let tally = calls::many(shopper(mesh)?, ORDERS, "/", 400, calls::AT_ONCE).await;
    tally.expect_no_failure()?;
    let of = |version: &str| tally.versions.get(version).copied().unwrap_or(0);
    let (v1, v2) = (of("v1"), of("v2"));
    ensure!(v1 + v2 == tally.sent, "{} of {} answers name a version", v1 + v2, tally.sent);
    // 40 are expected; the standard deviation is 6.
    ensure!((16..=64).contains(&v2), "{v2} of {} went to v2, want 16 to 64", tally.sent);
    Ok(format!("of {} requests {v1} went to v1, {v2} to v2", tally.sent))
}

async fn policy(mesh: &mut Mesh) -> anyhow::Result<String> {
    let refused = calls::call(shopper(mesh)?, PAYMENTS, "/").await?;
    let said = refused.text().trim().to_owned();
    ensure!(refused.status == StatusCode::FORBIDDEN, "shopper got {} {said}", refused.status);
    let allowed = calls::call(shopper(mesh)?, FRONT, "/").await?;
    let page: serde_json::Value = serde_json::from_slice(&allowed.body).context("front answers JSON")?;
    ensure!(page["payments"]["status"] == 200, "front got {} from payments", page["payments"]);
    Ok(format!("shopper got 403 ({said}), front got 200"))
}

async fn retries(mesh: &mut Mesh) -> anyhow::Result<String> {
    let flaky = mesh.workload("orders-v1-2")?.application_address;
    let failed_before = failures(flaky).await?;
    tell_to_fail(flaky, 50).await?;
    let tally = calls::many(shopper(mesh)?, ORDERS, "/", 200, calls::AT_ONCE_WITH_RETRIES).await;
    tell_to_fail(flaky, 0).await?;
    let failed = failures(flaky).await?.saturating_sub(failed_before);
    tally.expect_no_failure()?;
    ensure!(failed > 0, "the flaky instance never failed, so nothing was shown");
    Ok(format!("orders-v1-2 answered 503 {failed} times; of {} requests 0 failed", tally.sent))
}

async fn raw_tcp(mesh: &mut Mesh) -> anyhow::Result<String> {
    let sidecar = mesh.workload("shopper-1")?.dns;
    let answer = dns::addresses(sidecar, CLOCK).await?;
    let vip = *answer.addresses.first().with_context(|| format!("the sidecar's DNS: {:?}", answer.code))?;
    let talk = async {
        let stream = TcpStream::connect((vip, CLOCK_PORT)).await.with_context(|| format!("dial {vip}"))?;
        let mut greeting = String::new();
        BufReader::new(stream).read_line(&mut greeting).await.context("read the greeting")?;
        Ok::<_, anyhow::Error>(greeting.trim().to_owned())
    };
    let greeting = tokio::time::timeout(CONDITION_TIMEOUT, talk).await.context("no greeting")??;
    ensure!(greeting.starts_with("clock clock-1 "), "the clock says {greeting:?}");
    Ok(format!("{CLOCK} is {vip}; it says {greeting:?}"))
}

async fn killed_instance(mesh: &mut Mesh) -> anyhow::Result<String> {
    let outbound = shopper(mesh)?;
    mesh.kill("orders-v1-1").await?;
    let left: Vec<_> = of_service(mesh, "orders").map(|workload| workload.address).collect();
    let dns_server = mesh.dns;
    eventually("DNS leaves the killed instance out", || async {
        let found = dns::addresses(dns_server, ORDERS).await?.addresses;
        ensure!(found.len() == left.len(), "DNS still answers {found:?}");
        Ok(())
    })
    .await?;
    // DNS may be a moment ahead of the caller's sidecar, which then has to retry.
    let tally = calls::many(outbound, ORDERS, "/", 200, calls::AT_ONCE_WITH_RETRIES).await;
    tally.expect_no_failure()?;
    ensure!(!tally.instances.contains_key("orders-v1-1"), "the killed instance answered");
    Ok(format!("out of DNS after its lease of {TTL_SECONDS} s; then of {} requests 0 failed", tally.sent))
}

async fn killed_registry(mesh: &mut Mesh) -> anyhow::Result<String> {
    let outbound = shopper(mesh)?;
    let before = dns::addresses(mesh.dns, ORDERS).await?.addresses.len();
    let stop = CancellationToken::new();
    let traffic = calls::until(stop.clone(), outbound, Arc::from(ORDERS), 50);
    let outage = async {
        mesh.kill_registry().await?;
        tokio::time::sleep(REGISTRY_AWAY).await;
        mesh.start_registry().await?;
        tokio::time::sleep(Duration::from_secs(TTL_SECONDS)).await; // anything wrongly expired would go now
        stop.cancel();
        Ok::<_, anyhow::Error>(())
    };
    let (tally, outage) = futures_util::future::join(traffic, outage).await;
    outage?;
    tally.expect_no_failure()?;
    let after = dns::addresses(mesh.dns, ORDERS).await?.addresses.len();
    ensure!(after == before, "{before} instances of orders before, {after} after");
    Ok(format!(
        "away for {} s: of {} requests 0 failed, nothing expired",
        REGISTRY_AWAY.as_secs(),
        tally.sent
    ))
}

async fn metrics(mesh: &mut Mesh) -> anyhow::Result<String> {
    let sidecar = mesh.workload("shopper-1")?.metrics;
    let text = page(sidecar, Method::GET, "/metrics").await?;
    let sum: f64 = samples(&text, "pillion_requests_total").sum();
    ensure!(sum >= 800.0, "pillion_requests_total of shopper's sidecar is {sum}, more was sent");
    let registry = page(mesh.api, Method::GET, "/metrics").await?;
    let series = registry.lines().filter(|line| line.starts_with("pillion_")).count();
    ensure!(series > 0, "the registry's /metrics has no pillion_ series");
    Ok(format!("shopper's sidecar counts {sum} requests; the registry has {series} series"))
}

/// The values of one metric in Prometheus text.
fn samples<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = f64> + 'a {
    let lines = text
        .lines()
        .filter(move |line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok())
}

fn shopper(mesh: &Mesh) -> anyhow::Result<SocketAddr> {
    Ok(mesh.workload("shopper-1")?.outbound)
}

fn of_service<'a>(mesh: &'a Mesh, service: &'a str) -> impl Iterator<Item = &'a super::workload::Workload> {
    mesh.workloads.iter().filter(move |workload| workload.plan.service == service)
}

async fn tell_to_fail(application: SocketAddr, percent: u8) -> anyhow::Result<()> {
    page(application, Method::PUT, &format!("/fail?percent={percent}")).await.map(drop)
}

async fn failures(application: SocketAddr) -> anyhow::Result<u64> {
    let page: serde_json::Value = serde_json::from_str(&page(application, Method::GET, "/stats").await?)?;
    page["failed"].as_u64().context("the sample service tells how often it failed")
}

/// Asks a server directly, not through the mesh.
async fn page(server: SocketAddr, method: Method, path: &str) -> anyhow::Result<String> {
    let origin = Origin { tls: false, host: IpAddr::to_string(&server.ip()), port: server.port() };
    let request = http::Request::builder().method(method).uri(path).body(Bytes::new())?;
    let answer = crate::http::send(&origin, None, request, CONDITION_TIMEOUT).await?;
    ensure!(answer.status.is_success(), "{server}{path}: {}", answer.status);
    Ok(answer.text().into_owned())
}

async fn eventually<F>(what: &str, mut look: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let deadline = tokio::time::Instant::now() + CONDITION_TIMEOUT;
    loop {
        let Err(error) = look().await else { return Ok(()) };
        if tokio::time::Instant::now() >= deadline {
            return Err(error.context(format!("{what}: not within {CONDITION_TIMEOUT:?}")));
        }
        tokio::time::sleep(CONDITION_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_those_of_the_metric_alone() {
        let text = "# TYPE a counter\na{x=\"1\"} 3\na 4\na_total{x=\"1\"} 100\nab 9\n";
        assert_eq!(samples(text, "a").sum::<f64>(), 7.0);
    }
}
