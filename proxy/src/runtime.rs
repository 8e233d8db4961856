//! The running data plane: worker threads, their sockets, and the configuration they read.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use pillion_model::cluster::Cluster;
use pillion_model::listener::Listener;
use pillion_model::mesh::{MeshPort, MeshService, Resources};
use pillion_model::route::RouteConfiguration;
use pillion_net::listen::{Reuse, bind_tcp};
use pillion_net::tls::{NoSecrets, Secrets};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::access_log::Writers;
use crate::admin::{Admin, AdminOptions, View};
use crate::metrics::{Scrape, Shard, Symbols};
use crate::outbound::{OutboundOptions, VIP_PREFIX, by_host, upstream_listener, vip_listener, vip_listeners};
use crate::overload::Overload;
use crate::snapshot::{Compiler, Rejected, Snapshot};
use crate::upstream::{self, Clusters};
use crate::worker::{self, Command, OpenConnections, Shared, Start};

/// How a [`Runtime`] is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// The proxy's own service (`orders.shop`), for metrics; may be empty.
    pub service: String,
    /// The group it says it belongs to, for limits by source; may be empty.
    pub node_cluster: String,
    /// Memory in bytes past which requests are refused; `None`: no limit.
    pub memory_max: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: NonZeroUsize::MIN,
            service: String::new(),
            node_cluster: String::new(),
            memory_max: None,
        }
    }
}

/// The runtime could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread.
    #[error("cannot start thread `{name}`: {source}")]
    Thread {
        /// Which one.
        name: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A socket.
    #[error(transparent)]
    Bind(#[from] pillion_net::listen::BindError),
}

/// What a publication did.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Its generation.
    pub generation: u64,
    /// Resources that were left out; what was there under their names stays.
    pub rejected: Vec<Rejected>,
}

/// The running data plane.
pub struct Runtime {
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    writers: Arc<Writers>,
    scrape: Scrape,
    publishing: Mutex<Publishing>,
    /// Ejects endpoints and resolves names.
    control: Option<JoinHandle<()>>,
    stop_control: CancellationToken,
}

struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
    open: Arc<OpenConnections>,
}

/// What only publications touch.
#[derive(Default)]
struct Publishing {
    /// Bound addresses by listener, with the address asked for.
    bound: BTreeMap<String, Bound>,
    /// As the control plane gave them.
    resources: Resources,
    /// Listeners the proxy makes itself.
    local: BTreeMap<String, Listener>,
    secrets: Option<Arc<dyn Secrets>>,
    identity_generation: u64,
    draining: bool,
}

#[derive(Clone, Copy)]
struct Bound {
    asked: SocketAddr,
    address: SocketAddr,
}

