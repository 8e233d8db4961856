//! A sidecar whose certificate has ended reaches nobody and is reached by nobody: it is not ready.

use std::time::{Duration, SystemTime};

use pillion_net::identity::IdentityWatch;
use pillion_net::readiness::Readiness;
use tokio_util::sync::CancellationToken;

/// Takes readiness away while the certificate in force has ended, until `stop`.
pub(super) async fn watch(mut identity: IdentityWatch, readiness: Readiness, stop: CancellationToken) {
    let mut ended = None;
    while let Some(current) = identity.current() {
        let left = current.svid.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        ended = match left.is_zero() {
            true => ended.or_else(|| Some(readiness.part("a certificate: the last one has ended"))),
            false => None,
        };
        // In steps: the wall clock may be set while we wait.
        let pause = tokio::time::sleep(left.clamp(PAUSE_MIN, PAUSE_MAX));
        tokio::select! {
            () = stop.cancelled() => return,
            changed = identity.changed() => if changed.is_none() {
                return;
            },
            () = pause => {}
        }
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);
