//! The shared engine: several registries on one etcd, each with a copy of everything in memory.
//!
//! Reads and followers are answered from the copy, which one watch keeps up to date, so they go on
//! while etcd is away; writes then fail at once or after [`client::CALL_TIMEOUT`]. A revision is
//! etcd's own. Every write is conditional on the history's name (`meta/epoch`), so that nothing is
//! ever written into an etcd that was emptied or restored behind our back.
//!
//! Keys are `<prefix><space>/<name>`. Only `replica/<id>` has a lease: one per registry.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pillion_net::resolve::Target;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::log::{Log, Watch};
use super::{Key, Op, Position, Space, State, Store, StoreError, Transaction};
use client::{Client, ClientError};
use gather::{Found, Waiting};
use keys::Keys;
use mirror::Mirror;

mod client;
mod follow;
mod gather;
mod keys;
mod local;
mod mirror;
mod presence;
mod refusal;
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
    /// Commits to be carried out.
    queue: mpsc::Sender<Waiting>,
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
    /// Reads the store, making it if there is none under the prefix. The future carries out commits and
    /// keeps the copy up to date and this replica's presence known until `stop`, and must be polled.
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
            Err(mut error @ StoreError::Unavailable(_)) => {
                if let Some(tls) = &options.tls
                    && let Some(reason) = refusal::of_any(&options.members, tls).await
                {
                    error = StoreError::Unavailable(reason);
                }
                let copy = options.copy.as_deref().and_then(local::read);
                let Some(mirror) = copy else { return Err(error) };
                tracing::warn!(%error, at = %mirror.at, "etcd: serving what was last known");
                mirror
            }
            Err(error) => return Err(error),
        };
        let log = Log::new(mirror.at.clone());
        let (queue, waiting) = mpsc::channel(gather::QUEUE_MAX);
        let store = Arc::new(Self {
            client,
            keys,
            replica: options.replica,
            address: options.address,
            log,
            copy: Mutex::new(Copy { mirror, detached: None }),
            queue,
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
            tokio::join!(running.gather(waiting, &stop), follow, present, kept);
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
}

#[async_trait]
impl Store for EtcdStore {
    async fn load(&self) -> Result<State, StoreError> {
        let copy = self.copy();
        Ok(State { at: copy.mirror.at.clone(), entries: copy.mirror.entries.clone() })
    }

    async fn load_space(&self, space: Space) -> Result<State, StoreError> {
        let copy = self.copy();
        let entries =
            copy.mirror.entries.range(Key::new(space, "")..).take_while(|(key, _)| key.space == space);
        let entries = entries.map(|(key, entry)| (key.clone(), entry.clone())).collect();
        Ok(State { at: copy.mirror.at.clone(), entries })
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        if transaction.ops.is_empty() && transaction.preconditions.is_empty() {
            return Ok(self.log.latest().revision);
        }
        let failure = match self.submit(transaction).await {
            Ok(revision) => return Ok(revision),
            Err(failure) => failure,
        };
        if let Some(Found { keys, revision }) = &failure.found {
            self.catch_up(keys, *revision).await;
        }
        Err(failure.error)
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
        gather::OPERATIONS_MAX
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
