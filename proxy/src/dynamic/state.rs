//! What of the configuration is in effect, and what still waits, without I/O.
//!
//! Warming, as in Envoy: a cluster takes effect when its endpoints and secrets are there, a listener
//! when its routes and secrets are, both at the latest when the sources have had the time that they
//! are given. Until then the version before stays. Beyond Envoy, new routes wait, for a moment, for
//! clusters that still warm.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use pillion_model::cluster::Cluster;
use pillion_model::listener::Listener;
use pillion_model::mesh::Resources;
use pillion_xds::ads::client::{Changed, Rejected, Update};
use pillion_xds::bootstrap::{Bootstrap, Dynamic};
use pillion_xds::decode::{FileSource, Reference, Secret, Source};
use pillion_xds::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET};
use tokio::time::Instant;

use super::item::Item;
use super::kind::{Held, Kind};
use super::leaf::{Key, Leaf, LeafValue, Origin, Refusal};
use crate::control::clusters_of_routes;

/// How long new routes wait for clusters that are warming.
const ROUTES_WAIT_MAX: Duration = Duration::from_secs(5);

/// Everything that is known.
#[derive(Debug)]
pub(super) struct State {
    pub(super) clusters: Kind<Cluster>,
    pub(super) listeners: Kind<Listener>,
    pub(super) leaves: BTreeMap<Key, Leaf>,
    /// Of the bootstrap.
    secrets: BTreeMap<String, Secret>,
    /// Clusters were complete once; before that no listener takes effect.
    clusters_begun: bool,
    listeners_begun: bool,
    is_changed: bool,
    secrets_changed: bool,
}

