//! The copy on disk: what a registry serves that starts while etcd is away.
//!
//! Lines of JSON with a checksum, as a snapshot, but with the revision of each value, so that etcd's
//! watch goes on from there. As secret as the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pillion_net::tls::{hex, sha256};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::mirror::Mirror;
use super::{EtcdStore, Position, Space, State, Store};
use crate::store::Entry;
use crate::store::snapshot::write_private;

/// How often a copy that has changed is written.
const EVERY: Duration = Duration::from_secs(60);
const FORMAT: &str = "pillion-etcd-copy/1";

#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    epoch: String,
    revision: u64,
    /// Of the lines that follow.
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    revision: u64,
    /// Base64.
    value: String,
}

/// Reads a copy; `None` if there is none that can be used.
pub(super) fn read(path: &Path) -> Option<Mirror> {
    let text = std::fs::read_to_string(path).ok()?;
    let copy = parse(&text);
    if copy.is_none() {
        tracing::warn!(path = %path.display(), "etcd: the copy on disk is damaged and not used");
    }
    copy
}

fn parse(text: &str) -> Option<Mirror> {
    let (head, lines) = text.split_once('\n')?;
    let head: Head = serde_json::from_str(head).ok()?;
    if head.format != FORMAT || head.sha256 != hex(&sha256(lines.as_bytes())) {
        return None;
    }
    let mut entries = BTreeMap::new();
    for line in lines.lines() {
        let Line { key, revision, value } = serde_json::from_str(line).ok()?;
        entries.insert(key.parse().ok()?, Entry { revision, value: STANDARD.decode(value).ok()?.into() });
    }
    Some(Mirror { at: Position { epoch: head.epoch.into(), revision: head.revision }, entries })
}

fn to_text(state: &State) -> String {
    let mut lines = String::new();
    for (key, Entry { revision, value }) in &state.entries {
        // Who is there now says nothing about who is there later.
        if key.space != Space::Replica {
            let line = Line { key: key.to_string(), revision: *revision, value: STANDARD.encode(value) };
            lines += &serde_json::to_string(&line).expect("text keys and no failing serializers");
            lines.push('\n');
        }
    }
    let head = Head {
        format: FORMAT.to_owned(),
        epoch: state.at.epoch.to_string(),
        revision: state.at.revision,
        sha256: hex(&sha256(lines.as_bytes())),
    };
    let head = serde_json::to_string(&head).expect("text keys and no failing serializers");
    format!("{head}\n{lines}")
}

impl EtcdStore {
    /// Keeps the copy on disk until `stop`, and writes it a last time then.
    pub(super) async fn keep_copy(&self, path: PathBuf, stop: &CancellationToken) {
        let mut written: Option<Position> = None;
        loop {
            let at = self.position();
            if written.as_ref() != Some(&at)
                && let Ok(state) = self.load().await
            {
                let path = path.clone();
                let write = move || write_private(&path, &to_text(&state));
                match tokio::task::spawn_blocking(write).await {
                    Ok(Ok(())) => written = Some(at),
                    Ok(Err(error)) => tracing::warn!(%error, "etcd: the copy on disk was not written"),
                    Err(error) => tracing::warn!(%error, "etcd: the copy on disk was not written"),
                }
            }
            if stop.is_cancelled() {
                return;
            }
            // At the end once more.
            let _ = stop.run_until_cancelled(tokio::time::sleep(EVERY)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    #[test]
    fn a_copy_comes_back_whole_or_not_at_all() {
        let entry = |revision, value: &'static [u8]| Entry { revision, value: value.into() };
        let entries = BTreeMap::from([
            (Key::new(Space::Ca, "root"), entry(3, b"\0\xff")),
            (Key::new(Space::Meta, "x"), entry(7, b"")),
        ]);
        let mut state = State { at: Position { epoch: "e".into(), revision: 9 }, entries: entries.clone() };
        state.entries.insert(Key::new(Space::Replica, "a"), entry(8, b"here"));
        let text = to_text(&state);
        let copy = parse(&text).expect("reads");
        assert_eq!((copy.at, copy.entries), (state.at, entries));
        for cut in 0..text.len() - 1 {
            assert!(parse(&text[..cut]).is_none(), "cut at {cut}");
        }
    }
}
