//! The recent commits, for those who follow the store.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{Commit, Position};

/// Writes kept for followers that lag; whoever lags further loads again.
const WRITES_KEPT: usize = 8192;

/// A bounded ring of commits with a bell.
pub(super) struct Log {
    ring: Mutex<Ring>,
    latest: watch::Sender<Position>,
}

struct Ring {
    commits: VecDeque<Arc<Commit>>,
    /// In all of them.
    writes: usize,
    /// Every commit after this one, of this epoch, is in the ring.
    complete_from: Position,
}

impl Log {
    pub(super) fn new(at: Position) -> Arc<Self> {
        let ring = Ring { commits: VecDeque::new(), writes: 0, complete_from: at.clone() };
        Arc::new(Self { ring: Mutex::new(ring), latest: watch::Sender::new(at) })
    }

    /// Adds commits, in order of their revisions, and wakes followers once.
    pub(super) fn append(&self, commits: impl IntoIterator<Item = Arc<Commit>>) {
        let (mut last, mut added) = (None, 0);
        {
            let mut ring = self.lock();
            for commit in commits {
                last = Some(commit.revision);
                ring.writes += commit.ops.len();
                ring.commits.push_back(commit);
                added += 1;
            }
            // What was just added stays, however large: nobody has had the time to read it.
            while ring.writes > WRITES_KEPT && ring.commits.len() > added {
                if let Some(forgotten) = ring.commits.pop_front() {
                    ring.writes -= forgotten.ops.len();
                    ring.complete_from.revision = forgotten.revision;
                }
            }
        }
        if let Some(revision) = last {
            self.latest.send_modify(|at| at.revision = revision);
        }
    }

    /// Nothing was committed up to `revision`.
    pub(super) fn advance(&self, revision: u64) {
        self.latest.send_if_modified(|at| {
            let later = at.revision < revision;
            at.revision = at.revision.max(revision);
            later
        });
    }

    /// Another history is followed from here on: every follower has to load again.
    pub(super) fn reset(&self, at: Position) {
        {
            let mut ring = self.lock();
            ring.commits.clear();
            ring.writes = 0;
            ring.complete_from = at.clone();
        }
        self.latest.send_replace(at);
    }

    pub(super) fn latest(&self) -> Position {
        self.latest.borrow().clone()
    }

    pub(super) fn watch(self: &Arc<Self>, from: &Position) -> Watch {
        Watch { log: Arc::clone(self), bell: self.latest.subscribe(), position: from.clone() }
    }

    fn after(&self, position: &Position) -> Result<Vec<Arc<Commit>>, Compacted> {
        let ring = self.lock();
        let oldest = &ring.complete_from;
        if position.epoch != oldest.epoch || position.revision < oldest.revision {
            return Err(Compacted { position: position.clone(), oldest: oldest.clone() });
        }
        let first = ring.commits.partition_point(|commit| commit.revision <= position.revision);
        Ok(ring.commits.iter().skip(first).cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A follower's position in the store's history.
pub struct Watch {
    log: Arc<Log>,
    bell: watch::Receiver<Position>,
    position: Position,
}

/// The follower lags behind what is kept, or has followed another history: it must load again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("position {position} is no longer kept; the oldest one to follow from is {oldest}")]
pub struct Compacted {
    position: Position,
    oldest: Position,
}

impl Watch {
    /// The commits since the last call, at least one; waits for it. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Compacted`] if some of them are no longer kept.
    pub async fn next(&mut self) -> Result<Vec<Arc<Commit>>, Compacted> {
        loop {
            self.bell.borrow_and_update();
            let commits = self.log.after(&self.position)?;
            if let Some(last) = commits.last() {
                self.position.revision = last.revision;
                return Ok(commits);
            }
            if self.bell.changed().await.is_err() {
                // The sender lives in the log this holds: it cannot have gone.
                std::future::pending::<()>().await;
            }
        }
    }
}
