//! A proxy without a control plane: what `--envoy-config` runs.

use std::sync::Arc;

use pillion_model::mesh::Resources;
use pillion_net::tls::{NoSecrets, Secrets};

use crate::admin::{Admin, AdminOptions};
use crate::runtime::{Options, Runtime, StartError};
use crate::snapshot::Rejected;

/// A running proxy with a fixed configuration.
pub struct StaticProxy {
    /// The data plane.
    pub runtime: Runtime,
    /// The admin pages.
    pub admin: Admin,
}

/// A fixed configuration that cannot be run: nothing of it is.
#[derive(Debug, thiserror::Error)]
pub enum StaticError {
    /// Threads or admin sockets.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Resources were refused.
    #[error("{}", lines(.0))]
    Rejected(Vec<Rejected>),
}

fn lines(rejected: &[Rejected]) -> String {
    rejected.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Runs `resources`. Unlike a control plane's update it applies as a whole or
/// not at all.
///
/// # Errors
///
/// [`StaticError`] with every resource that cannot be run, and why.
pub fn static_mode(
    resources: Resources,
    options: &Options,
    admin: AdminOptions,
) -> Result<StaticProxy, StaticError> {
    let runtime = Runtime::start(options)?;
    let secrets: Arc<dyn Secrets> = Arc::new(NoSecrets);
    let published = runtime.publish(resources, &secrets);
    if !published.rejected.is_empty() {
        return Err(StaticError::Rejected(published.rejected));
    }
    let admin = runtime.serve_admin(admin)?;
    Ok(StaticProxy { runtime, admin })
}
