//! Opening the store that the options name.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::etcd::{EtcdOptions, EtcdStore};
use super::redb::{FILE_NAME, RedbStore, create_private_directory, io, lock};
use super::snapshot::{FillError, Snapshot};
use super::{Engine, EngineTls, EngineTlsError, Store, StoreError, random_epoch};

/// The file with this replica's name, in the data directory.
const REPLICA_FILE: &str = "replica.id";

/// The file with what was last known of etcd, in the data directory.
const COPY_FILE: &str = "etcd.copy";

/// Which store, and what belongs to this process.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// The engine.
    pub engine: Engine,
    /// For the way to etcd.
    pub tls: EngineTls,
    /// Where the embedded engine keeps everything, and etcd's replica its name.
    pub data_dir: PathBuf,
    /// Where others find this registry; for people.
    pub address: String,
}

/// An open store.
pub struct Opened {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Keeps it up to date until it is stopped; must be polled.
    pub run: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// The data directory is this process's for as long as this is held.
    pub lock: Option<File>,
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to read.
    #[error("there is no store: {0}")]
    Missing(String),
    /// A snapshot was not put into it.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// No TLS to etcd.
    #[error("no TLS to etcd")]
    Tls(#[from] EngineTlsError),
}

/// Opens the store, making it if there is none.
///
/// # Errors
///
/// [`OpenError`] names the file, or the member that does not answer.
pub async fn open(options: &StoreOptions, stop: CancellationToken) -> Result<Opened, OpenError> {
    let directory = options.data_dir.clone();
    match &options.engine {
        Engine::Embedded => {
            let store = blocking(move || RedbStore::open(&directory)).await?;
            Ok(Opened { store: Arc::new(store), run: Box::pin(async {}), lock: None })
        }
        Engine::Etcd { members, prefix } => {
            let tls = options.tls.config()?;
            let (replica, lock) = blocking(move || own(&directory)).await?;
            let (members, prefix, address) = (members.clone(), prefix.clone(), options.address.clone());
            let copy = Some(options.data_dir.join(COPY_FILE));
            let options = EtcdOptions { members, prefix, tls, replica, address, copy };
            let (store, run) = EtcdStore::open(options, stop).await?;
            Ok(Opened { store, run: Box::pin(run), lock: Some(lock) })
        }
    }
}

/// What a store holds that no registry of this machine has open.
///
/// # Errors
///
/// [`OpenError`]; among it that there is no store.
pub async fn read(engine: &Engine, tls: &EngineTls, data_dir: &Path) -> Result<Snapshot, OpenError> {
    match engine {
        Engine::Embedded => {
            let file = data_dir.join(FILE_NAME);
            if !file.exists() {
                return Err(OpenError::Missing(file.display().to_string()));
            }
            let directory = data_dir.to_owned();
            let store = blocking(move || RedbStore::open(&directory)).await?;
            Ok(Snapshot::of(&store.load().await?))
        }
        Engine::Etcd { members, prefix } => {
            let found = super::etcd::read(members, prefix, tls.config()?.as_ref()).await?;
            found
                .map(|state| Snapshot::of(&state))
                .ok_or_else(|| OpenError::Missing(format!("`{prefix}` in etcd")))
        }
    }
}

/// Puts a snapshot into an empty store, which begins another history with it.
///
/// # Errors
///
/// [`OpenError`]; among it that the store is not empty.
pub async fn fill(
    engine: &Engine,
    tls: &EngineTls,
    data_dir: &Path,
    snapshot: &Snapshot,
) -> Result<(), OpenError> {
    match engine {
        Engine::Embedded => {
            let directory = data_dir.to_owned();
            let store = blocking(move || RedbStore::open(&directory)).await?;
            Ok(snapshot.fill(&store).await?)
        }
        Engine::Etcd { members, prefix } => {
            let stop = CancellationToken::new();
            let options = EtcdOptions {
                members: members.clone(),
                prefix: prefix.clone(),
                tls: tls.config()?,
                replica: String::new(),
                address: String::new(),
                copy: None,
            };
            let (store, run) = EtcdStore::open(options, stop.clone()).await?;
            let filling = async {
                let filled = snapshot.fill(&*store).await;
                stop.cancel();
                filled
            };
            Ok(tokio::join!(filling, run).0?)
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
}

/// Takes the directory, and reads this replica's name there; makes one at the first start.
fn own(directory: &Path) -> Result<(String, File), StoreError> {
    create_private_directory(directory)?;
    let lock = lock(directory)?;
    let path = directory.join(REPLICA_FILE);
    let name = match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
        Ok(_) => new_name(&path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => new_name(&path)?,
        Err(error) => return Err(io("read", &path, error)),
    };
    Ok((name, lock))
}

fn new_name(path: &Path) -> Result<String, StoreError> {
    let name =
        random_epoch().map_err(|_| StoreError::Unavailable("the system has no random numbers".to_owned()))?;
    std::fs::write(path, format!("{name}\n")).map_err(|error| io("write", path, error))?;
    Ok(name)
}
