//! Killed with everything registered, and started again on the same data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use super::Arguments;
use super::dns::{Answer, ask};
use super::heartbeats::Fleet;
use super::server::Registry;
use crate::report::{Budget, Report};
use crate::usage;

/// Streams that register everything.
const STREAMS: usize = 100;
/// How long one question waits for its answer.
const WAIT: Duration = Duration::from_millis(250);
/// Time between questions.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// How long it is watched whether somebody expires.
const AFTERWARDS: Duration = Duration::from_secs(20);
/// How long the first right answer may take before the bench gives up.
const ANSWER_MAX: Duration = Duration::from_secs(60);

pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let data = tempfile::tempdir_in(".")?;
    let registry = Registry::start(arguments, data.path()).await?;
    let streams = STREAMS.min(arguments.instances);
    let fleet = Fleet::new(streams, arguments.instances.div_ceil(streams), 1)?;
    let mut open = fleet.open(&registry).await?;
    fleet.register(&mut open).await?;
    let name = fleet.services()[0].dns_name("mesh.internal");
    let addresses = [registry.api, registry.mesh, registry.dns];
    let (stop, wrong) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let asking = {
        let (stop, wrong, dns, name) = (Arc::clone(&stop), Arc::clone(&wrong), registry.dns, name);
        tokio::spawn(async move {
            let mut right_after = None;
            let mut seen_down = false;
            while !stop.load(Ordering::Relaxed) {
                match ask(dns, &name, WAIT).await? {
                    Answer::Records if seen_down && right_after.is_none() => {
                        right_after = Some(Instant::now())
                    }
                    Answer::Records => {}
                    Answer::Negative => drop(wrong.fetch_add(1, Ordering::Relaxed)),
                    Answer::ServerFailure | Answer::Nothing => seen_down = true,
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
            anyhow::Ok(right_after)
        })
    };
    tokio::time::sleep(WAIT).await;
    registry.kill().await?;
    drop(open);
    // Long enough that a question finds nobody.
    tokio::time::sleep(WAIT).await;
    let registry = Registry::start_at(arguments, data.path(), addresses).await?;
    let (up, cpu) = (registry.started.elapsed(), usage::cpu(registry.process)?);
    tokio::time::sleep(AFTERWARDS.min(arguments.window)).await;
    stop.store(true, Ordering::Relaxed);
    let right = tokio::time::timeout(ANSWER_MAX, asking).await.context("DNS is still asked")???;
    let right = right.context("DNS gave no right answer after the restart")?;
    let expired = registry.metric("pillion_registry_expired_total").await?;
    let known = registry.metric("pillion_registry_instances").await?;
    let first = right.saturating_duration_since(registry.started).as_secs_f64();
    report.row("restart: first right DNS answer after", first, "s", Some(Budget::AtMost(1.0)));
    report.row("restart: everything up after", up.as_secs_f64(), "s", None);
    report.row("restart: CPU until everything is up", cpu.as_secs_f64(), "s", None);
    let wrong = wrong.load(Ordering::Relaxed) as f64;
    report.row("restart: empty or negative answers", wrong, "answers", Some(Budget::AtMost(0.0)));
    report.row("restart: expired", expired, "instances", Some(Budget::AtMost(0.0)));
    report.row(
        "restart: instances known",
        known,
        "instances",
        Some(Budget::AtLeast(fleet.instances() as f64)),
    );
    report.row("restart: memory", registry.memory()? / (1 << 20) as f64, "MiB", None);
    Ok(())
}
