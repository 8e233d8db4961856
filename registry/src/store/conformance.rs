//! What every engine must do, as functions over a fresh and empty store. [`suite`] makes a test of
//! each for one engine.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::*;

/// Tests of one engine; `$make` is an async function that gives a store and what must outlive it.
macro_rules! suite {
    ($make:path) => {
        $crate::store::conformance::suite! { $make:
            revisions_rise_and_values_stay,
            a_transaction_whose_precondition_fails_changes_nothing,
            a_transaction_without_writes_only_checks,
            of_many_that_want_a_key_absent_exactly_one_wins,
            of_many_at_once_each_has_its_own_outcome,
            a_transaction_applies_as_a_whole,
            the_last_write_to_a_key_stands,
            deleting_what_is_absent_is_no_error,
            names_and_values_are_kept_as_they_are,
            a_family_is_read_without_the_others,
            followers_see_every_commit_once_and_in_order,
            a_follower_arrives_at_what_load_says,
            a_follower_that_lags_too_far_is_told_to_load_again,
            a_follower_of_another_history_is_told_to_load_again,
            after_a_conflict_the_view_has_what_was_in_conflict,
        }
    };
    ($make:path: $($case:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $case() {
                let (store, _kept) = $make().await;
                $crate::store::conformance::$case(&*store).await;
            }
        )+
    };
}

pub(super) use suite;

pub(super) fn key(name: &str) -> Key {
    Key::new(Space::Token, name)
}

pub(super) fn put(name: &str, value: &str) -> Transaction {
    Transaction { preconditions: Vec::new(), ops: vec![Op::put(key(name), value.to_owned())] }
}

fn require(mut transaction: Transaction, name: &str, revision: Option<u64>) -> Transaction {
    transaction.require(key(name), revision);
    transaction
}

/// Waits until followers can have seen `revision`; an engine may acknowledge a little earlier.
async fn reach(store: &dyn Store, revision: u64) {
    let mut watch = store.watch(&store.load().await.expect("loads").at);
    while store.position().revision < revision {
        watch.next().await.expect("kept");
    }
}

async fn commit(store: &dyn Store, transaction: Transaction) -> u64 {
    let revision = store.commit(transaction).await.expect("commits");
    reach(store, revision).await;
    revision
}

async fn contents(store: &dyn Store) -> BTreeMap<String, (u64, Bytes)> {
    let state = store.load().await.expect("loads");
    let entries = state.entries.into_iter();
    entries.map(|(key, entry)| (key.name, (entry.revision, entry.value))).collect()
}

pub(super) async fn revisions_rise_and_values_stay(store: &dyn Store) {
    let before = store.position();
    let first = commit(store, put("a", "1")).await;
    let second = commit(store, put("b", "2")).await;
    let third = commit(store, require(put("a", "3"), "a", Some(first))).await;
    assert!(before.revision < first && first < second && second < third);
    let state = store.load().await.expect("loads");
    assert_eq!((&state.at.epoch, state.at.revision), (&before.epoch, third));
    let kept: Vec<_> = state.space(Space::Token).map(|(name, entry)| (name, entry.revision)).collect();
    assert_eq!(kept, [("a", third), ("b", second)]);
    let last = commit(store, Transaction { ops: vec![Op::delete(key("a"))], ..Default::default() }).await;
    assert!(last > third);
    assert_eq!(contents(store).await.into_keys().collect::<Vec<_>>(), ["b"]);
}

pub(super) async fn a_family_is_read_without_the_others(store: &dyn Store) {
    let mut transaction = Transaction::default();
    // Families that stand before and after this one, however an engine orders them.
    for (space, name) in [
        (Space::Token, "0"),
        (Space::Token, "z/z"),
        (Space::Ca, "z"),
        (Space::Meta, "z"),
        (Space::Service, "z"),
        (Space::Instance, "a/b/c"),
    ] {
        transaction.push(Op::put(Key::new(space, name), "x"));
    }
    let revision = commit(store, transaction).await;
    let state = store.load_space(Space::Token).await.expect("loads");
    assert_eq!(state.at, Position { revision, ..store.position() });
    assert_eq!(state.entries.into_keys().collect::<Vec<_>>(), ["0", "z/z"].map(key));
}

