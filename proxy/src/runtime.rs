//! The running data plane: worker threads, their sockets, and the configuration they read.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use pillion_model::mesh::Resources;
use pillion_net::listen::{Reuse, bind_tcp};
use pillion_net::tls::Secrets;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::access_log::Writers;
use crate::metrics::{Scrape, Shard, Symbols};
use crate::snapshot::{Compiler, Rejected, Snapshot};
use crate::upstream::Clusters;
use crate::worker::{self, Command, Shared, Start};

/// How a [`Runtime`] is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// The proxy's own service (`orders.shop`), for metrics; may be empty.
    pub service: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: NonZeroUsize::MIN, service: String::new() }
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
}

struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
    open: Arc<AtomicUsize>,
}

/// What only publications touch.
#[derive(Default)]
struct Publishing {
    /// Bound addresses by listener, with the address asked for.
    bound: BTreeMap<String, Bound>,
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
        Ok(Self { shared, workers, writers, scrape, publishing: Mutex::default() })
    }

    /// Makes `resources` the configuration. New listeners are bound, those that are gone drain, and
    /// what did not change keeps its connections. `secrets` are compared by pointer: another `Arc`
    /// says that certificate or roots have changed.
    pub fn publish(&self, resources: Resources, secrets: &Arc<dyn Secrets>) -> Published {
        let mut publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        if !publishing.secrets.as_ref().is_some_and(|old| Arc::ptr_eq(old, secrets)) {
            publishing.secrets = Some(Arc::clone(secrets));
            publishing.identity_generation += 1;
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
        retire(&previous, &snapshot);
        if !publishing.draining {
            rejected.extend(self.rebind(&mut publishing, &snapshot));
        }
        Published { generation: snapshot.generation, rejected }
    }

    /// The address a listener is bound to.
    pub fn bound(&self, listener: &str) -> Option<SocketAddr> {
        let publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        publishing.bound.get(listener).map(|bound| bound.address)
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.workers.iter().map(|worker| worker.open.load(Relaxed)).sum()
    }

    /// Prometheus' text form of all metrics.
    pub fn metrics(&self) -> String {
        self.scrape.text()
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
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a worker thread panicked");
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
        let open = Arc::new(AtomicUsize::new(0));
        let start = Start {
            index,
            shared: Arc::clone(shared),
            shard: Arc::clone(shard),
            commands: receiver,
            open: Arc::clone(&open),
        };
        let runtime = || Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || match runtime() {
            Ok(runtime) => runtime.block_on(worker::run(start)),
            Err(error) => tracing::error!(%error, "a worker cannot start its runtime"),
        })?;
        Ok(Self { commands, thread: Some(thread), open })
    }
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
