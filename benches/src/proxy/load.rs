//! wrk and h2load, and what they say.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Asks for so many bytes over so many connections, without a pause.
    Kept {
        /// Connections.
        connections: u32,
        /// Length of answers.
        bytes: usize,
    },
    /// The same without a body, each request on a connection of its own.
    Fresh {
        /// Requests at once.
        connections: u32,
    },
    /// Calls with a small message each way, without a pause.
    Calls {
        /// Connections.
        connections: u32,
        /// Calls at once on each.
        streams: u32,
    },
    /// Asks at a fixed rate, whether answers come or not.
    Rate {
        /// Connections.
        connections: u32,
        /// Requests a second, over all of them.
        rate: f64,
    },
}

/// What one run found.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests that were answered with success.
    pub requests: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Median time to an answer, in seconds.
    pub p50: f64,
    /// 99th percentile of it, in seconds.
    pub p99: f64,
}

/// Does `work` for so long; `folder` is for its files.
///
/// # Errors
///
/// If the client does not run, or an answer is not a success.
pub fn run(to: SocketAddr, work: Work, length: Duration, folder: &Path) -> anyhow::Result<Load> {
    match work {
        Work::Kept { connections, bytes } => wrk(to, bytes, connections, &[], length),
        Work::Fresh { connections } => wrk(to, 0, connections, &["-H", "connection: close"], length),
        Work::Calls { connections, streams } => {
            let message = folder.join("message");
            // A message of 16 bytes: not compressed, its length, its bytes.
            let bytes = [&[0, 0, 0, 0, 16][..], &[b'x'; 16]].concat();
            std::fs::write(&message, bytes).with_context(|| format!("write {}", message.display()))?;
            let mut h2load = Command::new("h2load");
            h2load.args(["-m", &streams.to_string(), "-H", "content-type: application/grpc"]);
            h2load.args(["-H", "te: trailers"]).arg("-d").arg(message);
            timed(h2load, &format!("http://{to}/bench.Bench/Call"), connections, length, folder)
        }
        Work::Rate { connections, rate } => {
            let mut h2load = Command::new("h2load");
            h2load.args(["--h1", "--rps", &(rate / f64::from(connections)).to_string()]);
            timed(h2load, &format!("http://{to}/0"), connections, length, folder)
        }
    }
}

fn wrk(
    to: SocketAddr,
    bytes: usize,
    connections: u32,
    more: &[&str],
    length: Duration,
) -> anyhow::Result<Load> {
    let output = Command::new("wrk")
        .args(["-t1", "--latency", "-c", &connections.to_string()])
        .args(["-d", &format!("{}s", length.as_secs().max(1))])
        .args(more)
        .arg(format!("http://{to}/{bytes}"))
        .output()
        .context("run wrk (Debian package wrk)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = text.lines().any(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
    ensure!(output.status.success() && !failed, "not every request was answered:\n{text}");
    let line = text.lines().find(|line| line.contains(" requests in ")).context("wrk says no requests")?;
    let mut words = line.split_whitespace();
    let requests = words.next().and_then(|count| count.parse().ok());
    let took = words.nth(2).map(|time| seconds(time.trim_end_matches(',')));
    let percentile = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        line.map(|time| seconds(time.trim())).with_context(|| format!("wrk says no {name}:\n{text}"))?
    };
    Ok(Load {
        requests: requests.with_context(|| format!("{line}: no number of requests"))?,
        seconds: took.with_context(|| format!("{line}: no time"))??,
        p50: percentile("50%")?,
        p99: percentile("99%")?,
    })
}

/// Runs h2load, and reads the time of each answer.
fn timed(
    mut h2load: Command,
    url: &str,
    connections: u32,
    length: Duration,
    folder: &Path,
) -> anyhow::Result<Load> {
    let log = folder.join("answers");
    let _ = std::fs::remove_file(&log);
    h2load.args(["-t1", "-c", &connections.to_string(), "-D", &length.as_secs().max(1).to_string()]);
    let output = h2load.arg("--log-file").arg(&log).arg(url).output();
    let output = output.context("run h2load (Debian package nghttp2-client)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let clean = text.contains(" 0 failed, 0 errored, 0 timeout");
    ensure!(output.status.success() && clean, "not every request was answered:\n{text}");
    let answers = std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    // Begin and length in microseconds, and the status between.
    let mut times = Vec::new();
    let (mut first, mut last) = (f64::MAX, f64::MIN);
    for line in answers.lines() {
        let fields: Vec<f64> = line.split('\t').filter_map(|field| field.parse().ok()).collect();
        let [begun, status, took, ..] = fields[..] else { continue };
        ensure!((200.0..300.0).contains(&status), "an answer has the status {status}");
        (first, last) = (first.min(begun), last.max(begun + took));
        times.push(took / 1e6);
    }
    ensure!(!times.is_empty(), "h2load has no answer:\n{text}");
    times.sort_by(f64::total_cmp);
    let percentile = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    Ok(Load {
        requests: times.len() as f64,
        seconds: (last - first) / 1e6,
        p50: percentile(0.5),
        p99: percentile(0.99),
    })
}

/// `612.00us`, `1.02ms`, `10.10s`, `1.00m`.
fn seconds(time: &str) -> anyhow::Result<f64> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0)];
    let found = units.into_iter().find_map(|(unit, factor)| {
        let number: f64 = time.strip_suffix(unit)?.parse().ok()?;
        Some(number * factor)
    });
    found.with_context(|| format!("{time} is no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_unit() {
        for (text, want) in [("612.00us", 612e-6), ("1.02ms", 1.02e-3), ("10.10s", 10.1), ("1.00m", 60.0)] {
            let got = seconds(text).expect("a time");
            assert!((got - want).abs() < 1e-9, "{text}: {got}");
        }
        assert!(seconds("fast").is_err());
    }
}
