//! A store that forgets with its process: the model of the others, and what simulations run on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::log::{Log, Watch};
use super::{Commit, Entry, Key, Op, Position, Precondition, State, Store, StoreError, Transaction};

/// A store in memory.
pub(crate) struct MemoryStore {
    entries: Mutex<BTreeMap<Key, Entry>>,
    log: Arc<Log>,
}

impl MemoryStore {
    /// An empty store.
    pub(crate) fn new(epoch: &str) -> Self {
        let log = Log::new(Position { epoch: epoch.into(), revision: 0 });
        Self { entries: Mutex::default(), log }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self) -> Result<State, StoreError> {
        let entries = self.lock();
        Ok(State { at: self.log.latest(), entries: entries.clone() })
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let mut entries = self.lock();
        let revision = self.log.latest().revision;
        for Precondition { key, revision: wanted } in transaction.preconditions {
            let found = entries.get(&key).map(|entry| entry.revision);
            if found != wanted {
                return Err(StoreError::Conflict { key, wanted, found });
            }
        }
        if transaction.ops.is_empty() {
            return Ok(revision);
        }
        let revision = revision + 1;
        for Op { key, value } in transaction.ops.clone() {
            match value {
                Some(value) => drop(entries.insert(key, Entry { revision, value })),
                None => drop(entries.remove(&key)),
            }
        }
        self.log.append([Arc::new(Commit { revision, ops: transaction.ops })]);
        Ok(revision)
    }

    fn position(&self) -> Position {
        self.log.latest()
    }

    fn watch(&self, from: &Position) -> Watch {
        self.log.watch(from)
    }
}
