//! What follows the authority's changes: the registry's own certificate, and the file of roots.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_net::identity::{Identity, IdentityPublisher};
use tokio_util::sync::CancellationToken;

use super::{Authority, RegistryNames};

/// Publishes the registry's identity, now, at about half of its lifetime, and whenever the
/// authority's settings or roots change, until `stop`.
pub async fn keep_identity(
    authority: Arc<Authority>,
    names: RegistryNames,
    publisher: IdentityPublisher,
    stop: CancellationToken,
) {
    let (mut settings, mut roots) = (authority.settings.subscribe(), authority.material.subscribe());
    loop {
        settings.mark_unchanged();
        roots.mark_unchanged();
        let wait = match authority.registry_identity(&names) {
            Ok(identity) => {
                let renew = identity.renew_at(fastrand::f64());
                publish(&publisher, identity);
                Wait::Until(renew)
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot renew the registry's certificate"
                );
                Wait::For(RETRY)
            }
        };
        let next = async {
            tokio::select! {
                () = wait.over() => {}
                Ok(()) = settings.changed() => {}
                Ok(()) = roots.changed() => {}
            }
        };
        if stop.run_until_cancelled(next).await.is_none() {
            return;
        }
    }
}

/// Keeps the roots that are trusted in a file (PEM), for clients on the same machine, until `stop`.
pub async fn keep_roots(authority: Arc<Authority>, file: PathBuf, stop: CancellationToken) {
    let mut roots = authority.material.subscribe();
    while stop.run_until_cancelled(roots.changed()).await.is_some_and(|changed| changed.is_ok()) {
        roots.mark_unchanged();
        if let Err(error) = write_roots(&authority, &file) {
            tracing::error!(%error, file = %file.display(), "cannot write the root certificates");
        }
    }
}

/// Replaces the file of roots as a whole.
///
/// # Errors
///
/// The system's.
pub fn write_roots(authority: &Authority, file: &Path) -> std::io::Result<()> {
    let temporary = file.with_extension("pem.new");
    std::fs::write(&temporary, authority.info().root_pem)?;
    std::fs::rename(&temporary, file)
}

fn publish(publisher: &IdentityPublisher, identity: Identity) {
    tracing::info!(id = %identity.svid.id, "renewed the registry's certificate");
    publisher.publish(Arc::new(identity));
}

enum Wait {
    Until(SystemTime),
    For(Duration),
}

impl Wait {
    async fn over(&self) {
        match self {
            Self::For(duration) => tokio::time::sleep(*duration).await,
            // In steps: the wall clock may be set while we wait.
            Self::Until(moment) => {
                while let Ok(left) = moment.duration_since(SystemTime::now()) {
                    tokio::time::sleep(left.min(CLOCK_STEP)).await;
                }
            }
        }
    }
}

const RETRY: Duration = Duration::from_secs(10);
const CLOCK_STEP: Duration = Duration::from_secs(60);
