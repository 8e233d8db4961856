//! `cargo xtask bench registry`: what a registry costs at full size, and how fast it is.
//!
//! A real `pillion registry` on the one side, this process on the other. Scenarios share one
//! registry unless they change what it is about; each adds its rows to the report.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;

use crate::report::Report;

mod bare;
mod dns;
mod door;
mod etcd;
mod fanout;
mod heartbeats;
mod http;
mod latency;
mod proxies;
mod registration;
mod restart;
mod server;
mod stream;
mod watch;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Instances beat over mutual-TLS streams; beside it, over HTTP.
    Heartbeats,
    /// Durable registrations in batches.
    Registration,
    /// Watchers of one service each, while services change.
    Fanout,
    /// Connected sidecars that use one service each, while services change.
    Proxies,
    /// Killed at full size and started again.
    Restart,
    /// Durable registrations in batches where the store is etcd.
    Etcd,
}

/// Sizes; the defaults are what a registry promises.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "bench-registry", about = "Measures a registry at full size")]
pub struct Arguments {
    /// Scenarios to run; without any, all.
    pub scenarios: Vec<Scenario>,
    /// Registered instances.
    #[arg(long, default_value_t = 100_000)]
    pub instances: usize,
    /// Streams that carry their heartbeats.
    #[arg(long, default_value_t = 10_000)]
    pub streams: usize,
    /// Subscribers of the watch.
    #[arg(long, default_value_t = 10_000)]
    pub subscribers: usize,
    /// Connected sidecars.
    #[arg(long, default_value_t = 2000)]
    pub proxies: usize,
    /// Services that are watched.
    #[arg(long, default_value_t = 1000)]
    pub services: usize,
    /// Changes per second under churn.
    #[arg(long, default_value_t = 100)]
    pub changes: usize,
    /// How long steady states are measured.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub window: Duration,
    /// How often each instance beats.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub beat: Duration,
    /// The `pillion` to measure; without it the one beside this program.
    #[arg(long, env = "PILLION_BIN")]
    pub binary: Option<PathBuf>,
}

/// Runs the scenarios and tells what they found.
///
/// # Errors
///
/// If something cannot be measured; figures over budget are none.
pub async fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    ensure!(arguments.streams > 0 && arguments.services > 0, "want at least one stream and one service");
    server::raise_descriptors()?;
    let mut report = Report::new("registry");
    let all = [
        Scenario::Registration,
        Scenario::Heartbeats,
        Scenario::Fanout,
        Scenario::Proxies,
        Scenario::Restart,
        Scenario::Etcd,
    ];
    let chosen = all.iter().filter(|one| arguments.scenarios.is_empty() || arguments.scenarios.contains(one));
    for scenario in chosen {
        eprintln!("{scenario:?} …");
        match scenario {
            Scenario::Heartbeats => heartbeats::run(arguments, &mut report).await?,
            Scenario::Registration => registration::run(arguments, &mut report).await?,
            Scenario::Fanout => fanout::run(arguments, &mut report).await?,
            Scenario::Proxies => proxies::run(arguments, &mut report).await?,
            Scenario::Restart => restart::run(arguments, &mut report).await?,
            Scenario::Etcd => etcd::run(arguments, &mut report).await?,
        }
    }
    Ok(report)
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number = number.parse::<u64>().map_err(|error| format!("`{text}`: {error}; want 300s or 250ms"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        _ => Err(format!("`{text}`: want a duration such as 300s or 250ms")),
    }
}
