//! The shared engine: several registries on one etcd, each with a copy of everything in memory.
//!
//! Reads and followers are answered from the copy, which one watch keeps up to date, so they go on
//! while etcd is away; writes then fail at once or after [`client::CALL_TIMEOUT`]. A revision is
//! etcd's own. Every write is conditional on the history's name (`meta/epoch`), so that nothing is
//! ever written into an etcd that was emptied or restored behind our back.
//!
//! Keys are `<prefix><space>/<name>`. Only `replica/<id>` has a lease: one per registry.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pillion_net::resolve::Target;
use tokio_util::sync::CancellationToken;

use super::log::{Log, Watch};
use super::{Key, Op, Position, Space, State, Store, StoreError, Transaction};
use client::{Client, ClientError, TxnRequest};
use keys::Keys;
use mirror::Mirror;

mod client;
mod follow;
mod keys;
mod local;
mod mirror;
mod presence;
#[cfg(test)]
pub(crate) mod tests;
mod version;

/// etcd's messages and calls, generated from `proto/etcd/rpc.proto`.
mod pb {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::nursery,
        clippy::use_self,
        clippy::or_fun_call,
        reason = "generated code"
    )]
    include!("generated/etcdserverpb.rs");
}

/// How long a commit waits for the copy to have what it was in conflict with.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Writes of one transaction: etcd takes 128 operations and as many conditions, some of which are ours.
const OPS_MAX: usize = 120;

/// Where etcd is, and who we are.
#[derive(Clone)]
pub struct EtcdOptions {
    /// The members; any of them serves.
    pub members: Vec<Target>,
    /// In front of every key, with a slash at its end.
    pub prefix: String,
    /// How to connect; `None`: plaintext.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The name of this replica: stable over restarts, different from all others'.
    pub replica: String,
    /// Where others find this replica; for people.
    pub address: String,
    /// The file with what is served when this replica starts while etcd is away.
    pub copy: Option<PathBuf>,
}

/// A store in etcd.
pub struct EtcdStore {
    client: Client,
    keys: Keys,
    replica: String,
    address: String,
    log: Arc<Log>,
    copy: Mutex<Copy>,
}

/// What is known of the store.
struct Copy {
    mirror: Mirror,
    /// Why nothing may be written, although etcd answers.
    detached: Option<String>,
}

