//! The registries: catalogs over one store, each of which may be paused or restarted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::actor::{Message, Say, body};
use super::faults::Faults;
use crate::catalog::{Catalog, Changes, RegisterError, Registration, ReportError};
use crate::store::memory::MemoryStore;
use crate::store::{Key, Op, Position, Space, State, Store, StoreError, Transaction, Watch};
use crate::watch::Hub;

/// How long others think that a dead replica is there.
const PRESENCE: Duration = Duration::from_secs(15);

/// A client that hears nothing for this long connects elsewhere.
const GIVEN_UP: Duration = Duration::from_secs(20);

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Unknown,
    Older,
    Failed,
}

/// The store as one replica sees it.
struct Shared {
    inner: Arc<MemoryStore>,
    replica: String,
    lost: AtomicBool,
    losses: AtomicU64,
    random: Mutex<fastrand::Rng>,
    chance: f64,
}

#[async_trait]
impl Store for Shared {
    async fn load(&self) -> Result<State, StoreError> {
        self.inner.load().await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let lose = self.lost.load(Ordering::Relaxed)
            && self.random.lock().unwrap_or_else(PoisonError::into_inner).f64() < self.chance;
        // Half of the lost ones were carried out nevertheless.
        if lose && self.losses.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            return Err(StoreError::Unavailable("lost on the way".to_owned()));
        }
        let done = self.inner.commit(transaction).await;
        if lose { Err(StoreError::Unavailable("the answer was lost".to_owned())) } else { done }
    }

    fn position(&self) -> Position {
        self.inner.position()
    }

    fn watch(&self, from: &Position) -> Watch {
        self.inner.watch(from)
    }

    fn replica(&self) -> &str {
        &self.replica
    }
}

/// A registry that runs.
pub(super) struct Running {
    pub(super) catalog: Arc<Catalog>,
    pub(super) hub: Arc<Hub>,
    shared: Arc<Shared>,
    _following: AbortOnDropHandle<()>,
}

/// One registry over all its starts.
pub(super) struct Registry {
    name: String,
    running: Option<Running>,
    /// Paused or down until then.
    until: Option<Instant>,
    shown: bool,
    /// Since when it is paused or down.
    silent: Instant,
    /// Those who expired in earlier runs.
    expired: u64,
}

pub(super) struct Registries {
    store: Arc<MemoryStore>,
    all: Vec<Registry>,
    random: fastrand::Rng,
    faulty: bool,
    lost_commits: f64,
}

impl Registries {
    pub(super) async fn open(faults: &Faults, random: fastrand::Rng) -> Self {
        let (count, lost_commits) = (faults.registries, faults.lost_commit);
        let store = Arc::new(MemoryStore::new("simulation"));
        let mut registries = Self { store, all: Vec::new(), random, faulty: true, lost_commits };
        for n in 0..count {
            // Alone, a registry has no name, as on the embedded engine.
            let name = if count == 1 { String::new() } else { format!("r{n}") };
            let died = Instant::now();
            let registry =
                Registry { name, running: None, until: None, shown: false, silent: died, expired: 0 };
            registries.all.push(registry);
            registries.start(n).await;
        }
        registries
    }

    async fn start(&mut self, n: usize) {
        let shared = Arc::new(Shared {
            inner: Arc::clone(&self.store),
            replica: self.all[n].name.clone(),
            lost: AtomicBool::new(self.faulty),
            losses: AtomicU64::new(0),
            random: Mutex::new(self.random.fork()),
            chance: self.lost_commits,
        });
        let store: Arc<dyn Store> = Arc::clone(&shared) as _;
        let catalog = Catalog::open(store).await.expect("loads");
        catalog.adopt();
        let hub = Hub::new(&catalog.world());
        let following = Arc::clone(&catalog);
        let follow = async move { following.follow(CancellationToken::new()).await };
        let _following = AbortOnDropHandle::new(tokio::spawn(follow));
        self.all[n].running = Some(Running { catalog, hub, shared, _following });
        self.show(n, true).await;
    }

    /// The replica's key, as its lease in etcd would have it.
    async fn show(&mut self, n: usize, shown: bool) {
        let registry = &mut self.all[n];
        if registry.name.is_empty() || registry.shown == shown {
            return;
        }
        registry.shown = shown;
        let key = Key::new(Space::Replica, registry.name.clone());
        let op = if shown { Op::put(key, "here") } else { Op::delete(key) };
        self.store.commit(Transaction { ops: vec![op], ..Default::default() }).await.expect("commits");
    }

