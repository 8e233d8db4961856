//! One worker: a thread with its own runtime, accept queues, upstream pools and timers. Nothing on the
//! request path leaves it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use futures_util::FutureExt;
use hashbrown::HashMap;
use pillion_model::listener::Direction;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::downstream::{self, Accepted, Rarely};
use crate::metrics::{Family, Shard, Symbol, Symbols, WorkerMetrics};
use crate::outbound::OutboundOptions;
use crate::overload::Overload;
use crate::snapshot::{Listener, Snapshot};
use crate::upstream::{Clusters, Pools};

/// What the runtime tells a worker.
pub(crate) enum Command {
    /// Accept on a further socket for this listener.
    Listen { listener: Arc<str>, socket: std::net::TcpListener },
    /// Accept no more for this listener; its connections drain.
    Unlisten(Arc<str>),
    /// Accept no more at all; connections drain.
    Drain,
    /// End now.
    Stop,
}

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) clusters: Arc<Clusters>,
    pub(crate) symbols: Arc<Symbols>,
    pub(crate) own_service: String,
    /// The group it says it belongs to.
    pub(crate) node_cluster: String,
    pub(crate) overload: Arc<Overload>,
    /// How the application's traffic is taken; set once.
    pub(crate) outbound: OnceLock<OutboundOptions>,
    /// Health checks are to fail: others should send no more.
    pub(crate) health_failed: AtomicBool,
    /// The generation published last.
    pub(crate) published: watch::Sender<u64>,
}

/// One worker's state, shared by its connections.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    cache: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    pub(crate) pools: Pools,
    pub(crate) metrics: WorkerMetrics,
    pub(crate) own_service: Symbol,
    pub(crate) own_service_name: String,
    /// Everything this worker has spawned.
    pub(crate) tasks: TaskTracker,
    /// Ends every task at once.
    pub(crate) cut: CancellationToken,
    drain: CancellationToken,
    index: u64,
    connections: Cell<u64>,
    open: Arc<OpenConnections>,
}

/// Connections open in one worker, for the runtime to see.
#[derive(Default)]
pub(crate) struct OpenConnections {
    /// All of them.
    pub(crate) all: AtomicIsize,
    /// Those that others made to us.
    pub(crate) inbound: AtomicIsize,
}

/// What a worker is started with.
pub(crate) struct Start {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: Arc<Shard>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    /// Connections open, for the runtime to see.
    pub(crate) open: Arc<OpenConnections>,
}

/// Runs a worker until it is told to stop, or has drained.
pub(crate) async fn run(start: Start) {
    let Start { index, shared, shard, mut commands, open } = start;
    let worker = Rc::new(Worker {
        cache: RefCell::new(Cache::new(Arc::clone(&shared.snapshot))),
        pools: Pools::new(Arc::clone(&shared.clusters)),
        metrics: WorkerMetrics::new(shard, Arc::clone(&shared.symbols)),
        own_service: shared.symbols.intern(&shared.own_service),
        own_service_name: shared.own_service.clone(),
        tasks: TaskTracker::new(),
        cut: CancellationToken::new(),
        drain: CancellationToken::new(),
        index: index as u64,
        connections: Cell::new(0),
        open,
        shared,
    });
    let pools = worker.pools.clone();
    let stop_pools = worker.cut.clone();
    worker.tasks.spawn_local(async move { pools.run(stop_pools).await });
    let mut listening: HashMap<Arc<str>, CancellationToken> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen { listener, socket } => {
                let stop =
                    listening.entry(Arc::clone(&listener)).or_insert_with(|| worker.drain.child_token());
                worker.listen(listener, socket, stop.clone());
            }
            Command::Unlisten(listener) => {
                if let Some(stop) = listening.remove(&listener) {
                    stop.cancel();
                }
            }
            Command::Drain => worker.drain.cancel(),
            Command::Stop => break,
        }
    }
    worker.drain.cancel();
    worker.cut.cancel();
    worker.tasks.close();
    worker.tasks.wait().await;
    worker.pools.shutdown().await;
}

impl Worker {
    /// The snapshot of the moment.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.cache.borrow_mut().load())
    }

    /// A number no other connection of the process has.
    pub(crate) fn next_connection_id(&self) -> u64 {
        let count = self.connections.get();
        self.connections.set(count + 1);
        count << 8 | self.index & 0xff
    }

    /// Accepts on `socket` until `stop`.
    fn listen(self: &Rc<Self>, listener: Arc<str>, socket: std::net::TcpListener, stop: CancellationToken) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%listener, %error, "cannot accept connections");
                return;
            }
        };
        let worker = Rc::clone(self);
        self.tasks.spawn_local(async move {
            let mut last = None;
            while let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
                match accepted {
                    Ok(accepted) => worker.accept(&listener, &mut last, accepted, &stop),
                    Err(error) => pillion_net::listen::pause_accept(&error).await,
                }
            }
            // Closing the socket would reset what the kernel has queued on it.
            while let Some(Ok(accepted)) = socket.accept().now_or_never() {
                worker.accept(&listener, &mut last, accepted, &stop);
            }
        });
    }

    /// Carries a connection; `last` is the listener as it was with the connection before, for those
    /// that come when it is gone from the configuration already.
    fn accept(
        self: &Rc<Self>,
        name: &str,
        last: &mut Option<Arc<Listener>>,
        accepted: (tokio::net::TcpStream, std::net::SocketAddr),
        stop: &CancellationToken,
    ) {
        if let Some(listener) = self.snapshot().listeners.get(name) {
            *last = Some(Arc::clone(listener));
        }
        let Some(listener) = last.clone() else { return };
        let Some(admitted) = self.shared.overload.admit() else {
            let labels = [listener.direction.into(), Symbol::OVERLOAD, Symbol::EMPTY];
            self.metrics.add(Family::ConnectionFailures, labels, 1);
            return;
        };
        let accepted = Accepted::new(self, listener, accepted, stop.child_token(), admitted);
        let cut = Rarely::new(self.cut.clone().cancelled_owned());
        self.tasks.spawn_local(async move {
            tokio::select! {
                biased;
                () = cut => {}
                () = downstream::serve(accepted) => {}
            }
        });
    }

    /// One more or less connection.
    pub(crate) fn connection_opened(&self, direction: Direction, change: isize) {
        self.open.all.fetch_add(change, Relaxed);
        if direction == Direction::Inbound {
            self.open.inbound.fetch_add(change, Relaxed);
        }
    }

    /// What all workers share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}
