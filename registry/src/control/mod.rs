//! The control plane: what the registry knows, resolved and encoded for every connected proxy.
//!
//! A change of resources or instances is resolved (only the services it touches), encoded once, and
//! put into the view of every connected proxy, which shares the encoded parts. The first change
//! after quiet goes out at once, then at most one flush every [`FLUSH_EVERY`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillion_model::instance::Instance;
use pillion_model::name::{NodeId, ServiceName, SpiffeId};
use pillion_xds::ads::{NodeInfo, Source, View};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::catalog::{Catalog, World, differing};
use crate::resolve::{HealthCheckPlan, Input, MeshModel, Resolver, ServiceModel};

mod encoded;
mod foreign;
mod node;
mod view;

pub use node::{EnvoyNode, METADATA_KEY};

use encoded::Snapshot;
use foreign::{Foreign, ForeignView};
use node::{Client, admit};
use view::{Own, SidecarView};

/// Least time between two flushes.
pub const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// Most time between two flushes while something changes.
const FLUSH_CEILING: Duration = Duration::from_secs(1);
/// Between flushes is this many times what the last one took, so that a storm of changes does not take
/// a core for itself.
const FLUSH_SHARE: u32 = 5;
/// Announced instances that may wait to be registered.
const ANNOUNCEMENTS_MAX: usize = 1024;

/// The health checks that services ask of their sidecars; services without one are not in it.
pub type Checks = BTreeMap<ServiceName, HealthCheckPlan>;

/// The control plane of one registry process.
pub struct Control {
    catalog: Arc<Catalog>,
    model: watch::Sender<Arc<MeshModel>>,
    checks: watch::Sender<Arc<Checks>>,
    state: Mutex<State>,
    announce: mpsc::Sender<Announced>,
}

struct State {
    snapshot: Arc<Snapshot>,
    nodes: Vec<Node>,
    /// What foreign proxies with the same settings share.
    foreign: Vec<(EnvoyNode, Arc<Foreign>)>,
}

/// One open stream.
struct Node {
    id: NodeId,
    client: Client,
    own: Arc<Own>,
    view: watch::Sender<Arc<dyn View>>,
}

/// An instance that is registered for as long as the stream that announced it is open.
struct Announced {
    registration: crate::catalog::Registration,
    /// Closed when the stream ends.
    stream: watch::Sender<Arc<dyn View>>,
}

/// What is resolved next, and from what: it moves to a thread that may take its time and back.
struct Builder {
    resolver: Resolver,
    world: Arc<World>,
}

impl Builder {
    fn first(world: Arc<World>) -> Self {
        let mut resolver = Resolver::default();
        resolver.all(&input(&world));
        Self { resolver, world }
    }

    /// Takes in the catalog's state, and says which services came out different.
    fn next(&mut self, world: Arc<World>) -> BTreeSet<ServiceName> {
        let last = std::mem::replace(&mut self.world, world);
        let input = input(&self.world);
        if Arc::ptr_eq(&last.resources, &self.world.resources) {
            return self.resolver.some(&input, &self.world.changed_since(&last));
        }
        let before = Arc::clone(self.resolver.model());
        differing(&before.services, &self.resolver.all(&input).services, Arc::ptr_eq)
    }
}

impl Control {
    /// A control plane over what the catalog holds now, and the future that keeps it up to date until
    /// `stop`.
    pub fn new(
        catalog: Arc<Catalog>,
        stop: CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + use<>) {
        let builder = Builder::first(catalog.world());
        let snapshot = Snapshot::first(builder.resolver.model(), &builder.world.catalog);
        let (announce, announced) = mpsc::channel(ANNOUNCEMENTS_MAX);
        let control = Arc::new(Self {
            catalog,
            model: watch::Sender::new(Arc::clone(builder.resolver.model())),
            checks: watch::Sender::new(Arc::new(checks(builder.resolver.model()))),
            state: Mutex::new(State { snapshot: Arc::new(snapshot), nodes: Vec::new(), foreign: Vec::new() }),
            announce,
        });
        let updating = Arc::clone(&control);
        let run = async move {
            let update = updating.update(builder);
            let keep = node::keep_announced(&updating.catalog, announced);
            stop.run_until_cancelled(async { tokio::join!(update, keep) }).await;
        };
        (control, run)
    }

    /// The model in force, and its changes.
    pub fn model(&self) -> watch::Receiver<Arc<MeshModel>> {
        self.model.subscribe()
    }

    /// The health checks in force. Changes only when they do: thousands of streams wait for it.
    pub fn checks(&self) -> watch::Receiver<Arc<Checks>> {
        self.checks.subscribe()
    }

    /// Ends every stream: the clients reconnect, to another registry if there is one.
    pub fn close(&self) {
        self.lock().nodes.clear();
    }

