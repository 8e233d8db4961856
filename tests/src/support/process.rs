//! A child process whose lines are kept, and which never outlives its test.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::pillion;
use super::tree::{Descendant, descendants};
use super::wait::DEADLINE;

/// How much of a process's output a failing test shows.
const SHOWN_LINES: usize = 60;
/// How long the last lines of a process that has ended may take to be read.
const LAST_LINES: Duration = Duration::from_secs(5);

/// A running program. Dropping it kills it and everything it has started.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: Lines,
    readers: JoinSet<()>,
}

/// Everything printed so far, to stdout and stderr, and a bell.
#[derive(Clone, Debug)]
struct Lines {
    kept: Arc<Mutex<Vec<String>>>,
    count: watch::Sender<usize>,
}

impl Process {
    /// Starts `pillion` with these arguments.
    pub fn pillion<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) -> Self {
        let mut command = Command::new(pillion());
        command.args(arguments);
        Self::spawn(name, command)
    }

    /// Starts another program with these arguments.
    pub fn program<A: AsRef<OsStr>>(name: &str, file: &Path, arguments: impl IntoIterator<Item = A>) -> Self {
        let mut command = Command::new(file);
        command.args(arguments);
        Self::spawn(name, command)
    }

    /// Starts a command that was prepared (environment, folder).
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn spawn(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {name} ({command:?}): {error}"));
        let lines = Lines { kept: Arc::default(), count: watch::Sender::new(0) };
        let mut readers = JoinSet::new();
        readers.spawn(lines.clone().keep(child.stdout.take().expect("stdout is piped")));
        readers.spawn(lines.clone().keep(child.stderr.take().expect("stderr is piped")));
        Self { name: name.to_owned(), child, lines, readers }
    }

    /// The process id.
    ///
    /// # Panics
    ///
    /// If the process has been waited for.
    pub fn id(&self) -> u32 {
        self.child.id().expect("still running")
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        self.lines.kept.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Waits until a line is printed from which `find` makes something.
    ///
    /// # Panics
    ///
    /// At the deadline, with what was printed.
    pub async fn line<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let mut count = self.lines.count.subscribe();
        let search = async {
            let mut seen = 0;
            loop {
                let kept = self.lines.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(found) = kept[seen..].iter().find_map(|line| find(line)) {
                    return found;
                }
                seen = kept.len();
                count.changed().await.expect("the sender is held by self");
            }
        };
        match tokio::time::timeout(DEADLINE, search).await {
            Ok(found) => found,
            Err(_elapsed) => {
                panic!("{}: no line with {what} within {DEADLINE:?}:\n{}", self.name, self.tail())
            }
        }
    }

    /// Waits for the line `<name> <address>` that a process prints for each listener, and reads the
    /// address (with or without a scheme before it).
    pub async fn bound(&self, listener: &str) -> std::net::SocketAddr {
        self.line(&format!("the bound address of `{listener}`"), |line| {
            let rest = line.strip_prefix(listener)?;
            let word = rest.split_whitespace().next()?;
            word.rsplit('/').next()?.parse().ok()
        })
        .await
    }

    /// Sends a signal.
    ///
    /// # Panics
    ///
    /// If the process has ended.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(id, signal).unwrap_or_else(|error| panic!("signal {}: {error}", self.name));
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap_or_else(|error| panic!("kill {}: {error}", self.name));
    }

    /// Waits for the end, and for what it printed last.
    ///
    /// # Panics
    ///
    /// If it does not end within `deadline`, with what it printed.
    pub async fn exit(&mut self, deadline: Duration) -> ExitStatus {
        match tokio::time::timeout(deadline, self.child.wait()).await {
            Ok(status) => {
                // Its last lines may still be in the pipes, which what it started may hold open.
                let rest = async { while self.readers.join_next().await.is_some() {} };
                let _held_open = tokio::time::timeout(LAST_LINES, rest).await;
                status.unwrap_or_else(|error| panic!("wait for {}: {error}", self.name))
            }
            Err(_elapsed) => panic!("{} has not ended within {deadline:?}:\n{}", self.name, self.tail()),
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    fn tail(&self) -> String {
        let kept = self.lines.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept[kept.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(id) = self.child.id().filter(|_| !self.has_ended()) {
            descendants(id).iter().for_each(Descendant::kill);
        }
        if std::thread::panicking() {
            eprintln!("--- {} printed last:\n{}", self.name, self.tail());
        }
    }
}

impl Lines {
    async fn keep(self, from: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            self.count.send_modify(|count| *count += 1);
        }
    }
}

/// What a program that ran to its end left behind.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed to stdout.
    pub stdout: String,
    /// What it printed to stderr.
    pub stderr: String,
}

/// Runs a program to its end.
///
/// # Panics
///
/// If it cannot be started, or does not end in time.
pub async fn finish<A: AsRef<OsStr>>(file: &Path, arguments: impl IntoIterator<Item = A>) -> Finished {
    let mut command = Command::new(file);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    finish_command(command).await
}

/// Runs a prepared command to its end.
///
/// # Panics
///
/// As [`finish`].
pub async fn finish_command(command: Command) -> Finished {
    finish_within(DEADLINE, command).await
}

/// Runs a prepared command to its end, which may take up to `deadline`.
///
/// # Panics
///
/// As [`finish`].
pub async fn finish_within(deadline: Duration, mut command: Command) -> Finished {
    let output = tokio::time::timeout(deadline, command.output()).await;
    let output = output.unwrap_or_else(|_elapsed| panic!("{command:?} has not ended within {deadline:?}"));
    let output = output.unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    Finished {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `pillion` to its end.
pub async fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Finished {
    finish(pillion(), arguments).await
}
