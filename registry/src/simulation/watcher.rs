//! Clients of the watch: they read events, lose their connection, and resume elsewhere.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use serde_json::Value;

use super::faults::Faults;
use super::history::History;
use super::registry::Registries;
use crate::watch::{Batch, EventKind, Interest, Subscription};

/// Instance id to generation, by service.
pub(super) type View = BTreeMap<String, BTreeMap<String, u64>>;

/// One client.
#[derive(Default)]
pub(super) struct Watcher {
    subscription: Option<(usize, Subscription)>,
    token: Option<String>,
    pub(super) view: View,
    /// What a resync has not told yet.
    stale: Option<Vec<String>>,
    /// Of this connection.
    revisions: BTreeMap<String, u64>,
    position: u64,
}

pub(super) struct Watchers(pub(super) Vec<Watcher>);

impl Watchers {
    pub(super) fn new(count: usize) -> Self {
        Self((0..count).map(|_| Watcher::default()).collect())
    }

    pub(super) fn read(
        &mut self,
        registries: &Registries,
        faults: &Faults,
        random: &mut fastrand::Rng,
        history: &mut History,
    ) {
        for watcher in &mut self.0 {
            let lost = watcher.subscription.as_ref().is_some_and(|(n, _)| registries.awake(*n).is_none());
            if lost || random.f64() < faults.reconnect {
                watcher.subscription = None;
                if random.u8(..10) == 0 {
                    *watcher = Watcher::default(); // it forgot
                }
            }
            if watcher.subscription.is_none() {
                watcher.connect(registries, random);
            }
            watcher.take(history);
        }
    }
}

impl Watcher {
    fn connect(&mut self, registries: &Registries, random: &mut fastrand::Rng) {
        let n = random.usize(..8);
        let Some(running) = registries.awake(n) else { return };
        let after = self.token.as_ref().and_then(|token| token.rsplit_once('.')?.1.parse().ok());
        let subscribed = running.hub.subscribe(&running.catalog.world(), Interest::All, after);
        self.subscription = Some((registries.index(n), subscribed.expect("there is room")));
        self.revisions.clear();
        self.position = 0;
    }

    fn take(&mut self, history: &mut History) {
        loop {
            let Some((_, subscription)) = &mut self.subscription else { return };
            let Some(batch) = subscription.next().now_or_never() else { return };
            self.apply(&batch, history);
        }
    }

    fn apply(&mut self, batch: &Batch, history: &mut History) {
        for event in &batch.events {
            let data: Value = serde_json::from_slice(&event.data).expect("JSON");
            let service = data["service"].as_str().unwrap_or_default().to_owned();
            if let Some(revision) = data["revision"].as_u64() {
                let last = self.revisions.insert(service.clone(), revision);
                assert!(
                    last.is_none_or(|last| last < revision),
                    "{service} went from {last:?} to {revision}"
                );
            }
            if event.kind != EventKind::Resync
                && let Some(stale) = &mut self.stale
            {
                stale.retain(|name| *name != service);
            }
            let instances = data["instances"].as_array().into_iter().flatten();
            let instances = instances.map(|instance| {
                let id = instance["id"].as_str().expect("an id").to_owned();
                (id, instance["generation"].as_u64().expect("a generation"))
            });
            match event.kind {
                EventKind::Service => {
                    let told: BTreeMap<_, _> = instances.collect();
                    history.told(&service, self.view.get(&service), &told);
                    self.view.insert(service, told);
                }
                EventKind::Change => {
                    let told: BTreeMap<_, _> = instances.collect();
                    let known = self.view.entry(service.clone()).or_default();
                    history.told(&service, Some(known), &told);
                    known.extend(told);
                    for id in data["removed"].as_array().into_iter().flatten() {
                        known.remove(id.as_str().expect("an id"));
                    }
                }
                EventKind::Removed => drop(self.view.remove(&service)),
                EventKind::Resync => self.stale = Some(self.view.keys().cloned().collect()),
                EventKind::Progress => {}
            }
        }
        for service in self.stale.take().into_iter().flatten() {
            self.view.remove(&service);
        }
        let at = batch.token.rsplit_once('.').and_then(|(_, n)| n.parse::<u64>().ok()).expect("a token");
        assert!(at >= self.position, "positions never go back: from {} to {at}", self.position);
        self.position = at;
        self.token = Some(batch.token.to_string());
    }
}
