//! Rotation of the root: announce, wait until everybody knows, switch, retire.
//!
//! Whichever registry comes first takes the next step: the store lets one of them. A restart changes
//! nothing, for the step is in the store and sidecars say again what they have in force.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_net::tls::hex;
use rustls_pki_types::CertificateDer;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::federated;
use super::followers::{Acknowledged, PENDING_MAX};
use super::material::{Material, validity};
use super::revocation::Revocations;
use super::root::key_hash;
use super::{Authority, CaError, Revoking, Step};
use crate::store::{Key, Op, Space, State, StoreError, Transaction};

/// Who must know a new root before it signs.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Instances with a sidecar that are alive: `<namespace>/<service>/<instance-id>`.
    pub nodes: Vec<String>,
    /// The registries that share the store.
    pub replicas: BTreeSet<Arc<str>>,
}

/// Tells who is alive.
pub type Alive = Arc<dyn Fn() -> Live + Send + Sync>;

/// Why a rotation does not go on.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// One is under way.
    #[error("a rotation is under way: {0}; see `pillion ca status`")]
    UnderWay(&'static str),
    /// Others look after it.
    #[error(
        "the authority is in files (--ca-cert), which Pillion does not change: put the next root into --ca-chain of \
         every registry, restart them, and change --ca-cert and --ca-key once `pillion ca status` waits for \
         nobody"
    )]
    InFiles,
    /// Nothing was announced.
    #[error("no root is announced that could be switched to by force; begin with `pillion ca rotate`")]
    NothingAnnounced,
    /// Sidecars still have time to learn of it.
    #[error("the next root may be switched to by force in {}", pillion_config::DurationText(*.0))]
    TooEarly(Duration),
    /// The authority or its store.
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// Where the roots stand.
#[derive(Clone, Debug)]
pub struct Status {
    /// The step of the rotation.
    pub step: Step,
    /// When an announced root may be switched to by force.
    pub force_after: Option<SystemTime>,
    /// The roots, the one that signs first.
    pub roots: Vec<RootStatus>,
    /// Version of the bundle of all that are trusted.
    pub bundle: String,
    /// Whether the authority is in files, which others look after.
    pub in_files: bool,
    /// Who follows this registry.
    pub followers: usize,
    /// Who does not have the bundle in force yet: the first hundred.
    pub pending: Vec<String>,
    /// How many.
    pub pending_total: usize,
    /// What is revoked.
    pub revoked: Vec<Revoking>,
}

/// A root.
#[derive(Clone, Debug)]
pub struct RootStatus {
    /// SHA-256 of its public key, hex.
    pub sha256: String,
    /// `active`, `next`, `old` (trusted, signs no more), `retired` (not trusted), `trusted` (by --ca-chain).
    pub role: &'static str,
    /// When it is valid.
    pub validity: (SystemTime, SystemTime),
    /// Whether the root before it signed it.
    pub cross_signed: bool,
}

impl Authority {
    /// Begins a rotation; with `force`, switches to the announced root whoever may not know it yet.
    ///
    /// # Errors
    ///
    /// [`RotateError`]: nothing was changed.
    pub async fn rotate(&self, force: bool) -> Result<(), RotateError> {
        self.reload().await?;
        let material = self.material();
        if material.given().is_some() {
            return Err(RotateError::InFiles);
        }
        let now = (self.clock)();
        let next = match (material.step, force) {
            (Step::Steady, false) => material.announce(&self.settings().trust_domain, now)?,
            (Step::Announced { since }, true) => {
                let left = (since + self.force_delay()).duration_since(now).unwrap_or_default();
                if !left.is_zero() {
                    return Err(RotateError::TooEarly(left));
                }
                material.switch(now, self.skew()).ok_or(RotateError::NothingAnnounced)?
            }
            (Step::Announced { .. }, false) => {
                return Err(RotateError::UnderWay("the next root is announced"));
            }
            (Step::Switched { .. }, false) => {
                return Err(RotateError::UnderWay(
                    "the old root is trusted until its last certificate is over",
                ));
            }
            (_, true) => return Err(RotateError::NothingAnnounced),
        };
        self.replace(&material, next).await.map_err(|error| match error {
            StoreError::Conflict { .. } => RotateError::UnderWay("somebody else changed it just now"),
            other => CaError::from(other).into(),
        })?;
        self.tell_step();
        Ok(())
    }

