//! The suite on the engines that need no other process; the embedded engine's file, and what damage
//! to it looks like.

use std::path::Path;

use super::conformance::put;
use super::memory::MemoryStore;
use super::redb::{FILE_NAME, RedbStore};
use super::*;

mod on_redb {
    use super::*;

    async fn fresh() -> (Arc<RedbStore>, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("tempdir");
        (Arc::new(RedbStore::open(directory.path()).expect("opens")), directory)
    }

    conformance::suite!(fresh);
}

mod in_memory {
    use super::*;

    async fn fresh() -> (Arc<MemoryStore>, ()) {
        (Arc::new(MemoryStore::new("memory")), ())
    }

    conformance::suite!(fresh);
}

#[tokio::test]
async fn the_embedded_engine_counts_by_one_and_keeps_its_history_when_reopened() {
    let directory = tempfile::tempdir().expect("tempdir");
    let epoch = {
        let store = RedbStore::open(directory.path()).expect("opens");
        assert_eq!(store.commit(put("a", "1")).await.expect("commits"), 1);
        assert_eq!(store.commit(put("b", "2")).await.expect("commits"), 2);
        store.load().await.expect("loads").at.epoch
    };
    let store = RedbStore::open(directory.path()).expect("opens again");
    let state = store.load().await.expect("loads");
    assert_eq!(state.at, Position { epoch, revision: 2 });
    let kept: Vec<_> = state.space(Space::Token).map(|(name, entry)| (name, entry.revision)).collect();
    assert_eq!(kept, [("a", 1), ("b", 2)]);
}

#[tokio::test]
async fn what_was_acknowledged_is_there_when_the_process_is_killed() {
    let (directory, killed) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    let store = RedbStore::open(directory.path()).expect("opens");
    for round in 1..=20u64 {
        let writes = (0..10).map(|n| store.commit(put(&format!("{round}-{n}"), "x")));
        for result in futures_util::future::join_all(writes).await {
            result.expect("commits");
        }
        // The file as SIGKILL would leave it at this moment: nothing was closed or flushed.
        std::fs::copy(directory.path().join(FILE_NAME), killed.path().join(FILE_NAME)).expect("copies");
        let after = RedbStore::open(killed.path()).expect("opens after the kill");
        let state = after.load().await.expect("loads");
        assert_eq!((state.at.revision, state.entries.len() as u64), (round * 10, round * 10));
    }
}

#[test]
fn a_second_process_is_told_who_holds_the_directory() {
    let directory = tempfile::tempdir().expect("tempdir");
    let _first = RedbStore::open(directory.path()).expect("opens");
    let error = RedbStore::open(directory.path()).err().expect("locked").to_string();
    let pid = format!("process {}", std::process::id());
    for part in [directory.path().to_str().expect("utf-8"), &pid, "--data-dir"] {
        assert!(error.contains(part), "{error}");
    }
}

async fn filled(directory: &Path) -> Vec<u8> {
    let store = RedbStore::open(directory).expect("opens");
    for n in 0..200 {
        store.commit(put(&format!("key-{n}"), &"v".repeat(300))).await.expect("commits");
    }
    drop(store);
    std::fs::read(directory.join(FILE_NAME)).expect("reads")
}

/// Opens and reads the damaged file; either must name it.
async fn refusal(directory: &Path) -> Option<String> {
    let store = match RedbStore::open(directory) {
        Ok(store) => store,
        Err(error) => return Some(error.to_string()),
    };
    store.load().await.err().map(|error| error.to_string())
}

#[tokio::test]
async fn a_damaged_file_is_refused_by_name_with_what_to_do() {
    let directory = tempfile::tempdir().expect("tempdir");
    let good = filled(directory.path()).await;
    let path = directory.path().join(FILE_NAME);
    let cases: [(&str, Vec<u8>); 4] = [
        ("empty", Vec::new()),
        ("text", b"this is not a store".repeat(400)),
        ("torn", good[..good.len() / 3].to_vec()),
        ("zeroed", {
            let mut bytes = good.clone();
            bytes[4096..].fill(0);
            bytes
        }),
    ];
    for (name, bytes) in cases {
        std::fs::write(&path, bytes).expect("writes");
        let error = refusal(directory.path()).await.unwrap_or_else(|| panic!("{name}: accepted"));
        assert!(error.contains(FILE_NAME) && error.contains("move it aside"), "{name}: {error}");
    }
    std::fs::write(&path, good).expect("writes");
    assert_eq!(refusal(directory.path()).await, None, "the intact file opens");
}

#[tokio::test]
async fn flipped_bits_are_found_or_harmless() {
    let directory = tempfile::tempdir().expect("tempdir");
    let good = filled(directory.path()).await;
    let path = directory.path().join(FILE_NAME);
    let mut found = 0;
    // A value is the likeliest place for damage: every copy of one value's bytes is hit in turn.
    let places: Vec<usize> =
        (0..good.len() - 40).filter(|&at| good[at..].starts_with(&[b'v'; 40])).step_by(2_000).collect();
    for &at in &places {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, bytes).expect("writes");
        match refusal(directory.path()).await {
            Some(error) => {
                assert!(error.contains(FILE_NAME), "{error}");
                found += 1;
            }
            None => {
                // The flipped page was free space, or redb went back to an intact commit.
                let store = RedbStore::open(directory.path()).expect("opens");
                for (_, entry) in store.load().await.expect("loads").space(Space::Token) {
                    assert!(entry.value.iter().all(|&byte| byte == b'v'));
                }
            }
        }
    }
    assert!(found > 0, "none of {} flips was noticed", places.len());
}
