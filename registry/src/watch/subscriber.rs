//! What the hub keeps of one who watches: what it has not been told yet, and how to wake it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use pillion_model::name::ServiceName;

use super::Interest;

/// A change of one service, made once for all who watch it.
pub(super) struct Change {
    pub(super) service: ServiceName,
    /// The revision it applies to.
    pub(super) since: u64,
    pub(super) revision: u64,
    pub(super) data: Bytes,
    /// Whoever has this change, and had everything before, goes on from here.
    pub(super) token: Arc<str>,
}

/// The hub's end of a subscription.
pub(super) struct Subscriber {
    pub(super) interest: Interest,
    news: Mutex<News>,
    bell: AtomicWaker,
}

/// What has not been told yet.
#[derive(Default)]
pub(super) struct News {
    /// The one change, if there is nothing else: it can be told without asking the hub.
    pub(super) change: Option<Arc<Change>>,
    /// Services that are not as told.
    pub(super) dirty: BTreeSet<ServiceName>,
    /// What was told is of another history.
    pub(super) begins_again: bool,
    /// There will be nothing more.
    pub(super) closed: bool,
}

impl News {
    /// Whether there is anything to do about it.
    pub(super) fn is_any(&self) -> bool {
        self.change.is_some() || !self.dirty.is_empty() || self.begins_again || self.closed
    }

    /// Takes the change out, if it is all there is.
    pub(super) fn take_change(&mut self) -> Option<Arc<Change>> {
        let is_all = self.dirty.is_empty() && !self.begins_again && !self.closed;
        if is_all { self.change.take() } else { None }
    }

    /// Everything as services that are not as told.
    pub(super) fn take_dirty(&mut self) -> BTreeSet<ServiceName> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.extend(self.change.take().map(|change| change.service.clone()));
        dirty
    }
}

impl Subscriber {
    pub(super) fn new(interest: Interest, dirty: BTreeSet<ServiceName>, closed: bool) -> Self {
        let news = News { dirty, closed, ..News::default() };
        Self { interest, news: Mutex::new(news), bell: AtomicWaker::new() }
    }

    pub(super) fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever polls when there is news.
    pub(super) fn listen(&self, context: &Context<'_>) {
        self.bell.register(context.waker());
    }

    /// A service changed. Adds whom to wake.
    pub(super) fn tell(&self, service: &ServiceName, change: Option<&Arc<Change>>, bells: &mut Vec<Waker>) {
        let mut news = self.news();
        match change {
            Some(change) if !news.is_any() => news.change = Some(Arc::clone(change)),
            _ => {
                let before = news.take_dirty();
                news.dirty = before;
                news.dirty.insert(service.clone());
            }
        }
        drop(news);
        bells.extend(self.bell.take());
    }

    /// Another history is in force, with these services.
    pub(super) fn begin_again(&self, covered: BTreeSet<ServiceName>, bells: &mut Vec<Waker>) {
        let mut news = self.news();
        (news.change, news.dirty, news.begins_again) = (None, covered, true);
        drop(news);
        bells.extend(self.bell.take());
    }

    pub(super) fn close(&self, bells: &mut Vec<Waker>) {
        self.news().closed = true;
        bells.extend(self.bell.take());
    }
}
