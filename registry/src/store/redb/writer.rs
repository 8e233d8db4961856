//! The one writer: lives on its own thread because commits wait for the disk.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ::redb::{Database, ReadableTable};
use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;

use super::file::{
    FORMAT, META, VALUES, guarded, open_checked, read_meta, seal, storage, unavailable, unseal,
};
use super::{Log, Position, Queued, Shared, StoreError};
use crate::store::{Commit, Op, Precondition};

/// Transactions made durable together at most, and writes of theirs after which no further one is added.
const BATCH_MAX: usize = 4096;
const BATCH_OPS: usize = 8192;
/// While the disk refuses: how long those wait for their refusal who came meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After how many of these looks the file is opened again: at first, and at most.
const RETRY_LOOKS: (u32, u32) = (25, 250);

pub(super) struct Writer {
    shared: Arc<Shared>,
    log: Arc<Log>,
    revision: u64,
}

/// What a batch came to.
struct Written {
    revision: u64,
    /// In the order of the batch.
    answers: Vec<Result<u64, StoreError>>,
    commits: Vec<Arc<Commit>>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, log: Arc<Log>, revision: u64) -> Self {
        Self { shared, log, revision }
    }

    /// Writes what arrives until nobody can send any more.
    pub(super) fn run(mut self, mut waiting: Receiver<Queued>) {
        let mut batch = Vec::new();
        while let Some(first) = waiting.blocking_recv() {
            let mut ops = first.transaction.ops.len();
            batch.push(first);
            while batch.len() < BATCH_MAX && ops < BATCH_OPS {
                let Ok(next) = waiting.try_recv() else { break };
                ops += next.transaction.ops.len();
                batch.push(next);
            }
            if let Err(error) = self.commit(&mut batch) {
                tracing::error!(%error, "store: cannot write; registrations and changes are refused until it can");
                self.shared.set_trouble(Some(error.to_string()));
                batch.drain(..).for_each(|queued| queued.refuse(&error));
                if !self.recover(&mut waiting) {
                    return;
                }
                tracing::warn!("store: writes again");
                self.shared.set_trouble(None);
            }
        }
    }

    fn commit(&mut self, batch: &mut Vec<Queued>) -> Result<(), StoreError> {
        let Written { revision, answers, commits } =
            self.shared.read(|database| self.write(database, batch))?;
        self.revision = revision;
        self.log.append(commits);
        for (queued, answer) in batch.drain(..).zip(answers) {
            // A caller that stopped waiting has nothing more to learn.
            drop(queued.done.send(answer));
        }
        Ok(())
    }

    fn write(&self, database: &Database, batch: &[Queued]) -> Result<Written, StoreError> {
        let path = &self.shared.path;
        let failed = |error: &dyn std::fmt::Display| unavailable(path, error);
        let mut write = database.begin_write().map_err(|error| failed(&error))?;
        write.set_quick_repair(true);
        let mut revision = self.revision;
        let (mut answers, mut commits) = (Vec::with_capacity(batch.len()), Vec::new());
        {
            let mut values = write.open_table(VALUES).map_err(|error| failed(&error))?;
            for Queued { transaction, .. } in batch {
                match conflict(&values, &transaction.preconditions, path)? {
                    Some(conflict) => answers.push(Err(conflict)),
                    None if transaction.ops.is_empty() => answers.push(Ok(revision)),
                    None => {
                        revision += 1;
                        for Op { key, value } in &transaction.ops {
                            let key = key.to_string();
                            match value {
                                Some(value) => values
                                    .insert(key.as_str(), seal(&key, revision, value).as_slice())
                                    .map(drop),
                                None => values.remove(key.as_str()).map(drop),
                            }
                            .map_err(|error| failed(&error))?;
                        }
                        answers.push(Ok(revision));
                        commits.push(Arc::new(Commit { revision, ops: transaction.ops.clone() }));
                    }
                }
            }
        }
        if revision == self.revision {
            write.abort().map_err(|error| failed(&error))?;
        } else {
            write_revision(&write, path, revision)?;
            write.commit().map_err(|error| failed(&error))?;
        }
        Ok(Written { revision, answers, commits })
    }

    /// Opens the file again and again until it can be written, and refuses whoever comes meanwhile.
    /// `false`: nobody can come any more.
    fn recover(&mut self, waiting: &mut Receiver<Queued>) -> bool {
        let mut looks = RETRY_LOOKS.0;
        loop {
            let trouble = StoreError::Unavailable(self.shared.trouble().unwrap_or_default());
            for _ in 0..looks {
                loop {
                    match waiting.try_recv() {
                        Ok(queued) => queued.refuse(&trouble),
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return false,
                    }
                }
                std::thread::park_timeout(LOOK_EVERY);
            }
            match self.reopen() {
                Ok(()) => return true,
                Err(error) => self.shared.set_trouble(Some(error.to_string())),
            }
            looks = (looks * 2).min(RETRY_LOOKS.1);
        }
    }

    /// Opens the file again, and sees whether it can be written. redb writes nothing more after an error.
    fn reopen(&mut self) -> Result<(), StoreError> {
        let Shared { path, epoch, database, .. } = &*self.shared;
        let mut place = database.write().unwrap_or_else(PoisonError::into_inner);
        *place = None; // it is locked while it is open
        let (opened, revision) = guarded(path, || {
            let opened = open_checked(path)?;
            let (_, revision) = read_meta(&opened, path)?;
            let write = opened.begin_write().map_err(|error| unavailable(path, &error))?;
            write_revision(&write, path, revision)?;
            write.commit().map_err(|error| unavailable(path, &error))?;
            Ok((opened, revision))
        })?;
        *place = Some(opened);
        drop(place);
        if revision != self.revision {
            // What was refused has reached the disk nevertheless: everybody looks again.
            self.revision = revision;
            self.log.reset(Position { epoch: Arc::clone(epoch), revision });
        }
        Ok(())
    }
}

impl Queued {
    fn refuse(self, error: &StoreError) {
        drop(self.done.send(Err(error.clone())));
    }
}

fn write_revision(write: &::redb::WriteTransaction, path: &Path, revision: u64) -> Result<(), StoreError> {
    let mut meta = write.open_table(META).map_err(|error| unavailable(path, &error))?;
    let sealed = seal("revision", FORMAT, &revision.to_le_bytes());
    meta.insert("revision", sealed.as_slice()).map(drop).map_err(|error| unavailable(path, &error))
}

fn conflict(
    values: &impl ReadableTable<&'static str, &'static [u8]>,
    preconditions: &[Precondition],
    path: &Path,
) -> Result<Option<StoreError>, StoreError> {
    for Precondition { key, revision } in preconditions {
        let name = key.to_string();
        let found = match values.get(name.as_str()).map_err(|error| storage(path, error))? {
            Some(sealed) => Some(unseal(path, &name, sealed.value())?.0),
            None => None,
        };
        if found != *revision {
            return Ok(Some(StoreError::Conflict { key: key.clone(), wanted: *revision, found }));
        }
    }
    Ok(None)
}
