//! A process of the demo: its lines are kept for when something goes wrong, and it ends with us.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How many lines are kept of each process.
const LINES_KEPT: usize = 200;
/// How many of them an error shows.
const LINES_SHOWN: usize = 12;
/// How long a process may take until it has said what it bound.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a process may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// Tells a `pillion` process to end when the one that started it does.
pub(crate) const DIE_WITH_PARENT: &str = "PILLION_DIE_WITH_PARENT";

/// A running `pillion` process.
pub(super) struct Child {
    pub(super) name: String,
    process: tokio::process::Child,
    lines: Lines,
    _readers: JoinSet<()>,
}

#[derive(Clone)]
struct Lines {
    kept: Arc<Mutex<VecDeque<String>>>,
    total: watch::Sender<usize>,
}

impl Child {
    /// Starts this same binary with these arguments.
    pub(super) fn start(name: &str, arguments: &[String]) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("find our own binary")?;
        let mut command = Command::new(binary);
        command.args(arguments).env(DIE_WITH_PARENT, "1").kill_on_drop(true).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("start {name}"))?;
        let lines = Lines { kept: Arc::default(), total: watch::Sender::new(0) };
        let mut readers = JoinSet::new();
        readers.spawn(lines.clone().keep(process.stdout.take().context("stdout is piped")?));
        readers.spawn(lines.clone().keep(process.stderr.take().context("stderr is piped")?));
        Ok(Self { name: name.to_owned(), process, lines, _readers: readers })
    }

    /// Waits until the process says where `listener` listens: a line `<listener> <address>`.
    pub(super) async fn bound(&mut self, listener: &str) -> anyhow::Result<SocketAddr> {
        let address = |line: &str| -> Option<SocketAddr> {
            let word = line.strip_prefix(listener)?.split_whitespace().next()?;
            word.rsplit('/').next()?.parse().ok()
        };
        let lines = self.lines.clone();
        let said = async {
            let mut total = lines.total.subscribe();
            loop {
                let found =
                    lines.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().find_map(|l| address(l));
                match found {
                    Some(address) => return address,
                    // The sender is held by `lines`, so this only ends with a change.
                    None => drop(total.changed().await),
                }
            }
        };
        let outcome = tokio::select! {
            address = said => Ok(address),
            ended = self.process.wait() => match ended {
                Ok(status) => Err(anyhow::anyhow!("ended with {status}")),
                Err(error) => Err(error.into()),
            },
            () = tokio::time::sleep(START_TIMEOUT) => {
                Err(anyhow::anyhow!("has not said within {START_TIMEOUT:?} where `{listener}` listens"))
            }
        };
        outcome.with_context(|| format!("{}: it printed last:\n{}", self.name, self.tail()))
    }

    /// Kills it as a crash would.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill().await.with_context(|| format!("kill {}", self.name))
    }

    /// Asks it to end, and makes sure that it does.
    pub(super) async fn stop(mut self) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process(id, Signal::TERM); // it may have ended already
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.process.wait()).await.is_err() {
            let _ = self.process.kill().await;
        }
    }

    /// Whether it runs no more.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// What it printed last.
    pub(super) fn tail(&self) -> String {
        let kept = self.lines.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = kept.len().saturating_sub(LINES_SHOWN);
        kept.iter().skip(skipped).map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
    }
}

impl Lines {
    async fn keep(self, from: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == LINES_KEPT {
                kept.pop_front();
            }
            kept.push_back(line);
            drop(kept);
            self.total.send_modify(|total| *total += 1);
        }
    }
}