    /// Pauses and restarts some.
    pub(super) async fn disturb(&mut self, faults: &Faults, random: &mut fastrand::Rng) {
        let now = Instant::now();
        for n in 0..self.all.len() {
            let registry = &mut self.all[n];
            if registry.until.is_some_and(|until| until > now) {
                if registry.silent + PRESENCE <= now {
                    self.show(n, false).await;
                }
                continue;
            }
            if registry.until.take().is_some() && registry.running.is_some() {
                self.show(n, true).await;
                continue;
            }
            if registry.running.is_none() {
                self.start(n).await;
            } else if random.f64() < faults.restart {
                registry.expired += registry.expired_now();
                registry.running = None;
                (registry.silent, registry.until) = (now, Some(now + Duration::from_secs(random.u64(..60))));
            } else if random.f64() < faults.pause {
                (registry.silent, registry.until) = (now, Some(now + Duration::from_secs(random.u64(1..90))));
            }
        }
    }

    /// Everybody is well from now on.
    pub(super) async fn heal(&mut self) {
        self.faulty = false;
        for n in 0..self.all.len() {
            self.all[n].until = None;
            match &self.all[n].running {
                Some(running) => {
                    running.shared.lost.store(false, Ordering::Relaxed);
                    self.show(n, true).await;
                }
                None => self.start(n).await,
            }
        }
    }

    pub(super) fn position(&self) -> Position {
        self.store.position()
    }

    pub(super) fn index(&self, home: usize) -> usize {
        home % self.all.len()
    }

    /// Whether connections to it are open; those to a paused one are, for a while.
    pub(super) fn is_up(&self, home: usize) -> bool {
        let registry = &self.all[self.index(home)];
        let silent = registry.until.is_some() && registry.silent.elapsed() > GIVEN_UP;
        registry.running.is_some() && (!silent || self.all.len() == 1)
    }

    /// One that answers now.
    pub(super) fn any_awake(&self, random: &mut fastrand::Rng) -> Option<usize> {
        let awake: Vec<usize> = (0..self.all.len()).filter(|&n| self.awake(n).is_some()).collect();
        random.choice(awake)
    }

    /// Those that run, also if they are paused.
    pub(super) fn running(&self) -> impl Iterator<Item = (usize, &Running)> {
        self.all.iter().enumerate().filter_map(|(n, registry)| Some((n, registry.running.as_ref()?)))
    }

    /// Those that answer now.
    pub(super) fn awake(&self, n: usize) -> Option<&Running> {
        let registry = &self.all[n % self.all.len()];
        registry.running.as_ref().filter(|_| registry.until.is_none())
    }

    pub(super) fn expired(&self) -> u64 {
        self.all.iter().map(|registry| registry.expired + registry.expired_now()).sum()
    }

    pub(super) async fn deliver(&self, message: &Message) -> Answer {
        // A paused process answers nothing; what was sent to it is as good as lost.
        let Some(running) = self.awake(message.to) else { return Answer::Failed };
        let Message { service, id, generation, .. } = message;
        let catalog = &running.catalog;
        match message.say {
            Say::Register => {
                let registration = Registration::parse(service.clone(), id.clone(), &body(*generation));
                match catalog.register(&registration.expect("valid")).await {
                    Ok(_) => Answer::Done,
                    Err(RegisterError::Older { .. }) => Answer::Older,
                    Err(_) => Answer::Failed,
                }
            }
            Say::Beat(reported) => {
                let changes = Changes { reported, ..Changes::default() };
                answer(catalog.report(service, id, Some(*generation), changes).await.map(drop))
            }
            Say::Deregister => answer(catalog.deregister(service, id, Some(*generation)).await),
        }
    }

    /// What the registries do by themselves.
    pub(super) async fn keep(&self) {
        for n in 0..self.all.len() {
            if let Some(running) = self.awake(n) {
                running.catalog.judge(running.catalog.now()).await;
            }
        }
        // The followers see what was committed.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        for n in 0..self.all.len() {
            if let Some(running) = self.awake(n) {
                running.hub.look(&running.catalog.world(), Instant::now());
            }
        }
    }
}

impl Registry {
    fn expired_now(&self) -> u64 {
        self.running.as_ref().map_or(0, |running| running.catalog.stats().expired.load(Ordering::Relaxed))
    }
}

fn answer(result: Result<(), ReportError>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(ReportError::Unknown(..)) => Answer::Unknown,
        Err(ReportError::Older { .. }) => Answer::Older,
        Err(ReportError::Store(_)) => Answer::Failed,
    }
}
