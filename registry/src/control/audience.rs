//! Who is connected, and what each of them uses: whoever does not use what changed is not woken.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pillion_model::name::{NodeId, ServiceName};
use pillion_xds::ads::{Feed, View};
use pillion_xds::type_url;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::encoded::{News, Snapshot};
use super::foreign::{Foreign, ForeignView};
use super::grpc::GrpcView;
use super::node::{Client, EnvoyNode};
use super::view::{Own, SidecarView};
use crate::resolve::grpc_target;

/// The types of which sidecars and gRPC clients ask for what is not their own, by name.
const BY_NAME: [&str; 4] = [type_url::CLUSTER, type_url::ENDPOINTS, type_url::ROUTE, type_url::SERVICE];

/// Everybody who is connected.
pub(super) struct Audience {
    state: Mutex<State>,
}

struct State {
    snapshot: Arc<Snapshot>,
    seats: HashMap<u64, Arc<Notify>>,
    next_seat: u64,
    /// Sidecars and gRPC clients that ask for a name of a type.
    users: HashMap<&'static str, HashMap<Arc<str>, BTreeSet<u64>>>,
    /// Those whose own service it is.
    own: HashMap<ServiceName, BTreeSet<u64>>,
    /// Foreign proxies, which see everything.
    envoys: BTreeSet<u64>,
    /// What foreign proxies with the same settings share.
    shared: Vec<Shared>,
    closed: bool,
}

struct Shared {
    settings: EnvoyNode,
    foreign: Arc<Foreign>,
    users: usize,
}

/// One stream's place. Given back when dropped.
pub struct Seat {
    audience: Arc<Audience>,
    number: u64,
    id: NodeId,
    client: Client,
    own: Arc<Own>,
    bell: Arc<Notify>,
    /// What it asks for by name, by type.
    asked: BTreeMap<&'static str, BTreeSet<Arc<str>>>,
    _left: DropGuard,
}

impl Audience {
    pub(super) fn new(snapshot: Snapshot) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                snapshot: Arc::new(snapshot),
                seats: HashMap::new(),
                next_seat: 0,
                users: HashMap::new(),
                own: HashMap::new(),
                envoys: BTreeSet::new(),
                shared: Vec::new(),
                closed: false,
            }),
        })
    }

    /// What everybody is told from.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.lock().snapshot)
    }

    /// Lets a node in; the token is cancelled when it has left.
    pub(super) fn enter(self: &Arc<Self>, id: NodeId, client: Client) -> (Seat, CancellationToken) {
        let left = CancellationToken::new();
        let bell = Arc::new(Notify::new());
        let mut state = self.lock();
        let number = state.next_seat;
        state.next_seat += 1;
        state.seats.insert(number, Arc::clone(&bell));
        state.own.entry(id.service.clone()).or_default().insert(number);
        if let Client::Envoy(settings) = &client {
            state.envoys.insert(number);
            state.share(settings);
        }
        drop(state);
        let seat = Seat {
            audience: Arc::clone(self),
            number,
            id,
            client,
            own: Arc::default(),
            bell,
            asked: BTreeMap::new(),
            _left: left.clone().drop_guard(),
        };
        (seat, left)
    }

    /// Replaces the snapshot, and wakes those who use what is not as it was. The cost is that of what
    /// changed and of those who use it, however many are connected.
    pub(super) fn publish(&self, snapshot: Snapshot, news: &News) {
        let snapshot = Arc::new(snapshot);
        let mut state = self.lock();
        for shared in &mut state.shared {
            shared.foreign = shared.foreign.next(&shared.settings, &snapshot);
        }
        let is_other_model = !Arc::ptr_eq(&snapshot.model, &state.snapshot.model);
        state.snapshot = snapshot;
        let State { seats, users, own, envoys, .. } = &*state;
        if news.everything {
            seats.values().for_each(|bell| bell.notify_one());
            return;
        }
        let by_name =
            news.names.iter().filter_map(|(type_url, name)| users.get(type_url)?.get(name.as_str()));
        let by_service = news.services.iter().filter_map(|service| own.get(service));
        let woken: BTreeSet<u64> = by_name.chain(by_service).flatten().copied().collect();
        let envoys = envoys.iter().filter(|_| is_other_model);
        for bell in woken.iter().chain(envoys).filter_map(|number| seats.get(number)) {
            bell.notify_one();
        }
    }

    /// Ends every stream, also those to come.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.seats.values().for_each(|bell| bell.notify_one());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// One more uses what is made for these settings.
    fn share(&mut self, settings: &EnvoyNode) {
        match self.shared.iter_mut().find(|shared| shared.settings == *settings) {
            Some(shared) => shared.users += 1,
            None => {
                let foreign = Arc::new(Foreign::first(settings, &self.snapshot));
                self.shared.push(Shared { settings: settings.clone(), foreign, users: 1 });
            }
        }
    }

    /// One less does.
    fn unshare(&mut self, settings: &EnvoyNode) {
        if let Some(at) = self.shared.iter().position(|shared| shared.settings == *settings) {
            self.shared[at].users -= 1;
            if self.shared[at].users == 0 {
                self.shared.swap_remove(at);
            }
        }
    }

    fn forget(&mut self, type_url: &'static str, name: &Arc<str>, number: u64) {
        let Some(names) = self.users.get_mut(type_url) else { return };
        if let Some(users) = names.get_mut(name) {
            users.remove(&number);
            if users.is_empty() {
                names.remove(name);
            }
        }
    }
}

