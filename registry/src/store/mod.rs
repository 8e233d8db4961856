//! What must survive a restart: resources, instances, indexes, the authority's material, tokens.
//!
//! A store is a map of small values with one revision that rises with what is committed; transactions
//! that were made durable together may share one, and gaps mean nothing. Three operations: [`Store::load`], [`Store::commit`], [`Store::watch`]. Beats
//! never come here. Every engine passes one suite of tests, `conformance`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod crash;
mod engine;
pub mod etcd;
mod log;
#[cfg(test)]
pub(crate) mod memory;
mod open;
pub mod redb;
pub mod snapshot;

#[cfg(test)]
mod tests;

pub use engine::{Engine, EngineError, EngineTls, EngineTlsError};
pub use log::{Compacted, Watch};
pub use open::{OpenError, Opened, StoreOptions, fill, open, read};

/// Writes of one transaction, where the engine knows no limit of its own: what is written together
/// is also held in memory together, for followers.
const OPS_MAX: usize = 3072;

/// A durable map with revisions.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads everything, as of one revision.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store cannot be read or is damaged.
    async fn load(&self) -> Result<State, StoreError>;

    /// Reads one family of keys, as of one revision.
    ///
    /// # Errors
    ///
    /// As [`Store::load`].
    async fn load_space(&self, space: Space) -> Result<State, StoreError> {
        let mut state = self.load().await?;
        state.entries.retain(|key, _| key.space == space);
        Ok(state)
    }

    /// Applies all of a transaction or nothing, durably, and returns its revision. Of several writes
    /// to one key the last one stands.
    ///
    /// # Errors
    ///
    /// [`StoreError::Conflict`] if a precondition does not hold: nothing was changed.
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError>;

    /// The last revision that followers can have seen. After a [`StoreError::Conflict`] it includes
    /// what was in conflict.
    fn position(&self) -> Position;

    /// Follows the commits after `from`, each once and in order.
    fn watch(&self, from: &Position) -> Watch;

    /// The name of this process among those that share the store; empty if nobody shares it.
    fn replica(&self) -> &str {
        ""
    }

    /// Writes of one transaction at most, and conditions.
    fn ops_max(&self) -> usize {
        OPS_MAX
    }

    /// Why nothing can be written at the moment, as far as is known.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// A moment of a store's history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Random name of the history: revisions of different epochs cannot be compared.
    pub epoch: Arc<str>,
    /// The last committed transaction.
    pub revision: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

/// Families of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Resources as applied: `<kind>/<namespace>/<name>`.
    Resource,
    /// Services that are known: `<namespace>/<service>`.
    Service,
    /// Service indexes, so that two services never share one: the number.
    Index,
    /// Instances and the traces of instances that left: `<namespace>/<service>/<id>`.
    Instance,
    /// The certificate authority's material, opaque here.
    Ca,
    /// Join tokens, opaque here.
    Token,
    /// What other meshes export to us: `<trust-domain>`.
    Federation,
    /// Single values of the registry itself.
    Meta,
    /// The registries that share the store, each for as long as it is there: `<id>`.
    Replica,
}

impl Space {
    const ALL: [Self; 9] = [
        Self::Resource,
        Self::Service,
        Self::Index,
        Self::Instance,
        Self::Ca,
        Self::Token,
        Self::Federation,
        Self::Meta,
        Self::Replica,
    ];

    /// The word in front of the key.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Service => "service",
            Self::Index => "index",
            Self::Instance => "instance",
            Self::Ca => "ca",
            Self::Token => "token",
            Self::Federation => "federation",
            Self::Meta => "meta",
            Self::Replica => "replica",
        }
    }
}

/// A key: `<space>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The family.
    pub space: Space,
    /// The rest of the key.
    pub name: String,
}

impl Key {
    /// Makes a key.
    pub fn new(space: Space, name: impl Into<String>) -> Self {
        Self { space, name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.space.as_str(), self.name)
    }
}

impl FromStr for Key {
    type Err = UnknownSpace;

    fn from_str(text: &str) -> Result<Self, UnknownSpace> {
        let unknown = || UnknownSpace(text.to_owned());
        let (space, name) = text.split_once('/').ok_or_else(unknown)?;
        let space = Space::ALL.into_iter().find(|s| s.as_str() == space).ok_or_else(unknown)?;
        Ok(Self::new(space, name))
    }
}

/// A key of a family this version does not know.
#[derive(Debug, thiserror::Error)]
#[error("key `{0}` is of no known family")]
pub struct UnknownSpace(String);