impl Runtime {
    /// Starts the worker threads, with no configuration.
    ///
    /// # Errors
    ///
    /// [`StartError`] when a thread cannot be started.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let symbols = Arc::new(Symbols::new());
        let shared = Arc::new(Shared {
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::empty())),
            clusters: Arc::new(Clusters::new()),
            symbols: Arc::clone(&symbols),
            own_service: options.service.clone(),
            node_cluster: options.node_cluster.clone(),
            overload: Overload::new(options.memory_max),
            outbound: OnceLock::new(),
            health_failed: AtomicBool::new(false),
            published: watch::Sender::new(0),
        });
        let named = |name: &str| {
            let name = name.to_owned();
            move |source| StartError::Thread { name, source }
        };
        let writers = Arc::new(Writers::start().map_err(named("access-log"))?);
        let shards: Vec<Arc<Shard>> = (0..options.workers.get()).map(|_| Arc::default()).collect();
        let workers = shards
            .iter()
            .enumerate()
            .map(|(index, shard)| {
                let name = format!("worker-{index}");
                WorkerHandle::start(&name, index, &shared, shard).map_err(named(&name))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let scrape = Scrape::new(shards, symbols, Arc::clone(&writers));
        let stop_control = CancellationToken::new();
        let (clusters, overload) = (Arc::clone(&shared.clusters), Arc::clone(&shared.overload));
        let stop = stop_control.clone();
        let control = async move { tokio::join!(clusters.run(stop.clone()), overload.watch(stop)) };
        let control = spawn_local("control", async move {
            let ((), ()) = control.await;
        })
        .map_err(named("control"))?;
        let (publishing, control) = (Mutex::default(), Some(control));
        Ok(Self { shared, workers, writers, scrape, publishing, control, stop_control })
    }

    /// Makes `resources` the configuration. New listeners are bound, those that are gone drain, and
    /// what did not change keeps its connections. `secrets` are compared by pointer: another `Arc`
    /// says that certificate or roots have changed.
    pub fn publish(&self, resources: Resources, secrets: &Arc<dyn Secrets>) -> Published {
        let mut publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut refused = Vec::new();
        if !publishing.secrets.as_ref().is_some_and(|old| Arc::ptr_eq(old, secrets)) {
            publishing.secrets = Some(Arc::clone(secrets));
            publishing.identity_generation += 1;
            refused = self.shared.clusters.rotate(&**secrets);
        }
        publishing.resources = resources;
        let mut published = self.apply(&mut publishing);
        // One that is gone by now needs no secrets.
        refused.retain(|refused| publishing.resources.clusters.contains_key(&refused.name));
        published.rejected.extend(refused.into_iter().map(|refused| Rejected {
            kind: "cluster",
            name: refused.name,
            reason: refused.reason,
        }));
        published
    }

    /// A connection to an endpoint of a cluster, for gRPC of the proxy's own.
    pub(crate) async fn channel(
        &self,
        cluster: &str,
        authority: &str,
    ) -> Result<Channel, Box<dyn Error + Send + Sync>> {
        let found = self.shared.snapshot.load().clusters.get(cluster).cloned();
        let cluster = found.ok_or_else(|| format!("there is no cluster `{cluster}`"))?;
        upstream::channel(&cluster, authority).await
    }

    /// Whether a cluster could be brought into effect.
    pub(crate) fn check_cluster(&self, cluster: &Cluster) -> Result<(), String> {
        upstream::check(cluster)
    }

    /// Whether a listener could be brought into effect; secrets and ports count as had.
    pub(crate) fn check_listener(&self, listener: &Listener) -> Result<(), String> {
        self.compiler(|compiler, snapshot| snapshot.check_listener(compiler, listener))
    }

    /// Whether routes could be brought into effect.
    pub(crate) fn check_routes(&self, routes: &RouteConfiguration) -> Result<(), String> {
        self.compiler(|compiler, snapshot| snapshot.check_routes(compiler, routes))
    }

    fn compiler<T>(&self, act: impl FnOnce(&Compiler<'_>, &Snapshot) -> T) -> T {
        let compiler = Compiler {
            clusters: &self.shared.clusters,
            secrets: Arc::new(NoSecrets),
            identity_generation: 0,
            symbols: &self.shared.symbols,
            writers: &self.writers,
            own_service: &self.shared.own_service,
        };
        act(&compiler, &self.shared.snapshot.load())
    }

    /// Takes the application's own traffic: see [`OutboundOptions`]. To be called once.
    pub fn outbound(&self, options: OutboundOptions) -> Published {
        let mut publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = options.listen {
            let listener = by_host(address, &options);
            publishing.local.insert(listener.name.clone(), listener);
        }
        if self.shared.outbound.set(options).is_err() {
            tracing::error!("outbound traffic is configured twice; the first configuration stays");
        }
        self.apply(&mut publishing)
    }

    /// Accepts for every port of `service` at its virtual `address`, if it does not yet. A port that
    /// cannot be bound is among the rejected, and tried again with the next call.
    pub fn open_vip(&self, address: IpAddr, service: &MeshService) -> Published {
        let Some(outbound) = self.shared.outbound.get() else { return Published::default() };
        let mut publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for listener in vip_listeners(address, service, outbound) {
            changed |= publishing.local.get(&listener.name) != Some(&listener)
                || !publishing.bound.contains_key(&listener.name);
            publishing.local.insert(listener.name.clone(), listener);
        }
        if !changed {
            return Published::default();
        }
        let published = self.apply(&mut publishing);
        // Or every publication would try and report them again.
        for rejected in &published.rejected {
            if rejected.name.starts_with(VIP_PREFIX) && !publishing.bound.contains_key(&rejected.name) {
                publishing.local.remove(&rejected.name);
            }
        }
        published
    }

    /// Listens for one port of one service; `None`: it is not known, and connections are closed.
    pub(crate) fn open_upstream(
        &self,
        name: &str,
        address: SocketAddr,
        port: Option<&MeshPort>,
    ) -> Published {
        let Some(outbound) = self.shared.outbound.get() else { return Published::default() };
        let listener = upstream_listener(name.to_owned(), address, port, outbound);
        let mut publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        if publishing.local.get(name) == Some(&listener) && publishing.bound.contains_key(name) {
            return Published::default();
        }
        publishing.local.insert(name.to_owned(), listener);
        self.apply(&mut publishing)
    }

    /// Whether a port of a virtual address accepts.
    pub(crate) fn has_vip(&self, address: IpAddr, port: u16) -> bool {
        self.bound(&vip_listener(SocketAddr::new(address, port))).is_some()
    }

    fn apply(&self, publishing: &mut Publishing) -> Published {
        let secrets = publishing.secrets.get_or_insert_with(|| Arc::new(NoSecrets));
        let mut resources = publishing.resources.clone();
        for (name, listener) in &publishing.local {
            resources.listeners.insert(name.clone(), listener.clone());
        }
        let previous = self.shared.snapshot.load_full();
        let compiler = Compiler {
            clusters: &self.shared.clusters,
            secrets: Arc::clone(secrets),
            identity_generation: publishing.identity_generation,
            symbols: &self.shared.symbols,
            writers: &self.writers,
            own_service: &self.shared.own_service,
        };
        let (snapshot, mut rejected) = Snapshot::compile(&compiler, Arc::new(resources), &previous);
        let snapshot = Arc::new(snapshot);
        self.shared.snapshot.store(Arc::clone(&snapshot));
        self.shared.published.send_replace(snapshot.generation);
        retire(&previous, &snapshot);
        if !publishing.draining {
            rejected.extend(self.rebind(publishing, &snapshot));
        }
        Published { generation: snapshot.generation, rejected }
    }

    /// The address a listener is bound to.
    pub fn bound(&self, listener: &str) -> Option<SocketAddr> {
        let publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        publishing.bound.get(listener).map(|bound| bound.address)
    }

    /// Every listener that is bound, and where.
    pub fn all_bound(&self) -> Vec<(String, SocketAddr)> {
        let publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        publishing.bound.iter().map(|(name, bound)| (name.clone(), bound.address)).collect()
    }

    /// Waits until every endpoint with an active health check has been asked once.
    pub async fn first_checks(&self) {
        self.shared.clusters.first_checks().await;
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        let open: isize = self.workers.iter().map(|worker| worker.open.all.load(Relaxed)).sum();
        open.unsigned_abs()
    }

    /// Open connections that others made to listeners of inbound direction.
    pub fn inbound_connections(&self) -> usize {
        let open: isize = self.workers.iter().map(|worker| worker.open.inbound.load(Relaxed)).sum();
        open.unsigned_abs()
    }

    /// Prometheus' text form of all metrics.
    pub fn metrics(&self) -> String {
        self.scrape.text()
    }

    /// Serves `/config_dump` and the like, and `/metrics`, from a thread of their own.
    ///
    /// # Errors
    ///
    /// [`StartError`] when a port is taken or the thread cannot be started.
    pub fn serve_admin(&self, options: AdminOptions) -> Result<Admin, StartError> {
        let view = View {
            snapshot: Arc::clone(&self.shared.snapshot),
            scrape: self.scrape.clone(),
            shared: Arc::clone(&self.shared),
            workers: self.workers.iter().map(|worker| worker.commands.clone()).collect(),
            started: Instant::now(),
            discovery: options.discovery.clone(),
        };
        Admin::start(options, view)
    }

    /// The registry behind [`Runtime::metrics`], for collectors of other parts.
    pub fn registry(&self) -> &prometheus::Registry {
        self.scrape.registry()
    }

    /// Accepts nothing new, lets connections finish for at most `grace`, and gives how many are left
    /// then.
    pub async fn drain(&self, grace: Duration) -> usize {
        self.publishing.lock().unwrap_or_else(PoisonError::into_inner).draining = true;
        self.tell(|| Command::Drain);
        let deadline = Instant::now() + grace;
        while self.connections() > 0 && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_POLL).await;
        }
        self.connections()
    }

    /// Cuts what is left and waits for the threads.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.tell(|| Command::Stop);
        self.stop_control.cancel();
        let workers = self.workers.iter_mut().filter_map(|worker| worker.thread.take());
        for thread in workers.chain(self.control.take()) {
            if thread.join().is_err() {
                tracing::error!("a thread of the data plane panicked");
            }
        }
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker that is gone has nothing left to be told.
            let _ = worker.commands.send(command());
        }
    }

    /// Binds new listeners, lets go of those that are gone or moved.
    fn rebind(&self, publishing: &mut Publishing, snapshot: &Snapshot) -> Vec<Rejected> {
        let wanted: BTreeMap<&String, SocketAddr> = snapshot
            .listeners
            .iter()
            .filter_map(|(name, listener)| Some((name, listener.address?)))
            .collect();
        publishing.bound.retain(|name, bound| {
            let keep = wanted.get(name) == Some(&bound.asked);
            if !keep {
                self.tell(|| Command::Unlisten(name.as_str().into()));
            }
            keep
        });
        let mut rejected = Vec::new();
        for (name, asked) in wanted {
            if publishing.bound.contains_key(name) {
                continue;
            }
            match self.bind(name, asked) {
                Ok(address) => {
                    publishing.bound.insert(name.clone(), Bound { asked, address });
                }
                Err(reason) => rejected.push(Rejected { kind: "listener", name: name.clone(), reason }),
            }
        }
        rejected
    }

    /// Binds one socket per worker, all or none.
    fn bind(&self, name: &str, asked: SocketAddr) -> Result<SocketAddr, String> {
        let label = format!("listener `{name}`");
        let first = bind_tcp(&label, asked, Reuse::Exclusive).map_err(|error| error.to_string())?;
        let address = first.local_addr().map_err(|error| error.to_string())?;
        let mut sockets: Vec<TcpListener> = vec![first];
        for _ in 1..self.workers.len() {
            sockets.push(bind_tcp(&label, address, Reuse::Join).map_err(|error| error.to_string())?);
        }
        for (worker, socket) in self.workers.iter().zip(sockets) {
            let _ = worker.commands.send(Command::Listen { listener: name.into(), socket });
        }
        Ok(address)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.end();
    }
}

