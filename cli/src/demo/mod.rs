//! `pillion demo`: a whole mesh on this machine, every part of it a real process.
//!
//! `--once` walks the tour ([`tour`]) and ends; without it the mesh runs under live traffic until
//! Ctrl-C, with a status screen on a terminal and plain lines elsewhere.

mod calls;
pub(crate) mod child;
mod dns;
mod mesh;
mod screen;
pub(crate) mod services;
mod stranger;
mod tour;
mod workload;

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{BAD, Failed, GOOD};
use crate::output::{Rows, line, note, terminal_width};
use mesh::Mesh;

/// How long the registry may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the whole tour may take.
const TOUR_TIMEOUT: Duration = Duration::from_secs(120);

/// Arguments of `pillion demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Walk the tour, print what held, and end: exit code 0 only if all of it did.
    #[arg(long, env = "PILLION_DEMO_ONCE")]
    once: bool,
}

/// Runs the demo. Ctrl-C and SIGTERM end it and everything it started, in order; a second one at once.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut end = End::watch()?;
    let begin = tokio::time::Instant::now();
    let mut mesh = tokio::select! {
        started = Mesh::start(|step| note(step)) => started?,
        () = end.asked() => return arguments.interrupted(), // dropping what has started kills it
    };
    let work =
        async { if arguments.once { once(&mut mesh, begin).await } else { screen::show(&mut mesh).await } };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = end.asked() => arguments.interrupted(),
    };
    tokio::select! {
        () = mesh.stop() => {}
        () = end.asked() => {}
    }
    outcome
}

impl Arguments {
    /// A signal is how a demo is meant to end; a tour that was not walked to its end has not passed.
    fn interrupted(&self) -> anyhow::Result<()> {
        if self.once { Err(Failed.into()) } else { Ok(()) }
    }
}

/// The signals that end the demo.
struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl End {
    fn watch() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    /// Waits for one.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        note("\nending the demo");
    }
}

async fn once(mesh: &mut Mesh, begin: tokio::time::Instant) -> anyhow::Result<()> {
    let walked = tokio::time::timeout(TOUR_TIMEOUT, walk(mesh)).await;
    let (table, failed) = walked.with_context(|| format!("the tour took longer than {TOUR_TIMEOUT:?}"))?;
    line(table.render(terminal_width()))?;
    line(format_args!(
        "{} of {} hold; {:.0?}",
        tour::STOPS.len() - failed,
        tour::STOPS.len(),
        begin.elapsed()
    ))?;
    if failed == 0 { Ok(()) } else { Err(Failed.into()) }
}

/// Walks every stop, also after one that failed; how many failed.
async fn walk(mesh: &mut Mesh) -> (Rows, usize) {
    let mut table = Rows::new(["", "CLAIM", "SEEN"]);
    let mut failed = 0;
    for stop in &tour::STOPS {
        let seen = (stop.look)(mesh).await;
        let (mark, style, text) = match seen {
            Ok(text) => ("pass", GOOD, text),
            Err(error) => {
                failed += 1;
                let casualty = mesh.casualty().map(|what| format!("; {what}")).unwrap_or_default();
                ("FAIL", BAD, format!("{error:#}{casualty}"))
            }
        };
        note(format_args!("{style}{mark}{style:#} {}", stop.claim));
        table.push([mark.to_owned(), stop.claim.to_owned(), text]);
    }
    (table, failed)
}