    /// Where the roots stand, and who is waited for.
    ///
    /// # Errors
    ///
    /// The store's, which is asked what other registries know.
    pub async fn status(&self, live: &Live) -> Result<Status, CaError> {
        let material = self.material();
        let others = self.others(live).await?;
        let pending = self.pending(live, &others);
        let root = |certificate: &CertificateDer<'static>, role, cross_signed| {
            let hash = key_hash(certificate).unwrap_or_default();
            let unknown = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
            let validity = validity(certificate).unwrap_or(unknown);
            RootStatus { sha256: hex(&hash), role, validity, cross_signed }
        };
        let ours =
            |it: &super::material::Root, role| root(&it.signer.certificate, role, it.cross_signed.is_some());
        let given = material.given().into_iter().flat_map(|given| &given.roots).enumerate();
        let given = given.map(|(at, it)| root(it, if at == 0 { "active" } else { "trusted" }, false));
        let mut roots: Vec<_> = match material.given() {
            Some(_) => given.collect(),
            None => vec![ours(&material.active, "active")],
        };
        roots.extend(material.next.as_ref().map(|next| ours(next, "next")));
        let switched = matches!(material.step, Step::Switched { .. });
        for (at, former) in material.former.iter().rev().enumerate() {
            let role = if at == 0 && switched { "old" } else { "retired" };
            roots.push(root(&former.certificate, role, former.cross_signed.is_some()));
        }
        Ok(Status {
            step: material.step,
            force_after: match material.step {
                Step::Announced { since } => Some(since + self.force_delay()),
                _ => None,
            },
            roots,
            bundle: material.version(),
            in_files: material.given().is_some(),
            followers: self.followers.count(),
            pending_total: pending.len(),
            pending: pending.into_iter().take(PENDING_MAX).collect(),
            revoked: material.revocations.list.clone(),
        })
    }

    /// Follows what other registries on the same store do to the roots, and takes the next step of a
    /// rotation when it is due, until `stop`.
    pub async fn follow(self: Arc<Self>, alive: Alive, stop: CancellationToken) {
        let started = (self.clock)();
        let mut watch = self.store.watch(&self.material().at);
        let mut ticks = tokio::time::interval(DRIVE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                next = watch.next() => {
                    let ours = |op: &Op| {
                        op.key == Material::key() || op.key == Revocations::key() || federated::is_key(&op.key)
                    };
                    let lost = next.is_err();
                    let touched = next.map_or(true, |commits| {
                        commits.iter().any(|commit| commit.ops.iter().any(ours))
                    });
                    if touched {
                        match self.reload().await {
                            Ok(at) if lost => watch = self.store.watch(&at),
                            Ok(_) => {}
                            Err(error) => {
                                tracing::warn!(%error, "cannot read the authority's roots");
                                tokio::time::sleep(DRIVE_EVERY).await;
                            }
                        }
                    }
                    continue;
                }
                _ = ticks.tick() => {}
                () = self.followers.changed() => {}
            }
            if let Err(error) = self.drive(&alive, started).await {
                tracing::warn!(%error, "the rotation of the root waits");
            }
        }
    }

    /// Takes the next step, if it is due.
    pub(super) async fn drive(&self, alive: &Alive, started: SystemTime) -> Result<(), CaError> {
        let (material, now) = (self.material(), (self.clock)());
        let next = match material.step {
            // When its roots change is others' doing: who knows them is told at any time.
            Step::Steady if material.given().is_some() => return self.tell_others(&alive()).await,
            Step::Steady => return self.forget_acknowledged().await,
            Step::Announced { since } => {
                let live = alive();
                self.tell_others(&live).await?;
                // After a start, sidecars that are no instances need a moment to come back.
                let waited = now.duration_since(since.max(started)).unwrap_or_default();
                if waited < self.announced_min()
                    || !self.pending(&live, &self.others(&live).await?).is_empty()
                {
                    return Ok(());
                }
                material.switch(now, self.skew())
            }
            Step::Switched { until, .. } => (now >= until).then(|| material.retire()),
        };
        let Some(next) = next else { return Ok(()) };
        match self.replace(&material, next).await {
            Ok(()) => {
                self.tell_step();
                Ok(())
            }
            Err(StoreError::Conflict { .. }) => self.reload().await.map(drop),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the next material on the condition that this is still the one in the store.
    pub(super) async fn replace(&self, material: &Material, next: Vec<u8>) -> Result<(), StoreError> {
        let mut transaction = Transaction::default();
        transaction.require(Material::key(), Some(material.revision)).push(Op::put(Material::key(), next));
        self.store.commit(transaction).await?;
        self.reload().await.map(drop).map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    fn tell_step(&self) {
        let roots = self.roots().len();
        match self.material().step {
            Step::Steady => tracing::info!(roots, "root rotation: the old root is retired"),
            Step::Announced { .. } => tracing::info!(roots, "root rotation: the next root is announced"),
            Step::Switched { .. } => tracing::info!(roots, "root rotation: the next root signs"),
        }
    }

    /// Live sidecars without the bundle of the moment in force.
    fn pending(&self, live: &Live, others: &[Acknowledged]) -> BTreeSet<String> {
        let bundle = self.material().version();
        let ours = self.followers.acknowledged(&bundle);
        let others = || others.iter().filter(|other| other.version == bundle);
        let has = |node: &str| ours.has(node) || others().any(|other| other.has(node));
        let instances = live.nodes.iter().filter(|node| !has(node));
        let followers = ours.pending.iter().chain(others().flat_map(|other| &other.pending));
        instances.chain(followers).cloned().collect()
    }

    /// Tells the other registries who has the bundle in force here.
    async fn tell_others(&self, live: &Live) -> Result<(), CaError> {
        if live.replicas.len() < 2 {
            return Ok(());
        }
        let ours = self.followers.acknowledged(&self.material().version());
        if self.told().as_ref() == Some(&ours) {
            return Ok(());
        }
        let value = serde_json::to_vec(&ours).expect("plain fields have a JSON form");
        let mut transaction = Transaction::default();
        transaction.push(Op::put(self.acknowledged_key(), value));
        self.store.commit(transaction).await?;
        *self.told() = Some(ours);
        Ok(())
    }

    /// What the other registries know; those that are gone wait for nobody any more.
    async fn others(&self, live: &Live) -> Result<Vec<Acknowledged>, CaError> {
        let material = self.material();
        let told = matches!(material.step, Step::Announced { .. }) || material.given().is_some();
        if live.replicas.len() < 2 || !told {
            return Ok(Vec::new());
        }
        let state: State = self.store.load_space(Space::Ca).await?;
        let own = self.acknowledged_key();
        let others = state.space(Space::Ca).filter(|(name, _)| *name != own.name);
        Ok(others
            .filter_map(|(name, entry)| {
                let replica = name.strip_prefix(ACKNOWLEDGED)?;
                let mut told: Acknowledged = serde_json::from_slice(&entry.value).ok()?;
                if !live.replicas.contains(replica) {
                    told.pending.clear();
                }
                Some(told)
            })
            .collect())
    }

    async fn forget_acknowledged(&self) -> Result<(), CaError> {
        if self.told().is_none() {
            return Ok(());
        }
        let mut transaction = Transaction::default();
        transaction.push(Op::delete(self.acknowledged_key()));
        self.store.commit(transaction).await?;
        *self.told() = None;
        Ok(())
    }

    fn acknowledged_key(&self) -> Key {
        Key::new(Space::Ca, format!("{ACKNOWLEDGED}{}", self.store.replica()))
    }

    /// How long sidecars have to learn of a root before it may be switched to by force.
    fn force_delay(&self) -> Duration {
        (self.settings().leaf_lifetime / 4).min(FORCE_DELAY)
    }

    fn announced_min(&self) -> Duration {
        (self.settings().leaf_lifetime / 10).min(ANNOUNCED_MIN)
    }

    /// Clocks differ, and another registry may sign a moment longer.
    fn skew(&self) -> Duration {
        (self.settings().leaf_lifetime / 10).min(SKEW)
    }
}

const DRIVE_EVERY: Duration = Duration::from_secs(1);
const ACKNOWLEDGED: &str = "acknowledged/";
const FORCE_DELAY: Duration = Duration::from_secs(600);
const ANNOUNCED_MIN: Duration = Duration::from_secs(10);
const SKEW: Duration = Duration::from_secs(300);
