//! The traffic source: asks the front at a steady rate, whether or not answers come, and counts
//! them. What it counted is read at its own `/stats`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::server::{Stop, http as serve_http, json, serve};
use super::{Common, Way};
use crate::http::{Answer, send};

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Most requests on the way at once; beyond it a tick is counted as failed.
const IN_FLIGHT_MAX: usize = 512;

/// Arguments of the traffic source.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    way: Way,
    /// The name that is called.
    #[arg(long, default_value = "front.shop.mesh.internal")]
    target: String,
    /// Requests per second.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rate: u32,
}

/// Sends until the stop, and serves `/stats`.
pub(super) async fn run(arguments: Arguments, stop: Stop) -> anyhow::Result<()> {
    let counts = Arc::new(Mutex::new(Counts::default()));
    let ended = CancellationToken::new();
    let listen = arguments.common.listen;
    let sending = generate(arguments, Arc::clone(&counts), ended.clone());
    let serving = async {
        let outcome = serve(listen, stop, move |stream, closing| {
            let counts = Arc::clone(&counts);
            async move {
                serve_http(stream, closing, |_request| {
                    let page = counts.lock().unwrap_or_else(PoisonError::into_inner).page();
                    std::future::ready(json(StatusCode::OK, &page))
                })
                .await;
            }
        });
        let outcome = outcome.await;
        ended.cancel();
        outcome
    };
    futures_util::future::join(serving, sending).await.0
}

async fn generate(arguments: Arguments, counts: Arc<Mutex<Counts>>, ended: CancellationToken) {
    let arguments = Arc::new(arguments);
    let (open, permits) = (TaskTracker::new(), Arc::new(Semaphore::new(IN_FLIGHT_MAX)));
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / arguments.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while ended.run_until_cancelled(ticks.tick()).await.is_some() {
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            count(&counts, &Err(anyhow::anyhow!("{IN_FLIGHT_MAX} requests are on the way already")));
            continue;
        };
        let (arguments, counts) = (Arc::clone(&arguments), Arc::clone(&counts));
        open.spawn(async move {
            let answer = ask(&arguments).await;
            count(&counts, &answer);
            drop(permit);
        });
    }
    open.close();
    open.wait().await; // each request has its own deadline
}

async fn ask(arguments: &Arguments) -> anyhow::Result<Answer> {
    let request = http::Request::get("/").header(http::header::HOST, &arguments.target).body(Bytes::new())?;
    send(&arguments.way.to(&arguments.target), None, request, REQUEST_TIMEOUT).await
}

fn count(counts: &Mutex<Counts>, answer: &anyhow::Result<Answer>) {
    counts.lock().unwrap_or_else(PoisonError::into_inner).add(answer);
}

/// What came back.
#[derive(Default)]
struct Counts {
    sent: u64,
    ok: u64,
    failed: u64,
    by_status: BTreeMap<u16, u64>,
    /// By the version of orders that the front reached.
    by_version: BTreeMap<String, u64>,
    last_failure: Option<String>,
}

impl Counts {
    fn add(&mut self, answer: &anyhow::Result<Answer>) {
        self.sent += 1;
        match answer {
            Ok(answer) => {
                *self.by_status.entry(answer.status.as_u16()).or_default() += 1;
                if answer.status == StatusCode::OK {
                    self.ok += 1;
                } else {
                    self.fail(format!("{}: {}", answer.status, answer.text().trim()));
                }
                let page: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                if let Some(version) = page["orders"]["body"]["version"].as_str() {
                    *self.by_version.entry(version.to_owned()).or_default() += 1;
                }
            }
            Err(error) => self.fail(format!("{error:#}")),
        }
    }

    fn fail(&mut self, why: String) {
        self.failed += 1;
        self.last_failure = Some(why);
    }

    fn page(&self) -> serde_json::Value {
        json!({
            "sent": self.sent,
            "ok": self.ok,
            "failed": self.failed,
            "byStatus": self.by_status,
            "byVersion": self.by_version,
            "lastFailure": self.last_failure,
        })
    }
}
