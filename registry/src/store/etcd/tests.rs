//! The suite against a real etcd, and what happens when it is stopped, paused, compacted, wiped or
//! restored.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use pillion_tests::support::etcd::Etcd;
use pillion_tests::support::{DEADLINE, eventually};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::store::conformance::{key, put, suite};

/// A store of a replica; ends with its test.
struct Replica {
    store: Arc<EtcdStore>,
    stop: CancellationToken,
    running: AbortOnDropHandle<()>,
}

impl Replica {
    async fn open(etcd: &Etcd, name: &str) -> Result<Self, StoreError> {
        static PREFIXES: LazyLock<String> = LazyLock::new(|| format!("mesh-{}/", std::process::id()));
        Self::open_at(etcd, &PREFIXES, name).await
    }

    async fn open_at(etcd: &Etcd, prefix: &str, name: &str) -> Result<Self, StoreError> {
        Self::open_with(etcd, prefix, name, None).await
    }

    async fn open_with(
        etcd: &Etcd,
        prefix: &str,
        name: &str,
        copy: Option<PathBuf>,
    ) -> Result<Self, StoreError> {
        let address = etcd.address();
        let options = EtcdOptions {
            members: vec![Target { host: address.ip().to_string(), port: address.port() }],
            prefix: prefix.to_owned(),
            tls: None,
            replica: name.to_owned(),
            address: String::new(),
            copy,
        };
        let stop = CancellationToken::new();
        let (store, run) = EtcdStore::open(options, stop.clone()).await?;
        Ok(Self { store, stop, running: AbortOnDropHandle::new(tokio::spawn(run)) })
    }

    async fn leave(self) {
        self.stop.cancel();
        self.running.await.expect("ends in peace");
    }

    async fn value(&self, name: &str) -> Option<String> {
        let state = self.store.load().await.expect("loads");
        state.entries.get(&key(name)).map(|entry| text(&entry.value))
    }

    async fn has(&self, name: &str, want: Option<&str>) {
        let look = || async {
            let found = self.value(name).await;
            if found.as_deref() == want { Ok(()) } else { Err(format!("{found:?}")) }
        };
        eventually(&format!("`{name}` is {want:?}"), DEADLINE, look).await;
    }

    async fn writes(&self, name: &str, value: &str) {
        let write = || async { self.store.commit(put(name, value)).await };
        eventually("a commit", DEADLINE, write).await;
    }

    /// Until the others' watch knows that we are there.
    async fn is_shown(&self, shown: bool, replica: &str) {
        let key = Key::new(Space::Replica, replica);
        let look = || async {
            let found = self.store.copy().mirror.revision_of(&key).is_some();
            if found == shown { Ok(()) } else { Err(found) }
        };
        eventually(&format!("replica {replica}: {shown}"), DEADLINE, look).await;
    }
}

mod on_etcd {
    use super::*;

    /// One etcd for a test; a prefix for each case.
    async fn fresh() -> (Arc<dyn Store>, Option<(Etcd, Replica)>) {
        static CASES: AtomicUsize = AtomicUsize::new(0);
        let Some(etcd) = Etcd::start().await else {
            return (Arc::new(crate::store::memory::MemoryStore::new("skipped")), None);
        };
        let prefix = format!("case-{}/", CASES.fetch_add(1, Ordering::Relaxed));
        let replica = Replica::open_at(&etcd, &prefix, "a").await.expect("opens");
        replica.is_shown(true, "a").await;
        // The suite counts what it finds: only this replica's own key is there beside it.
        let store: Arc<dyn Store> = Arc::new(WithoutReplicas(Arc::clone(&replica.store)));
        (store, Some((etcd, replica)))
    }

    suite!(fresh);

    struct WithoutReplicas(Arc<EtcdStore>);

    #[async_trait]
    impl Store for WithoutReplicas {
        async fn load(&self) -> Result<State, StoreError> {
            let mut state = self.0.load().await?;
            state.entries.retain(|key, _| key.space != Space::Replica);
            Ok(state)
        }

        async fn load_space(&self, space: Space) -> Result<State, StoreError> {
            self.0.load_space(space).await
        }

        async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
            self.0.commit(transaction).await
        }

        fn position(&self) -> Position {
            self.0.position()
        }

        fn watch(&self, from: &Position) -> Watch {
            self.0.watch(from)
        }
    }
}

#[tokio::test]
async fn replicas_see_each_others_writes_and_presence() {
    let Some(etcd) = Etcd::start().await else { return };
    let (a, b) =
        (Replica::open(&etcd, "a").await.expect("opens"), Replica::open(&etcd, "b").await.expect("opens"));
    assert_eq!(a.store.position().epoch, b.store.position().epoch, "one of them named the history");
    a.is_shown(true, "b").await;
    b.is_shown(true, "a").await;
    a.writes("x", "1").await;
    b.has("x", Some("1")).await;
    let leases = etcd.ctl(&["lease", "list"]).await.stdout;
    assert!(leases.contains("found 2 leases"), "one lease per replica: {leases}");
    b.leave().await;
    a.is_shown(false, "b").await;
}

