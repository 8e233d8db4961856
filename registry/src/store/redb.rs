//! The embedded engine: one redb file, one writer thread, group commit.
//!
//! Transactions queue up while one is being made durable and are then committed together: one
//! fsync for all of them, each with its own revision. A commit is acknowledged only when it is on
//! disk. Every value carries a checksum, so that damage is found when it is read.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use ::redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition, TableError,
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::log::{Log, Watch};
use super::{
    Commit, Entry, Key, Op, Position, Precondition, State, Store, StoreError, Transaction, random_epoch,
};

/// The store's file in the data directory.
pub const FILE_NAME: &str = "registry.redb";
const LOCK_NAME: &str = "lock";
/// Layout of what we keep in the tables.
const FORMAT: u64 = 1;
/// Transactions made durable together at most, and writes of theirs after which no further one is added.
const BATCH_MAX: usize = 4096;
const BATCH_OPS: usize = 8192;
/// Transactions that may wait; further callers wait for a place.
const QUEUE_MAX: usize = 4096;
/// redb's page cache. The registry reads the file once and then lives from memory.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// A store in one file, used by one process.
pub struct RedbStore {
    database: Arc<Database>,
    path: Arc<Path>,
    epoch: Arc<str>,
    log: Arc<Log>,
    queue: Option<mpsc::Sender<Queued>>,
    writer: Option<JoinHandle<()>>,
    /// Held for as long as the store is open.
    _lock: File,
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
        let database = Arc::new(database);
        let epoch: Arc<str> = epoch.into();
        let log = Log::new(Position { epoch: Arc::clone(&epoch), revision });
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let writer = Writer {
            database: Arc::clone(&database),
            path: Arc::clone(&path),
            log: Arc::clone(&log),
            revision,
        };
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(|error| io("start the writer thread for", &path, error))?;
        Ok(Self { database, path, epoch, log, queue: Some(queue), writer: Some(writer), _lock: lock })
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
        let (database, path, epoch) =
            (Arc::clone(&self.database), Arc::clone(&self.path), Arc::clone(&self.epoch));
        let load = move || guarded(&path, || read_all(&database, &path, epoch));
        tokio::task::spawn_blocking(load)
            .await
            .unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
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
}

/// The one writer: lives on its own thread because commits wait for the disk.
struct Writer {
    database: Arc<Database>,
    path: Arc<Path>,
    log: Arc<Log>,
    revision: u64,
}

impl Writer {
    fn run(mut self, mut waiting: mpsc::Receiver<Queued>) {
        let mut batch = Vec::new();
        while let Some(first) = waiting.blocking_recv() {
            let mut ops = first.transaction.ops.len();
            batch.push(first);
            while batch.len() < BATCH_MAX && ops < BATCH_OPS {
                let Ok(next) = waiting.try_recv() else { break };
                ops += next.transaction.ops.len();
                batch.push(next);
            }
            self.commit(&mut batch);
        }
    }

