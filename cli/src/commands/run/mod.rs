//! `pillion run`: a command with a sidecar beside it.
//!
//! Order: the sidecar first, the command once the sidecar is ready; on the way out the sidecar
//! drains, then the command ends, then the sidecar: the command may call others until its end.

pub(crate) mod names;
mod sidecar;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::sidecar::SidecarArguments;
use crate::exit::{CannotStart, Code};
use crate::output::note;
use names::Names;
use sidecar::{Bound, Sidecar};

/// Arguments of `pillion run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    sidecar: SidecarArguments,
    /// How the command finds services by name.
    #[arg(long, env = "PILLION_NAMES", value_enum, default_value_t)]
    names: names::Choice,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Signals handed on to the command as they come. SIGTERM and SIGINT begin the way out.
const HANDED_ON: [(SignalKind, Signal); 4] = [
    (SignalKind::hangup(), Signal::HUP),
    (SignalKind::quit(), Signal::QUIT),
    (SignalKind::user_defined1(), Signal::USR1),
    (SignalKind::user_defined2(), Signal::USR2),
];
/// How long the command may take to end after SIGTERM, before SIGKILL.
const COMMAND_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the command to its end; its exit code becomes ours.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.sidecar.options()?; // wrong usage is told before anything starts
    let mut signals = Signals::watch()?;
    let names = Names::choose(arguments.names)?;
    let mut sidecar = Sidecar::spawn(&arguments.sidecar, &names)?;
    let bound = tokio::select! {
        bound = sidecar.ready() => bound.context("start the sidecar")?,
        signal = signals.end() => {
            sidecar.stop().await;
            return Err(Code(signal_code(signal.as_raw())).into());
        }
    };
    bound.announce(&names);
    let mut command = match start_command(&arguments.command, &bound, &names) {
        Ok(command) => command,
        Err(error) => {
            sidecar.stop().await;
            return Err(error);
        }
    };
    let ended = supervise(&mut command, &mut sidecar, &bound, &mut signals).await;
    sidecar.stop().await;
    exit_with(ended?)
}

fn start_command(words: &[OsString], bound: &Bound, names: &Names) -> anyhow::Result<Child> {
    let mut command = names.command(words)?;
    command.envs(bound.environment()).envs(names.environment(bound.outbound)).kill_on_drop(true);
    let program = || words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(command.spawn().map_err(|reason| CannotStart { program: program(), reason })?)
}

/// Waits for the end of the command, handing signals on.
async fn supervise(
    command: &mut Child,
    sidecar: &mut Sidecar,
    bound: &Bound,
    signals: &mut Signals,
) -> anyhow::Result<ExitStatus> {
    loop {
        tokio::select! {
            status = command.wait() => return status.context("wait for the command"),
            what = sidecar.ended() => {
                note(format_args!("the sidecar has ended, so the command must: {what}"));
                let _ = stop(command, Signal::TERM).await;
                anyhow::bail!("the sidecar has ended");
            }
            signal = signals.next() => match signal {
                // Ctrl-C has reached the command as well, which is in our process group.
                Signal::INT => {
                    drain(sidecar, bound, signals).await;
                    return wait_or_kill(command).await;
                }
                Signal::TERM => {
                    drain(sidecar, bound, signals).await;
                    return stop(command, Signal::TERM).await;
                }
                other => send(command, other),
            },
        }
    }
}

/// Lets requests in flight finish, unless whoever ends us is in a hurry and says so again.
async fn drain(sidecar: &mut Sidecar, bound: &Bound, signals: &mut Signals) {
    tokio::select! {
        () = sidecar.drain(bound) => {}
        _ = signals.end() => note(format_args!("told twice to end: requests in flight are not waited for")),
    }
}

async fn stop(command: &mut Child, signal: Signal) -> anyhow::Result<ExitStatus> {
    send(command, signal);
    wait_or_kill(command).await
}

async fn wait_or_kill(command: &mut Child) -> anyhow::Result<ExitStatus> {
    if let Ok(status) = tokio::time::timeout(COMMAND_STOP_TIMEOUT, command.wait()).await {
        return status.context("wait for the command");
    }
    note(format_args!("the command has not ended within {COMMAND_STOP_TIMEOUT:?} and is killed"));
    command.kill().await.context("kill the command")?;
    command.wait().await.context("wait for the command")
}

fn send(command: &Child, signal: Signal) {
    let id = command.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id {
        let _ = kill_process(id, signal); // it may end at this very moment
    }
}

/// The command's exit code; 128 and the signal's number where a signal ended it, as shells say it.
fn exit_with(status: ExitStatus) -> anyhow::Result<()> {
    let code = status.code().map(|code| u8::try_from(code).unwrap_or(1));
    match code.or_else(|| status.signal().map(signal_code)).unwrap_or(1) {
        0 => Ok(()),
        code => Err(Code(code).into()),
    }
}

fn signal_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(1)
}

/// The signals that reach us, one after the other.
struct Signals {
    arrivals: mpsc::Receiver<Signal>,
    _watchers: JoinSet<()>,
}

impl Signals {
    fn watch() -> anyhow::Result<Self> {
        let (sender, arrivals) = mpsc::channel(16);
        let mut watchers = JoinSet::new();
        let ends = [(SignalKind::terminate(), Signal::TERM), (SignalKind::interrupt(), Signal::INT)];
        for (kind, name) in HANDED_ON.into_iter().chain(ends) {
            let mut source = signal(kind).context("watch for signals")?;
            let sender = sender.clone();
            watchers.spawn(async move {
                while source.recv().await.is_some() && sender.send(name).await.is_ok() {}
            });
        }
        Ok(Self { arrivals, _watchers: watchers })
    }

    async fn next(&mut self) -> Signal {
        match self.arrivals.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await, // the watchers hold senders as long as we live
        }
    }

    /// The next one that is to end us; before the command runs, others concern nobody.
    async fn end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if matches!(signal, Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT) {
                return signal;
            }
        }
    }
}

/// A [`Command`] from words.
fn words_to_command(words: &[OsString]) -> anyhow::Result<Command> {
    let (program, arguments) = words.split_first().context("no command given")?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}
