//! The file: how it is made, checked, locked and read, and how values stand in it.

use std::cell::Cell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use ::redb::{
    AccessGuard, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError,
};
use bytes::Bytes;

use crate::store::{Entry, Key, Position, Space, State, StoreError, random_epoch};

const LOCK_NAME: &str = "lock";
/// Layout of what we keep in the tables.
pub(super) const FORMAT: u64 = 1;
/// redb's page cache. The registry reads the file once and then lives from memory.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

pub(super) const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// A value as it is kept: revision, checksum over key, revision and value, value.
pub(super) fn seal(key: &str, revision: u64, value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(16 + value.len());
    sealed.extend_from_slice(&revision.to_le_bytes());
    sealed.extend_from_slice(&checksum(key, revision, value).to_le_bytes());
    sealed.extend_from_slice(value);
    sealed
}

pub(super) fn unseal<'a>(path: &Path, key: &str, sealed: &'a [u8]) -> Result<(u64, &'a [u8]), StoreError> {
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
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
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

pub(super) fn open_checked(path: &Path) -> Result<Database, StoreError> {
    let mut database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .open(path)
        .map_err(|error| database_error(path, error))?;
    if !database.check_integrity().map_err(|error| database_error(path, error))? {
        tracing::warn!(path = %path.display(), "store: the file was repaired to its last intact commit");
    }
    Ok(database)
}

pub(super) fn read_meta(database: &Database, path: &Path) -> Result<(String, u64), StoreError> {
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

/// Everything, or one family.
pub(super) fn read_state(
    database: &Database,
    path: &Path,
    epoch: Arc<str>,
    space: Option<Space>,
) -> Result<State, StoreError> {
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
    let found = match space {
        None => values.iter(),
        // What follows a slash is a zero.
        Some(space) => {
            values.range(format!("{}/", space.as_str()).as_str()..format!("{}0", space.as_str()).as_str())
        }
    };
    let entry = |(key, sealed): (AccessGuard<'_, &str>, AccessGuard<'_, &[u8]>)| {
        let (revision, value) = unseal(path, key.value(), sealed.value())?;
        let key: Key = key.value().parse().map_err(|error| corrupted(path, format_args!("{error}")))?;
        Ok((key, Entry { revision, value: Bytes::copy_from_slice(value) }))
    };
    let found = found.map_err(|error| storage(path, error))?;
    let entries = found.map(|item| entry(item.map_err(|error| storage(path, error))?));
    Ok(State { at: Position { epoch, revision }, entries: entries.collect::<Result<_, StoreError>>()? })
}

/// Takes the directory for this process; the kernel lets go of it when the process ends.
pub(in crate::store) fn lock(directory: &Path) -> Result<File, StoreError> {
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

pub(in crate::store) fn create_private_directory(directory: &Path) -> Result<(), StoreError> {
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

/// redb asserts some of what it reads: a panic while reading a file is damage too, and told as such.
pub(super) fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    static SILENCED: Once = Once::new();
    SILENCED.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !READING.get() {
                others(info);
            }
        }));
    });
    READING.set(true);
    let done = catch_unwind(AssertUnwindSafe(read));
    READING.set(false);
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        let text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        Err(corrupted(path, format_args!("its pages contradict each other (redb: {text})")))
    })
}

thread_local! {
    /// Whether this thread reads a file that may be damaged.
    static READING: Cell<bool> = const { Cell::new(false) };
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

pub(super) fn storage(path: &Path, error: StorageError) -> StoreError {
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

pub(super) fn unavailable(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

pub(in crate::store) fn io(what: &'static str, path: &Path, error: std::io::Error) -> StoreError {
    StoreError::Io { what, path: path.into(), source: Arc::new(error) }
}
