//! `pillion proxy --service`: a sidecar of the mesh.

use anyhow::Context;
use pillion_proxy::sidecar::Sidecar;
use tokio::signal::unix::{SignalKind, signal};

use super::Arguments;
use crate::commands::sidecar::resolve_advertised;
use crate::logging::SetLogFilter;
use crate::output::{line, note};

/// Runs until SIGTERM or Ctrl-C; `POST /drain` drains the inbound side before.
pub(super) async fn run(arguments: &Arguments, set_log_filter: SetLogFilter) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut options = arguments.sidecar.options()?;
    options.set_log_filter = Some(set_log_filter);
    let node = options.node.clone();
    let start = async {
        options.advertise = resolve_advertised(&arguments.sidecar).await?;
        anyhow::Ok(Sidecar::start(options).await?)
    };
    let mut sidecar = tokio::select! {
        started = start => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    announce(&sidecar)?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            reason = sidecar.refused() => {
                sidecar.stop().await;
                anyhow::bail!("the registry refuses {node}: {reason}");
            }
            () = sidecar.drain_asked(), if !sidecar.is_draining() => {
                note("draining the inbound side; the outbound side goes on until SIGTERM");
                sidecar.drain().await;
            }
        }
    }
    sidecar.stop().await;
    Ok(())
}

fn announce(sidecar: &Sidecar) -> anyhow::Result<()> {
    let bound = sidecar.bound();
    for (name, address) in [
        ("inbound", bound.inbound),
        ("outbound", bound.outbound),
        ("admin", bound.admin),
        ("metrics", bound.metrics),
        ("dns", bound.dns),
    ] {
        line(format_args!("{name} {address}"))?;
    }
    for (upstream, address) in &bound.upstreams {
        line(format_args!("upstream {upstream} {address}"))?;
    }
    match &bound.vips {
        Some(range) => line(format_args!("vips {range}")),
        None => line("vips none"),
    }
}
