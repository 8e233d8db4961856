//! dnsperf, and what it says.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::server::Server;

/// What one run of dnsperf found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Answers.
    pub answers: f64,
    /// Of the server's processes, in seconds.
    pub cpu: f64,
    /// Of the server's threads that only answer, where they can be told apart; in seconds.
    pub cpu_answering: Option<f64>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Mean time to an answer, in seconds.
    pub latency: f64,
}

/// Asks `server` the questions of a file for so long, from a CPU of its own.
///
/// # Errors
///
/// If dnsperf does not run, or an answer has another code than `code`.
pub fn ask(server: &Server, questions: &Path, code: &str, length: Duration) -> anyhow::Result<Found> {
    let (cpu, answering) = (server.cpu()?, server.cpu_answering()?);
    let output = Command::new("taskset")
        .args(["-c", "1", "dnsperf", "-s", "127.0.0.1", "-p", &server.port.to_string()])
        .args(["-c", "8", "-T", "1", "-q", "100", "-l", &length.as_secs().max(1).to_string(), "-d"])
        .arg(questions)
        .output()
        .context("run dnsperf (Debian package dnsperf)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (cpu, answering) = (server.cpu()?.saturating_sub(cpu), server.cpu_answering()?.zip(answering));
    let answers = number(&text, "Queries completed:")?;
    let codes = text.lines().find_map(|line| line.trim().strip_prefix("Response codes:"));
    ensure!(
        answers > 0.0 && codes.is_some_and(|codes| codes.trim().starts_with(code) && !codes.contains(',')),
        "{}: not every answer is {code}:\n{text}",
        server.name
    );
    Ok(Found {
        answers,
        cpu: cpu.as_secs_f64(),
        cpu_answering: answering.map(|(after, before)| after.saturating_sub(before).as_secs_f64()),
        seconds: number(&text, "Run time (s):")?,
        latency: number(&text, "Average Latency (s):")?,
    })
}

fn number(text: &str, label: &str) -> anyhow::Result<f64> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(label));
    let word = value.and_then(|value| value.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("dnsperf says no `{label}`:\n{text}"))
}