#[tokio::test]
async fn a_replica_at_rest_writes_nothing() {
    let Some(etcd) = Etcd::start().await else { return };
    let a = Replica::open(&etcd, "a").await.expect("opens");
    a.is_shown(true, "a").await;
    let (revision, calls) = (etcd.revision().await, a.store.client.calls());
    let renewed = || async {
        let made = a.store.client.calls() - calls;
        if made >= 3 { Ok(()) } else { Err(format!("{made} calls")) }
    };
    eventually("three renewals of the lease", DEADLINE, renewed).await;
    assert_eq!(etcd.revision().await, revision, "renewals are no writes");
}

#[tokio::test]
async fn commits_of_many_callers_are_few_transactions_of_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    let a = Replica::open(&etcd, "a").await.expect("opens");
    a.is_shown(true, "a").await;
    let before = etcd.revision().await;
    let names: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    let commits = names.iter().map(|name| a.store.commit(put(name, "x")));
    for result in futures_util::future::join_all(commits).await {
        result.expect("commits");
    }
    let written = etcd.revision().await - before;
    assert!(written < 50, "{written} transactions");
}

#[tokio::test]
async fn while_etcd_is_stopped_reads_go_on_and_writes_fail() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let a = Replica::open(&etcd, "a").await.expect("opens");
    a.writes("x", "1").await;
    a.has("x", Some("1")).await;
    let at = a.store.position();
    etcd.stop().await;
    let error = a.store.commit(put("x", "2")).await.expect_err("etcd is away");
    assert!(matches!(&error, StoreError::Unavailable(_)), "{error}");
    assert!(a.store.trouble().is_some());
    assert_eq!(a.value("x").await.as_deref(), Some("1"));
    etcd.resume_from_disk().await;
    a.writes("x", "3").await;
    a.has("x", Some("3")).await;
    assert_eq!(a.store.position().epoch, at.epoch);
    assert_eq!(a.store.trouble(), None);
}

#[tokio::test]
async fn a_paused_etcd_is_noticed_within_a_calls_time() {
    let Some(etcd) = Etcd::start().await else { return };
    let a = Replica::open(&etcd, "a").await.expect("opens");
    a.writes("x", "1").await;
    etcd.pause().await;
    let started = tokio::time::Instant::now();
    let error = a.store.commit(put("x", "2")).await.expect_err("no answer");
    assert!(started.elapsed() < client::CALL_TIMEOUT * 2, "{:?}", started.elapsed());
    assert!(error.to_string().contains("does not accept writes"), "{error}");
    etcd.unpause();
    a.writes("y", "3").await;
    a.has("y", Some("3")).await;
}

#[tokio::test]
async fn compaction_behind_our_back_costs_no_follower_anything() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let a = Replica::open(&etcd, "a").await.expect("opens");
    for n in 0..20 {
        a.writes(&n.to_string(), "old").await;
    }
    a.has("19", Some("old")).await;
    let mut watch = a.store.watch(&a.store.position());
    // While this replica is not followed up, another changes things and history is forgotten.
    a.running.abort();
    let b = Replica::open(&etcd, "b").await.expect("opens");
    b.writes("0", "new").await;
    let delete = Transaction { ops: vec![Op::delete(key("1"))], ..Default::default() };
    b.store.commit(delete).await.expect("commits");
    b.writes("x", "1").await;
    etcd.compact().await;
    b.writes("x", "2").await;
    etcd.stop().await;
    etcd.resume_from_disk().await;
    let following = Arc::clone(&a.store);
    let _following = AbortOnDropHandle::new(tokio::spawn(async move { following.follow().await }));
    a.has("x", Some("2")).await;
    assert_eq!((a.value("0").await.as_deref(), a.value("1").await), (Some("new"), None));
    let mut told = BTreeMap::new();
    while !told.contains_key("x") {
        for commit in watch.next().await.expect("the same history") {
            let tokens = commit.ops.iter().filter(|op| op.key.space == Space::Token);
            told.extend(tokens.map(|op| (op.key.name.clone(), op.value.as_ref().map(text))));
        }
    }
    let want = [("0", Some("new")), ("1", None), ("x", Some("2"))];
    let want = want.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
    assert_eq!(told, BTreeMap::from(want), "only the differences");
}

