//! Telling many who watch: one topic per service, one encoding per change, shared by everybody.
//!
//! A topic's first change after quiet goes out at once, further ones at most every
//! [`FLUSH_EVERY`]. A subscriber holds a position per service it is interested in and nothing else:
//! one that is slow gets the current state later, so its memory is bounded by its interest and not
//! by time. Positions are store revisions; see [`Subscription::next`] for what resuming promises.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use pillion_model::name::ServiceName;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, CatalogService, World};

mod encode;
mod subscriber;
mod subscription;

#[cfg(test)]
mod tests;

pub use subscription::{Batch, Event, EventKind, Subscription};

use subscriber::{Change, Subscriber};

/// Least time between two flushes of one topic.
pub const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// Least time between two looks at the catalog.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Changes of one topic kept for subscribers that are only a little behind.
const CHANGES_KEPT: usize = 16;
/// Subscribers at most.
pub const SUBSCRIBERS_MAX: usize = 20_000;

/// Which services a subscriber hears about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// All of them.
    All,
    /// Those of one namespace.
    Namespace(String),
    /// These.
    Services(BTreeSet<ServiceName>),
}

impl Interest {
    fn covers(&self, service: &ServiceName) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(namespace) => service.namespace() == namespace,
            Self::Services(services) => services.contains(service),
        }
    }
}

/// There are as many subscribers as this registry takes.
#[derive(Debug, thiserror::Error)]
#[error("this registry has {SUBSCRIBERS_MAX} watchers, which is the most it takes")]
pub struct TooMany;

/// All topics and all subscribers.
pub struct Hub {
    state: Mutex<State>,
}

struct State {
    /// Topics of services that are there, or have left not too long ago.
    topics: BTreeMap<ServiceName, Topic>,
    /// Those with something to tell.
    pending: BTreeSet<ServiceName>,
    /// The catalog as last looked at.
    seen: World,
    /// Everything up to this revision has been told.
    told_up_to: u64,
    /// What left up to this revision has no topic any more.
    forgotten_up_to: u64,
    subscribers: BTreeMap<u64, Arc<Subscriber>>,
    /// Subscribers by service; those with a wide interest are in `wide`.
    by_service: HashMap<ServiceName, BTreeMap<u64, Arc<Subscriber>>>,
    wide: BTreeMap<u64, Arc<Subscriber>>,
    next_id: u64,
    /// Nobody is told anything any more.
    closed: bool,
}

struct Topic {
    /// What the last flush told; `None`: the service has left.
    told: Option<Arc<CatalogService>>,
    /// Revision of that.
    revision: u64,
    /// The whole state, encoded for the first who asks.
    whole: Arc<OnceLock<Bytes>>,
    /// The last few changes, each with the revision it applies to.
    changes: VecDeque<(u64, Bytes)>,
    flushed_at: Option<Instant>,
    /// First revision that is not told yet.
    pending: Option<u64>,
}

