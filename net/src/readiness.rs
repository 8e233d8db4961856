//! Readiness: a guard per part of the process; ready when the last guard is dropped, and not ready
//! any more once the process begins to leave.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Knows which parts are still missing. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pending: Mutex<Pending>,
    state: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Pending {
    parts: BTreeMap<u64, String>,
    last: u64,
    leaving: bool,
}

/// Keeps the process "not ready" as long as it lives.
#[derive(Debug)]
#[must_use = "the part counts as ready as soon as the guard is dropped"]
pub struct ReadyGuard {
    key: u64,
    inner: Arc<Inner>,
}

impl Readiness {
    /// Nothing is pending, but nothing was announced ready either until the first
    /// [`Readiness::is_ready`]: create the guards before you serve the answer.
    pub fn new() -> Self {
        let readiness = Self::default();
        readiness.0.update(|_| {});
        readiness
    }

    /// Announces a part that must become ready, such as `first snapshot`.
    pub fn part(&self, name: &str) -> ReadyGuard {
        let mut key = 0;
        self.0.update(|pending| {
            pending.last += 1;
            key = pending.last;
            pending.parts.insert(key, name.to_owned());
        });
        ReadyGuard { key, inner: Arc::clone(&self.0) }
    }

    /// Whether every part is ready and the process is not leaving.
    pub fn is_ready(&self) -> bool {
        *self.0.state.borrow()
    }

    /// What is still missing, for people; `leaving` once the process leaves; nothing when ready.
    pub fn pending(&self) -> Vec<String> {
        let pending = self.0.lock();
        if pending.leaving {
            return vec!["leaving".to_owned()];
        }
        pending.parts.values().cloned().collect()
    }

    /// From now on not ready, whatever the parts say.
    pub fn leave(&self) {
        self.0.update(|pending| pending.leaving = true);
    }

    /// Waits until ready.
    pub async fn ready(&self) {
        let mut state = self.0.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|ready| *ready).await;
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Pending)) {
        let mut pending = self.lock();
        change(&mut pending);
        self.state.send_replace(pending.parts.is_empty() && !pending.leaving);
    }
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        self.inner.update(|pending| {
            pending.parts.remove(&self.key);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_guard_drops_until_leaving() {
        let readiness = Readiness::new();
        let (listeners, snapshot) = (readiness.part("listeners"), readiness.part("first snapshot"));
        assert_eq!(readiness.pending(), ["listeners", "first snapshot"]);
        drop(listeners);
        assert!(!readiness.is_ready());
        assert_eq!(readiness.pending(), ["first snapshot"]);
        drop(snapshot);
        readiness.ready().await;
        assert!(readiness.is_ready());
        readiness.leave();
        assert!(!readiness.is_ready());
        assert_eq!(readiness.pending(), ["leaving"]);
    }
}
