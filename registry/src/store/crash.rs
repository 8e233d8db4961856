//! The embedded engine killed again and again: what was acknowledged is there, and whole.
//!
//! The writer is this very test binary, started again as a process of its own, so that SIGKILL hits
//! it wherever it happens to be. `PILLION_CRASH_ROUNDS` says how often; the long form is 1000.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::redb::RedbStore;
use super::*;

const ROUNDS: u32 = 15;
/// All of a file is checked after each kill: it must not grow for ever.
const ROUNDS_PER_FILE: u32 = 40;
const FOLDER: &str = "PILLION_CRASH_FOLDER";
const FIRST: &str = "PILLION_CRASH_FIRST";
/// Writes waiting for their acknowledgement at any time, so that they are committed together.
const AT_ONCE: u64 = 24;
/// Longest life of a writer after its first acknowledgement.
const LIFE_MS: u64 = 40;

/// Two keys that are always written together, with one value.
fn pair(n: u64) -> Transaction {
    let mut transaction = Transaction::default();
    for half in ["left", "right"] {
        // The same few keys over and over, and one of its own: pages are rewritten and added.
        transaction.push(Op::put(Key::new(Space::Token, format!("{half}-{}", n % 50)), n.to_string()));
        transaction.push(Op::put(Key::new(Space::Meta, format!("{half}-{n}")), n.to_string()));
    }
    transaction
}

/// Not a test of its own: the process that is killed. Writes for ever, and says what was acknowledged.
#[tokio::test]
async fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let first: u64 = std::env::var(FIRST).ok().and_then(|n| n.parse().ok()).expect("a number");
    let store = RedbStore::open(Path::new(&folder)).expect("opens after the kill");
    let mut out = std::io::stdout();
    let (mut writes, store) = (FuturesUnordered::new(), &store);
    for n in first.. {
        writes.push(async move { (n, store.commit(pair(n)).await.expect("commits")) });
        if writes.len() as u64 >= AT_ONCE
            && let Some((n, revision)) = writes.next().await
        {
            writeln!(out, "acknowledged {n} {revision}").and_then(|()| out.flush()).expect("told");
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_every_kill() {
    let rounds: u32 =
        std::env::var("PILLION_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    let mut folder = tempfile::tempdir().expect("a folder");
    let (mut acknowledged, mut next, mut writes) = (BTreeMap::new(), 1, 0);
    for round in 0..rounds {
        if round % ROUNDS_PER_FILE == 0 {
            folder = tempfile::tempdir().expect("a folder");
            (acknowledged, next) = (BTreeMap::new(), 1);
        }
        let told = killed_writer(folder.path(), next);
        writes += told.len();
        next = told.keys().max().map_or(next, |last| last + AT_ONCE + 1).max(next);
        acknowledged.extend(told);
        check(folder.path(), &acknowledged, round).await;
    }
    assert!(writes > rounds as usize, "{writes} writes in {rounds} rounds");
}

/// Starts the writer, kills it, and returns what it had told by then: numbers and their revisions.
fn killed_writer(folder: &Path, first: u64) -> BTreeMap<u64, u64> {
    let mut child = Command::new(std::env::current_exe().expect("a test has a file"))
        .args(["--exact", "store::crash::writer", "--nocapture"])
        .env(FOLDER, folder)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let read = |line: std::io::Result<String>| -> Option<(u64, u64)> {
        let line = line.ok()?;
        let mut words = line.split("acknowledged ").nth(1)?.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    let mut told: BTreeMap<u64, u64> = BTreeMap::new();
    while told.is_empty() {
        let line = lines.next().expect("the writer came up");
        told.extend(read(line));
    }
    #[expect(clippy::disallowed_methods, reason = "a random moment to kill at is what this test needs")]
    std::thread::sleep(Duration::from_millis(fastrand::u64(..LIFE_MS)));
    child.kill().expect("killed");
    child.wait().expect("gone");
    told.extend(lines.filter_map(read));
    told
}

async fn check(folder: &Path, acknowledged: &BTreeMap<u64, u64>, round: u32) {
    let store = RedbStore::open(folder).unwrap_or_else(|error| panic!("round {round}: {error}"));
    let state = store.load().await.unwrap_or_else(|error| panic!("round {round}: {error}"));
    for (n, revision) in acknowledged {
        let entry = state.entries.get(&Key::new(Space::Meta, format!("left-{n}")));
        let entry = entry.unwrap_or_else(|| panic!("round {round}: {n} was acknowledged and is gone"));
        assert_eq!(
            (entry.revision, &entry.value[..]),
            (*revision, n.to_string().as_bytes()),
            "round {round}"
        );
    }
    for (key, left) in state.entries.iter().filter(|(key, _)| key.name.starts_with("left")) {
        let right = state.entries.get(&Key::new(key.space, key.name.replace("left", "right")));
        assert_eq!(Some(left), right, "round {round}: {key} was written by halves");
    }
    let last = state.entries.values().map(|entry| entry.revision).max();
    assert_eq!(Some(state.at.revision), last, "round {round}");
}
