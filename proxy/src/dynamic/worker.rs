//! The task that follows control plane and files and brings what they say into effect.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillion_net::tls::Secrets;
use pillion_xds::ads::client::{Client, Decode, Handler, Link, Update};
use pillion_xds::decode::FileSource;
use pillion_xds::type_url::label;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::files::{self, Files};
use super::item::Item;
use super::leaf::Origin;
use super::secrets::Loaded;
use super::state::{State, Wanted};
use crate::runtime::Runtime;

/// Shortest time between two publications: the first change at once, those that follow together.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(50);

pub(super) struct Worker {
    pub(super) client: Client,
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: Arc<Runtime>,
    pub(super) decode: Decode<Item>,
    pub(super) files: Files,
    pub(super) wanted: Wanted,
    pub(super) loaded: Current,
    pub(super) published_at: Option<Instant>,
    pub(super) begun: CancellationToken,
}

/// Secrets in both their roles.
pub(super) struct Current {
    pub(super) own: Arc<Loaded>,
    pub(super) published: Arc<dyn Secrets>,
}

/// What the admin pages read as well.
pub(crate) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) is_connected: std::sync::atomic::AtomicBool,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Worker {
    type Value = Item;

    fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    fn decode(&self) -> Decode<Item> {
        Arc::clone(&self.decode)
    }

    fn on_update(&mut self, update: Update<Item>) {
        for rejected in &update.rejected {
            let (kind, name, reason) = (label(&update.type_url), &rejected.name, &rejected.reason);
            warn!(kind, name, reason, "refused a resource, keeping the last good one");
        }
        self.shared.state().on_update(Origin::Ads, update, Instant::now());
        self.follow();
    }

    fn on_link(&mut self, link: Link) {
        let is_connected = link == Link::Connected;
        self.shared.is_connected.store(is_connected, std::sync::atomic::Ordering::Relaxed);
        match link {
            Link::Connected => info!("connected to the control plane"),
            Link::Lost { error, retry_in } => {
                warn!(error, ?retry_in, "no connection to the control plane, serving with what is known");
            }
        }
    }

    async fn work(&mut self) {
        let timer = self.next_timer();
        tokio::select! {
            () = self.files.news() => self.reread(),
            () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => self.follow(),
        }
    }
}

impl Worker {
    /// Asks for what is wanted now, and publishes what is in effect.
    pub(super) fn follow(&mut self) {
        loop {
            let now = Instant::now();
            let wanted = {
                let mut state = self.shared.state();
                state.settle(now);
                state.wanted()
            };
            let unread = self.ask(&wanted);
            self.wanted = wanted;
            if unread.is_empty() {
                break;
            }
            for (file, type_url) in unread {
                self.read(&file, type_url);
            }
        }
        self.publish_if_due();
    }

    /// Brings subscriptions in line; gives files that are to be read.
    fn ask(&mut self, wanted: &Wanted) -> Vec<(FileSource, &'static str)> {
        for type_url in wanted.all.difference(&self.wanted.all) {
            self.client.subscribe_all(type_url);
        }
        for (type_url, name) in wanted.names.difference(&self.wanted.names) {
            self.client.subscribe(type_url, name);
        }
        for (type_url, name) in self.wanted.names.difference(&wanted.names) {
            self.client.unsubscribe(type_url, name);
        }
        let watched = |wanted: &Wanted| -> BTreeSet<FileSource> {
            wanted.files.keys().map(|(file, _)| file).chain(&wanted.secret_files).cloned().collect()
        };
        let files = watched(wanted);
        if files != watched(&self.wanted) {
            self.files.watch(files.iter());
        }
        let is_new = |(what, names): &(&(FileSource, &'static str), &BTreeSet<String>)| {
            self.wanted.files.get(*what).is_none_or(|had| !names.is_subset(had))
        };
        wanted.files.iter().filter(is_new).map(|(what, _)| what.clone()).collect()
    }

    /// Reads a file whose content is wanted.
    fn read(&mut self, file: &FileSource, type_url: &'static str) {
        let have = self.shared.state().names(type_url);
        let origin = Origin::File(file);
        match files::read(file, type_url, &have, &self.runtime) {
            Ok(update) => {
                for rejected in &update.rejected {
                    let (kind, reason) = (label(type_url), &rejected.reason);
                    warn!(kind, reason, "refused a resource, keeping the last good one");
                }
                self.shared.state().on_update(origin, update, Instant::now());
            }
            Err(reason) => {
                warn!(kind = label(type_url), reason, "the file cannot be read, keeping what it held before");
                self.shared.state().on_failure(origin, type_url);
            }
        }
    }

    /// Reads files again that have been replaced.
    fn reread(&mut self) {
        let is_moved = self.files.take();
        let moved: Vec<_> = self.wanted.files.keys().filter(|(file, _)| is_moved(file)).cloned().collect();
        for (file, type_url) in moved {
            self.read(&file, type_url);
        }
        if self.wanted.secret_files.iter().any(is_moved) {
            self.shared.state().reread_secrets();
        }
        self.follow();
    }

    fn next_timer(&self) -> Option<Instant> {
        let state = self.shared.state();
        let publish_at = state.is_changed().then(|| self.publish_at());
        [state.settle_at(), publish_at].into_iter().flatten().min()
    }

    fn publish_at(&self) -> Instant {
        self.published_at.map_or_else(Instant::now, |at| at + PUBLISH_INTERVAL)
    }

    fn publish_if_due(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state();
        if state.is_changed() {
            let now = Instant::now();
            if self.published_at.is_some_and(|at| at + PUBLISH_INTERVAL > now) {
                return;
            }
            self.published_at = Some(now);
            self.publish(&mut state);
        }
        // Also where the last of the first answers changes nothing.
        if state.has_begun() {
            self.begun.cancel();
        }
    }

    fn publish(&mut self, state: &mut State) {
        if let Some(secrets) = state.take_secrets() {
            let (loaded, failed) = Loaded::load(secrets, &self.loaded.own);
            for (name, reason) in failed {
                warn!(name, reason, "the secret cannot be read, keeping the last good one");
            }
            let own = Arc::new(loaded);
            self.loaded = Current { published: Arc::clone(&own) as _, own };
        }
        let published = self.runtime.publish(state.take(), &self.loaded.published);
        for rejected in &published.rejected {
            let (kind, name, reason) = (rejected.kind, &rejected.name, &rejected.reason);
            warn!(kind, name, reason, "not brought into effect");
            state.refuse_active(rejected);
        }
    }
}