impl Hub {
    /// A hub over what the catalog holds now.
    pub fn new(world: &World) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                topics: Topic::all(world),
                pending: BTreeSet::new(),
                seen: world.clone(),
                told_up_to: world.revision,
                forgotten_up_to: world.floor,
                subscribers: BTreeMap::new(),
                by_service: HashMap::new(),
                wide: BTreeMap::new(),
                next_id: 0,
                closed: false,
            }),
        })
    }

    /// Follows the catalog until `stop`.
    pub async fn run(&self, catalog: &Catalog, stop: CancellationToken) {
        let mut changes = catalog.changes();
        let mut due: Option<Instant> = None;
        loop {
            let wait = async {
                tokio::select! {
                    changed = changes.changed() => changed.is_ok(),
                    () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => true,
                }
            };
            if stop.run_until_cancelled(wait).await != Some(true) {
                return;
            }
            due = self.look(&catalog.world(), Instant::now());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Takes in the catalog's state and flushes what is due; says when the rest is.
    pub(crate) fn look(&self, world: &World, now: Instant) -> Option<Instant> {
        let mut bells = Vec::new();
        let mut state = self.lock();
        state.notice(world, &mut bells);
        let next = state.flush(now, &mut bells);
        drop(state);
        // Not before: whoever wakes up may want the lock.
        bells.into_iter().for_each(Waker::wake);
        next
    }

    /// Ends all subscriptions, also those to come.
    pub fn close(&self) {
        let mut bells = Vec::new();
        let mut state = self.lock();
        state.closed = true;
        for subscriber in state.subscribers.values() {
            subscriber.close(&mut bells);
        }
        drop(state);
        bells.into_iter().for_each(Waker::wake);
    }

    /// Begins to watch from `world` on, which is newer than `after`: everything up to that revision is
    /// known; `None`: nothing is.
    ///
    /// # Errors
    ///
    /// [`TooMany`] if there is no room.
    pub fn subscribe(
        self: &Arc<Self>,
        world: &World,
        interest: Interest,
        after: Option<u64>,
    ) -> Result<Subscription, TooMany> {
        // What the subscriber may have seen elsewhere already, it must be told here too.
        self.look(world, Instant::now());
        let mut state = self.lock();
        if state.subscribers.len() >= SUBSCRIBERS_MAX {
            return Err(TooMany);
        }
        let known = after.filter(|after| (state.seen.floor..=state.seen.revision).contains(after));
        let behind = |(_, topic): &(&ServiceName, &Topic)| {
            known.map_or_else(|| topic.told.is_some(), |known| topic.revision > known)
        };
        let dirty = state.covered(&interest).filter(behind).map(|(name, _)| name.clone()).collect();
        let subscriber = Arc::new(Subscriber::new(interest, dirty, state.closed));
        let id = state.next_id;
        state.next_id += 1;
        match &subscriber.interest {
            Interest::Services(services) => {
                for service in services {
                    let interested = state.by_service.entry(service.clone()).or_default();
                    interested.insert(id, Arc::clone(&subscriber));
                }
            }
            Interest::All | Interest::Namespace(_) => {
                state.wide.insert(id, Arc::clone(&subscriber));
            }
        }
        state.subscribers.insert(id, Arc::clone(&subscriber));
        let resync = after.is_some() && known.is_none();
        Ok(Subscription::new(Arc::clone(self), subscriber, id, known, resync))
    }

    /// Number of subscribers.
    pub fn subscribers(&self) -> usize {
        self.lock().subscribers.len()
    }

    fn leave(&self, id: u64) {
        let mut state = self.lock();
        state.wide.remove(&id);
        let Some(subscriber) = state.subscribers.remove(&id) else { return };
        if let Interest::Services(services) = &subscriber.interest {
            for service in services {
                if let Some(ids) = state.by_service.get_mut(service) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        state.by_service.remove(service);
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The topics that an interest is about.
    fn covered<'a>(
        &'a self,
        interest: &'a Interest,
    ) -> Box<dyn Iterator<Item = (&'a ServiceName, &'a Topic)> + 'a> {
        match interest {
            Interest::Services(services) => {
                Box::new(services.iter().filter_map(|name| self.topics.get_key_value(name)))
            }
            _ => Box::new(self.topics.iter().filter(|(name, _)| interest.covers(name))),
        }
    }

    /// Takes in a state of the catalog, unless it is an old one.
    fn notice(&mut self, world: &World, bells: &mut Vec<Waker>) {
        if world.epoch != self.seen.epoch {
            self.begin_again(world, bells);
        } else if world.revision > self.seen.revision {
            self.mark(world);
        }
    }

    /// Another history is in force: everybody has to forget what they were told.
    fn begin_again(&mut self, world: &World, bells: &mut Vec<Waker>) {
        self.topics = Topic::all(world);
        self.pending.clear();
        self.seen = world.clone();
        (self.told_up_to, self.forgotten_up_to) = (world.revision, world.floor);
        for subscriber in self.subscribers.values() {
            let covered = self.covered(&subscriber.interest).map(|(name, _)| name.clone()).collect();
            subscriber.begin_again(covered, bells);
        }
    }

    /// Marks the topics of services that are not as last looked at.
    fn mark(&mut self, world: &World) {
        let last = std::mem::replace(&mut self.seen, world.clone());
        for name in world.changed_since(&last) {
            let [was, is] = [&last, world].map(|world| world.catalog.services.get(&name));
            let revision = match (was, is) {
                (Some(was), Some(is)) if Arc::ptr_eq(was, is) => continue,
                (None, None) => continue,
                (_, is) => is.map_or(world.revision, |service| service.revision),
            };
            let topic = self.topics.entry(name.clone()).or_insert_with(|| Topic::new(None, 0));
            topic.pending.get_or_insert(revision);
            self.pending.insert(name);
        }
    }

    /// Tells the pending topics that may be told now; says when the next one may.
    fn flush(&mut self, now: Instant, bells: &mut Vec<Waker>) -> Option<Instant> {
        let mut told = Vec::new();
        let mut next: Option<Instant> = None;
        let (mut later, mut later_from) = (BTreeSet::new(), None);
        for name in std::mem::take(&mut self.pending) {
            let Some(topic) = self.topics.get_mut(&name) else { continue };
            let due = topic.flushed_at.map_or(now, |at| at + FLUSH_EVERY);
            if due > now {
                next = Some(next.map_or(due, |next| next.min(due)));
                later_from = later_from.into_iter().chain(topic.pending).min();
                later.insert(name);
                continue;
            }
            let is_watched = watching(&self.by_service, &self.wide, &name).next().is_some();
            let service = self.seen.catalog.services.get(&name);
            let change = topic.flush(&name, service, self.seen.revision, is_watched, now);
            if is_watched {
                told.push((name, change));
            }
        }
        self.pending = later;
        self.told_up_to = later_from.map_or(self.seen.revision, |first: u64| first - 1);
        let token: Arc<str> = self.token().into();
        for (name, change) in told {
            let change = change.map(|(since, revision, data)| {
                Arc::new(Change { service: name.clone(), since, revision, data, token: Arc::clone(&token) })
            });
            for subscriber in watching(&self.by_service, &self.wide, &name) {
                subscriber.tell(&name, change.as_ref(), bells);
            }
        }
        // What left before the floor is told by a resync to whoever resumes from before.
        let floor = self.seen.floor;
        if std::mem::replace(&mut self.forgotten_up_to, floor) != floor {
            self.topics
                .retain(|_, topic| topic.told.is_some() || topic.pending.is_some() || topic.revision > floor);
        }
        next
    }

    /// Whoever resumes from it has been told everything that has been told.
    fn token(&self) -> String {
        format!("{}.{}", self.seen.epoch, self.told_up_to)
    }
}

/// Everybody who wants to hear about a service.
fn watching<'a>(
    by_service: &'a HashMap<ServiceName, BTreeMap<u64, Arc<Subscriber>>>,
    wide: &'a BTreeMap<u64, Arc<Subscriber>>,
    name: &'a ServiceName,
) -> impl Iterator<Item = &'a Arc<Subscriber>> {
    let narrow = by_service.get(name).into_iter().flat_map(BTreeMap::values);
    narrow.chain(wide.values().filter(|subscriber| subscriber.interest.covers(name)))
}

