//! What every engine must do, and what damage to the file looks like.

use std::path::Path;

use super::redb::{FILE_NAME, RedbStore};
use super::*;

fn key(name: &str) -> Key {
    Key::new(Space::Token, name)
}

fn put(name: &str, value: &str) -> Transaction {
    Transaction { preconditions: Vec::new(), ops: vec![Op::put(key(name), value.to_owned())] }
}

async fn value(store: &RedbStore, name: &str) -> Option<(u64, Bytes)> {
    let state = store.load().await.expect("loads");
    state.entries.get(&key(name)).map(|entry| (entry.revision, entry.value.clone()))
}

#[tokio::test]
async fn commits_rise_by_one_and_survive_reopening() {
    let directory = tempfile::tempdir().expect("tempdir");
    let epoch = {
        let store = RedbStore::open(directory.path()).expect("opens");
        assert_eq!(store.commit(put("a", "1")).await.expect("commits"), 1);
        assert_eq!(store.commit(put("b", "2")).await.expect("commits"), 2);
        assert_eq!(store.commit(Transaction::default()).await.expect("nothing to do"), 2);
        let mut delete = Transaction::default();
        delete.push(Op::delete(key("a"))).require(key("a"), Some(1));
        assert_eq!(store.commit(delete).await.expect("commits"), 3);
        store.load().await.expect("loads").epoch
    };
    let store = RedbStore::open(directory.path()).expect("opens again");
    let state = store.load().await.expect("loads");
    assert_eq!((&state.epoch, state.revision), (&epoch, 3));
    let kept: Vec<_> = state.space(Space::Token).map(|(name, entry)| (name, entry.revision)).collect();
    assert_eq!(kept, [("b", 2)]);
}

#[tokio::test]
async fn a_transaction_whose_precondition_fails_changes_nothing() {
    let directory = tempfile::tempdir().expect("tempdir");
    let store = RedbStore::open(directory.path()).expect("opens");
    store.commit(put("a", "1")).await.expect("commits");
    for wanted in [None, Some(7)] {
        let mut transaction = put("b", "2");
        transaction.require(key("a"), wanted);
        let error = store.commit(transaction).await.expect_err("conflicts");
        assert!(matches!(error, StoreError::Conflict { found: Some(1), .. }), "{error}");
    }
    assert_eq!(value(&store, "b").await, None);
}

#[tokio::test]
async fn of_many_that_want_a_key_absent_exactly_one_wins() {
    let directory = tempfile::tempdir().expect("tempdir");
    let store = Arc::new(RedbStore::open(directory.path()).expect("opens"));
    let attempts = (0..100).map(|n| {
        let store = Arc::clone(&store);
        async move {
            let mut transaction = put("a", &n.to_string());
            transaction.require(key("a"), None);
            store.commit(transaction).await
        }
    });
    let results = futures_util::future::join_all(attempts).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(store.load().await.expect("loads").revision, 1);
}

#[tokio::test]
async fn followers_see_every_commit_once_and_in_order() {
    let directory = tempfile::tempdir().expect("tempdir");
    let store = RedbStore::open(directory.path()).expect("opens");
    store.commit(put("before", "")).await.expect("commits");
    let mut watch = store.watch(1);
    let writes = (0..300).map(|n| store.commit(put(&n.to_string(), "x")));
    futures_util::future::join_all(writes).await;
    let mut seen = Vec::new();
    while seen.len() < 300 {
        seen.extend(watch.next().await.expect("kept").iter().map(|commit| commit.revision));
    }
    assert_eq!(seen, (2..=301).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_follower_that_lags_too_far_is_told_to_load_again() {
    let directory = tempfile::tempdir().expect("tempdir");
    let store = RedbStore::open(directory.path()).expect("opens");
    let mut watch = store.watch(0);
    for _ in 0..10 {
        futures_util::future::join_all((0..500).map(|_| store.commit(put("a", "x")))).await;
    }
    watch.next().await.expect_err("compacted");
    assert!(store.watch(4_990).next().await.is_ok());
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
        assert_eq!((state.revision, state.entries.len() as u64), (round * 10, round * 10));
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
