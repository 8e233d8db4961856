//! The recent commits, for those who follow the store.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Commit;

/// Commits kept for followers that lag; whoever lags further loads again.
const COMMITS_KEPT: usize = 4096;

/// A bounded ring of commits with a bell.
pub(super) struct Log {
    ring: Mutex<VecDeque<Arc<Commit>>>,
    latest: watch::Sender<u64>,
    /// Commits at or below this revision were never in the ring.
    start: u64,
}

impl Log {
    pub(super) fn new(revision: u64) -> Arc<Self> {
        Arc::new(Self {
            ring: Mutex::new(VecDeque::new()),
            latest: watch::Sender::new(revision),
            start: revision,
        })
    }

    /// Adds commits, in order of their revisions, and wakes followers once.
    pub(super) fn append(&self, commits: impl IntoIterator<Item = Arc<Commit>>) {
        let mut last = None;
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            for commit in commits {
                last = Some(commit.revision);
                ring.push_back(commit);
            }
            let excess = ring.len().saturating_sub(COMMITS_KEPT);
            ring.drain(..excess);
        }
        if let Some(revision) = last {
            self.latest.send_replace(revision);
        }
    }

    pub(super) fn latest(&self) -> u64 {
        *self.latest.borrow()
    }

    pub(super) fn watch(self: &Arc<Self>, from: u64) -> Watch {
        Watch { log: Arc::clone(self), bell: self.latest.subscribe(), position: from }
    }

    fn after(&self, position: u64) -> Result<Vec<Arc<Commit>>, Compacted> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = ring.front().map_or_else(|| self.latest() + 1, |commit| commit.revision);
        let complete_from = if ring.len() < COMMITS_KEPT { self.start.min(oldest - 1) } else { oldest - 1 };
        if position < complete_from {
            return Err(Compacted { position, oldest: complete_from });
        }
        let first = ring.partition_point(|commit| commit.revision <= position);
        Ok(ring.iter().skip(first).cloned().collect())
    }
}

/// A follower's position in the store's history.
pub struct Watch {
    log: Arc<Log>,
    bell: watch::Receiver<u64>,
    position: u64,
}

/// The follower lags behind what is kept: it must load again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {position} is no longer kept; the oldest position to follow from is {oldest}")]
pub struct Compacted {
    position: u64,
    oldest: u64,
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
            let commits = self.log.after(self.position)?;
            if let Some(last) = commits.last() {
                self.position = last.revision;
                return Ok(commits);
            }
            if self.bell.changed().await.is_err() {
                // The sender lives in the log this holds: it cannot have gone.
                std::future::pending::<()>().await;
            }
        }
    }
}