impl Feed for Seat {
    fn view(&mut self) -> Arc<dyn View> {
        let state = self.audience.lock();
        let snapshot = Arc::clone(&state.snapshot);
        let foreign = match &self.client {
            Client::Sidecar | Client::Grpc(_) => None,
            Client::Envoy(settings) => state.shared.iter().find(|shared| shared.settings == *settings),
        };
        let foreign = foreign.map(|shared| Arc::clone(&shared.foreign));
        drop(state);
        self.own = self.own.next(&snapshot, &self.id, &self.client);
        let own = Arc::clone(&self.own);
        match (foreign, &self.client) {
            (Some(shared), _) => Arc::new(ForeignView { shared, own }),
            (None, Client::Grpc(credentials)) => {
                Arc::new(GrpcView { snapshot, own, credentials: *credentials })
            }
            (None, _) => Arc::new(SidecarView { snapshot, own }),
        }
    }

    fn uses(&mut self, type_url: &str, names: &BTreeSet<Arc<str>>) {
        let services;
        let (type_url, names) = match (&self.client, type_url) {
            (Client::Envoy(_), _) => return, // it is told of everything
            (Client::Grpc(_), type_url::LISTENER) => {
                services = services_of(names, &self.audience.snapshot().model.zone);
                (type_url::SERVICE, &services)
            }
            _ => (type_url, names),
        };
        let Some(type_url) = BY_NAME.into_iter().find(|known| *known == type_url) else { return };
        let asked = self.asked.entry(type_url).or_default();
        let mut state = self.audience.lock();
        for name in asked.difference(names) {
            state.forget(type_url, name, self.number);
        }
        let users = state.users.entry(type_url).or_default();
        for name in names.difference(asked) {
            users.entry(Arc::clone(name)).or_default().insert(self.number);
        }
        drop(state);
        asked.clone_from(names);
    }

    async fn changed(&mut self) -> bool {
        if !self.audience.lock().closed {
            self.bell.notified().await;
        }
        !self.audience.lock().closed
    }
}

