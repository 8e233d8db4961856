//! All listeners, or all clusters: those in effect and those that still warm.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use pillion_xds::ads::client::{Changed, Rejected};
use pillion_xds::decode::ConfigSource;
use tokio::time::Instant;

use super::item::Item;
use super::leaf::{Counts, Key, Origin, Refusal};

/// Listeners or clusters.
#[derive(Debug)]
pub(super) struct Kind<T> {
    /// Who has them all.
    pub(super) from: Option<ConfigSource>,
    pub(super) entries: BTreeMap<String, Entry<T>>,
    pub(super) counts: Counts,
    /// What was accepted last.
    pub(super) version: String,
    pub(super) answered: bool,
    pub(super) deadline: Option<Instant>,
}

/// One listener or cluster.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) is_static: bool,
    pub(super) active: Option<Held<T>>,
    pub(super) warming: Option<Held<T>>,
    pub(super) error: Option<Refusal>,
}

/// One version.
#[derive(Debug)]
pub(super) struct Held<T> {
    pub(super) value: T,
    /// As received; empty if it is of the bootstrap.
    pub(super) body: Bytes,
    pub(super) version: String,
    pub(super) updated: SystemTime,
    pub(super) needs: Vec<Key>,
}

impl<T: Clone> Kind<T> {
    pub(super) fn new(from: Option<ConfigSource>) -> Self {
        Self {
            from,
            entries: BTreeMap::new(),
            counts: Counts::default(),
            version: String::new(),
            answered: false,
            deadline: None,
        }
    }

    /// Whoever has them is asked from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        match &self.from {
            Some(from) => self.deadline = from.wait_max.map(|wait| now + wait),
            None => self.answered = true,
        }
    }

    pub(super) fn is_from(&self, origin: Origin<'_>) -> bool {
        self.from.as_ref().is_some_and(|from| origin.is(&from.source))
    }

    pub(super) fn on_answer(&mut self, changed: &[Changed<Item>], rejected: &[Rejected]) {
        self.answered = true;
        self.counts.update_attempt += 1;
        // What was wrong with the answer before is past; what still is, is said again.
        self.entries.retain(|_, entry| {
            entry.error = None;
            entry.active.is_some() || entry.warming.is_some()
        });
        if rejected.is_empty() {
            self.counts.update_success += 1;
            if let Some(changed) = changed.first() {
                self.version.clone_from(&changed.version);
            }
        } else {
            self.counts.update_rejected += 1;
        }
    }

    /// Whether it is another one than the one there is, which keeps its version.
    pub(super) fn is_news(&mut self, name: &str, body: &Bytes) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return true };
        if entry.is_static {
            return false; // as in Envoy, what the bootstrap has stays
        }
        let newest = entry.warming.as_ref().or(entry.active.as_ref());
        newest.is_none_or(|newest| newest.body != *body)
    }

    pub(super) fn hold(&mut self, name: &str, held: Held<T>) {
        let is_static = held.body.is_empty();
        let entry = self.entries.entry(name.to_owned()).or_insert_with(|| {
            self.counts.added += u64::from(!is_static);
            Entry { is_static, active: None, warming: None, error: None }
        });
        self.counts.modified += u64::from(entry.active.is_some());
        entry.warming = Some(held);
    }

    /// True: it was in effect.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        if self.entries.get(name).is_none_or(|entry| entry.is_static) {
            return false;
        }
        self.counts.removed += 1;
        self.entries.remove(name).is_some_and(|entry| entry.active.is_some())
    }

    pub(super) fn refuse(&mut self, name: &str, refusal: Refusal) {
        if name.is_empty() {
            return;
        }
        let new = || Entry { is_static: false, active: None, warming: None, error: None };
        self.entries.entry(name.to_owned()).or_insert_with(new).error = Some(refusal);
    }

    pub(super) fn expire(&mut self, now: Instant) {
        if !self.answered && self.deadline.is_some_and(|deadline| deadline <= now) {
            self.answered = true;
            self.counts.init_fetch_timeout += 1;
        }
    }

    pub(super) fn awaited_until(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.answered)
    }

    /// True: something took effect.
    pub(super) fn settle(&mut self, is_ready: impl Fn(&Key) -> bool) -> bool {
        let mut is_changed = false;
        for entry in self.entries.values_mut() {
            if entry.warming.as_ref().is_some_and(|held| held.needs.iter().all(&is_ready)) {
                entry.active = entry.warming.take();
                is_changed = true;
            }
        }
        is_changed
    }

    pub(super) fn is_complete(&self) -> bool {
        self.answered && self.entries.values().all(|entry| entry.warming.is_none())
    }

    /// How many wait.
    pub(super) fn warming(&self) -> u64 {
        self.entries.values().filter(|entry| entry.warming.is_some()).count() as u64
    }

    pub(super) fn needs(&self) -> impl Iterator<Item = &Key> {
        self.entries
            .values()
            .flat_map(|entry| entry.active.iter().chain(&entry.warming))
            .flat_map(|it| &it.needs)
    }

    pub(super) fn active(&self) -> BTreeMap<String, T> {
        let active =
            |(name, entry): (&String, &Entry<T>)| Some((name.clone(), entry.active.as_ref()?.value.clone()));
        self.entries.iter().filter_map(active).collect()
    }

    pub(super) fn dynamic_names(&self) -> Vec<String> {
        self.entries.iter().filter(|(_, entry)| !entry.is_static).map(|(name, _)| name.clone()).collect()
    }
}

impl<T> Held<T> {
    pub(super) fn of_bootstrap(value: T, needs: Vec<Key>) -> Self {
        Self::new(value, Bytes::new(), String::new(), needs)
    }

    pub(super) fn new(value: T, body: Bytes, version: String, needs: Vec<Key>) -> Self {
        Self { value, body, version, updated: SystemTime::now(), needs }
    }
}