    fn commit(&mut self, batch: &mut Vec<Queued>) {
        let path = Arc::clone(&self.path);
        match guarded(&path, || self.write(batch)) {
            Ok((revision, answers, commits)) => {
                self.revision = revision;
                self.log.append(commits);
                for (queued, answer) in batch.drain(..).zip(answers) {
                    // A caller that stopped waiting has nothing more to learn.
                    drop(queued.done.send(answer));
                }
            }
            Err(error) => {
                tracing::error!(%error, "store: transactions were not written");
                for queued in batch.drain(..) {
                    drop(queued.done.send(Err(error.clone())));
                }
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "the parts of one answer, taken apart at once by the caller")]
    fn write(
        &self,
        batch: &[Queued],
    ) -> Result<(u64, Vec<Result<u64, StoreError>>, Vec<Arc<Commit>>), StoreError> {
        let failed = |error: &dyn std::fmt::Display| unavailable(&self.path, error);
        let mut write = self.database.begin_write().map_err(|error| failed(&error))?;
        write.set_quick_repair(true);
        let mut revision = self.revision;
        let (mut answers, mut commits) = (Vec::with_capacity(batch.len()), Vec::new());
        {
            let mut values = write.open_table(VALUES).map_err(|error| failed(&error))?;
            for Queued { transaction, .. } in batch {
                match conflict(&values, &transaction.preconditions, &self.path)? {
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
            {
                let mut meta = write.open_table(META).map_err(|error| failed(&error))?;
                let sealed = seal("revision", FORMAT, &revision.to_le_bytes());
                meta.insert("revision", sealed.as_slice()).map_err(|error| failed(&error))?;
            }
            write.commit().map_err(|error| failed(&error))?;
        }
        Ok((revision, answers, commits))
    }
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

/// A value as it is kept: revision, checksum over key, revision and value, value.
fn seal(key: &str, revision: u64, value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(16 + value.len());
    sealed.extend_from_slice(&revision.to_le_bytes());
    sealed.extend_from_slice(&checksum(key, revision, value).to_le_bytes());
    sealed.extend_from_slice(value);
    sealed
}

fn unseal<'a>(path: &Path, key: &str, sealed: &'a [u8]) -> Result<(u64, &'a [u8]), StoreError> {
    let parts = sealed.split_first_chunk::<8>().and_then(|(revision, rest)| {
        let (sum, value) = rest.split_first_chunk::<8>()?;
        Some((u64::from_le_bytes(*revision), u64::from_le_bytes(*sum), value))
    });
    match parts {
        Some((revision, sum, value)) if checksum(key, revision, value) == sum => Ok((revision, value)),
        _ => Err(corrupted(path, format_args!("the value of `{key}` does not match its checksum"))),
    }
}

fn checksum(key: &str, revision: u64, value: &[u8]) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(key.as_bytes());
    hash.update(&revision.to_le_bytes());
    hash.update(value);
    hash.digest()
}

/// Makes the file under another name and renames it when it is complete, so that an empty or half
/// written file is always damage and never a beginning.
fn create(path: &Path) -> Result<(), StoreError> {
    let unfinished = path.with_extension("new");
    match std::fs::remove_file(&unfinished) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("remove", &unfinished, error)),
    }
    let failed = |error: &dyn std::fmt::Display| unavailable(&unfinished, error);
    let database = Database::builder().create(&unfinished).map_err(|error| failed(&error))?;
    restrict(&unfinished)?;
    let write = database.begin_write().map_err(|error| failed(&error))?;
    {
        write.open_table(VALUES).map_err(|error| failed(&error))?;
        let mut meta = write.open_table(META).map_err(|error| failed(&error))?;
        let epoch = random_epoch().map_err(|error| failed(&error))?;
        for (name, value) in [
            ("format", &FORMAT.to_le_bytes()[..]),
            ("epoch", epoch.as_bytes()),
            ("revision", &0u64.to_le_bytes()[..]),
        ] {
            meta.insert(name, seal(name, FORMAT, value).as_slice()).map_err(|error| failed(&error))?;
        }
    }
    write.commit().map_err(|error| failed(&error))?;
    drop(database);
    std::fs::rename(&unfinished, path).map_err(|error| io("rename", &unfinished, error))?;
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    File::open(directory).and_then(|d| d.sync_all()).map_err(|error| io("sync", directory, error))
}

fn open_checked(path: &Path) -> Result<Database, StoreError> {
    let mut database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .open(path)
        .map_err(|error| database_error(path, error))?;
    if !database.check_integrity().map_err(|error| database_error(path, error))? {
        tracing::warn!(path = %path.display(), "store: the file was repaired to its last intact commit");
    }
    Ok(database)
}

fn read_meta(database: &Database, path: &Path) -> Result<(String, u64), StoreError> {
    let read = database.begin_read().map_err(|error| unavailable(path, &error))?;
    let meta = read.open_table(META).map_err(|error| table(path, error))?;
    let value = |name: &str| -> Result<Vec<u8>, StoreError> {
        let sealed = meta
            .get(name)
            .map_err(|error| storage(path, error))?
            .ok_or_else(|| corrupted(path, format_args!("`{name}` is missing")))?;
        Ok(unseal(path, name, sealed.value())?.1.to_vec())
    };
    let number = |name: &str| -> Result<u64, StoreError> {
        let bytes = value(name)?;
        let bytes = <[u8; 8]>::try_from(bytes.as_slice());
        bytes.map(u64::from_le_bytes).map_err(|_| corrupted(path, format_args!("`{name}` is not a number")))
    };
    let found = number("format")?;
    if found != FORMAT {
        return Err(StoreError::Format { path: path.into(), found: found.to_string(), want: FORMAT });
    }
    let epoch = String::from_utf8(value("epoch")?);
    Ok((epoch.map_err(|_| corrupted(path, format_args!("`epoch` is not text")))?, number("revision")?))
}