/// The DNS names of the services that a gRPC client's listeners lead to: `orders.shop` is one already, or
/// stands for the service of that name.
fn services_of(listeners: &BTreeSet<Arc<str>>, zone: &str) -> BTreeSet<Arc<str>> {
    let hosts = listeners.iter().map(|name| grpc_target(name).0.to_ascii_lowercase());
    hosts.flat_map(|host| [Arc::from(format!("{host}.{zone}")), Arc::from(host)]).collect()
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.audience.lock();
        state.seats.remove(&self.number);
        for (type_url, names) in &self.asked {
            for name in names {
                state.forget(type_url, name, self.number);
            }
        }
        if let Some(own) = state.own.get_mut(&self.id.service) {
            own.remove(&self.number);
            if own.is_empty() {
                state.own.remove(&self.id.service);
            }
        }
        if let Client::Envoy(settings) = &self.client {
            state.envoys.remove(&self.number);
            state.unshare(settings);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::catalog::differing;
    use crate::resolve::tests::{Mesh, instance, name};

    const ENDPOINTS: &str = "outbound|http||orders.shop";

    fn sidecar(audience: &Arc<Audience>, id: &str, asked: &[(&str, &str)]) -> Seat {
        let (mut seat, _left) = audience.enter(id.parse().expect(id), Client::Sidecar);
        for type_url in BY_NAME {
            let names = asked.iter().filter(|(of, _)| *of == type_url).map(|(_, name)| Arc::from(*name));
            seat.uses(type_url, &names.collect());
        }
        seat
    }

    /// The mesh is this one now, in which these services were touched.
    fn publish(audience: &Audience, mesh: &Mesh, touched: &[&str]) {
        let (last, model) = (audience.snapshot(), Arc::new(mesh.model()));
        let different = differing(&last.model.services, &model.services, |a, b| a == b);
        let (next, mut news) = last.next(&model, &mesh.catalog(), &different);
        news.services.extend(touched.iter().map(|text| name(text)));
        audience.publish(next, &news);
    }

    #[test]
    fn those_who_use_what_changed_are_woken_and_nobody_else() {
        let mesh = ["web.shop", "orders.shop", "payments.shop"]
            .iter()
            .fold(Mesh::new(""), |mesh, service| mesh.with(instance(service, "a-1", &[])));
        let audience = Audience::new(Snapshot::first(&Arc::new(mesh.model()), &mesh.catalog()));
        let mut seats = [
            ("of endpoints", sidecar(&audience, "shop/web/a-1", &[(type_url::ENDPOINTS, ENDPOINTS)])),
            ("of a route", sidecar(&audience, "shop/web/a-2", &[(type_url::ROUTE, "http.orders.shop")])),
            ("its own", sidecar(&audience, "shop/orders/a-1", &[])),
            (
                "of no one",
                sidecar(&audience, "shop/web/a-3", &[(type_url::SERVICE, "later.shop.mesh.internal")]),
            ),
            (
                "of another",
                sidecar(&audience, "shop/web/a-4", &[(type_url::ENDPOINTS, "outbound|http||payments.shop")]),
            ),
        ];
        let mut woken = |mesh: &Mesh, touched: &[&str]| {
            publish(&audience, mesh, touched);
            let woken =
                seats.iter_mut().filter_map(|(who, seat)| seat.changed().now_or_never().map(|_| *who));
            woken.collect::<Vec<_>>()
        };
        let mesh = mesh.with(instance("orders.shop", "a-2", &[]));
        assert_eq!(woken(&mesh, &["orders.shop"]), ["of endpoints", "its own"], "an endpoint more");
        let mesh = mesh.with(instance("payments.shop", "a-2", &[]));
        assert_eq!(woken(&mesh, &["payments.shop"]), ["of another"]);
        let mesh = mesh.with(instance("later.shop", "a-1", &[]));
        assert!(woken(&mesh, &["later.shop"]).contains(&"of no one"), "its question has an answer now");
        assert_eq!(woken(&mesh, &[]), [""; 0], "nothing changed");
    }

    #[test]
    fn grpc_clients_are_woken_by_the_services_of_their_targets() {
        let mesh = Mesh::new("").with(instance("orders.shop", "a-1", &[]));
        let audience = Audience::new(Snapshot::first(&Arc::new(mesh.model()), &mesh.catalog()));
        let client = Client::Grpc(crate::resolve::GrpcCredentials::Xds);
        let enter = |id: &str, target: &str| {
            let (mut seat, _left) = audience.enter(id.parse().expect(id), client.clone());
            seat.uses(type_url::LISTENER, &[Arc::from(target)].into());
            seat
        };
        let mut early = enter("shop/web/a-1", "later.shop:80");
        let mut other = enter("shop/web/a-2", "xds.example");
        assert!(early.view().find(type_url::LISTENER, "later.shop:80").is_none());
        let mesh = mesh.with(instance("later.shop", "a-1", &[]));
        publish(&audience, &mesh, &["later.shop"]);
        assert_eq!(early.changed().now_or_never(), Some(true), "its service is there");
        assert!(early.view().find(type_url::LISTENER, "later.shop:8080").is_some());
        assert_eq!(other.changed().now_or_never(), None);
        drop((early, other));
        assert!(audience.lock().users[type_url::SERVICE].is_empty());
    }

    #[test]
    fn a_seat_that_was_left_leaves_nothing_behind() {
        let mesh = Mesh::new("").with(instance("orders.shop", "a-1", &[]));
        let audience = Audience::new(Snapshot::first(&Arc::new(mesh.model()), &mesh.catalog()));
        let mut seat = sidecar(&audience, "shop/web/a-1", &[(type_url::ENDPOINTS, ENDPOINTS)]);
        seat.uses(type_url::ENDPOINTS, &BTreeSet::new());
        assert!(audience.lock().users[type_url::ENDPOINTS].is_empty(), "it asks for it no more");
        drop(seat);
        let state = audience.lock();
        assert!(state.seats.is_empty() && state.own.is_empty());
    }

    #[test]
    fn whoever_is_there_when_it_closes_or_comes_later_has_to_go() {
        let audience = Audience::new(Snapshot::first(&Arc::default(), &Arc::default()));
        let mut early = sidecar(&audience, "shop/web/a-1", &[]);
        assert_eq!(early.changed().now_or_never(), None);
        audience.close();
        let mut late = sidecar(&audience, "shop/web/a-2", &[]);
        assert_eq!([early.changed().now_or_never(), late.changed().now_or_never()], [Some(false); 2]);
    }
}
