//! Registered services and instances: one immutable view, and the way changes get into it.
//!
//! The view is built only from the store's watch: whoever wants a change in it commits one
//! ([`Catalog::register`], [`Catalog::report`], [`Catalog::deregister`], and the keeper for what
//! silence does). Beats never reach it; what they lead to does, as a transition.
//!
//! An instance has a generation that rises with every start of it. A message of an older generation
//! is refused, and what was acknowledged as gone does not come back with the same one.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lease::{Damping, Leases, RECONNECT_WINDOW};
use crate::store::{Commit, Key, Op, Space, Store, StoreError, Transaction};

mod changes;
mod holders;
mod index;
mod keeper;
mod plan;
mod read;
mod record;
mod registrar;
mod registration;
mod table;
mod view;

#[cfg(test)]
mod tests;

pub(crate) use changes::differing;
pub use keeper::KeeperStats;
pub use registrar::{Changes, DeregisterError, RegisterError, Registered, ReportError};
pub use registration::{
    FIELDS, FieldProblem, PORT_NAME_DEFAULT, Registration, duration_text, parse_duration, parse_reported,
    reported_word,
};
pub use view::{ByService, CatalogService, CatalogView, Instances, ServicePort, World};

use table::Table;

/// How long a commit waits to be seen. The embedded engine tells at once.
const REACH_MAX: Duration = Duration::from_secs(10);
/// Writes under way that the view does not have yet, at most: half of what the store keeps for
/// followers, so that no flood of changes makes the view fall behind and load everything again.
const WRITES_UNDER_WAY: usize = 4096;
/// The same in transactions, where the store takes small ones only: the more wait there, the sooner one
/// waits for longer than the store allows.
const TRANSACTIONS_UNDER_WAY: usize = 8;

/// The catalog of one registry process.
pub struct Catalog {
    store: Arc<dyn Store>,
    table: RwLock<Table>,
    world: ArcSwap<World>,
    applied: watch::Sender<u64>,
    /// Room for further writes.
    room: Semaphore,
    leases: Leases,
    damping: Damping,
    stats: KeeperStats,
    /// Changes of resources are judged one after the other.
    pub(crate) applying: tokio::sync::Mutex<()>,
    started: Instant,
}

impl Catalog {
    /// Loads what the store holds, for readers; leases begin with [`Catalog::adopt`].
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store cannot be read.
    pub async fn open(store: Arc<dyn Store>) -> Result<Arc<Self>, StoreError> {
        let state = store.load().await?;
        let (table, world) = Table::load(state, store.replica())?;
        Ok(Arc::new(Self {
            room: Semaphore::new(writes_under_way(&*store)),
            store,
            table: RwLock::new(table),
            applied: watch::Sender::new(world.revision),
            world: ArcSwap::from_pointee(world),
            leases: Leases::default(),
            damping: Damping::default(),
            stats: KeeperStats::default(),
            applying: tokio::sync::Mutex::default(),
            started: Instant::now(),
        }))
    }

    /// Begins the leases of everybody who is registered. To be called once, before anybody registers or
    /// beats. Nobody expires before they had time to find this process.
    pub fn adopt(&self) {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.adopt_all(&self.leases, self.now() + RECONNECT_WINDOW);
    }

    /// Everything readers need, as of one revision.
    pub fn world(&self) -> Arc<World> {
        self.world.load_full()
    }

    /// The revision of [`Catalog::world`], to wait for changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// The leases, for those who carry beats.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Who is held back for coming and going.
    pub fn damping(&self) -> &Damping {
        &self.damping
    }

    /// What the keeper has done since the start.
    pub fn stats(&self) -> &KeeperStats {
        &self.stats
    }

