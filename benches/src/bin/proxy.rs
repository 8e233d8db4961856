//! `cargo xtask bench proxy`: what carrying a request costs, beside Envoy, HAProxy and nginx.
//!
//! Every proxy has CPU 0 and one worker; client and origin share CPU 1. The figure that counts is CPU
//! time of the proxies per request, as the scheduler counts it, and its ratio to the others' in the
//! same run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use pillion_benches::proxy::server::Programs;
use pillion_benches::proxy::{origin, run};
use rustix::thread::{CpuSet, sched_setaffinity};

/// What carrying a request costs, beside other proxies.
#[derive(Parser)]
struct Arguments {
    /// Only scenarios whose name contains this.
    #[arg(default_value = "")]
    scenario: String,
    /// The binary under test.
    #[arg(long, env = "PILLION_BIN")]
    pillion: PathBuf,
    /// Envoy; `cargo xtask peers` puts it there.
    #[arg(long, default_value = "target/peers/bin/envoy")]
    envoy: PathBuf,
    /// Each proxy is asked once a round; figures are medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut cpus = CpuSet::new();
    cpus.set(1);
    sched_setaffinity(None, &cpus).context("take CPU 1")?;
    let folder = tempfile::tempdir().context("make a folder")?;
    let origin = origin::start()?;
    let programs = Programs { pillion: arguments.pillion, envoy: arguments.envoy };
    let length = Duration::from_secs(arguments.seconds);
    run::all(&programs, origin, folder.path(), &arguments.scenario, arguments.rounds, length)?.finish()
}
