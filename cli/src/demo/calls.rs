//! Calls as an application makes them: to its own sidecar, by name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::http::{Answer, Origin, send};

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls on the way at once , where nothing is retried on purpose.
pub(super) const AT_ONCE: usize = 8;
/// Calls at once where each may be retried: a retry budget always admits this many retries.
pub(super) const AT_ONCE_WITH_RETRIES: usize = 3;
/// How many failures are kept as examples.
const EXAMPLES: usize = 3;

/// Calls `host` through the sidecar at `outbound`.
pub(super) async fn call(outbound: SocketAddr, host: &str, path: &str) -> anyhow::Result<Answer> {
    let request = http::Request::get(path).header(http::header::HOST, host).body(Bytes::new())?;
    let origin = Origin { tls: false, host: outbound.ip().to_string(), port: outbound.port() };
    send(&origin, None, request, CALL_TIMEOUT).await
}

/// What a number of calls brought.
#[derive(Default)]
pub(super) struct Tally {
    /// All calls.
    pub(super) sent: usize,
    /// Those not answered with 200.
    pub(super) failed: usize,
    /// Answers by the field `version`.
    pub(super) versions: BTreeMap<String, usize>,
    /// Answers by the field `instance`.
    pub(super) instances: BTreeMap<String, usize>,
    /// What some of the failures said.
    pub(super) examples: Vec<String>,
}

impl Tally {
    fn add(&mut self, answer: anyhow::Result<Answer>) {
        self.sent += 1;
        let said = match answer {
            Ok(answer) if answer.status == http::StatusCode::OK => {
                let page: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                for (field, counts) in [("version", &mut self.versions), ("instance", &mut self.instances)] {
                    if let Some(value) = page[field].as_str() {
                        *counts.entry(value.to_owned()).or_default() += 1;
                    }
                }
                return;
            }
            Ok(answer) => format!("{} {}", answer.status.as_u16(), answer.text().trim()),
            Err(error) => format!("{error:#}"),
        };
        self.failed += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(said);
        }
    }

    /// An error with examples, if any call failed.
    pub(super) fn expect_no_failure(&self) -> anyhow::Result<()> {
        let Self { sent, failed, examples, .. } = self;
        anyhow::ensure!(*failed == 0, "{failed} of {sent} requests failed: {}", examples.join("; "));
        anyhow::ensure!(*sent > 0, "no request was sent");
        Ok(())
    }
}

/// Makes `count` calls, some at once.
pub(super) async fn many(
    outbound: SocketAddr,
    host: &str,
    path: &str,
    count: usize,
    at_once: usize,
) -> Tally {
    let calls = futures_util::stream::iter(0..count).map(|_| call(outbound, host, path));
    calls
        .buffer_unordered(at_once)
        .fold(Tally::default(), |mut tally, answer| async {
            tally.add(answer);
            tally
        })
        .await
}

/// Calls `rate` times a second until `stop`, whether or not answers come.
pub(super) async fn until(stop: CancellationToken, outbound: SocketAddr, host: Arc<str>, rate: u32) -> Tally {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut open = tokio::task::JoinSet::new();
    let mut tally = Tally::default();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let host = Arc::clone(&host);
        open.spawn(async move { call(outbound, &host, "/").await });
        while let Some(done) = open.try_join_next() {
            tally.add(done.unwrap_or_else(|panic| Err(panic.into())));
        }
    }
    while let Some(done) = open.join_next().await {
        tally.add(done.unwrap_or_else(|panic| Err(panic.into())));
    }
    tally
}