/// A value with the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The transaction that last wrote the key.
    pub revision: u64,
    /// The value.
    pub value: Bytes,
}

/// Everything in the store as of one revision.
#[derive(Clone, Debug)]
pub struct State {
    /// When.
    pub at: Position,
    /// All keys.
    pub entries: BTreeMap<Key, Entry>,
}

impl State {
    /// The entries of one family, in order of their names.
    pub fn space(&self, space: Space) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .range(Key::new(space, "")..)
            .take_while(move |(key, _)| key.space == space)
            .map(|(key, entry)| (key.name.as_str(), entry))
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// What to write.
    pub key: Key,
    /// The new value; `None` removes the key.
    pub value: Option<Bytes>,
}

impl Op {
    /// Writes a value.
    pub fn put(key: Key, value: impl Into<Bytes>) -> Self {
        Self { key, value: Some(value.into()) }
    }

    /// Removes a key; nothing happens if it is absent.
    pub fn delete(key: Key) -> Self {
        Self { key, value: None }
    }
}

/// What must hold for a transaction to apply: the key was last written by `revision`, or, with
/// `None`, is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    /// The key looked at.
    pub key: Key,
    /// Revision of its last write; `None`: absent.
    pub revision: Option<u64>,
}

/// Writes that apply together, if all preconditions hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// Applied in order.
    pub ops: Vec<Op>,
}

impl Transaction {
    /// Adds a write.
    pub fn push(&mut self, op: Op) -> &mut Self {
        self.ops.push(op);
        self
    }

    /// Demands that `key` was last written by `revision`, or is absent.
    pub fn require(&mut self, key: Key, revision: Option<u64>) -> &mut Self {
        self.preconditions.push(Precondition { key, revision });
        self
    }
}

/// What was committed together: a transaction, or several that do not touch each other's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its revision.
    pub revision: u64,
    /// What it wrote.
    pub ops: Vec<Op>,
}

/// Why a store could not be opened, read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A precondition did not hold; nothing was changed.
    #[error("`{key}` was changed meanwhile (wanted {}, found {})", at(*.wanted), at(*.found))]
    Conflict {
        /// The key of the precondition.
        key: Key,
        /// The revision that was wanted.
        wanted: Option<u64>,
        /// The revision found.
        found: Option<u64>,
    },
    /// The file is damaged.
    #[error(
        "store file {} is damaged: {detail}; nothing was removed from it. Restore it from a backup, or \
         move it aside to start with an empty store (certificates, tokens and resources in it are then lost)",
        .path.display()
    )]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Another process uses the data directory.
    #[error(
        "data directory {} is in use by another registry ({holder}); stop it, or choose another \
         with --data-dir",
        .directory.display()
    )]
    Locked {
        /// The directory.
        directory: PathBuf,
        /// What is known about the other process.
        holder: String,
    },
    /// The file was written by a version this one cannot read.
    #[error("store file {} has format {found}; this version reads format {want}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: String,
        /// The format this version reads.
        want: u64,
    },
    /// A value is intact, but says something this version does not understand.
    #[error("the store's `{key}` cannot be read by this version: {detail}; start the version that wrote it")]
    Unreadable {
        /// The value's key.
        key: Key,
        /// What is not understood.
        detail: String,
    },
    /// Something is kept beside ours that is not ours, or not of this version.
    #[error(
        "`{key}` is of no known family: a newer version wrote it (start that one), or something else uses \
         the prefix (move it, or choose another prefix with --store)"
    )]
    Foreign {
        /// The whole key, as the engine has it.
        key: String,
    },
    /// Another mesh is kept where ours would be.
    #[error(
        "prefix `{prefix}` lies within `{other}`, where another mesh is kept; choose another with --store"
    )]
    Overlap {
        /// The prefix that was wanted.
        prefix: String,
        /// The one that is taken.
        other: String,
    },
    /// The environment refused.
    #[error("{what} {}: {source}", .path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: Arc<std::io::Error>,
    },
    /// The transaction is larger than the store takes; nothing was changed.
    #[error("the change is too large for the store: {0}")]
    TooLarge(String),
    /// The store cannot write now, or has been closed. Whether the transaction was carried out may be
    /// unknown.
    #[error("the store does not accept writes: {0}")]
    Unavailable(String),
}

/// A name for a history that no other has.
fn random_epoch() -> Result<String, aws_lc_rs::error::Unspecified> {
    let mut bytes = [0; 6];
    aws_lc_rs::rand::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn at(revision: Option<u64>) -> String {
    revision.map_or_else(|| "it to be absent".to_owned(), |revision| format!("revision {revision}"))
}
