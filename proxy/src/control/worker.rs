//! The task behind [`Control`](super::Control): owns the state, answers lookups, publishes what
//! takes effect, and hands what is worth keeping to the disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pillion_model::mesh::Resources;
use pillion_net::identity::Replacements;
use pillion_xds::ads::client::{Client, Decode, Handler, Link, Update};
use pillion_xds::type_url::SERVICE;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::saved::{Saved, SavedResource};
use super::state::{Answer, Item, State};
use super::{Lookup, Status};

/// Shortest time between two publications: the first change at once, those that follow together.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(50);
/// Shortest time between two writes: the first change at once, those that follow together.
const SAVE_INTERVAL: Duration = Duration::from_millis(200);
/// How long a write waits for parts of a service that are still to come.
const SAVE_PARTS_WAIT_MAX: Duration = Duration::from_secs(1);
/// Lookups that wait at the same time; more are answered as timed out.
const WAITING_MAX: usize = 1024;

/// What callers ask of the task.
pub(super) enum Command {
    Lookup {
        name: String,
        reply: oneshot::Sender<Lookup>,
    },
    /// The name was used.
    Touch(String),
}

pub(super) struct Worker {
    pub(super) node_id: String,
    pub(super) state: State,
    pub(super) decode: Decode<Item>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) resources: watch::Sender<Arc<Resources>>,
    pub(super) status: watch::Sender<Status>,
    pub(super) waiting: HashMap<String, Vec<oneshot::Sender<Lookup>>>,
    pub(super) published_at: Option<Instant>,
    pub(super) kept: Option<Kept>,
    pub(super) identity: Option<Replacements>,
    /// There is another certificate than the connection was made with.
    pub(super) renewed: bool,
}

async fn next(identity: &mut Option<Replacements>) {
    match identity {
        Some(identity) => identity.next().await,
        None => std::future::pending().await,
    }
}

/// What is to be on disk.
pub(super) struct Kept {
    pub(super) states: watch::Sender<Option<Saved>>,
    pub(super) bodies: BTreeMap<(String, String), Body>,
    /// When what has changed is to be written.
    pub(super) save_at: Option<Instant>,
    pub(super) saved_at: Option<Instant>,
}

/// A resource as received.
pub(super) struct Body {
    pub(super) version: String,
    pub(super) bytes: Bytes,
}

impl Handler for Worker {
    type Value = Item;

    fn client(&mut self) -> &mut Client {
        &mut self.state.client
    }

    fn decode(&self) -> Decode<Item> {
        Arc::clone(&self.decode)
    }

    fn on_update(&mut self, update: Update<Item>) {
        let now = Instant::now();
        self.report(&update);
        if let Some(kept) = &mut self.kept {
            kept.take(&update, now);
        }
        for name in self.state.on_update(update, now) {
            self.answer(&name, &Lookup::NxDomain);
        }
        self.publish_if_due(now);
        self.save_if_due(now);
    }

    fn on_link(&mut self, link: Link) {
        match link {
            Link::Connected => {
                info!("connected to the registry");
                self.status.send_modify(|status| {
                    status.connected = true;
                    status.last_error = None;
                });
            }
            Link::Lost { error, retry_in } => {
                // Connections end, with certificates and registries; not to find another is trouble.
                if self.status.borrow().connected {
                    info!(error, ?retry_in, "the connection to the registry has ended");
                } else {
                    warn!(error, ?retry_in, "no connection to the registry, serving with what is known");
                }
                self.status.send_modify(|status| {
                    status.connected = false;
                    status.last_error = Some(error);
                });
            }
        }
    }

    fn takes_leave(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    async fn work(&mut self) {
        let timer = self.next_timer();
        tokio::select! {
            // The registry ends connections with the certificates they were made with.
            () = next(&mut self.identity) => self.renewed = true,
            command = self.commands.recv(), if !self.commands.is_closed() || !self.commands.is_empty() => {
                command.into_iter().for_each(|command| self.on_command(command));
            }
            () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => self.on_timer(),
            else => std::future::pending().await,
        }
    }
}

impl Worker {
    /// The last state on its way to the disk, when the task ends.
    pub(super) fn finish(mut self) {
        self.save();
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Touch(name) => drop(self.state.on_demand.touch(&name)),
            Command::Lookup { name, reply } => self.lookup(name, reply),
        }
        self.publish_if_due(Instant::now());
    }

    fn lookup(&mut self, name: String, reply: oneshot::Sender<Lookup>) {
        // Nobody to ask: what did not exist when the registry last spoke is all there is to say.
        if !self.status.borrow().connected && self.state.on_demand.absent_since(&name).is_some() {
            let _ = reply.send(Lookup::NxDomain); // the caller may have given up
            return;
        }
        let answer = match self.state.ask(&name, Instant::now()) {
            Answer::Absent => Lookup::NxDomain,
            Answer::Known if !self.state.is_changed() => self.known(&name),
            // Answered when it is published.
            Answer::Known | Answer::Asked if self.make_room() => {
                self.waiting.entry(name).or_default().push(reply);
                return;
            }
            Answer::Known | Answer::Asked => Lookup::Timeout,
        };
        let _ = reply.send(answer); // the caller may have given up
    }

