//! The registry under measurement: a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::Arguments;
use super::door::Door;
use super::http::Client;
use crate::usage;

/// How long a start may take.
const START_MAX: Duration = Duration::from_secs(120);

/// What a registry uses that has nothing to do but to look whether anybody is silent.
const SETTLED_CORES: f64 = 0.05;
const SETTLE_EVERY: Duration = Duration::from_millis(500);
/// Longer than that it is not waited for: leases of 30 s run.
const SETTLE_MAX: Duration = Duration::from_secs(8);

/// A running registry, open to this machine.
pub(super) struct Registry {
    child: Child,
    pub(super) process: u32,
    pub(super) api: SocketAddr,
    pub(super) mesh: SocketAddr,
    pub(super) dns: SocketAddr,
    /// When it was started.
    pub(super) started: Instant,
}

/// CPU and memory of a process at one moment.
#[derive(Clone, Copy)]
pub(super) struct Usage {
    at: Instant,
    cpu: Duration,
}

impl Usage {
    /// Cores used since.
    pub(super) fn cores_since(self, then: Self) -> f64 {
        self.cpu_since(then).as_secs_f64() / (self.at - then.at).as_secs_f64()
    }

    /// Time since.
    pub(super) fn since(self, then: Self) -> Duration {
        self.at - then.at
    }

    /// CPU time used since.
    pub(super) fn cpu_since(self, then: Self) -> Duration {
        // A thread that has ended takes its time along.
        self.cpu.saturating_sub(then.cpu)
    }
}

impl Registry {
    /// Starts one on free ports, with its data in `data`.
    pub(super) async fn start(arguments: &Arguments, data: &Path) -> anyhow::Result<Self> {
        Self::start_at(arguments, data, [SocketAddr::from(([127, 0, 0, 1], 0)); 3]).await
    }

    /// Starts one whose API is behind TLS, as it is off this machine.
    pub(super) async fn start_secure(arguments: &Arguments, data: &Path) -> anyhow::Result<(Self, Door)> {
        let [any, loopback] = [[0, 0, 0, 0], [127, 0, 0, 1]].map(|ip| SocketAddr::from((ip, 0)));
        let registry = Self::start_with(arguments, data, [any, loopback, loopback], &[]).await?;
        let door = Door::secure(SocketAddr::from(([127, 0, 0, 1], registry.api.port())), data)?;
        Ok((registry, door))
    }

    /// Starts one on these addresses: API, mesh, DNS. Returns when it has told what it is bound to.
    pub(super) async fn start_at(
        arguments: &Arguments,
        data: &Path,
        at: [SocketAddr; 3],
    ) -> anyhow::Result<Self> {
        Self::start_with(arguments, data, at, &["--open"]).await
    }

    async fn start_with(
        arguments: &Arguments,
        data: &Path,
        at: [SocketAddr; 3],
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let binary = binary(arguments)?;
        let [api, mesh, dns] = at.map(|address| address.to_string());
        let started = Instant::now();
        let mut child = Command::new(&binary)
            .args(["registry", "--log", "warn", "--api", &api, "--mesh", &mesh])
            .args(more)
            .args(["--dns", &dns, "--data-dir"])
            .arg(data)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let process = child.id().context("the registry ended at once")?;
        let stdout = child.stdout.take().context("the registry has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut bound = Vec::new();
        while bound.len() < 3 {
            let line = tokio::time::timeout(START_MAX, lines.next_line()).await.context("no start")??;
            let Some(line) = line else { bail!("the registry ended before it was up") };
            let address = line.split_whitespace().nth(1).unwrap_or_default();
            let address = address.rsplit('/').next().unwrap_or_default();
            bound.push(address.parse().with_context(|| format!("read `{line}`"))?);
        }
        Ok(Self { child, process, api: bound[0], mesh: bound[1], dns: bound[2], started })
    }

    /// Kills it as a crash would.
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("kill the registry")
    }

    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        Ok(Usage { at: Instant::now(), cpu: usage::cpu_exact(self.process, |_| true)? })
    }

    /// Waits until it does next to nothing, or for long enough.
    pub(super) async fn settle(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let before = self.usage()?;
            tokio::time::sleep(SETTLE_EVERY).await;
            if self.usage()?.cores_since(before) < SETTLED_CORES || started.elapsed() > SETTLE_MAX {
                return Ok(());
            }
        }
    }

    pub(super) fn memory(&self) -> anyhow::Result<f64> {
        Ok(usage::anonymous_bytes(self.process)? as f64)
    }

    /// One of its own metrics, summed over labels.
    pub(super) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let mut client = Client::connect(self.api).await?;
        let (status, body) = client.call("GET", "/metrics", "").await?;
        ensure!(status == 200, "GET /metrics: {status}");
        let lines = body.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{'))
        });
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}

/// As many descriptors as this process may have: each stream is one.
pub(super) fn raise_descriptors() -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raise the limit of descriptors")
}

/// The `pillion` to measure.
pub(super) fn binary(arguments: &Arguments) -> anyhow::Result<PathBuf> {
    arguments.binary.clone().map_or_else(beside, Ok)
}

/// What was built beside this program.
fn beside() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("find this program")?;
    let beside = here.ancestors().skip(1).map(|folder| folder.join("pillion")).find(|file| file.is_file());
    beside.context("no `pillion` beside this program; name it with PILLION_BIN")
}
