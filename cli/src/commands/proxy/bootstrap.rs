//! `pillion proxy --envoy-config`: an Envoy v3 bootstrap.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use pillion_config::{Diagnostics, document};
use pillion_net::readiness::Readiness;
use pillion_proxy::admin::AdminOptions;
use pillion_proxy::{runtime, static_mode};
use pillion_xds::bootstrap::{Bootstrap, read_bootstrap};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Arguments;
use crate::files::show;
use crate::logging::SetLogFilter;
use crate::output::{line, note};

/// How long requests in flight may take after SIGTERM.
const GRACE: Duration = Duration::from_secs(20);
/// Stack for reading a bootstrap, which is as deep as the file: that of a process's first thread.
const STACK: usize = 8 << 20;

/// Runs until SIGTERM, Ctrl-C or `POST /drain`, then drains.
pub(super) async fn run(
    file: &Path,
    arguments: &Arguments,
    set_log_filter: SetLogFilter,
) -> anyhow::Result<()> {
    // In a thread of its own, with which the allocator gives up what only reading needed.
    let path = file.to_owned();
    let reading =
        thread::Builder::new().name("bootstrap".to_owned()).stack_size(STACK).spawn(move || read(&path));
    let bootstrap = reading
        .context("start a thread")?
        .join()
        .map_err(|_panic| anyhow!("reading {} failed", file.display()))??;
    serve(arguments, bootstrap, set_log_filter).await
}

/// Reads a bootstrap; every part that is refused is shown at its place.
fn read(file: &Path) -> anyhow::Result<Bootstrap> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let document = document::parse(&text, &file.display().to_string()).map_err(|mistakes| show(&mistakes))?;
    let bootstrap = read_bootstrap(&document.value).map_err(|refused| {
        let place = |problem: &pillion_xds::decode::Problem| {
            document.diagnostic(&problem.path, problem.reason.as_str())
        };
        show(&Diagnostics(refused.problems.iter().map(place).collect()))
    })?;
    for path in &bootstrap.ignored {
        note(format_args!("{}: {path} has no effect here", file.display()));
    }
    Ok(bootstrap)
}

async fn serve(
    arguments: &Arguments,
    bootstrap: Bootstrap,
    set_log_filter: SetLogFilter,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let (drain, drained) = (CancellationToken::new(), CancellationToken::new());
    // All else is there before a page is served.
    let readiness = Readiness::new();
    let begin = readiness.part("first configuration and health checks of endpoints");
    let options = AdminOptions {
        admin: arguments.sidecar.listen.admin.or(bootstrap.admin),
        metrics: arguments.sidecar.listen.metrics,
        readiness: readiness.clone(),
        drain: drain.clone(),
        drained: drained.clone(),
        set_log_filter: Some(set_log_filter),
        ..AdminOptions::default()
    };
    let traffic = &arguments.sidecar.traffic;
    let data_plane = runtime::Options {
        workers: traffic.workers(),
        node_cluster: bootstrap.node.cluster.clone(),
        memory_max: traffic.memory_max,
        ..runtime::Options::default()
    };
    let proxy = static_mode(bootstrap, &data_plane, options)?;
    for (name, address) in [("admin", proxy.admin.admin), ("metrics", proxy.admin.metrics)] {
        if let Some(address) = address {
            line(format_args!("{name} {address}"))?;
        }
    }
    let begin = async {
        proxy.begun.cancelled().await;
        for (name, address) in proxy.runtime.all_bound() {
            line(format_args!("{name} {address}"))?;
        }
        proxy.runtime.first_checks().await;
        drop(begin);
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        failed = begin => failed?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = drain.cancelled() => {}
    }
    readiness.leave();
    let left = proxy.runtime.drain(GRACE).await;
    if left > 0 {
        note(format_args!("{left} connections are cut after {GRACE:?}"));
    }
    drained.cancel();
    proxy.stop().await;
    Ok(())
}
