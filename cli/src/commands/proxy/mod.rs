//! `pillion proxy`: the data plane, as a sidecar of the mesh or with a fixed configuration.

mod bootstrap;
mod sidecar;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::sidecar::{InstanceArguments, JoinArguments, ListenArguments};
use crate::logging::LogArguments;

/// Arguments of `pillion proxy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run this Envoy v3 bootstrap (YAML or JSON) instead of joining a mesh. What is not supported is
    /// refused with its place.
    #[arg(long, env = "PILLION_ENVOY_CONFIG", value_name = "FILE", conflicts_with = "service")]
    envoy_config: Option<PathBuf>,
    #[command(flatten)]
    join: JoinArguments,
    #[command(flatten)]
    instance: InstanceArguments,
    #[command(flatten)]
    listen: ListenArguments,
    /// Destinations outside the mesh: forwarded to, or refused.
    #[arg(long, env = "PILLION_EGRESS", value_enum, default_value_t)]
    egress: Egress,
    /// Where access logs go: a file, or /dev/stdout; without it, nowhere.
    #[arg(long, env = "PILLION_ACCESS_LOG", value_name = "FILE")]
    access_log: Option<String>,
    /// How a line of the access log looks.
    #[arg(long, env = "PILLION_ACCESS_LOG_FORMAT", value_enum, default_value_t)]
    access_log_format: AccessLogFormat,
    /// Worker threads; without it, one for each CPU that this process may use.
    #[arg(long, env = "PILLION_WORKERS", value_name = "COUNT")]
    workers: Option<NonZeroUsize>,
    #[command(flatten)]
    log: LogArguments,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Egress {
    #[default]
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum AccessLogFormat {
    /// Envoy's default line.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl Arguments {
    fn workers(&self) -> NonZeroUsize {
        let available = || std::thread::available_parallelism().ok();
        self.workers.or_else(available).unwrap_or(NonZeroUsize::MIN)
    }
}

/// Runs until it is told to end.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let set_log_filter = arguments.log.start()?;
    match &arguments.envoy_config {
        Some(file) => super::block_on(bootstrap::run(file, arguments, set_log_filter)),
        None => super::block_on(sidecar::run(arguments, set_log_filter)),
    }
}
