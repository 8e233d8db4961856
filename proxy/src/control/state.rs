//! What the control client holds and what it still waits for, without I/O.
//!
//! Make before break, on this side: routes take effect when the clusters they name have arrived
//! with their endpoints, a service when its routes have; both at the latest after a bound, so that
//! a missing part never holds the rest for good. Until then the earlier state stays.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pillion_model::cluster::Cluster;
use pillion_model::endpoint::LoadAssignment;
use pillion_model::listener::Listener;
use pillion_model::mesh::{MeshService, Resources};
use pillion_model::route::RouteConfiguration;
use pillion_xds::ads::client::{Changed, Client, Update};
use pillion_xds::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SERVICE};
use tokio::time::Instant;

use super::names::{NEGATIVE_TTL, OnDemand};
use super::wanted::{self, Wanted};

/// How long routes wait for the clusters they name.
pub(super) const ROUTES_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a service waits for its parts; below the time that a lookup may take.
pub(super) const SERVICE_WAIT_MAX: Duration = Duration::from_millis(800);

/// A resource as read.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one at a time, while a response is read")]
pub(super) enum Item {
    /// LDS.
    Listener(Box<Listener>),
    /// RDS.
    Routes(RouteConfiguration),
    /// CDS.
    Cluster(Box<Cluster>),
    /// EDS.
    Endpoints(LoadAssignment),
    /// On demand.
    Service(MeshService),
}

/// What is known of a name at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is in the resources.
    Known,
    /// It does not exist.
    Absent,
    /// The registry has been asked.
    Asked,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) client: Client,
    pub(super) on_demand: OnDemand,
    /// What takes effect.
    live: Resources,
    routes: BTreeMap<String, Staged<RouteConfiguration>>,
    services: BTreeMap<String, Staged<MeshService>>,
    /// Names known not to exist, by type.
    absent: BTreeMap<String, BTreeSet<String>>,
    wanted: Wanted,
    /// Route configurations wanted whatever the services need.
    routes_pinned: Vec<String>,
    /// Wildcard types answered since the start.
    answered: BTreeSet<String>,
    /// `live` differs from what was last taken.
    is_changed: bool,
}

#[derive(Debug)]
struct Staged<T> {
    value: T,
    until: Instant,
}

impl State {
    /// Subscribes to the proxy's own listeners and clusters, to the services `pinned` and to the route
    /// configurations `routes_pinned`.
    pub(super) fn new(
        mut client: Client,
        on_demand_max: usize,
        pinned: &[String],
        routes_pinned: Vec<String>,
    ) -> Self {
        client.subscribe_all(LISTENER);
        client.subscribe_all(CLUSTER);
        let mut on_demand = OnDemand::new(on_demand_max);
        for name in pinned {
            on_demand.pin(name);
            client.subscribe(SERVICE, name);
        }
        let mut state = Self {
            client,
            on_demand,
            live: Resources::default(),
            routes: BTreeMap::new(),
            services: BTreeMap::new(),
            absent: BTreeMap::new(),
            wanted: Wanted::default(),
            routes_pinned,
            answered: BTreeSet::new(),
            is_changed: false,
        };
        state.follow();
        state
    }

    /// Takes over a resource of an earlier run.
    pub(super) fn restore(&mut self, type_url: &str, name: &str, version: &str, item: Item) {
        self.client.restore(type_url, name, version);
        let name = name.to_owned();
        match item {
            Item::Listener(listener) => drop(self.live.listeners.insert(name, *listener)),
            Item::Cluster(cluster) => drop(self.live.clusters.insert(name, *cluster)),
            Item::Endpoints(endpoints) => drop(self.live.endpoints.insert(name, endpoints)),
            Item::Routes(routes) => drop(self.live.routes.insert(name, routes)),
            Item::Service(service) => drop(self.live.services.insert(name, service)),
        }
        self.is_changed = true;
    }