    /// Forgets lookups whose callers have given up, when there are many.
    fn make_room(&mut self) -> bool {
        let count = |waiting: &HashMap<String, Vec<_>>| waiting.values().map(Vec::len).sum::<usize>();
        if count(&self.waiting) >= WAITING_MAX {
            self.waiting.retain(|_, replies| {
                replies.retain(|reply| !reply.is_closed());
                !replies.is_empty()
            });
        }
        count(&self.waiting) < WAITING_MAX
    }

    fn known(&self, name: &str) -> Lookup {
        let resources = self.resources.borrow();
        resources
            .services
            .get(name)
            .map_or(Lookup::Timeout, |service| Lookup::Service(Arc::new(service.clone())))
    }

    fn answer(&mut self, name: &str, answer: &Lookup) {
        for reply in self.waiting.remove(name).unwrap_or_default() {
            let _ = reply.send(answer.clone()); // the caller may have given up
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let publish_at = self.state.is_changed().then(|| self.publish_at()).flatten();
        [self.state.settle_at(), publish_at, self.save_at()].into_iter().flatten().min()
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        if self.state.settle_at().is_some_and(|at| at <= now) {
            self.state.settle(now);
        }
        self.publish_if_due(now);
        self.save_if_due(now);
    }

    /// When to write: not before the proxy's own configuration is complete, and not while a service
    /// waits for its parts, unless that takes long. Without them it would be of no use.
    fn save_at(&self) -> Option<Instant> {
        let at = self.kept.as_ref()?.save_at.filter(|_| self.state.is_synced())?;
        Some(if self.state.settle_at().is_some() { at + SAVE_PARTS_WAIT_MAX } else { at })
    }

    fn save_if_due(&mut self, now: Instant) {
        if self.save_at().is_some_and(|at| at <= now) {
            self.save();
        }
    }

    /// The earliest time of the next publication.
    fn publish_at(&self) -> Option<Instant> {
        Some(self.published_at.map_or_else(Instant::now, |at| at + PUBLISH_INTERVAL))
    }

    /// Publishes what changed, at once if somebody waits for it.
    fn publish_if_due(&mut self, now: Instant) {
        if !self.state.is_changed() {
            return;
        }
        let is_due = self.published_at.is_none_or(|at| at + PUBLISH_INTERVAL <= now);
        if is_due || self.waiting.keys().any(|name| self.state.has_service(name)) {
            self.publish(now);
        }
    }

    pub(super) fn publish(&mut self, now: Instant) {
        self.published_at = Some(now);
        self.resources.send_replace(Arc::new(self.state.take()));
        let found: Vec<String> =
            self.waiting.keys().filter(|name| self.state.has_service(name)).cloned().collect();
        for name in found {
            let answer = self.known(&name);
            self.answer(&name, &answer);
        }
    }

    fn report(&self, update: &Update<Item>) {
        for rejected in &update.rejected {
            let (type_url, name, reason) = (&update.type_url, &rejected.name, &rejected.reason);
            warn!(type_url, name, reason, "refused a resource from the registry, keeping the last good one");
        }
        let is_synced = self.state.is_synced();
        self.status.send_modify(|status| {
            status.last_update = Some(SystemTime::now());
            status.synced |= is_synced;
            if let Some(rejected) = update.rejected.first() {
                status.nacks += 1;
                status.last_nack = Some(format!("{}: {rejected}", update.type_url));
            }
        });
    }

    fn save(&mut self) {
        let Some(kept) = &mut self.kept else {
            return;
        };
        if kept.save_at.take().is_none() {
            return;
        }
        kept.saved_at = Some(Instant::now());
        let state = &self.state;
        kept.bodies.retain(|(type_url, name), _| state.holds(type_url, name));
        let resources = kept.bodies.iter().map(|((type_url, name), body)| SavedResource {
            type_url: type_url.clone(),
            name: name.clone(),
            version: body.version.clone(),
            body: body.bytes.clone(),
        });
        let used = state.on_demand.by_use().into_iter().filter(|name| state.holds(SERVICE, name));
        kept.states.send_replace(Some(Saved {
            node_id: self.node_id.clone(),
            resources: resources.collect(),
            on_demand: used.map(str::to_owned).collect(),
        }));
    }
}

impl Kept {
    fn take(&mut self, update: &Update<Item>, now: Instant) {
        for changed in &update.changed {
            let body = Body { version: changed.version.clone(), bytes: changed.body.clone() };
            self.bodies.insert((update.type_url.clone(), changed.name.clone()), body);
        }
        for name in &update.removed {
            self.bodies.remove(&(update.type_url.clone(), name.clone()));
        }
        let earliest = self.saved_at.map_or(now, |at| now.max(at + SAVE_INTERVAL));
        self.save_at = self.save_at.or(Some(earliest));
    }
}
