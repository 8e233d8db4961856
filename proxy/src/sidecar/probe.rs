//! The sidecar's check of its own application: one probe per instance, whatever the number of
//! clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use pillion_model::health::Probe;
use pillion_xds::mesh::HealthCheck;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A check, as the registry asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    /// Name of the port that is checked; empty: the first.
    port: String,
    /// HTTP path; empty: a TCP connect is enough.
    path: String,
    interval: Duration,
    timeout: Duration,
    /// Successes in a row that make the instance pass.
    healthy: u32,
    /// Failures in a row that make it fail.
    unhealthy: u32,
}

impl From<&HealthCheck> for Check {
    fn from(check: &HealthCheck) -> Self {
        let millis = |ms: u32, least: u64| Duration::from_millis(u64::from(ms).max(least));
        Self {
            port: check.port.clone(),
            path: check.http_path.clone(),
            interval: millis(check.interval_ms, INTERVAL_MIN_MS),
            timeout: millis(check.timeout_ms, 1),
            healthy: check.healthy.max(1),
            unhealthy: check.unhealthy.max(1),
        }
    }
}

/// Counts results in a row.
#[derive(Debug, Default)]
struct Streak {
    state: Probe,
    /// Results in a row that contradict `state`.
    against: u32,
}

impl Streak {
    /// Counts one result and tells the state after it. The first result decides at once when it
    /// is good; a first failure counts like any other.
    fn count(&mut self, ok: bool, check: &Check) -> Probe {
        let (target, needed) =
            if ok { (Probe::Passing, check.healthy) } else { (Probe::Failing, check.unhealthy) };
        if self.state == target {
            self.against = 0;
            return self.state;
        }
        self.against += 1;
        let first_success = ok && self.state == Probe::Unknown;
        if first_success || self.against >= needed {
            self.state = target;
            self.against = 0;
        }
        self.state
    }
}

/// Runs the check in `wanted` against the application's port that it names and reports changes to `result`, until `stop`.
///
/// `None` in `wanted` means no check: the result is `Unknown`.
pub(super) async fn run(
    apps: &BTreeMap<String, SocketAddr>,
    mut wanted: watch::Receiver<Option<Check>>,
    result: watch::Sender<Probe>,
    stop: CancellationToken,
) {
    loop {
        let check = wanted.borrow_and_update().clone();
        let watching = async {
            match &check {
                None => {
                    report(&result, Probe::Unknown);
                    std::future::pending::<()>().await;
                }
                Some(check) => match apps.get(&check.port).or_else(|| apps.values().next()) {
                    Some(&app) => watch_app(app, check, &result).await,
                    None => std::future::pending().await,
                },
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = watching => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Waits until every one of `apps` has accepted a connection.
pub(super) async fn all_accept(apps: &BTreeMap<String, SocketAddr>) {
    for app in apps.values() {
        let mut wait = ACCEPT_WAIT_MIN;
        while !matches!(timeout(ACCEPT_TIMEOUT, TcpStream::connect(app)).await, Ok(Ok(_))) {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(ACCEPT_WAIT_MAX);
        }
    }
}

async fn watch_app(app: SocketAddr, check: &Check, result: &watch::Sender<Probe>) {
    let mut streak = Streak::default();
    let mut tick = interval(check.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let before = streak.state;
        let outcome = timeout(check.timeout, once(app, check)).await;
        let failure = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("no answer within {:?}", check.timeout)),
        };
        let state = streak.count(failure.is_none(), check);
        if state != before {
            match failure {
                None => info!(%app, "the application passes its health check"),
                Some(reason) => {
                    warn!(%app, path = check.path, reason, "the application fails its health check")
                }
            }
        }
        report(result, state);
    }
}

async fn once(app: SocketAddr, check: &Check) -> Result<(), String> {
    let stream = TcpStream::connect(app).await.map_err(|error| format!("connect: {error}"))?;
    if check.path.is_empty() {
        return Ok(());
    }
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let request = http::Request::get(&check.path)
        .header("host", app.to_string())
        .header("user-agent", "pillion-health")
        .header("connection", "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = client.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        // Read to the end so that the application sees an orderly close.
        let _ = http_body_util::Limited::new(response.into_body(), BODY_MAX).collect().await;
        if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("status {status}")) }
    };
    tokio::pin!(exchange);
    tokio::select! {
        done = &mut exchange => done,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

fn report(result: &watch::Sender<Probe>, state: Probe) {
    result.send_if_modified(|have| std::mem::replace(have, state) != state);
}

/// Checks are not made more often than this.
const INTERVAL_MIN_MS: u64 = 100;
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(1);
const ACCEPT_WAIT_MIN: Duration = Duration::from_millis(20);
const ACCEPT_WAIT_MAX: Duration = Duration::from_millis(500);
/// Bytes read of an answer's body.
const BODY_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_in_a_row_decide() {
        let check = Check {
            port: String::new(),
            path: String::new(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 3,
        };
        let mut streak = Streak::default();
        for (ok, want) in [
            (true, Probe::Passing),
            (false, Probe::Passing),
            (false, Probe::Passing),
            (true, Probe::Passing),
            (false, Probe::Passing),
            (false, Probe::Passing),
            (false, Probe::Failing),
            (true, Probe::Failing),
            (false, Probe::Failing),
            (true, Probe::Failing),
            (true, Probe::Passing),
        ] {
            assert_eq!(streak.count(ok, &check), want);
        }
    }
}
