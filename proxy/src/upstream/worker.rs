//! What belongs to one worker thread: its view of each cluster, its pools, its tasks.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use pillion_net::revoked::Revoked;
use pillion_net::tls::PeerCertificate;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::balance::Turns;
use super::cluster::Cluster;
use super::clusters::Clusters;
use super::failure::Cause;
use super::hosts::HostSet;
use super::io::Io;
use super::pool::{EndpointPool, Wanted};
use super::send::Attempt;
use super::state::Address;
use crate::trust;

/// Upstream connections of one worker. Cheap to clone; not `Send`.
#[derive(Clone)]
pub struct Pools {
    pub(super) worker: Rc<Worker>,
    views: Rc<RefCell<HashMap<u64, Rc<View>>>>,
    clusters: Arc<Clusters>,
}

/// What tasks and pools of a worker share.
pub(super) struct Worker {
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Peers that are trusted no more.
    revoked: watch::Receiver<Arc<Revoked>>,
    /// Read when a request starts; exact enough for idle times.
    now: Cell<Instant>,
}

/// One cluster as this worker sees it.
pub(super) struct View {
    pub(super) cluster: Arc<Cluster>,
    version: Cell<u64>,
    hosts: RefCell<Arc<HostSet>>,
    turns: RefCell<Turns>,
    /// By place in `hosts`, one pool per protocol.
    pools: RefCell<Vec<PoolPair>>,
}

type PoolPair = [Option<Rc<EndpointPool>>; 2];

impl Worker {
    pub(super) fn new(revoked: watch::Receiver<Arc<Revoked>>) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Self { tasks, stop, revoked, now: Cell::new(Instant::now()) }
    }

    /// Waits until the server that `io` leads to is trusted no more, if it is one of the mesh.
    pub(super) fn distrusted(&self, io: &Io) -> impl Future<Output = ()> + use<> {
        let chain = io.tls().and_then(|session| session.peer_certificates());
        let peer = chain.and_then(|chain| PeerCertificate::parse(chain).ok());
        let (peer, revoked) = (peer.filter(|peer| peer.spiffe_id().is_some()), self.revoked.clone());
        async move {
            match peer {
                Some(peer) => trust::lost(&peer, revoked).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Ends its tasks.
    pub(super) fn end(&self) {
        self.stop.cancel();
    }

    /// Runs a task of this worker: it ends with the worker.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn_local(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    pub(super) fn now(&self) -> Instant {
        self.now.get()
    }
}

impl Pools {
    /// For the present thread, which must run a tokio `LocalRuntime` or `LocalSet`.
    pub fn new(clusters: Arc<Clusters>) -> Self {
        Self { worker: Rc::new(Worker::new(clusters.revoked())), views: Rc::default(), clusters }
    }

    /// Closes idle connections in time, and those of endpoints and identities that are gone. To be
    /// run once per worker, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut changes = self.clusters.changes();
        let mut tick = tokio::time::interval(SWEEP_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
            self.sweep();
        }
    }

    /// Closes every connection and ends every task of this worker's upstream side.
    pub async fn shutdown(&self) {
        for (_, view) in self.views.borrow_mut().drain() {
            view.drain();
        }
        self.worker.end();
        self.worker.tasks.close();
        self.worker.tasks.wait().await;
    }

    /// Reads the clock for a request that starts now.
    pub(super) fn tick(&self) -> Instant {
        let now = Instant::now();
        self.worker.now.set(now);
        now
    }

    pub(super) fn view(&self, cluster: &Arc<Cluster>) -> Rc<View> {
        let mut views = self.views.borrow_mut();
        let view = views.entry(cluster.id).or_insert_with(|| Rc::new(View::new(cluster)));
        view.refresh();
        Rc::clone(view)
    }

    pub(super) fn sweep(&self) {
        let now = self.tick();
        self.views.borrow_mut().retain(|_, view| {
            if view.cluster.is_retired() {
                view.drain();
                return false;
            }
            view.refresh();
            view.sweep(now);
            true
        });
    }
}

impl View {
    fn new(cluster: &Arc<Cluster>) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            version: Cell::new(u64::MAX),
            hosts: RefCell::default(),
            turns: RefCell::default(),
            pools: RefCell::default(),
        }
    }

    /// Follows the cluster's endpoints: pools of those that stay are kept, others drained.
    fn refresh(&self) {
        let version = self.cluster.version();
        if version == self.version.get() {
            return;
        }
        self.version.set(version);
        let old = self.hosts.replace(self.cluster.hosts());
        *self.turns.borrow_mut() = Turns::default();
        let mut kept: HashMap<(u64, u64), PoolPair> = HashMap::new();
        for (host, pools) in old.hosts.iter().zip(self.pools.take()) {
            kept.insert((host.endpoint.id, host.transport.id), pools);
        }
        let hosts = self.hosts.borrow();
        *self.pools.borrow_mut() = hosts
            .hosts
            .iter()
            .map(|host| kept.remove(&(host.endpoint.id, host.transport.id)).unwrap_or_default())
            .collect();
        kept.into_values().flatten().flatten().for_each(|pool| pool.drain());
    }

    fn drain(&self) {
        self.pools.borrow().iter().flatten().flatten().for_each(|pool| pool.drain());
    }

    fn sweep(&self, now: Instant) {
        for slot in self.pools.borrow_mut().iter_mut().flatten() {
            slot.take_if(|pool| pool.sweep(now));
        }
    }

    pub(super) fn pick(&self, attempt: &Attempt, now: Instant) -> Result<usize, Cause> {
        self.hosts.borrow().pick(&self.cluster.state, &mut self.turns.borrow_mut(), attempt, now)
    }

    /// The place of an original destination, which becomes an endpoint when first met.
    pub(super) fn original_destination(&self, destination: SocketAddr) -> Option<usize> {
        let address = Address::Socket(destination);
        if let Some(at) = self.hosts.borrow().place_of(&address) {
            return Some(at);
        }
        self.cluster.admit_destination(destination);
        self.refresh();
        self.hosts.borrow().place_of(&address)
    }

    pub(super) fn hosts(&self) -> Arc<HostSet> {
        Arc::clone(&self.hosts.borrow())
    }

    /// The pool of the endpoint at `at`.
    pub(super) fn pool(&self, worker: &Rc<Worker>, at: usize, wanted: Wanted) -> Rc<EndpointPool> {
        let mut pools = self.pools.borrow_mut();
        let slot = &mut pools[at][wanted as usize];
        let pool = slot.get_or_insert_with(|| {
            Rc::new(EndpointPool::new(worker, &self.cluster, &self.hosts.borrow().hosts[at], wanted))
        });
        Rc::clone(pool)
    }
}

/// How often idle connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
