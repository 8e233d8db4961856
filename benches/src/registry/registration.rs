//! Durable registrations: as fast as they go, many at a time.

use tokio::time::Instant;

use super::Arguments;
use super::heartbeats::Fleet;
use super::server::Registry;
use crate::report::{Budget, Report};
use crate::usage;

/// Streams that register at the same time.
const STREAMS: usize = 100;

pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let data = tempfile::tempdir_in(".")?;
    let registry = Registry::start(arguments, data.path()).await?;
    let streams = STREAMS.min(arguments.instances);
    let fleet = Fleet::new(streams, arguments.instances.div_ceil(streams), 1)?;
    let mut streams = fleet.open(&registry).await?;
    let us = std::process::id();
    let (before, ours, start) = (registry.usage()?, usage::cpu(us)?, Instant::now());
    fleet.register(&mut streams).await?;
    let took = start.elapsed();
    let cpu = registry.usage()?.cpu_since(before);
    let ours = usage::cpu(us)? - ours;
    let count = fleet.instances() as f64;
    report.row(
        "registrations per second, durable",
        count / took.as_secs_f64(),
        "1/s",
        Some(Budget::AtLeast(30_000.0)),
    );
    // What two cores give to both sides, whoever else uses the machine meanwhile.
    let both = (cpu + ours).as_secs_f64() / 2.0;
    report.row(
        "registrations per second of two cores' time",
        count / both,
        "1/s",
        Some(Budget::AtLeast(30_000.0)),
    );
    report.row("CPU of one registration", cpu.as_secs_f64() * 1e6 / count, "µs", None);
    Ok(())
}
