//! wrk, and what it says.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

/// What one run of wrk found.
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

/// Asks for `/bytes` over so many connections for so long, without a pause.
///
/// # Errors
///
/// If wrk does not run, or an answer is not a success.
pub fn run(to: SocketAddr, bytes: usize, connections: u32, length: Duration) -> anyhow::Result<Load> {
    let output = Command::new("wrk")
        .args(["-t1", "--latency", "-c", &connections.to_string()])
        .args(["-d", &format!("{}s", length.as_secs().max(1)), &format!("http://{to}/{bytes}")])
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
