//! Keeping the copy up to date: one watch, and reading everything again when it cannot go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::client::{Client, ClientError, TxnRequest, unsigned};
use super::keys::Keys;
use super::mirror::{Mirror, Rewritten};
use super::{EtcdStore, Key, Op, Position, StoreError, pb, text};
use crate::store::{Commit, Entry};

/// Between two attempts to reach etcd: from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A watch that no longer continues what the copy has seen.
enum Ended {
    /// The stream is over: another one from where this one was.
    Stream(String),
    /// What came before is forgotten, or history was rewritten: everything again.
    Position(String),
}

impl From<ClientError> for Ended {
    fn from(error: ClientError) -> Self {
        Self::Stream(error.to_string())
    }
}

/// Everything under the prefix at the start of this replica; makes the store if there is none.
pub(super) async fn first(client: &Client, keys: &Keys) -> Result<Mirror, StoreError> {
    loop {
        match found(client, keys).await? {
            Some(mirror) => return Ok(mirror),
            None => {
                check_above(client, keys).await?;
                rename(client, keys, None).await?;
            }
        }
    }
}

/// Everything under the prefix; `None` if no store was made there.
pub(super) async fn found(client: &Client, keys: &Keys) -> Result<Option<Mirror>, StoreError> {
    let Found { revision, epoch, entries, foreign } = read(client, keys).await?;
    if let Some(key) = foreign {
        return Err(StoreError::Foreign { key });
    }
    match epoch {
        Some((_, epoch)) => {
            let at = Position { epoch: epoch.as_str().into(), revision };
            Ok(Some(Mirror { at, entries }))
        }
        None if entries.is_empty() => Ok(None),
        None => {
            let detail = "it is missing, although other keys are there".to_owned();
            Err(StoreError::Unreadable { key: super::epoch_key(), detail })
        }
    }
}

/// Gives the history another name, unless somebody else has.
async fn rename(client: &Client, keys: &Keys, known: Option<u64>) -> Result<(), StoreError> {
    let epoch = crate::store::random_epoch()
        .map_err(|_| StoreError::Unavailable("the system has no random numbers".to_owned()))?;
    let mut request = TxnRequest::default();
    request.require_revision(keys.epoch(), known);
    request.put(keys.epoch(), epoch.into(), 0);
    Ok(client.txn(request).await.map(drop)?)
}

/// What is under the prefix.
struct Found {
    revision: u64,
    /// The name of the history, and which revision wrote it.
    epoch: Option<(u64, String)>,
    entries: BTreeMap<Key, Entry>,
    /// A key that this version does not know.
    foreign: Option<String>,
}

async fn read(client: &Client, keys: &Keys) -> Result<Found, ClientError> {
    let (first, end) = keys.all();
    let (revision, found) = client.range(first, end).await?;
    let (mut epoch, mut entries) = (None, BTreeMap::new());
    let mut foreign = None;
    for pb::KeyValue { key, value, mod_revision, .. } in found {
        let written = unsigned(mod_revision);
        match keys.decode(&key) {
            Ok(Some(key)) => drop(entries.insert(key, Entry { revision: written, value })),
            Ok(None) => epoch = Some((written, text(&value))),
            Err(_) => foreign = Some(text(&key)),
        }
    }
    Ok(Found { revision, epoch, entries, foreign })
}

/// Refuses to make a store within another mesh's: what one of them writes, the other would read.
async fn check_above(client: &Client, keys: &Keys) -> Result<(), StoreError> {
    for (above, epoch) in keys.epochs_above() {
        if client.get(epoch).await?.1.is_some() {
            return Err(StoreError::Overlap { prefix: keys.prefix().to_owned(), other: above.to_owned() });
        }
    }
    Ok(())
}

