//! The running demo's status: a screen that is drawn again each second on a terminal, plain lines
//! elsewhere.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;

use super::mesh::Mesh;
use crate::exit::{BAD, GOOD};
use crate::http::Origin;
use crate::output::{Rows, line, terminal_width};

/// How often a terminal is drawn.
const SCREEN_INTERVAL: Duration = Duration::from_secs(1);
/// How often a plain line is written.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// How long the traffic source may take to tell its counts.
const STATS_TIMEOUT: Duration = Duration::from_secs(2);
/// Clears a terminal and goes to its upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Shows the status until a process of the demo ends.
pub(super) async fn show(mesh: &mut Mesh) -> anyhow::Result<()> {
    if terminal_width().is_none() {
        line(hints(mesh)?)?;
    }
    let mut before = Counts::default();
    loop {
        if let Some(casualty) = mesh.casualty() {
            anyhow::bail!("{casualty}");
        }
        let counts = Counts::read(mesh).await?;
        match terminal_width() {
            Some(width) => {
                line(format_args!("{CLEAR}{}", screen(mesh, &counts, &before, width)?))?;
                before = counts;
                tokio::time::sleep(SCREEN_INTERVAL).await;
            }
            None => {
                line(counts.summary(&before, LINE_INTERVAL))?;
                before = counts;
                tokio::time::sleep(LINE_INTERVAL).await;
            }
        }
    }
}

fn screen(mesh: &Mesh, counts: &Counts, before: &Counts, width: u16) -> anyhow::Result<String> {
    let mut table = Rows::new(["INSTANCE", "ADDRESS", "INBOUND", "OUTBOUND", "ADMIN", "METRICS", "DNS"]);
    for workload in &mesh.workloads {
        let mut row = vec![workload.plan.instance.to_owned(), workload.address.to_string()];
        let ports = [workload.inbound, workload.outbound, workload.admin, workload.metrics, workload.dns];
        row.extend(ports.map(|address| address.port().to_string()));
        table.push(row);
    }
    let style = if counts.failed == 0 { GOOD } else { BAD };
    let mut text = String::new();
    writeln!(text, "pillion demo: registry at http://{}\n", mesh.api)?;
    writeln!(text, "{}\n", table.render(Some(width)))?;
    writeln!(text, "{style}{}{style:#}\n", counts.summary(before, SCREEN_INTERVAL))?;
    write!(text, "{}", hints(mesh)?)?;
    Ok(text)
}

/// Commands to try meanwhile.
fn hints(mesh: &Mesh) -> anyhow::Result<String> {
    let shopper = mesh.workload("shopper-1")?;
    let mut text = String::from("try, in another terminal:\n");
    writeln!(text, "  curl -x http://{} http://orders.shop.mesh.internal/", shopper.outbound)?;
    writeln!(text, "  curl -x http://{} http://payments.shop.mesh.internal/", shopper.outbound)?;
    writeln!(text, "  dig @{} -p {} orders.shop.mesh.internal", mesh.dns.ip(), mesh.dns.port())?;
    writeln!(text, "  pillion get instances -n shop --api http://{}", mesh.api)?;
    write!(text, "Ctrl-C ends everything.")?;
    Ok(text)
}

/// What the traffic source has counted.
#[derive(Default)]
struct Counts {
    sent: u64,
    failed: u64,
    v1: u64,
    v2: u64,
    last_failure: Option<String>,
}

impl Counts {
    async fn read(mesh: &Mesh) -> anyhow::Result<Self> {
        let source = mesh.workload("shopper-1")?.application_address;
        let origin = Origin { tls: false, host: source.ip().to_string(), port: source.port() };
        let request = http::Request::get("/stats").body(Bytes::new())?;
        let answer = crate::http::send(&origin, None, request, STATS_TIMEOUT).await?;
        let page: serde_json::Value =
            serde_json::from_slice(&answer.body).context("read the traffic source's counts")?;
        let count = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
        Ok(Self {
            sent: count(&page["sent"]),
            failed: count(&page["failed"]),
            v1: count(&page["byVersion"]["v1"]),
            v2: count(&page["byVersion"]["v2"]),
            last_failure: page["lastFailure"].as_str().map(str::to_owned),
        })
    }

    fn summary(&self, before: &Self, interval: Duration) -> String {
        let rate = self.sent.saturating_sub(before.sent) as f64 / interval.as_secs_f64();
        let Self { sent, failed, v1, v2, last_failure } = self;
        let why = last_failure.as_ref().map(|why| format!("; last failure: {why}")).unwrap_or_default();
        format!("{rate:.0} requests/s; {sent} sent, {failed} failed; orders v1 {v1}, v2 {v2}{why}")
    }
}