    /// The clock of leases: time since this process opened the catalog.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Commits and waits until the view has it: who reads after this sees it.
    ///
    /// # Errors
    ///
    /// As [`Store::commit`]; [`StoreError::Unavailable`] too if it was committed, and the store does not
    /// tell us.
    pub async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        let writes = transaction.ops.len().min(writes_under_way(&*self.store));
        // Nobody closes it: there is always room in the end.
        let _taken = self.room.acquire_many(u32::try_from(writes).unwrap_or(u32::MAX)).await;
        let revision = self.store.commit(transaction).await?;
        self.reach(revision).await?;
        Ok(revision)
    }

    /// Waits until the view is at `revision` or later.
    async fn reach(&self, revision: u64) -> Result<(), StoreError> {
        let mut applied = self.applied.subscribe();
        // The sender lives in `self`: it cannot have gone.
        let reached = tokio::time::timeout(REACH_MAX, applied.wait_for(|&at| at >= revision)).await;
        let behind = |_| StoreError::Unavailable(format!("its changes arrive more than {REACH_MAX:?} late"));
        reached.map(drop).map_err(behind)
    }

    /// Waits until the view has everything committed so far.
    pub(crate) async fn catch_up(&self) {
        // The next attempt fails by itself if this did not help.
        drop(self.reach(self.store.position().revision).await);
    }

    /// The store, for those who keep values of their own in it.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Notes the trust domain of the authority at its first start.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store refuses, as it does when the domain is set already.
    pub async fn fix_trust_domain(&self, domain: &str) -> Result<(), StoreError> {
        let key = Key::new(Space::Meta, table::TRUST_DOMAIN);
        let mut transaction = Transaction::default();
        transaction.require(key.clone(), None).push(Op::put(key, domain.to_owned()));
        self.commit(transaction).await.map(drop)
    }

    /// Notes the hash of a token that operators of this registry have.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store refuses.
    pub(crate) async fn admit_operator(&self, token_sha256: &str) -> Result<(), StoreError> {
        if self.world().operators.contains(token_sha256) {
            return Ok(());
        }
        let key = Key::new(Space::Meta, format!("{}{}", table::OPERATOR, self.store.replica()));
        let mut transaction = Transaction::default();
        transaction.push(Op::put(key, token_sha256.to_owned()));
        self.commit(transaction).await.map(drop)
    }

    /// Builds the view from the store's commits until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        let mut watch = self.store.watch(&self.world.load().position());
        while let Some(commits) = stop.run_until_cancelled(watch.next()).await {
            match commits {
                Ok(commits) => self.apply(&commits),
                Err(lag) => {
                    tracing::warn!(%lag, "catalog: loading again");
                    match self.store.load().await {
                        Ok(state) => {
                            watch = self.store.watch(&state.at);
                            if let Err(error) = self.replace(state) {
                                tracing::error!(%error, "catalog: the view stays as it is");
                            }
                        }
                        Err(error) => {
                            tracing::error!(%error, "catalog: cannot load, the view stays as it is");
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                }
            }
        }
    }

    fn apply(&self, commits: &[Arc<Commit>]) {
        let world = {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            for commit in commits {
                for Op { key, value } in &commit.ops {
                    table.apply(commit.revision, key, value.as_deref(), &self.leases, self.now());
                }
            }
            let revision = commits.last().map_or(0, |commit| commit.revision);
            table.build(&self.world.load(), revision)
        };
        self.publish(world);
    }

    fn replace(&self, state: crate::store::State) -> Result<(), StoreError> {
        let (table, world) = Table::load(state, self.store.replica())?;
        // Instances that left meanwhile leave no verdict behind: their leases end with the table's.
        self.leases.retain(|service, id| table.is_present(service, id));
        table.adopt_all(&self.leases, self.now());
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
        self.publish(world);
        Ok(())
    }

    fn publish(&self, world: World) {
        let revision = world.revision;
        self.world.store(Arc::new(world));
        self.applied.send_replace(revision);
    }
}

fn writes_under_way(store: &dyn Store) -> usize {
    store.ops_max().saturating_mul(TRANSACTIONS_UNDER_WAY).min(WRITES_UNDER_WAY)
}