impl EtcdStore {
    /// Follows etcd for ever.
    pub(super) async fn follow(&self) {
        let (mut everything, mut wait) = (false, RETRY.0);
        loop {
            let ended = match everything {
                true => self.resync().await,
                false => Ok(()),
            };
            let ended = match ended {
                Ok(()) => {
                    let Err(ended) = self.watch_etcd(&mut wait).await;
                    ended
                }
                Err(ended) => ended,
            };
            match ended {
                Ended::Stream(reason) => {
                    tracing::warn!(reason, retry = ?wait, "etcd: the watch ended");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
                Ended::Position(reason) => {
                    tracing::warn!(reason, "etcd: reading everything again");
                    if std::mem::replace(&mut everything, true) {
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(RETRY.1);
                    }
                    continue;
                }
            }
            everything = self.copy().detached.is_some();
        }
    }

    /// Follows until the stream ends.
    async fn watch_etcd(&self, wait: &mut Duration) -> Result<std::convert::Infallible, Ended> {
        let mut moves = self.client.moves();
        // A watch from a revision that etcd has not reached would wait for it in silence.
        let (revision, epoch) = self.client.get(self.keys.epoch()).await?;
        let at = self.copy().mirror.at.clone();
        let same = epoch.is_some_and(|epoch| epoch.value == *at.epoch.as_bytes());
        if !same || revision < at.revision {
            return Err(Ended::Position(format!("it is at {revision}, not after {at}")));
        }
        let (first, end) = self.keys.all();
        let mut stream = self.client.watch(first, end, at.revision + 1).await?;
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                _ = moves.changed() => return Err(Ended::Stream("the member does not answer".to_owned())),
            };
            let message = message.map_err(ClientError::from)?;
            let message = message.ok_or_else(|| Ended::Stream("the member ended it".to_owned()))?;
            if message.canceled {
                let reason = format!("{} (compacted at {})", message.cancel_reason, message.compact_revision);
                return Err(if message.compact_revision > 0 {
                    Ended::Position(reason)
                } else {
                    Ended::Stream(message.cancel_reason)
                });
            }
            *wait = RETRY.0;
            self.take(message.events)?;
        }
    }

    /// Takes in what one message of the watch tells.
    fn take(&self, events: Vec<pb::Event>) -> Result<(), Ended> {
        let mut commits: Vec<Commit> = Vec::new();
        let mut copy = self.copy();
        for event in events {
            let deleted = event.r#type() == pb::event::EventType::Delete;
            let kv = event.kv.unwrap_or_default();
            let revision = unsigned(kv.mod_revision);
            let key = match self.keys.decode(&kv.key) {
                Ok(Some(key)) => key,
                Ok(None) if kv.value == *copy.mirror.at.epoch.as_bytes() && !deleted => continue,
                Ok(None) => return Err(Ended::Position("its history has another name".to_owned())),
                Err(_) => {
                    tell_foreign(&text(&kv.key));
                    continue;
                }
            };
            let op = Op { key, value: (!deleted).then_some(kv.value) };
            match commits.last_mut().filter(|last| last.revision == revision) {
                Some(last) => last.ops.push(op),
                None => commits.push(Commit { revision, ops: vec![op] }),
            }
        }
        self.log.append(copy.mirror.apply(commits));
        Ok(())
    }

    /// Reads everything and goes on from there: with the differences if it is the same history, anew
    /// if it is another. An etcd without our history changes nothing, and nothing is written to it.
    async fn resync(&self) -> Result<(), Ended> {
        let Found { revision, epoch, entries, foreign } = read(&self.client, &self.keys).await?;
        if let Some(key) = foreign {
            tell_foreign(&key);
        }
        let Some((written, epoch)) = epoch else { return Err(self.detach("it was emptied")) };
        let rewritten = {
            let mut copy = self.copy();
            if !copy.mirror.is_of_one_mesh_with(&entries) {
                drop(copy);
                return Err(self.detach("it holds that of another mesh"));
            }
            copy.detached = None;
            if *epoch == *copy.mirror.at.epoch {
                match copy.mirror.difference(&entries, revision) {
                    Ok(commits) => {
                        self.log.append(copy.mirror.apply(commits));
                        copy.mirror.at.revision = revision;
                        self.log.advance(revision);
                        return Ok(());
                    }
                    Err(Rewritten) => true,
                }
            } else {
                let at = Position { epoch: Arc::from(epoch), revision };
                tracing::warn!(%at, entries = entries.len(), "etcd: another history is there, it is in force now");
                copy.mirror = Mirror { at: at.clone(), entries };
                self.log.reset(at);
                false
            }
        };
        if rewritten {
            rename(&self.client, &self.keys, Some(written))
                .await
                .map_err(|error| Ended::Stream(error.to_string()))?;
            return Err(Ended::Position("it was restored from a backup".to_owned()));
        }
        Ok(())
    }

    /// Goes on with what is known, and writes nothing into what is there instead.
    fn detach(&self, why: &str) -> Ended {
        let reason = format!(
            "etcd no longer holds this mesh's store: {why}. What was known stays in force. Put it back \
             (`pillion snapshot save` from this registry, `pillion snapshot restore` into etcd), or restart \
             every registry to go on with what etcd holds"
        );
        self.copy().detached = Some(reason.clone());
        Ended::Stream(reason)
    }
}

/// Whoever runs goes on with what it knows.
fn tell_foreign(key: &str) {
    let error = StoreError::Foreign { key: key.to_owned() };
    tracing::error!(%error, "etcd: a key is left alone");
}

impl From<tonic::Status> for Ended {
    fn from(status: tonic::Status) -> Self {
        ClientError::from(status).into()
    }
}