impl Topic {
    fn all(world: &World) -> BTreeMap<ServiceName, Self> {
        let departed = world.departed.iter().map(|(name, at)| (name.clone(), Self::new(None, *at)));
        let services = world.catalog.services.iter();
        let services =
            services.map(|(name, service)| (name.clone(), Self::new(Some(Arc::clone(service)), 0)));
        departed.chain(services).collect()
    }

    fn new(told: Option<Arc<CatalogService>>, revision: u64) -> Self {
        Self {
            revision: told.as_ref().map_or(revision, |service| service.revision),
            told,
            whole: Arc::default(),
            changes: VecDeque::new(),
            flushed_at: None,
            pending: None,
        }
    }

    /// Tells a state of the service; returns the change: since when, to when, and what. It is only of use to
    /// those who watch: whoever begins later gets the whole state.
    fn flush(
        &mut self,
        name: &ServiceName,
        service: Option<&Arc<CatalogService>>,
        world_revision: u64,
        is_watched: bool,
        now: Instant,
    ) -> Option<(u64, u64, Bytes)> {
        let revision = service.map_or(world_revision, |service| service.revision);
        let change = match (&self.told, service) {
            (Some(last), Some(next)) if is_watched => {
                let data = encode::change(name, self.revision, last, next);
                self.changes.push_back((self.revision, data.clone()));
                let excess = self.changes.len().saturating_sub(CHANGES_KEPT);
                self.changes.drain(..excess);
                Some((self.revision, revision, data))
            }
            _ => {
                self.changes.clear();
                None
            }
        };
        self.told = service.cloned();
        self.revision = revision;
        self.whole = Arc::default();
        self.flushed_at = Some(now);
        self.pending = None;
        change
    }

    /// The changes that lead from `position` to now, if they are all kept.
    fn changes_since(&self, position: u64) -> Option<Vec<Bytes>> {
        let first = self.changes.iter().position(|(since, _)| *since == position)?;
        Some(self.changes.iter().skip(first).map(|(_, data)| data.clone()).collect())
    }
}