fn read_all(database: &Database, path: &Path, epoch: Arc<str>) -> Result<State, StoreError> {
    let read = database.begin_read().map_err(|error| unavailable(path, &error))?;
    let meta = read.open_table(META).map_err(|error| table(path, error))?;
    let sealed = meta
        .get("revision")
        .map_err(|error| storage(path, error))?
        .ok_or_else(|| corrupted(path, format_args!("`revision` is missing")))?;
    let (_, revision) = unseal(path, "revision", sealed.value())?;
    let revision = <[u8; 8]>::try_from(revision)
        .map(u64::from_le_bytes)
        .map_err(|_| corrupted(path, format_args!("`revision` is not a number")))?;
    let values = read.open_table(VALUES).map_err(|error| table(path, error))?;
    let mut entries = std::collections::BTreeMap::new();
    for item in values.iter().map_err(|error| storage(path, error))? {
        let (key, sealed) = item.map_err(|error| storage(path, error))?;
        let (revision, value) = unseal(path, key.value(), sealed.value())?;
        let parsed: Key = key.value().parse().map_err(|error| corrupted(path, format_args!("{error}")))?;
        entries.insert(parsed, Entry { revision, value: Bytes::copy_from_slice(value) });
    }
    Ok(State { at: Position { epoch, revision }, entries })
}

/// Takes the directory for this process; the kernel lets go of it when the process ends.
pub(super) fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join(LOCK_NAME);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| io("open", &path, error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: who holds the lock is told by the kernel, not by the text.
            drop(file.read_to_string(&mut holder));
            let holder = match holder.trim() {
                "" => "unknown process".to_owned(),
                pid => format!("process {pid}"),
            };
            return Err(StoreError::Locked { directory: directory.into(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(io("lock", &path, error)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(std::process::id().to_string().as_bytes()))
        .map_err(|error| io("write", &path, error))?;
    Ok(file)
}

pub(super) fn create_private_directory(directory: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| io("create data directory", directory, error))
}

/// Only the owner may read: the file holds the authority's key.
fn restrict(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| io("restrict the permissions of", path, error))
}

/// redb asserts some of what it reads: a panic while reading a file is damage too.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unreadable");
        Err(corrupted(path, format_args!("{text}")))
    })
}

fn database_error(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::Storage(error) => storage(path, error),
        DatabaseError::DatabaseAlreadyOpen => StoreError::Locked {
            directory: path.parent().map(PathBuf::from).unwrap_or_default(),
            holder: "the store file is open elsewhere".to_owned(),
        },
        DatabaseError::UpgradeRequired(version) => {
            StoreError::Format { path: path.into(), found: format!("redb {version}"), want: FORMAT }
        }
        other => corrupted(path, format_args!("{other}")),
    }
}

fn storage(path: &Path, error: StorageError) -> StoreError {
    match error {
        StorageError::Corrupted(detail) => corrupted(path, format_args!("{detail}")),
        // What redb says of a file that does not begin as its files do, or ends too early.
        StorageError::Io(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            corrupted(path, format_args!("{error}"))
        }
        StorageError::Io(error) => io("use", path, error),
        other => unavailable(path, &other),
    }
}

fn table(path: &Path, error: TableError) -> StoreError {
    match error {
        TableError::Storage(error) => storage(path, error),
        other => corrupted(path, format_args!("{other}")),
    }
}

fn corrupted(path: &Path, detail: std::fmt::Arguments<'_>) -> StoreError {
    StoreError::Corrupted { path: path.into(), detail: detail.to_string() }
}

fn unavailable(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

pub(super) fn io(what: &'static str, path: &Path, error: std::io::Error) -> StoreError {
    StoreError::Io { what, path: path.into(), source: Arc::new(error) }
}