/// What is under a prefix; `None`: no store. Writes nothing.
///
/// # Errors
///
/// [`StoreError::Unavailable`] if no member answers.
pub async fn read(
    members: &[Target],
    prefix: &str,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<Option<State>, StoreError> {
    let (client, keys) = (Client::new(members, tls), Keys::new(prefix));
    Ok(follow::found(&client, &keys).await?.map(|mirror| State { at: mirror.at, entries: mirror.entries }))
}

impl EtcdStore {
    /// Reads the store, making it if there is none under the prefix. The future keeps the copy up to
    /// date and this replica's presence known until `stop`, and must be polled.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] if no member answers, [`StoreError::Unreadable`] if a newer version
    /// wrote what is there.
    pub async fn open(
        options: EtcdOptions,
        stop: CancellationToken,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + use<>), StoreError> {
        let client = Client::new(&options.members, options.tls.as_ref());
        let keys = Keys::new(&options.prefix);
        let first = async {
            version::check(&client).await?;
            follow::first(&client, &keys).await
        };
        let mirror = match first.await {
            Ok(mirror) => mirror,
            Err(error @ StoreError::Unavailable(_)) => {
                let copy = options.copy.as_deref().and_then(local::read);
                let Some(mirror) = copy else { return Err(error) };
                tracing::warn!(%error, at = %mirror.at, "etcd: serving what was last known");
                mirror
            }
            Err(error) => return Err(error),
        };
        let log = Log::new(mirror.at.clone());
        let store = Arc::new(Self {
            client,
            keys,
            replica: options.replica,
            address: options.address,
            log,
            copy: Mutex::new(Copy { mirror, detached: None }),
        });
        let running = Arc::clone(&store);
        let run = async move {
            let follow = stop.run_until_cancelled(running.follow());
            let present = async {
                // Who has no name only brings something in, and is nobody's replica.
                if !running.replica.is_empty() {
                    running.be_present(&stop).await;
                }
            };
            let kept = async {
                if let Some(path) = options.copy {
                    running.keep_copy(path, &stop).await;
                }
            };
            tokio::join!(follow, present, kept);
        };
        Ok((store, run))
    }

    fn copy(&self) -> MutexGuard<'_, Copy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the copy has each key as `found`, or is as of `revision`.
    async fn catch_up(&self, found: &[(Key, Option<u64>)], revision: u64) {
        let mut watch = self.log.watch(&self.log.latest());
        let arrived = || {
            let copy = self.copy();
            let has = |(key, at): &(Key, Option<u64>)| copy.mirror.revision_of(key) == *at;
            copy.mirror.at.revision >= revision || found.iter().all(has)
        };
        let wait = async {
            while !arrived() {
                if watch.next().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(CATCH_UP, wait).await.is_err() {
            tracing::warn!(revision, "etcd: the watch is far behind");
        }
    }

    /// The transaction as etcd takes it: on the condition that the history is ours, and with answers
    /// that tell which condition failed.
    fn request(&self, epoch: &str, transaction: &Transaction) -> TxnRequest {
        let mut request = TxnRequest::default();
        request.require_value(self.keys.epoch(), epoch);
        request.otherwise_read(self.keys.epoch());
        for condition in &transaction.preconditions {
            let key = self.keys.encode(&condition.key);
            request.require_revision(key.clone(), condition.revision);
            request.otherwise_read(key);
        }
        // etcd refuses two writes to one key: the last one stands.
        let last: BTreeMap<&Key, &Op> = transaction.ops.iter().map(|op| (&op.key, op)).collect();
        for op in last.values() {
            let key = self.keys.encode(&op.key);
            match &op.value {
                Some(value) => request.put(key, value.clone(), 0),
                None => request.delete(key),
            }
        }
        request
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn load(&self) -> Result<State, StoreError> {
        let copy = self.copy();
        Ok(State { at: copy.mirror.at.clone(), entries: copy.mirror.entries.clone() })
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let epoch = {
            let copy = self.copy();
            if let Some(reason) = &copy.detached {
                return Err(StoreError::Unavailable(reason.clone()));
            }
            copy.mirror.at.epoch.clone()
        };
        if transaction.ops.is_empty() && transaction.preconditions.is_empty() {
            return Ok(self.log.latest().revision);
        }
        let answer = self.client.txn(self.request(&epoch, &transaction)).await?;
        if answer.succeeded() {
            // A transaction that changed nothing has no revision of its own.
            let changed = answer.changed();
            return Ok(if changed { answer.revision() } else { self.log.latest().revision });
        }
        let mut read = answer.read().into_iter();
        if read.next().flatten().is_none_or(|(_, value)| *value != *epoch.as_bytes()) {
            let reason = "the history in etcd has changed; reading it again";
            return Err(StoreError::Unavailable(reason.to_owned()));
        }
        let found: Vec<Option<u64>> = read.map(|found| found.map(|(revision, _)| revision)).collect();
        let conditions = transaction.preconditions;
        let known: Vec<_> = conditions.iter().map(|c| c.key.clone()).zip(found.iter().copied()).collect();
        self.catch_up(&known, answer.revision()).await;
        let broken =
            conditions.into_iter().zip(found).find(|(condition, found)| condition.revision != *found);
        match broken {
            Some((condition, found)) => {
                Err(StoreError::Conflict { key: condition.key, wanted: condition.revision, found })
            }
            None => Err(StoreError::Unavailable("etcd refused a transaction without a reason".to_owned())),
        }
    }

    fn position(&self) -> Position {
        self.log.latest()
    }

    fn watch(&self, from: &Position) -> Watch {
        self.log.watch(from)
    }

    fn replica(&self) -> &str {
        &self.replica
    }

    fn ops_max(&self) -> usize {
        OPS_MAX
    }

    fn trouble(&self) -> Option<String> {
        self.copy().detached.clone().or_else(|| self.client.trouble())
    }
}

impl From<ClientError> for StoreError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::TooLarge(detail) => Self::TooLarge(detail),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

fn text(value: &Bytes) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// The value that names the history; the copy does not contain it.
fn epoch_key() -> Key {
    Key::new(Space::Meta, "epoch")
}
