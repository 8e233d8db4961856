//! When the other side of a connection is trusted no more.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_net::revoked::Revoked;
use pillion_net::tls::PeerCertificate;
use tokio::sync::watch;

/// Waits until the peer's certificate has ended, or was revoked.
pub(crate) async fn lost(peer: &PeerCertificate, revoked: watch::Receiver<Arc<Revoked>>) {
    tokio::select! {
        () = reached(peer.not_after) => {}
        () = is_revoked(peer, revoked) => {}
    }
}

/// Waits until the peer is revoked.
async fn is_revoked(peer: &PeerCertificate, mut revoked: watch::Receiver<Arc<Revoked>>) {
    let named = revoked.wait_for(|revoked| revoked.names(peer).is_some()).await.is_ok();
    if !named {
        pending().await
    }
}

/// When a connection that can be ended without loss should be: so long before the peer's certificate
/// ends that requests in flight have their time.
pub(crate) async fn ending(peer: &PeerCertificate) {
    reached(peer.not_after - (peer.lifetime() / 10).min(ENDING_MAX)).await;
}

/// Waits for a moment of the wall clock, which may be set meanwhile.
async fn reached(moment: SystemTime) {
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
    }
}

const ENDING_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(60);