impl WorkerHandle {
    fn start(name: &str, index: usize, shared: &Arc<Shared>, shard: &Arc<Shard>) -> io::Result<Self> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let open = Arc::<OpenConnections>::default();
        let start = Start {
            index,
            shared: Arc::clone(shared),
            shard: Arc::clone(shard),
            commands: receiver,
            open: Arc::clone(&open),
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Made inside: a worker's future never leaves its thread.
            match local_runtime() {
                Ok(runtime) => runtime.block_on(worker::run(start)),
                Err(error) => tracing::error!(%error, "a worker cannot start its runtime"),
            }
        })?;
        Ok(Self { commands, thread: Some(thread), open })
    }
}

fn local_runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

/// Runs `task` on a thread of its own.
fn spawn_local(name: &str, task: impl Future<Output = ()> + Send + 'static) -> io::Result<JoinHandle<()>> {
    let name = name.to_owned();
    std::thread::Builder::new().name(name.clone()).spawn(move || match local_runtime() {
        Ok(runtime) => runtime.block_on(task),
        Err(error) => tracing::error!(%error, "thread `{name}` cannot start its runtime"),
    })
}

/// Drains the connections of chains that are gone or whose TLS changed.
fn retire(previous: &Snapshot, next: &Snapshot) {
    for (name, listener) in &previous.listeners {
        let successor = next.listeners.get(name);
        for chain in listener.all_chains() {
            if successor.and_then(|successor| successor.successor(chain)).is_none() {
                chain.retired.cancel();
            }
        }
    }
}

/// How often a drain looks whether it is over.
const DRAIN_POLL: Duration = Duration::from_millis(20);