/// What has to be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Types of which everything is wanted, over ADS.
    pub(super) all: BTreeSet<&'static str>,
    /// Over ADS, by name.
    pub(super) names: BTreeSet<(&'static str, String)>,
    /// Files, the type of what is in them, and what of it is wanted by name.
    pub(super) files: BTreeMap<(FileSource, &'static str), BTreeSet<String>>,
    /// What secrets name, and where it is watched.
    pub(super) secret_files: BTreeSet<FileSource>,
}

impl State {
    /// What the bootstrap says.
    pub(super) fn new(bootstrap: &Bootstrap, now: Instant) -> Self {
        let Bootstrap { resources, references, secrets, dynamic, .. } = bootstrap;
        let Dynamic { clusters, listeners, .. } = dynamic;
        let named = |of: &BTreeMap<String, Vec<Reference>>, name| of.get(name).cloned().unwrap_or_default();
        let mut state = Self {
            clusters: Kind::new(clusters.clone()),
            listeners: Kind::new(listeners.clone()),
            leaves: BTreeMap::new(),
            secrets: secrets.clone(),
            clusters_begun: false,
            listeners_begun: false,
            is_changed: true,
            secrets_changed: true,
        };
        for (name, cluster) in &resources.clusters {
            let needs = state.need(named(&references.clusters, name), &Source::Ads, now);
            state.clusters.hold(name, Held::of_bootstrap(cluster.clone(), needs));
        }
        for (name, listener) in &resources.listeners {
            let needs = state.need(named(&references.listeners, name), &Source::Ads, now);
            state.listeners.hold(name, Held::of_bootstrap(listener.clone(), needs));
        }
        state.clusters.begin(now);
        state.settle(now);
        state
    }

    /// Takes in what a source says.
    pub(super) fn on_update(&mut self, origin: Origin<'_>, update: Update<Item>, now: Instant) {
        let Update { type_url, changed, removed, rejected } = update;
        match &*type_url {
            CLUSTER if self.clusters.is_from(origin) => {
                self.clusters.on_answer(&changed, &rejected);
                removed.iter().for_each(|name| self.is_changed |= self.clusters.remove(name));
            }
            LISTENER if self.listeners.is_from(origin) => {
                self.listeners.on_answer(&changed, &rejected);
                removed.iter().for_each(|name| self.is_changed |= self.listeners.remove(name));
            }
            // Not gone: what is in use stays, as in Envoy.
            _ => removed.iter().for_each(|name| {
                for (_, leaf) in self.leaves_of(&type_url, name, origin) {
                    leaf.answered = true;
                }
            }),
        }
        for refused in rejected {
            self.refuse(origin, &type_url, &refused);
        }
        for changed in changed {
            self.apply(origin, changed, now);
        }
        self.settle(now);
    }

    /// A file could not be read, or an answer is no answer.
    pub(super) fn on_failure(&mut self, origin: Origin<'_>, type_url: &str) {
        match type_url {
            CLUSTER => self.clusters.counts.fail(),
            LISTENER => self.listeners.counts.fail(),
            _ => self
                .leaves
                .iter_mut()
                .filter(|((of, _), leaf)| *of == type_url && leaf.is_from(origin))
                .for_each(|(_, leaf)| leaf.counts.fail()),
        }
    }

    /// The names that a source has given so far, of a type of which it gives all.
    pub(super) fn names(&self, type_url: &str) -> Vec<String> {
        match type_url {
            CLUSTER => self.clusters.dynamic_names(),
            LISTENER => self.listeners.dynamic_names(),
            _ => Vec::new(),
        }
    }

    fn apply(&mut self, origin: Origin<'_>, changed: Changed<Item>, now: Instant) {
        let Changed { name, version, body, value } = changed;
        let source = origin.source();
        match value {
            Item::Cluster(value, references) if self.clusters.is_from(origin) => {
                if self.clusters.is_news(&name, &body) {
                    let needs = self.need(references, &source, now);
                    self.clusters.hold(&name, Held::new(*value, body, version, needs));
                }
            }
            Item::Listener(value, references) if self.listeners.is_from(origin) => {
                if self.listeners.is_news(&name, &body) {
                    let needs = self.need(references, &source, now);
                    self.listeners.hold(&name, Held::new(*value, body, version, needs));
                }
            }
            Item::Cluster(..) | Item::Listener(..) => {}
            Item::Routes(routes) => self.leaf(ROUTE, &name, origin, |leaf| {
                leaf.accept(&version, &body);
                leaf.staged = Some((routes.clone(), now + ROUTES_WAIT_MAX));
                false
            }),
            Item::Endpoints(endpoints) => self.leaf(ENDPOINTS, &name, origin, |leaf| {
                leaf.accept(&version, &body);
                leaf.value = Some(LeafValue::Endpoints(endpoints.clone()));
                true
            }),
            Item::Secret(secret) => {
                self.secrets_changed = true;
                self.leaf(SECRET, &name, origin, |leaf| {
                    leaf.accept(&version, &body);
                    leaf.value = Some(LeafValue::Secret(secret.clone()));
                    true
                });
            }
        }
    }

    fn leaf(
        &mut self,
        type_url: &str,
        name: &str,
        origin: Origin<'_>,
        mut set: impl FnMut(&mut Leaf) -> bool,
    ) {
        let mut is_changed = false;
        for (_, leaf) in self.leaves_of(type_url, name, origin) {
            is_changed |= set(leaf);
        }
        self.is_changed |= is_changed;
    }

    fn leaves_of<'a>(
        &'a mut self,
        type_url: &'a str,
        name: &'a str,
        origin: Origin<'a>,
    ) -> impl Iterator<Item = (&'a Key, &'a mut Leaf)> {
        let is_it =
            move |(of, _): &Key, leaf: &Leaf| *of == type_url && leaf.name == name && leaf.is_from(origin);
        self.leaves.iter_mut().filter(move |(key, leaf)| is_it(key, leaf))
    }

    fn refuse(&mut self, origin: Origin<'_>, type_url: &str, refused: &Rejected) {
        let refusal = Refusal { reason: refused.reason.clone(), at: SystemTime::now() };
        match type_url {
            CLUSTER => self.clusters.refuse(&refused.name, refusal),
            LISTENER => self.listeners.refuse(&refused.name, refusal),
            _ => {
                for (_, leaf) in self.leaves_of(type_url, &refused.name, origin) {
                    leaf.counts.update_attempt += 1;
                    leaf.counts.update_rejected += 1;
                    leaf.error = Some(refusal.clone());
                }
            }
        }
    }

    /// The data plane has refused what had taken effect.
    pub(super) fn refuse_active(&mut self, rejected: &crate::snapshot::Rejected) {
        let refusal = Refusal { reason: rejected.reason.clone(), at: SystemTime::now() };
        match rejected.kind {
            "cluster" => self.clusters.refuse(&rejected.name, refusal),
            "listener" => self.listeners.refuse(&rejected.name, refusal),
            _ => {}
        }
    }

    /// Keeps what is named, and asks for it if nobody has yet.
    fn need(&mut self, references: Vec<Reference>, same: &Source, now: Instant) -> Vec<Key> {
        let mut needs = Vec::new();
        for Reference { type_url, name, key, from } in references {
            // Those of the bootstrap are there.
            let Some(from) = from else { continue };
            let source = if from.source == Source::Same { same.clone() } else { from.source };
            let deadline = from.wait_max.map(|wait| now + wait);
            let new = || Leaf::new(name, source, deadline);
            self.leaves.entry((type_url, key.clone())).or_insert_with(new);
            needs.push((type_url, key));
        }
        needs
    }

    /// Moves what is complete, or has waited long enough, into effect, and forgets what nothing names.
    pub(super) fn settle(&mut self, now: Instant) {
        self.clusters.expire(now);
        self.listeners.expire(now);
        for leaf in self.leaves.values_mut() {
            if !leaf.answered && leaf.deadline.is_some_and(|deadline| deadline <= now) {
                leaf.answered = true;
                leaf.counts.init_fetch_timeout += 1;
            }
        }
        let leaves = &self.leaves;
        let is_ready = |key: &Key| leaves.get(key).is_none_or(|leaf| leaf.answered);
        self.is_changed |= self.clusters.settle(is_ready);
        self.settle_routes(now);
        if !self.clusters_begun && self.clusters.is_complete() {
            self.clusters_begun = true;
            self.listeners.begin(now);
        }
        if self.clusters_begun {
            let leaves = &self.leaves;
            let is_ready =
                |key: &Key| leaves.get(key).is_none_or(|leaf| leaf.answered && leaf.staged.is_none());
            self.is_changed |= self.listeners.settle(is_ready);
            self.listeners_begun |= self.listeners.is_complete();
        }
        let needed: BTreeSet<Key> = self.clusters.needs().chain(self.listeners.needs()).cloned().collect();
        self.leaves.retain(|key, _| needed.contains(key));
    }

    fn settle_routes(&mut self, now: Instant) {
        let clusters = &self.clusters.entries;
        let warms =
            |name: &str| clusters.get(name).is_some_and(|it| it.active.is_none() && it.warming.is_some());
        for leaf in self.leaves.values_mut() {
            let Some((routes, until)) = &leaf.staged else { continue };
            if *until > now && clusters_of_routes(routes).any(warms) {
                continue;
            }
            if let Some((routes, _)) = leaf.staged.take() {
                leaf.value = Some(LeafValue::Routes(routes));
                self.is_changed = true;
            }
        }
    }

    /// When the next thing has waited long enough.
    pub(super) fn settle_at(&self) -> Option<Instant> {
        let leaves = self.leaves.values().flat_map(|leaf| {
            let answer = leaf.deadline.filter(|_| !leaf.answered);
            [answer, leaf.staged.as_ref().map(|(_, until)| *until)]
        });
        leaves.chain([self.clusters.awaited_until(), self.listeners.awaited_until()]).flatten().min()
    }

    /// Whether what there is differs from what was last taken.
    pub(super) fn is_changed(&self) -> bool {
        self.is_changed || self.secrets_changed
    }

    /// Whether everything that the start waits for is there, or was waited for long enough.
    pub(super) fn has_begun(&self) -> bool {
        self.listeners_begun
    }

    /// What takes effect now; afterwards nothing is changed.
    pub(super) fn take(&mut self) -> Resources {
        self.is_changed = false;
        let mut resources = Resources {
            clusters: self.clusters.active(),
            listeners: self.listeners.active(),
            ..Resources::default()
        };
        for ((_, key), leaf) in &self.leaves {
            match &leaf.value {
                Some(LeafValue::Routes(routes)) => {
                    drop(resources.routes.insert(key.clone(), (**routes).clone()))
                }
                Some(LeafValue::Endpoints(endpoints)) => {
                    drop(resources.endpoints.insert(key.clone(), endpoints.clone()));
                }
                Some(LeafValue::Secret(_)) | None => {}
            }
        }
        resources
    }

    /// Every secret, if any has changed since the last time.
    pub(super) fn take_secrets(&mut self) -> Option<impl Iterator<Item = (&str, &Secret)>> {
        std::mem::take(&mut self.secrets_changed).then(|| self.all_secrets())
    }

    /// Secrets are to be read again: a file that they name has changed.
    pub(super) fn reread_secrets(&mut self) {
        self.secrets_changed = true;
    }

    pub(super) fn all_secrets(&self) -> impl Iterator<Item = (&str, &Secret)> {
        let of_leaves = self.leaves.iter().filter_map(|((_, key), leaf)| match &leaf.value {
            Some(LeafValue::Secret(secret)) => Some((key.as_str(), secret)),
            _ => None,
        });
        self.secrets.iter().map(|(name, secret)| (name.as_str(), secret)).chain(of_leaves)
    }

    /// Everything that has to be asked for.
    pub(super) fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for (type_url, from, has_begun) in
            [(CLUSTER, &self.clusters.from, true), (LISTENER, &self.listeners.from, self.clusters_begun)]
        {
            match from.as_ref().filter(|_| has_begun).map(|from| &from.source) {
                Some(Source::Ads) => drop(wanted.all.insert(type_url)),
                Some(Source::File(file)) => drop(wanted.files.entry((file.clone(), type_url)).or_default()),
                Some(Source::Same) | None => {}
            }
        }
        for ((type_url, _), leaf) in &self.leaves {
            match &leaf.source {
                Source::File(file) => {
                    let names = wanted.files.entry((file.clone(), *type_url)).or_default();
                    names.insert(leaf.name.clone());
                }
                Source::Ads | Source::Same => drop(wanted.names.insert((*type_url, leaf.name.clone()))),
            }
        }
        for (_, secret) in self.all_secrets() {
            for path in secret.files() {
                let watched_directory = secret.watched_directory.clone();
                wanted.secret_files.insert(FileSource { path: path.to_owned(), watched_directory });
            }
        }
        wanted
    }
}
