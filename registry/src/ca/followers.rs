//! Who follows the mesh's trust on an open stream, and what they have in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pillion_net::tls::{hex, sha256};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// The open streams of this registry.
#[derive(Default)]
pub(super) struct Followers {
    open: Mutex<Open>,
    /// Rung when somebody comes, goes, or has something new in force.
    bell: Notify,
}

#[derive(Default)]
struct Open {
    streams: BTreeMap<u64, Follower>,
    last: u64,
}

struct Follower {
    node: String,
    /// The version in force; empty: none yet.
    has: String,
}

/// One follower's place, given back when dropped.
pub(super) struct Seat {
    followers: Arc<Followers>,
    id: u64,
}

/// What one registry knows of a version, for the others that share its store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Acknowledged {
    pub(super) version: String,
    /// Hashes of the nodes that have it in force.
    pub(super) by: BTreeSet<String>,
    /// Nodes that follow and have not, the first of them.
    pub(super) pending: Vec<String>,
}

impl Followers {
    /// Takes a stream in.
    pub(super) fn enter(self: &Arc<Self>, node: String) -> Seat {
        let mut open = self.lock();
        open.last += 1;
        let id = open.last;
        open.streams.insert(id, Follower { node, has: String::new() });
        drop(open);
        self.bell.notify_one();
        Seat { followers: Arc::clone(self), id }
    }

    /// How many follow.
    pub(super) fn count(&self) -> usize {
        self.lock().streams.len()
    }

    /// Waits until something is different.
    pub(super) async fn changed(&self) {
        self.bell.notified().await;
    }

    /// Who has `version` in force, and who has not.
    pub(super) fn acknowledged(&self, version: &str) -> Acknowledged {
        let open = self.lock();
        let (have, have_not): (Vec<_>, Vec<_>) =
            open.streams.values().partition(|follower| follower.has == version);
        let pending = have_not.into_iter().map(|follower| follower.node.clone());
        Acknowledged {
            version: version.to_owned(),
            by: have.into_iter().map(|follower| node_hash(&follower.node)).collect(),
            pending: pending.take(PENDING_MAX).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// The follower has `version` in force.
    pub(super) fn acknowledge(&self, version: String) {
        if let Some(follower) = self.followers.lock().streams.get_mut(&self.id) {
            follower.has = version;
        }
        self.followers.bell.notify_one();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.followers.lock().streams.remove(&self.id);
        self.followers.bell.notify_one();
    }
}

impl Acknowledged {
    /// Whether this node has it in force.
    pub(super) fn has(&self, node: &str) -> bool {
        self.by.contains(&node_hash(node))
    }
}

/// Short, since thousands are kept in one value of the store.
fn node_hash(node: &str) -> String {
    hex(&sha256(node.as_bytes())[..8])
}

/// Names of those who are waited for, from one registry.
pub(super) const PENDING_MAX: usize = 100;