#[tokio::test]
async fn a_wiped_etcd_changes_nothing_and_takes_nothing() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let a = Replica::open(&etcd, "a").await.expect("opens");
    a.writes("x", "1").await;
    a.has("x", Some("1")).await;
    etcd.wipe().await;
    let refused = || async {
        match a.store.commit(put("x", "2")).await {
            Err(error) if error.to_string().contains("was emptied") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    eventually("the emptied etcd is recognised", DEADLINE, refused).await;
    assert_eq!(a.value("x").await.as_deref(), Some("1"), "what was known stays");
    let keys = etcd.ctl(&["get", "", "--prefix", "--keys-only"]).await;
    assert_eq!(keys.stdout.trim(), "", "nothing was written");
}

#[tokio::test]
async fn a_restored_backup_begins_another_history() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let a = Replica::open(&etcd, "a").await.expect("opens");
    a.writes("x", "before").await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("backup");
    etcd.save(&file).await;
    for n in 0..50 {
        a.writes(&n.to_string(), "after").await;
    }
    a.has("49", Some("after")).await;
    let at = a.store.position();
    etcd.restore(&file).await;
    a.has("49", None).await;
    a.has("x", Some("before")).await;
    assert_ne!(a.store.position().epoch, at.epoch);
    a.store.watch(&at).next().await.expect_err("positions of the old history mean nothing");
    a.writes("x", "again").await;
    a.has("x", Some("again")).await;
}

#[tokio::test]
async fn what_is_too_large_for_etcd_is_told_with_the_remedy() {
    let Some(etcd) = Etcd::start().await else { return };
    let a = Replica::open(&etcd, "a").await.expect("opens");
    let mut transaction = Transaction::default();
    for n in 0..200 {
        transaction.push(Op::put(key(&n.to_string()), "x"));
    }
    let error = a.store.commit(transaction).await.expect_err("128 operations at most");
    assert!(matches!(&error, StoreError::TooLarge(_)), "{error}");
    assert!(error.to_string().contains("--max-txn-ops"), "{error}");
}

#[tokio::test]
async fn an_etcd_without_space_is_told_and_noticed_when_it_has_some_again() {
    let Some(etcd) = Etcd::start_with_quota(300_000).await else { return };
    let a = Replica::open(&etcd, "a").await.expect("opens");
    let fill = async {
        loop {
            if let Err(error) = a.store.commit(put("x", &"x".repeat(10_000))).await {
                return error.to_string();
            }
        }
    };
    let error = tokio::time::timeout(DEADLINE, fill).await.expect("is full soon");
    assert!(error.contains("space exceeded"), "{error}");
    assert!(a.store.trouble().is_some_and(|trouble| trouble.contains("space exceeded")));
    etcd.compact().await;
    for command in [&["defrag"][..], &["alarm", "disarm"]] {
        let finished = etcd.ctl(command).await;
        assert_eq!(finished.code, 0, "{finished:?}");
    }
    eventually("it is no trouble any more", DEADLINE, || async { a.store.trouble().map_or(Ok(()), Err) })
        .await;
    a.writes("x", "1").await;
}

#[tokio::test]
async fn a_mesh_is_not_made_within_another_and_what_is_not_ours_is_named() {
    let Some(etcd) = Etcd::start().await else { return };
    let a = Replica::open_at(&etcd, "one/", "a").await.expect("opens");
    let error = Replica::open_at(&etcd, "one/two/", "b").await.err().expect("within").to_string();
    assert!(error.contains("`one/two/` lies within `one/`"), "{error}");
    let put = etcd.ctl(&["put", "one/hello", "world"]).await;
    assert_eq!(put.code, 0, "{put:?}");
    a.writes("x", "1").await;
    a.has("x", Some("1")).await; // whoever runs goes on
    let error = Replica::open_at(&etcd, "one/", "b").await.err().expect("foreign").to_string();
    assert!(error.contains("`one/hello` is of no known family"), "{error}");
    let Some(other) = Etcd::start().await else { return };
    let _inner = Replica::open_at(&other, "one/two/", "a").await.expect("opens");
    let error = Replica::open_at(&other, "one/", "b").await.err().expect("around it").to_string();
    assert!(error.contains("one/two/"), "{error}");
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_told_by_name() {
    let Some(mut etcd) = Etcd::start().await else { return };
    etcd.stop().await;
    let error = Replica::open(&etcd, "a").await.err().expect("nobody answers").to_string();
    assert!(error.contains(&etcd.address().to_string()), "{error}");
}

#[tokio::test]
async fn a_replica_that_starts_while_etcd_is_away_serves_what_was_last_known() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let copy = Some(folder.path().join("copy"));
    let a = Replica::open_with(&etcd, "mesh/", "a", copy.clone()).await.expect("opens");
    a.writes("x", "1").await;
    a.has("x", Some("1")).await;
    let at = a.store.position();
    a.leave().await;
    let b = Replica::open_at(&etcd, "mesh/", "b").await.expect("opens");
    b.writes("y", "2").await;
    b.leave().await;
    etcd.stop().await;
    let a = Replica::open_with(&etcd, "mesh/", "a", copy.clone()).await.expect("opens without etcd");
    assert_eq!(a.value("x").await.as_deref(), Some("1"));
    assert_eq!(a.store.position().epoch, at.epoch);
    a.store.commit(put("x", "2")).await.expect_err("etcd is away");
    etcd.resume_from_disk().await;
    a.has("y", Some("2")).await;
    a.writes("x", "3").await;
    a.has("x", Some("3")).await;
}
