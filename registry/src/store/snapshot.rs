//! The whole store as a file: to keep, to move to another machine, or to another engine.
//!
//! Lines of JSON: a head, one line per key in order, and a sum over everything before it. A file
//! that was cut or changed is refused. It holds the authority's key and is as secret as the store.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pillion_net::tls::{hex, sha256};
use serde::{Deserialize, Serialize};

use super::{Key, Op, Space, State, Store, StoreError, Transaction};

/// Written by this version.
const FORMAT: &str = "pillion-snapshot/1";
/// Keys written to a store at once: etcd takes 128 operations.
const KEYS_AT_ONCE: usize = 100;

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The history it was taken from; a store that is filled from it begins another.
    pub epoch: String,
    /// The revision it is as of.
    pub revision: u64,
    /// Every key but those of running replicas.
    pub entries: BTreeMap<Key, Bytes>,
}

/// Why a text is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It is not one, or of another version.
    #[error("this is no snapshot of a store: {0}")]
    Format(String),
    /// It was cut or changed.
    #[error("the snapshot is damaged: {0}; take another one")]
    Damaged(String),
}

/// Why a store was not filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// There is something in it.
    #[error(
        "the store holds {entries} values already, a snapshot goes into an empty one: choose another data \
         directory or prefix"
    )]
    NotEmpty {
        /// How many.
        entries: usize,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    format: String,
    epoch: String,
    revision: u64,
    entries: usize,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    /// Base64.
    value: String,
}

#[derive(Serialize, Deserialize)]
struct Sum {
    sha256: String,
}

impl Snapshot {
    /// What `state` holds.
    pub fn of(state: &State) -> Self {
        let kept = state.entries.iter().filter(|(key, _)| key.space != Space::Replica);
        Self {
            epoch: state.at.epoch.to_string(),
            revision: state.at.revision,
            entries: kept.map(|(key, entry)| (key.clone(), entry.value.clone())).collect(),
        }
    }

    /// As it is written to a file.
    pub fn to_text(&self) -> String {
        let head = Head {
            format: FORMAT.to_owned(),
            epoch: self.epoch.clone(),
            revision: self.revision,
            entries: self.entries.len(),
        };
        let mut text = line(&head);
        for (key, value) in &self.entries {
            text += &line(&Line { key: key.to_string(), value: STANDARD.encode(value) });
        }
        let sum = Sum { sha256: hex(&sha256(text.as_bytes())) };
        text + &line(&sum)
    }

    /// Reads a file's text.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if it is none, or not as it was written.
    pub fn parse(text: &str) -> Result<Self, SnapshotError> {
        let damaged = |what: String| SnapshotError::Damaged(what);
        let first = text.lines().next().unwrap_or_default();
        let head: Head = serde_json::from_str(first)
            .map_err(|error| SnapshotError::Format(format!("its first line: {error}")))?;
        if head.format != FORMAT {
            return Err(SnapshotError::Format(format!("it is a {}, want a {FORMAT}", head.format)));
        }
        let body = text.trim_end_matches('\n');
        let (body, last) = body.rsplit_once('\n').ok_or_else(|| damaged("it ends early".to_owned()))?;
        let sum: Sum =
            serde_json::from_str(last).map_err(|_| damaged("its last line is missing".to_owned()))?;
        let body = format!("{body}\n");
        if sum.sha256 != hex(&sha256(body.as_bytes())) {
            return Err(damaged("its content does not match its sum".to_owned()));
        }
        let mut entries = BTreeMap::new();
        for (at, text) in body.lines().enumerate().skip(1) {
            let wrong = |what: String| damaged(format!("line {}: {what}", at + 1));
            let Line { key, value } = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
            let key = key.parse().map_err(|error: super::UnknownSpace| {
                SnapshotError::Format(format!("line {}: {error}; a newer version wrote it", at + 1))
            })?;
            let value = STANDARD.decode(value).map_err(|error| wrong(error.to_string()))?;
            entries.insert(key, value.into());
        }
        if entries.len() != head.entries {
            return Err(damaged(format!("it has {} values, want {}", entries.len(), head.entries)));
        }
        Ok(Self { epoch: head.epoch, revision: head.revision, entries })
    }

    /// Puts everything into an empty store. The authority comes last: registries that look at the
    /// store take it for theirs only then.
    ///
    /// # Errors
    ///
    /// [`FillError`]; a store that failed half way is to be emptied again.
    pub async fn fill(&self, store: &dyn Store) -> Result<(), FillError> {
        let state = store.load().await?;
        if !state.entries.is_empty() {
            return Err(FillError::NotEmpty { entries: state.entries.len() });
        }
        let (last, first): (Vec<_>, Vec<_>) =
            self.entries.iter().partition(|(key, _)| key.space == Space::Ca);
        for some in first.chunks(KEYS_AT_ONCE).chain(last.chunks(KEYS_AT_ONCE)) {
            let mut transaction = Transaction::default();
            for (key, value) in some {
                transaction.require((*key).clone(), None).push(Op::put((*key).clone(), (*value).clone()));
            }
            store.commit(transaction).await?;
        }
        Ok(())
    }
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
///
/// The file system's.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(partial, path)
}

fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("text keys and no failing serializers");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    async fn filled() -> (MemoryStore, Snapshot) {
        let store = MemoryStore::new("e");
        for (space, name, value) in [
            (Space::Service, "shop/orders", &b"{\"index\":7}"[..]),
            (Space::Ca, "root", b"\0\xff"),
            (Space::Meta, "watch-floor", b""),
            (Space::Replica, "a", b"here"),
        ] {
            let put = Op::put(Key::new(space, name), Bytes::from_static(value));
            store.commit(Transaction { ops: vec![put], ..Default::default() }).await.expect("commits");
        }
        let snapshot = Snapshot::of(&store.load().await.expect("loads"));
        (store, snapshot)
    }

    #[tokio::test]
    async fn a_snapshot_fills_another_store_with_the_same() {
        let (_, snapshot) = filled().await;
        assert_eq!(snapshot.entries.len(), 3, "who is there is not state");
        let read = Snapshot::parse(&snapshot.to_text()).expect("reads");
        assert_eq!(read, snapshot);
        let other = MemoryStore::new("other");
        read.fill(&other).await.expect("fills");
        let again = Snapshot::of(&other.load().await.expect("loads"));
        assert_eq!(again.entries, snapshot.entries);
        assert!(matches!(read.fill(&other).await, Err(FillError::NotEmpty { entries: 3 })));
    }

    #[tokio::test]
    async fn what_was_cut_or_changed_is_refused() {
        let text = filled().await.1.to_text();
        for cut in 0..text.len() - 1 {
            if text.is_char_boundary(cut) {
                Snapshot::parse(&text[..cut]).expect_err("cut");
            }
        }
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(Snapshot::parse(&text).is_err(), "a flipped bit at {at} was not noticed");
            }
        }
    }

    #[test]
    fn files_that_are_no_snapshots_say_so() {
        for (text, want) in [("", "first line"), ("{}", "first line"), ("kind: Mesh\n", "first line")] {
            let error = Snapshot::parse(text).expect_err(text).to_string();
            assert!(error.contains(want), "{error}");
        }
        let newer = "{\"format\":\"pillion-snapshot/9\",\"epoch\":\"e\",\"revision\":1,\"entries\":0}\n";
        assert!(Snapshot::parse(newer).expect_err("newer").to_string().contains("pillion-snapshot/1"));
    }
}
