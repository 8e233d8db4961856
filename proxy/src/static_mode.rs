//! A proxy without a mesh: what `--envoy-config` runs.

use std::sync::Arc;

use pillion_net::tls::{NoSecrets, Secrets};
use pillion_xds::bootstrap::Bootstrap;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, AdminOptions, Discovery};
use crate::dynamic;
use crate::runtime::{Options, Runtime, StartError};
use crate::snapshot::Rejected;

/// A running proxy.
pub struct StaticProxy {
    /// The data plane.
    pub runtime: Arc<Runtime>,
    /// The admin pages.
    pub admin: Admin,
    /// Cancelled when everything that the start waits for is in effect.
    pub begun: CancellationToken,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A configuration that cannot be run: nothing of it is.
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

impl StaticProxy {
    /// Cuts what is left and waits for tasks and threads.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        drop(self.admin);
        if let Some(runtime) = Arc::into_inner(self.runtime) {
            runtime.stop();
        }
    }
}

/// Runs `bootstrap`. Unlike a control plane's update, what it holds itself applies as a whole or not
/// at all. Must be called within a Tokio runtime.
///
/// # Errors
///
/// [`StaticError`] with every resource that cannot be run, and why.
pub fn static_mode(
    mut bootstrap: Bootstrap,
    options: &Options,
    admin: AdminOptions,
) -> Result<StaticProxy, StaticError> {
    let runtime = Arc::new(Runtime::start(options)?);
    let (begun, stop, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    let mut rejected = Vec::new();
    let is_dynamic = bootstrap.is_dynamic();
    let mut resources =
        if is_dynamic { bootstrap.resources.clone() } else { std::mem::take(&mut bootstrap.resources) };
    if is_dynamic {
        // Listeners follow when what they need is there.
        for (name, listener) in std::mem::take(&mut resources.listeners) {
            let refused = runtime.check_listener(&listener).err();
            rejected.extend(refused.map(|reason| Rejected { kind: "listener", name, reason }));
        }
    }
    let secrets: Arc<dyn Secrets> = Arc::new(NoSecrets);
    rejected.extend(runtime.publish(resources, &secrets).rejected);
    if !rejected.is_empty() {
        return Err(StaticError::Rejected(rejected));
    }
    let mut admin = admin;
    if is_dynamic {
        let follow = dynamic::follow(&bootstrap, &runtime, begun.clone(), &tasks, stop.clone());
        admin.discovery = Some(Discovery(follow));
    } else {
        begun.cancel();
    }
    let admin = runtime.serve_admin(admin)?;
    Ok(StaticProxy { runtime, admin, begun, tasks, stop })
}
