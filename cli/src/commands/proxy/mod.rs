//! `pillion proxy`: the data plane, as a sidecar of the mesh or with a fixed configuration.

mod bootstrap;
mod sidecar;

use std::path::PathBuf;

use super::sidecar::SidecarArguments;
use crate::allocator;

/// Arguments of `pillion proxy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run this Envoy v3 bootstrap (YAML or JSON) instead of joining a mesh. What is not supported is
    /// refused with its place.
    #[arg(long, env = "PILLION_ENVOY_CONFIG", value_name = "FILE", conflicts_with = "service")]
    envoy_config: Option<PathBuf>,
    #[command(flatten)]
    sidecar: SidecarArguments,
}

/// Runs until it is told to end.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let set_log_filter = arguments.sidecar.log.start()?;
    allocator::decline_huge_pages();
    let carry = async {
        match &arguments.envoy_config {
            Some(file) => bootstrap::run(file, arguments, set_log_filter).await,
            None => sidecar::run(arguments, set_log_filter).await,
        }
    };
    super::block_on(async {
        tokio::select! {
            carried = carry => carried,
            never = allocator::give_back() => match never {},
        }
    })
}