    /// Takes over the on-demand names of an earlier run, after its resources.
    pub(super) fn restore_names<'a>(&mut self, names: impl IntoIterator<Item = &'a str>, now: Instant) {
        for name in names {
            self.ask(name, now);
        }
        let kept = |name: &String| self.client.is_subscribed(SERVICE, name);
        self.live.services.retain(|name, _| kept(name));
        self.settle(now);
        let wanted = &self.wanted;
        self.live.routes.retain(|name, _| wanted.routes.contains(name));
        self.live.endpoints.retain(|name, _| wanted.endpoints.contains(name));
    }

    /// Answers from what is known, and asks the registry otherwise.
    pub(super) fn ask(&mut self, name: &str, now: Instant) -> Answer {
        if self.on_demand.touch(name) {
            if self.live.services.contains_key(name) {
                return Answer::Known;
            }
            match self.on_demand.absent_since(name) {
                Some(since) if now < since + NEGATIVE_TTL => return Answer::Absent,
                Some(_outdated) => {
                    self.on_demand.set_absent(name, None);
                    self.client.subscribe(SERVICE, name);
                }
                None => {}
            }
            return Answer::Asked;
        }
        if let Some(victim) = self.on_demand.insert(name) {
            self.client.unsubscribe(SERVICE, &victim);
            self.is_changed |= self.drop_resource(SERVICE, &victim);
            self.settle(now);
        }
        self.client.subscribe(SERVICE, name);
        if self.live.services.contains_key(name) { Answer::Known } else { Answer::Asked }
    }

    /// Takes a response in. Gives the service names that turned out not to exist.
    pub(super) fn on_update(&mut self, update: Update<Item>, now: Instant) -> Vec<String> {
        self.answered.insert(update.type_url.clone());
        for changed in update.changed {
            self.apply(&update.type_url, changed, now);
        }
        for name in &update.removed {
            self.remove(&update.type_url, name, now);
        }
        // News of endpoints alone changes no subscription.
        if update.type_url != ENDPOINTS || self.settle_at().is_some() {
            self.settle(now);
        }
        if update.type_url == SERVICE { update.removed } else { Vec::new() }
    }

    /// Moves what is complete, or has waited long enough, into effect.
    pub(super) fn settle(&mut self, now: Instant) {
        self.follow();
        let ready = |(name, staged): (&String, &Staged<RouteConfiguration>)| {
            let is_ready = staged.until <= now || self.has_clusters_of(&staged.value);
            is_ready.then(|| name.clone())
        };
        let routes: Vec<String> = self.routes.iter().filter_map(ready).collect();
        for name in routes {
            if let Some(staged) = self.routes.remove(&name) {
                self.live.routes.insert(name, staged.value);
                self.is_changed = true;
            }
        }
        let ready = |(name, staged): (&String, &Staged<MeshService>)| {
            (staged.until <= now || self.has_parts_of(&staged.value)).then(|| name.clone())
        };
        let services: Vec<String> = self.services.iter().filter_map(ready).collect();
        for name in services {
            if let Some(staged) = self.services.remove(&name) {
                self.live.services.insert(name, staged.value);
                self.is_changed = true;
            }
        }
        self.follow();
    }

    /// When the next staged resource has waited long enough.
    pub(super) fn settle_at(&self) -> Option<Instant> {
        let routes = self.routes.values().map(|staged| staged.until);
        routes.chain(self.services.values().map(|staged| staged.until)).min()
    }

    pub(super) fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// What takes effect now; afterwards nothing is changed.
    pub(super) fn take(&mut self) -> Resources {
        self.is_changed = false;
        self.live.clone()
    }

    pub(super) fn has_service(&self, name: &str) -> bool {
        self.live.services.contains_key(name)
    }

    /// Whether the proxy's own configuration is complete: both wildcards were answered.
    pub(super) fn is_synced(&self) -> bool {
        self.answered.contains(LISTENER) && self.answered.contains(CLUSTER)
    }

    fn apply(&mut self, type_url: &str, changed: Changed<Item>, now: Instant) {
        let Changed { name, value, .. } = changed;
        self.set_exists(type_url, &name);
        match value {
            Item::Listener(listener) => drop(self.live.listeners.insert(name, *listener)),
            Item::Cluster(cluster) => drop(self.live.clusters.insert(name, *cluster)),
            Item::Endpoints(endpoints) => drop(self.live.endpoints.insert(name, endpoints)),
            Item::Routes(value) => {
                self.routes.insert(name, Staged { value, until: now + ROUTES_WAIT_MAX });
            }
            Item::Service(value) => {
                self.on_demand.set_absent(&name, None);
                self.services.insert(name, Staged { value, until: now + SERVICE_WAIT_MAX });
            }
        }
        self.is_changed |= !matches!(type_url, ROUTE | SERVICE);
    }

    fn remove(&mut self, type_url: &str, name: &str, now: Instant) {
        self.is_changed |= self.drop_resource(type_url, name);
        if type_url == SERVICE {
            self.on_demand.set_absent(name, Some(now));
        } else if self.client.is_subscribed(type_url, name) {
            self.absent.entry(type_url.to_owned()).or_default().insert(name.to_owned());
        }
    }

    /// Drops a resource; true: it was in effect.
    fn drop_resource(&mut self, type_url: &str, name: &str) -> bool {
        match type_url {
            LISTENER => self.live.listeners.remove(name).is_some(),
            CLUSTER => self.live.clusters.remove(name).is_some(),
            ENDPOINTS => self.live.endpoints.remove(name).is_some(),
            ROUTE => {
                self.routes.remove(name);
                self.live.routes.remove(name).is_some()
            }
            SERVICE => {
                self.services.remove(name);
                self.live.services.remove(name).is_some()
            }
            _ => false,
        }
    }

    /// Whether a resource is in effect or waits for its parts.
    pub(super) fn holds(&self, type_url: &str, name: &str) -> bool {
        match type_url {
            LISTENER => self.live.listeners.contains_key(name),
            CLUSTER => self.live.clusters.contains_key(name),
            ENDPOINTS => self.live.endpoints.contains_key(name),
            ROUTE => self.live.routes.contains_key(name) || self.routes.contains_key(name),
            SERVICE => self.live.services.contains_key(name) || self.services.contains_key(name),
            _ => false,
        }
    }

    fn set_exists(&mut self, type_url: &str, name: &str) {
        if let Some(names) = self.absent.get_mut(type_url) {
            names.remove(name);
        }
    }

    fn is_absent(&self, type_url: &str, name: &str) -> bool {
        self.absent.get(type_url).is_some_and(|names| names.contains(name))
    }

    fn has_cluster(&self, name: &str) -> bool {
        let Some(cluster) = self.live.clusters.get(name) else {
            return self.is_absent(CLUSTER, name);
        };
        let has = |name: &str| self.live.endpoints.contains_key(name) || self.is_absent(ENDPOINTS, name);
        wanted::endpoints_of(cluster).is_none_or(has)
    }

    fn has_clusters_of(&self, routes: &RouteConfiguration) -> bool {
        wanted::clusters_of_routes(routes).all(|name| self.has_cluster(name))
    }

    fn has_parts_of(&self, service: &MeshService) -> bool {
        let has_routes = |name: &String| self.live.routes.contains_key(name) || self.is_absent(ROUTE, name);
        wanted::routes_of_service(service).all(has_routes)
            && wanted::clusters_of_service(service).all(|name| self.has_cluster(name))
    }

    /// Brings the subscriptions in line with what the services, routes and clusters need. What is
    /// dropped may have needed something itself, hence the loop.
    fn follow(&mut self) {
        loop {
            let now = self.compute_wanted();
            if now == self.wanted {
                return;
            }
            let had = std::mem::replace(&mut self.wanted, now.clone());
            for (type_url, had, now) in [
                (ROUTE, had.routes, now.routes),
                (CLUSTER, had.clusters, now.clusters),
                (ENDPOINTS, had.endpoints, now.endpoints),
            ] {
                now.difference(&had).for_each(|name| self.client.subscribe(type_url, name));
                for name in had.difference(&now) {
                    self.client.unsubscribe(type_url, name);
                    self.set_exists(type_url, name);
                    self.is_changed |= self.drop_resource(type_url, name);
                }
            }
        }
    }

    fn compute_wanted(&self) -> Wanted {
        let staged = self.services.values().map(|staged| &staged.value);
        let services: Vec<&MeshService> = self.live.services.values().chain(staged).collect();
        let mut wanted = Wanted::default();
        wanted.routes.extend(self.routes_pinned.iter().cloned());
        wanted.routes.extend(services.iter().flat_map(|it| wanted::routes_of_service(it)).cloned());
        wanted.routes.extend(self.live.listeners.values().flat_map(wanted::routes_of_listener).cloned());
        wanted.clusters.extend(services.iter().flat_map(|it| wanted::clusters_of_service(it)).cloned());
        for name in &wanted.routes {
            let held = self
                .live
                .routes
                .get(name)
                .into_iter()
                .chain(self.routes.get(name).map(|staged| &staged.value));
            wanted.clusters.extend(held.flat_map(wanted::clusters_of_routes).map(str::to_owned));
        }
        // The endpoints of a cluster that is yet to come are asked for together with it: they
        // have the same name.
        let unknown = wanted.clusters.iter().filter(|name| !self.live.clusters.contains_key(*name));
        let unknown: Vec<String> = unknown.filter(|name| !self.is_absent(CLUSTER, name)).cloned().collect();
        wanted.endpoints.extend(unknown);
        wanted
            .endpoints
            .extend(self.live.clusters.values().filter_map(wanted::endpoints_of).map(str::to_owned));
        wanted
    }
}
