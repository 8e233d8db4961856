//! One who watches: its position per service, and what it is told next.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use pillion_model::name::ServiceName;

use super::subscriber::{Change, Subscriber};
use super::{Hub, encode};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The whole state of one service; replaces what was known of it.
    Service,
    /// A change to the state of one service with the revision `since`.
    Change,
    /// A service left, with all its instances.
    Removed,
    /// What was known is too old: forget every service that is not told before the next progress.
    Resync,
    /// Everything up to the batch's token has been told.
    Progress,
}

impl EventKind {
    /// The name of the event in a stream of server-sent events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Change => "change",
            Self::Removed => "removed",
            Self::Resync => "resync",
            Self::Progress => "progress",
        }
    }
}

/// One event: its kind and its JSON, shared with the other subscribers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The details.
    pub data: Bytes,
}

/// Events, and the position after them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// In order; may be empty when only time has passed.
    pub events: Vec<Event>,
    /// Whoever resumes after this misses nothing. `<epoch>.<revision>`.
    pub token: Arc<str>,
}

/// A subscriber's end. Dropping it ends the subscription.
pub struct Subscription {
    hub: Arc<Hub>,
    subscriber: Arc<Subscriber>,
    id: u64,
    /// What was told of each service: its revision.
    positions: BTreeMap<ServiceName, u64>,
    resync: bool,
    /// Nothing has been told yet.
    first: bool,
}

impl Subscription {
    pub(super) fn new(
        hub: Arc<Hub>,
        subscriber: Arc<Subscriber>,
        id: u64,
        known: Option<u64>,
        resync: bool,
    ) -> Self {
        Self { hub, subscriber, id, positions: BTreeMap::new(), resync, first: known.is_none() }
    }

    /// What to tell next; waits until there is something. The first batch of one who knew nothing
    /// comes at once and is complete. Waits forever when the hub is closed. Cancel safe.
    ///
    /// A service's revisions rise from event to event; after resuming, an event may repeat what was
    /// already known (its revision tells).
    pub async fn next(&mut self) -> Batch {
        match poll_fn(|context| self.poll_next(context)).await {
            Some(batch) => batch,
            None => std::future::pending().await,
        }
    }

    /// The same for one who polls; `None` when the hub is closed.
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Batch>> {
        if self.first {
            self.first = false;
            return Poll::Ready(Some(self.take()));
        }
        loop {
            let mut news = self.subscriber.news();
            if !news.is_any() {
                // Under its lock: what comes afterwards finds whom to wake.
                self.subscriber.listen(context);
                return Poll::Pending;
            }
            if news.closed {
                return Poll::Ready(None);
            }
            let change = news.take_change();
            drop(news);
            let batch = match change {
                Some(change) => self.apply(&change),
                None => self.take(),
            };
            if !batch.events.is_empty() {
                return Poll::Ready(Some(batch));
            }
        }
    }

    /// A batch without events: how far this subscriber is.
    pub fn progress(&mut self) -> Batch {
        self.take()
    }

    /// Whether there is something to tell.
    pub fn is_behind(&self) -> bool {
        self.subscriber.news().is_any()
    }

    /// What a change is for this subscriber: itself, if that is what it waits for.
    fn apply(&mut self, change: &Change) -> Batch {
        match self.positions.get_mut(&change.service) {
            Some(position) if *position == change.since => {
                *position = change.revision;
                let event = Event { kind: EventKind::Change, data: change.data.clone() };
                Batch { events: vec![event], token: Arc::clone(&change.token) }
            }
            _ => {
                self.subscriber.news().dirty.insert(change.service.clone());
                self.take()
            }
        }
    }

    fn take(&mut self) -> Batch {
        let state = self.hub.lock();
        let mut news = self.subscriber.news();
        let (dirty, begins_again) = (news.take_dirty(), std::mem::take(&mut news.begins_again));
        drop(news);
        let mut events = Vec::new();
        if begins_again {
            self.positions.clear();
            self.resync = true;
        }
        if std::mem::take(&mut self.resync) {
            events.push(Event { kind: EventKind::Resync, data: Bytes::from_static(b"{}") });
        }
        let mut wholes = Vec::new();
        for name in dirty {
            let Some(topic) = state.topics.get(&name) else {
                // It left, and long enough ago that its topic is gone, too.
                self.positions.remove(&name);
                let data = encode::removed(&name, state.seen.revision);
                events.push(Event { kind: EventKind::Removed, data });
                continue;
            };
            let known = self.positions.insert(name.clone(), topic.revision);
            if known == Some(topic.revision) {
                continue;
            }
            match &topic.told {
                None => {
                    let data = encode::removed(&name, topic.revision);
                    events.push(Event { kind: EventKind::Removed, data });
                    self.positions.remove(&name);
                }
                Some(service) => match known.and_then(|known| topic.changes_since(known)) {
                    Some(changes) => {
                        let event = |data| Event { kind: EventKind::Change, data };
                        events.extend(changes.into_iter().map(event));
                    }
                    None => wholes.push((name, Arc::clone(service), Arc::clone(&topic.whole))),
                },
            }
        }
        let token = state.token().into();
        drop(state);
        // A big service takes a while to encode: not while others wait for the lock.
        for (name, service, whole) in wholes {
            let data = whole.get_or_init(|| encode::whole(&name, &service)).clone();
            events.push(Event { kind: EventKind::Service, data });
        }
        Batch { events, token }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.leave(self.id);
    }
}