    async fn update(&self, mut builder: Builder) {
        let mut changes = self.catalog.changes();
        changes.mark_changed();
        while changes.changed().await.is_ok() {
            let started = Instant::now();
            let (world, snapshot) = (self.catalog.world(), Arc::clone(&self.lock().snapshot));
            let step = move || {
                let different = builder.next(world);
                let next = snapshot.next(builder.resolver.model(), &builder.world.catalog, &different);
                (builder, next, different)
            };
            match tokio::task::spawn_blocking(step).await {
                Ok((back, next, different)) => {
                    builder = back;
                    self.publish(next, &different);
                }
                Err(error) => {
                    tracing::error!(%error, "control plane: resolving failed, proxies keep what they have");
                    builder = Builder::first(self.catalog.world());
                    let (model, snapshot) = (builder.resolver.model(), Arc::clone(&self.lock().snapshot));
                    let different = differing(&snapshot.model.services, &model.services, Arc::ptr_eq);
                    self.publish(snapshot.next(model, &builder.world.catalog, &different), &different);
                }
            }
            let pause = (started.elapsed() * FLUSH_SHARE).clamp(FLUSH_EVERY, FLUSH_CEILING);
            tokio::time::sleep_until(started + pause).await;
        }
    }

    /// Puts what changed into every view.
    fn publish(&self, snapshot: Snapshot, different: &BTreeSet<ServiceName>) {
        let snapshot = Arc::new(snapshot);
        let mut state = self.lock();
        let State { snapshot: current, nodes, foreign } = &mut *state;
        nodes.retain(|node| !node.view.is_closed());
        foreign.retain(|(key, _)| nodes.iter().any(|node| node.client == Client::Envoy(key.clone())));
        for (key, shared) in foreign.iter_mut() {
            *shared = shared.next(key, &snapshot);
        }
        for node in nodes.iter_mut() {
            node.own = node.own.next(&snapshot, &node.id, &node.client);
            let shared = foreign.iter().find(|(key, _)| node.client == Client::Envoy(key.clone()));
            let view = make_view(&snapshot, &node.own, shared.map(|(_, shared)| shared));
            node.view.send_replace(view);
        }
        let model = Arc::clone(&snapshot.model);
        *current = snapshot;
        drop(state);
        self.checks.send_if_modified(|have| {
            let mut modified = false;
            for name in different {
                let check = check_of(model.services.get(name));
                if check != have.get(name) {
                    modified = true;
                    let have = Arc::make_mut(have);
                    match check {
                        Some(check) => drop(have.insert(name.clone(), check.clone())),
                        None => drop(have.remove(name)),
                    }
                }
            }
            modified
        });
        self.model.send_replace(model);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Control {
    fn open(
        &self,
        node: &NodeInfo,
        peer: Option<&SpiffeId>,
    ) -> Result<watch::Receiver<Arc<dyn View>>, Status> {
        let (id, client) = admit(node, peer)?;
        let announced = node::announced_instance(node, &id)?;
        let mut state = self.lock();
        let snapshot = Arc::clone(&state.snapshot);
        let own = Own::first(&snapshot, &id, &client);
        let shared = match &client {
            Client::Sidecar => None,
            Client::Envoy(key) => Some(state.shared(key, &snapshot)),
        };
        let (sender, receiver) = watch::channel(make_view(&snapshot, &own, shared.as_ref()));
        if let Some(registration) = announced {
            let announced = Announced { registration, stream: sender.clone() };
            let busy = |_| Status::unavailable("too many proxies announce themselves at once, reconnect");
            self.announce.try_send(announced).map_err(busy)?;
        }
        state.nodes.push(Node { id, client, own, view: sender });
        Ok(receiver)
    }
}

impl State {
    fn shared(&mut self, key: &EnvoyNode, snapshot: &Snapshot) -> Arc<Foreign> {
        if let Some((_, shared)) = self.foreign.iter().find(|(have, _)| have == key) {
            return Arc::clone(shared);
        }
        let shared = Arc::new(Foreign::first(key, snapshot));
        self.foreign.push((key.clone(), Arc::clone(&shared)));
        shared
    }
}

fn make_view(snapshot: &Arc<Snapshot>, own: &Arc<Own>, shared: Option<&Arc<Foreign>>) -> Arc<dyn View> {
    match shared {
        None => Arc::new(SidecarView { snapshot: Arc::clone(snapshot), own: Arc::clone(own) }),
        Some(shared) => Arc::new(ForeignView { shared: Arc::clone(shared), own: Arc::clone(own) }),
    }
}

fn checks(model: &MeshModel) -> Checks {
    let check = |(name, service)| Some((ServiceName::clone(name), check_of(Some(service))?.clone()));
    model.services.iter().filter_map(check).collect()
}

fn check_of(service: Option<&Arc<ServiceModel>>) -> Option<&HealthCheckPlan> {
    service?.inbound.health_check.as_ref()
}

fn input(world: &World) -> Input<'_> {
    Input { resources: &world.resources.set, catalog: &world.catalog, indexes: &world.indexes }
}

/// A node's own instance, if it is registered.
fn instance_of(snapshot: &Snapshot, id: &NodeId) -> Option<Arc<Instance>> {
    snapshot.catalog.instance(&id.service, &id.instance).cloned()
}
