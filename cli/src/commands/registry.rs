//! `pillion registry`: the registry server.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use pillion_registry::app;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::data_directory;
use crate::logging::LogArguments;
use crate::output::{line, note};

/// Arguments of `pillion registry`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where everything that must survive is kept.
    #[arg(long, env = "PILLION_DATA_DIR", default_value_os_t = data_directory(), value_name = "DIR")]
    data_dir: PathBuf,
    /// The HTTP API. Port 0 picks a free one, here and below; what was bound is printed.
    #[arg(long, env = "PILLION_LISTEN_API", value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    api: SocketAddr,
    /// Ask for no token and give certificates to everybody on this machine: for trials, on loopback.
    #[arg(long, env = "PILLION_OPEN")]
    open: bool,
    #[command(flatten)]
    log: LogArguments,
}

/// Serves until SIGTERM or Ctrl-C.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let _set_log_filter = arguments.log.start()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut options = app::Options::new(&arguments.data_dir);
    options.api = arguments.api;
    options.open = arguments.open;
    let registry = app::start(options).await?;
    line(format_args!("api      http://{}", registry.api_addr))?;
    if let Some(file) = registry.token_file.as_ref().filter(|_| registry.token_is_new) {
        note(format_args!("the operator's token is in {}", file.display()));
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    registry.stop().await;
    Ok(())
}
