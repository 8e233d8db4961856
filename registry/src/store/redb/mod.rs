//! The embedded engine: one redb file, one writer thread, group commit.
//!
//! Transactions queue up while one is being made durable and are then committed together: one
//! fsync for all of them, each with its own revision. A commit is acknowledged only when it is on
//! disk. Every value carries a checksum, so that damage is found when it is read. When the disk
//! refuses, the file is closed, and opened again until writes are possible.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use ::redb::Database;
use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::log::{Log, Watch};
use super::{Position, Space, State, Store, StoreError, Transaction};
use file::{create, guarded, open_checked, read_meta, read_state};
pub(super) use file::{create_private_directory, io, lock};
use writer::Writer;

mod file;
mod writer;

/// The store's file in the data directory.
pub const FILE_NAME: &str = "registry.redb";
/// Transactions that may wait; further callers wait for a place.
const QUEUE_MAX: usize = 4096;

/// A store in one file, used by one process.
pub struct RedbStore {
    shared: Arc<Shared>,
    log: Arc<Log>,
    queue: Option<mpsc::Sender<Queued>>,
    writer: Option<JoinHandle<()>>,
    /// Held for as long as the store is open.
    _lock: File,
}

/// What readers and the writer have in common.
struct Shared {
    path: Arc<Path>,
    epoch: Arc<str>,
    /// `None` while it is closed because the disk refused something.
    database: RwLock<Option<Database>>,
    trouble: Mutex<Option<String>>,
}

struct Queued {
    transaction: Transaction,
    done: oneshot::Sender<Result<u64, StoreError>>,
}

impl RedbStore {
    /// Opens the store in `directory`, making both if they do not exist. Blocks: the file is
    /// checked.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] if another process uses the directory, [`StoreError::Corrupted`] if
    /// the file is damaged, [`StoreError::Io`] if the file system refuses.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        create_private_directory(directory)?;
        let lock = lock(directory)?;
        let path: Arc<Path> = directory.join(FILE_NAME).into();
        if !path.try_exists().map_err(|error| io("look for", &path, error))? {
            create(&path)?;
        }
        let database = guarded(&path, || open_checked(&path))?;
        let (epoch, revision) = guarded(&path, || read_meta(&database, &path))?;
        let epoch: Arc<str> = epoch.into();
        let log = Log::new(Position { epoch: Arc::clone(&epoch), revision });
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let shared = Arc::new(Shared {
            path: Arc::clone(&path),
            epoch,
            database: RwLock::new(Some(database)),
            trouble: Mutex::default(),
        });
        let writer = Writer::new(Arc::clone(&shared), Arc::clone(&log), revision);
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(|error| io("start the writer thread for", &path, error))?;
        Ok(Self { shared, log, queue: Some(queue), writer: Some(writer), _lock: lock })
    }
}

impl RedbStore {
    async fn read(&self, space: Option<Space>) -> Result<State, StoreError> {
        let shared = Arc::clone(&self.shared);
        let epoch = Arc::clone(&shared.epoch);
        let read = move || shared.read(|database| read_state(database, &shared.path, epoch, space));
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }
}

impl Drop for RedbStore {
    /// Waits for what was queued to be on disk.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has answered nobody: its callers saw an error already.
            drop(writer.join());
        }
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn load(&self) -> Result<State, StoreError> {
        self.read(None).await
    }

    async fn load_space(&self, space: Space) -> Result<State, StoreError> {
        self.read(Some(space)).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        if let Some(trouble) = self.trouble() {
            return Err(StoreError::Unavailable(trouble));
        }
        let (done, answer) = oneshot::channel();
        let closed = || StoreError::Unavailable("it has been closed".to_owned());
        let queue = self.queue.as_ref().ok_or_else(closed)?;
        queue.send(Queued { transaction, done }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    fn position(&self) -> Position {
        self.log.latest()
    }

    fn watch(&self, from: &Position) -> Watch {
        self.log.watch(from)
    }

    fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }
}

impl Shared {
    /// Looks at the file, if it is open.
    fn read<T>(&self, look: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match &*database {
            Some(database) => guarded(&self.path, || look(database)),
            None => Err(StoreError::Unavailable(self.trouble().unwrap_or_default())),
        }
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}