pub(super) async fn a_transaction_whose_precondition_fails_changes_nothing(store: &dyn Store) {
    let first = commit(store, put("a", "1")).await;
    let table = [("a", None, Some(first)), ("a", Some(first + 7), Some(first)), ("b", Some(first), None)];
    for (name, wanted, want) in table {
        let error = store.commit(require(put("c", "2"), name, wanted)).await.expect_err("conflicts");
        let StoreError::Conflict { key: at, wanted: asked, found } = error else { panic!("{error}") };
        assert_eq!((at, asked, found), (key(name), wanted, want));
    }
    assert_eq!(contents(store).await.into_keys().collect::<Vec<_>>(), ["a"]);
}

pub(super) async fn a_transaction_without_writes_only_checks(store: &dyn Store) {
    let first = commit(store, put("a", "1")).await;
    let same = require(Transaction::default(), "a", Some(first));
    assert_eq!(store.commit(same).await.expect("holds"), first);
    assert_eq!(store.commit(Transaction::default()).await.expect("nothing to do"), first);
    let other = require(Transaction::default(), "a", None);
    store.commit(other).await.expect_err("does not hold");
}

pub(super) async fn of_many_that_want_a_key_absent_exactly_one_wins(store: &dyn Store) {
    let attempts = (0..100).map(|n| store.commit(require(put("a", &n.to_string()), "a", None)));
    let results = join_all(attempts).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(StoreError::Conflict { .. }))));
}

pub(super) async fn of_many_at_once_each_has_its_own_outcome(store: &dyn Store) {
    let first = commit(store, put("service", "1")).await;
    let attempts = (0..300).map(|n| {
        let wanted = if n % 5 == 0 { first + 100_000 } else { first };
        let transaction = require(put(&n.to_string(), "x"), "service", Some(wanted));
        store.commit(require(transaction, &n.to_string(), None))
    });
    for (n, result) in join_all(attempts).await.into_iter().enumerate() {
        match result {
            Ok(revision) => {
                assert!(n % 5 != 0, "{n}");
                reach(store, revision).await;
            }
            Err(StoreError::Conflict { key: at, found, .. }) => {
                assert_eq!((n % 5, at, found), (0, key("service"), Some(first)), "{n}");
            }
            Err(error) => panic!("{n}: {error}"),
        }
    }
    assert_eq!(contents(store).await.len(), 241);
}

pub(super) async fn a_transaction_applies_as_a_whole(store: &dyn Store) {
    let from = store.position();
    let mut transaction = Transaction::default();
    for n in 0..50 {
        transaction.push(Op::put(key(&format!("{n:02}")), n.to_string()));
    }
    let mut watch = store.watch(&from);
    let revision = store.commit(transaction).await.expect("commits");
    let commits = watch.next().await.expect("kept");
    assert_eq!(commits.len(), 1);
    assert_eq!((commits[0].revision, commits[0].ops.len()), (revision, 50));
    assert!(contents(store).await.values().all(|(at, _)| *at == revision));
}

