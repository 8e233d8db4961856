//! This replica's one lease, and the key that says that it is there.

use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::client::{ClientError, TxnRequest};
use super::{EtcdStore, Key, Space};

/// A replica that was not heard for this long is gone.
const LEASE_SECONDS: i64 = 15;
const RENEW_EVERY: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);
/// A replica that stops says so, if etcd answers quickly.
const GOODBYE: Duration = Duration::from_secs(1);

impl EtcdStore {
    /// Is there until `stop`, and then says that it leaves.
    pub(super) async fn be_present(&self, stop: &CancellationToken) {
        let mut lease = None;
        let stay = async {
            loop {
                match self.renew(&mut lease).await {
                    Ok(()) => tokio::time::sleep(RENEW_EVERY).await,
                    Err(error) => {
                        tracing::warn!(%error, "etcd: this replica's lease was not renewed");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(stay).await;
        if let Some(lease) = lease
            && !matches!(tokio::time::timeout(GOODBYE, self.client.revoke(lease)).await, Ok(Ok(())))
        {
            tracing::warn!("etcd: the others learn that this replica left when its lease ends");
        }
    }

    /// Renews the lease, or begins to be there under a new one.
    async fn renew(&self, lease: &mut Option<i64>) -> Result<(), ClientError> {
        if let Some(id) = *lease
            && self.client.renew(id).await?
            && self.is_shown()
            && self.client.full().is_none()
        // else a write tells whether there is space again
        {
            return Ok(());
        }
        // Nothing is left in an etcd that is not ours.
        let epoch = {
            let copy = self.copy();
            if let Some(reason) = &copy.detached {
                return Err(ClientError::Refused(reason.clone()));
            }
            copy.mirror.at.epoch.clone()
        };
        let id = match *lease {
            Some(id) if self.client.renew(id).await? => id,
            _ => *lease.insert(self.client.grant(LEASE_SECONDS).await?),
        };
        let mut request = TxnRequest::default();
        request.require_value(self.keys.epoch(), &epoch);
        request.put(self.keys.encode(&self.presence()), self.card(), id);
        match self.client.txn(request).await?.succeeded() {
            true => Ok(()),
            false => Err(ClientError::Refused("the history in etcd has changed".to_owned())),
        }
    }

    fn presence(&self) -> Key {
        Key::new(Space::Replica, self.replica.clone())
    }

    /// Whether the key is there, as far as the watch has told.
    fn is_shown(&self) -> bool {
        self.copy().mirror.revision_of(&self.presence()).is_some()
    }

    /// What the others, and people, read about this replica.
    fn card(&self) -> Bytes {
        let card = serde_json::json!({ "address": self.address, "version": env!("CARGO_PKG_VERSION") });
        card.to_string().into()
    }
}
