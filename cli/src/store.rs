//! Which store a command works on.

use std::path::{Path, PathBuf};

use anyhow::Context;
use pillion_registry::store::snapshot::Snapshot;
use pillion_registry::store::{self, Engine, EngineTls};

use crate::api::data_directory;

/// The engine, and the way to it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StoreArguments {
    /// Keep state in etcd, shared with other registries, rather than in the data directory:
    /// `etcd://host[:2379],…[/prefix]`.
    #[arg(long, env = "PILLION_STORE", value_name = "URL")]
    store: Option<Engine>,
    /// TLS to etcd: who signs its certificates (PEM).
    #[arg(long, env = "PILLION_STORE_CA", value_name = "FILE", requires = "store")]
    store_ca: Option<PathBuf>,
    /// TLS to etcd: our certificate (PEM).
    #[arg(
        long,
        env = "PILLION_STORE_CERT",
        value_name = "FILE",
        requires = "store_key",
        requires = "store_ca"
    )]
    store_cert: Option<PathBuf>,
    /// TLS to etcd: the key of our certificate (PEM).
    #[arg(long, env = "PILLION_STORE_KEY", value_name = "FILE", requires = "store_cert")]
    store_key: Option<PathBuf>,
}

impl StoreArguments {
    /// The engine these arguments describe.
    pub(crate) fn engine(&self) -> (Engine, EngineTls) {
        let client = self.store_cert.clone().zip(self.store_key.clone());
        (self.store.clone().unwrap_or_default(), EngineTls { ca: self.store_ca.clone(), client })
    }
}

/// A store that no registry has open, or an etcd.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OfflineArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// The data directory of a registry that is stopped.
    #[arg(long, env = "PILLION_DATA_DIR", default_value_os_t = data_directory(), value_name = "DIR")]
    data_dir: PathBuf,
}

impl OfflineArguments {
    /// What the store holds; there must be one.
    pub(crate) async fn read(&self) -> anyhow::Result<Snapshot> {
        let (engine, tls) = self.store.engine();
        Ok(store::read(&engine, &tls, &self.data_dir).await?)
    }

    /// Puts a snapshot into the store, which must be empty.
    pub(crate) async fn fill(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let (engine, tls) = self.store.engine();
        Ok(store::fill(&engine, &tls, &self.data_dir, snapshot).await?)
    }
}

/// Reads a snapshot from a file.
pub(crate) fn read_snapshot(file: &Path) -> anyhow::Result<Snapshot> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Snapshot::parse(&text).with_context(|| file.display().to_string())
}

/// Writes a snapshot to a file that only its owner may read.
pub(crate) fn write_snapshot(file: &Path, text: &str) -> anyhow::Result<()> {
    store::snapshot::write_private(file, text).with_context(|| format!("write {}", file.display()))
}