pub(super) async fn the_last_write_to_a_key_stands(store: &dyn Store) {
    let mut transaction = put("a", "1");
    transaction.push(Op::put(key("b"), "x")).push(Op::put(key("a"), "2")).push(Op::delete(key("b")));
    commit(store, transaction).await;
    let contents = contents(store).await;
    assert_eq!(contents.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(contents["a"].1, "2");
}

pub(super) async fn deleting_what_is_absent_is_no_error(store: &dyn Store) {
    let first = commit(store, put("a", "1")).await;
    let nothing = Transaction { ops: vec![Op::delete(key("b"))], ..Default::default() };
    let revision = commit(store, nothing).await;
    assert!(revision >= first);
    assert!(commit(store, put("b", "2")).await > revision);
}

pub(super) async fn names_and_values_are_kept_as_they_are(store: &dyn Store) {
    let names = ["a/b/c", "A", "\u{e4}\u{1f6b2}", "with space", "%2f", "z\u{7f}"];
    let values: [&[u8]; 6] = [b"", b"\0\xff\xfe", b"{}", &[7; 5000], b"\n", b"x"];
    for (name, value) in names.iter().zip(values) {
        let put = Op::put(key(name), Bytes::from_static(value));
        commit(store, Transaction { ops: vec![put], ..Default::default() }).await;
    }
    let found = contents(store).await;
    for (name, value) in names.iter().zip(values) {
        assert_eq!(found[*name].1, value, "{name}");
    }
}

pub(super) async fn followers_see_every_commit_once_and_in_order(store: &dyn Store) {
    commit(store, put("before", "")).await;
    let mut watch = store.watch(&store.position());
    let writes = (0..300).map(|n| store.commit(put(&n.to_string(), "x")));
    let mut written: Vec<u64> =
        join_all(writes).await.into_iter().map(|done| done.expect("commits")).collect();
    written.sort_unstable();
    written.dedup(); // commits that went together have one revision
    let mut seen = Vec::new();
    while seen.last() != written.last() {
        seen.extend(watch.next().await.expect("kept").iter().map(|commit| commit.revision));
    }
    assert_eq!(seen, written);
}

pub(super) async fn a_follower_arrives_at_what_load_says(store: &dyn Store) {
    let mut random = fastrand::Rng::with_seed(7);
    let mut watch = store.watch(&store.position());
    let mut last = 0;
    for round in 0..100 {
        let mut transaction = Transaction::default();
        for _ in 0..=random.u8(..4) {
            let name = random.u8(..12).to_string();
            transaction.push(match random.bool() {
                true => Op::put(key(&name), round.to_string()),
                false => Op::delete(key(&name)),
            });
        }
        last = store.commit(transaction).await.expect("commits");
    }
    last = last.max(commit(store, put("end", "")).await);
    let mut followed = BTreeMap::new();
    let mut at = 0;
    while at < last {
        for commit in watch.next().await.expect("kept") {
            assert!(commit.revision > at, "revisions rise strictly");
            at = commit.revision;
            for Op { key, value } in &commit.ops {
                match value {
                    Some(value) => drop(followed.insert(key.name.clone(), (at, value.clone()))),
                    None => drop(followed.remove(&key.name)),
                }
            }
        }
    }
    assert_eq!(followed, contents(store).await);
}

pub(super) async fn a_follower_that_lags_too_far_is_told_to_load_again(store: &dyn Store) {
    let mut watch = store.watch(&store.position());
    for _ in 0..20 {
        let writes = (0..500).map(|n| store.commit(put(&n.to_string(), "x")));
        for result in join_all(writes).await {
            reach(store, result.expect("commits")).await;
        }
    }
    watch.next().await.expect_err("compacted");
    let at = store.load().await.expect("loads").at;
    let mut watch = store.watch(&Position { revision: at.revision - 1, ..at });
    assert!(!watch.next().await.expect("kept").is_empty());
}

pub(super) async fn a_follower_of_another_history_is_told_to_load_again(store: &dyn Store) {
    commit(store, put("a", "1")).await;
    let elsewhere = Position { epoch: "elsewhere".into(), ..store.position() };
    store.watch(&elsewhere).next().await.expect_err("another history");
}

pub(super) async fn after_a_conflict_the_view_has_what_was_in_conflict(store: &dyn Store) {
    let mut known = None;
    for n in 0..50 {
        let revision = store.commit(require(put("a", &n.to_string()), "a", known)).await.expect("commits");
        store.commit(require(put("a", "stale"), "a", known)).await.expect_err("conflicts");
        let state = store.load().await.expect("loads");
        assert_eq!(state.entries[&key("a")].revision, revision);
        assert!(store.position().revision >= revision);
        known = Some(revision);
    }
    let delete = Transaction { ops: vec![Op::delete(key("a"))], ..Default::default() };
    store.commit(delete).await.expect("commits");
    store.commit(require(put("a", "stale"), "a", known)).await.expect_err("conflicts");
    assert!(contents(store).await.is_empty());
}
