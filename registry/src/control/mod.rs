//! The control plane: what the registry knows, resolved and encoded for every connected proxy.
//!
//! A change of resources or instances is resolved (only the services it touches), encoded once, and told
//! to the connected proxies that use it, whose views share the encoded parts. The first change after
//! quiet goes out at once, then at most one flush every [`FLUSH_EVERY`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pillion_model::instance::Instance;
use pillion_model::name::{NodeId, ServiceName, SpiffeId};
use pillion_xds::ads::{NodeInfo, Source};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::catalog::{Catalog, World, differing};
use crate::resolve::{HealthCheckPlan, Input, MeshModel, Resolver, ServiceModel};

mod audience;
mod encoded;
mod foreign;
mod grpc;
mod node;
mod view;

pub use audience::Seat;
pub use grpc::SERVER_LISTENER;
pub use node::{EnvoyNode, METADATA_KEY, grpc_metadata};

use audience::Audience;
use encoded::{News, Snapshot};
use node::admit;

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
    audience: Arc<Audience>,
    announce: mpsc::Sender<Announced>,
}

/// An instance that is registered for as long as the stream that announced it is open.
struct Announced {
    registration: crate::catalog::Registration,
    /// Cancelled when the stream has ended.
    left: CancellationToken,
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

    /// Takes in the catalog's state; the snapshot after `last`, what differs from that, and which services
    /// came out different.
    fn next(&mut self, world: Arc<World>, last: &Snapshot) -> (Snapshot, News, BTreeSet<ServiceName>) {
        let before = std::mem::replace(&mut self.world, world);
        let input = input(&self.world);
        let mut touched = self.world.changed_since(&before);
        if !Arc::ptr_eq(&before.imports, &self.world.imports) {
            let services = self.world.resources.set.services();
            let imported = services.iter().filter(|(_, service)| service.import.is_some());
            touched.extend(imported.map(|(name, _)| name.clone()));
        }
        let different = if Arc::ptr_eq(&before.resources, &self.world.resources) {
            self.resolver.some(&input, &touched)
        } else {
            let model = Arc::clone(self.resolver.model());
            differing(&model.services, &self.resolver.all(&input).services, Arc::ptr_eq)
        };
        let (snapshot, mut news) = last.next(self.resolver.model(), &self.world.catalog, &different);
        // A proxy's own part is made of its instance, too.
        news.services.extend(touched);
        (snapshot, news, different)
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
            audience: Audience::new(snapshot),
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
        self.audience.close();
    }

    async fn update(&self, mut builder: Builder) {
        let mut changes = self.catalog.changes();
        changes.mark_changed();
        while changes.changed().await.is_ok() {
            let started = Instant::now();
            let (world, last) = (self.catalog.world(), self.audience.snapshot());
            let step = move || {
                let (next, news, different) = builder.next(world, &last);
                (builder, next, news, different)
            };
            match tokio::task::spawn_blocking(step).await {
                Ok((back, next, news, different)) => {
                    builder = back;
                    self.publish(next, &news, &different);
                }
                Err(error) => {
                    tracing::error!(%error, "control plane: resolving failed, proxies keep what they have");
                    builder = Builder::first(self.catalog.world());
                    let (model, last) = (builder.resolver.model(), self.audience.snapshot());
                    let different = differing(&last.model.services, &model.services, Arc::ptr_eq);
                    let (next, news) = last.next(model, &builder.world.catalog, &different);
                    self.publish(next, &News { everything: true, ..news }, &different);
                }
            }
            let pause = (started.elapsed() * FLUSH_SHARE).clamp(FLUSH_EVERY, FLUSH_CEILING);
            tokio::time::sleep_until(started + pause).await;
        }
    }

    /// Tells what changed to those who use it.
    fn publish(&self, snapshot: Snapshot, news: &News, different: &BTreeSet<ServiceName>) {
        let model = Arc::clone(&snapshot.model);
        self.audience.publish(snapshot, news);
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
}

impl Source for Control {
    type Feed = Seat;

    fn open(&self, node: &NodeInfo, peer: Option<&SpiffeId>) -> Result<Seat, Status> {
        let (id, client) = admit(node, peer)?;
        let announced = node::announced_instance(node, &id)?;
        let (seat, left) = self.audience.enter(id, client);
        if let Some(registration) = announced {
            let busy = |_| Status::unavailable("too many proxies announce themselves at once, reconnect");
            self.announce.try_send(Announced { registration, left }).map_err(busy)?;
        }
        Ok(seat)
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
    Input {
        resources: &world.resources.set,
        catalog: &world.catalog,
        indexes: &world.indexes,
        imports: &world.imports,
    }
}

/// A node's own instance, if it is registered.
fn instance_of(snapshot: &Snapshot, id: &NodeId) -> Option<Arc<Instance>> {
    snapshot.catalog.instance(&id.service, &id.instance).cloned()
}
