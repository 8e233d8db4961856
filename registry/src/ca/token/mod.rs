//! Join tokens: the right to obtain a first certificate.
//!
//! The store keeps a hash of the secret. A single-use token is marked used in the store, on the
//! condition that nobody changed it meanwhile, before anybody is told that it was good: of two uses
//! at once one wins, on one registry or on several.

mod known;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pillion_config::DurationText;
use pillion_model::name::{NameError, ServiceName, check_name};
use pillion_net::bootstrap::JoinToken;
use pillion_net::tls::{hex, sha256};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Clock, operator};
use crate::store::{Op, Space, Store, StoreError, Transaction};
use known::{Kept, Known, Token, check, encode, key};

/// For whom a token is good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Binding {
    /// Only services of this namespace; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Only the service of this name; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// A token to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewToken {
    /// How long it is good; default 1 h, 1 min to 366 days.
    pub ttl: Option<Duration>,
    /// May be used any number of times.
    pub reusable: bool,
    /// For whom.
    pub binding: Binding,
}

/// What people may know of a token: everything but the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its id.
    pub id: String,
    /// When it was made.
    pub created: SystemTime,
    /// When it ends.
    pub expires: SystemTime,
    /// Whether it may be used more than once.
    pub reusable: bool,
    /// When a single-use token was used.
    pub used: Option<SystemTime>,
    /// For whom it is good.
    pub binding: Binding,
}

/// Why a token is not made or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No such token, or not this secret: which of them is not told.
    #[error("the join token is unknown; create one with `pillion token create`")]
    Unknown,
    /// It was good once.
    #[error("the join token expired {ago:?} ago; create another with `pillion token create`")]
    Expired {
        /// How long ago.
        ago: Duration,
    },
    /// Somebody used it.
    #[error("the join token was used already; create one per sidecar, or one with --reusable")]
    Used,
    /// It is for others.
    #[error("the join token is for {bound}, not for {asked}")]
    Binding {
        /// For whom it is.
        bound: String,
        /// Who asked.
        asked: ServiceName,
    },
    /// A lifetime out of bounds.
    #[error("ttl: got {got}, {TTL_WANT}")]
    Ttl {
        /// As asked.
        got: DurationText,
    },
    /// The binding is no name.
    #[error("{field}: {error}")]
    Name {
        /// `namespace`, `service` or `name`.
        field: &'static str,
        /// What is wrong.
        error: NameError,
    },
    /// Too many tokens.
    #[error("there are {TOKENS_MAX} join tokens already; delete some, or use one with --reusable")]
    TooMany,
    /// The store refuses.
    #[error("cannot read or write join tokens")]
    Store(#[from] StoreError),
}

/// The join tokens of the mesh.
pub struct Tokens {
    store: Arc<dyn Store>,
    known: Mutex<Known>,
    /// The root that new tokens name.
    pin: Mutex<[u8; 32]>,
    /// Rung when an operator's token changes or goes.
    operators_changed: watch::Sender<()>,
    clock: Clock,
}

impl Tokens {
    pub(super) async fn open(store: Arc<dyn Store>, pin: [u8; 32], clock: Clock) -> Result<Self, StoreError> {
        let known = Known::read(&store.load_space(Space::Token).await?);
        Ok(Self {
            store,
            known: Mutex::new(known),
            pin: Mutex::new(pin),
            operators_changed: watch::Sender::new(()),
            clock,
        })
    }

    /// New tokens name another root from now on.
    pub(super) fn pin(&self, pin: [u8; 32]) {
        *self.pin.lock().unwrap_or_else(PoisonError::into_inner) = pin;
    }

    /// Makes a token. This is the only moment its secret can be seen.
    ///
    /// # Errors
    ///
    /// [`TokenError`] about the lifetime, the binding, the number of tokens, or the store.
    pub async fn create(&self, new: NewToken) -> Result<(JoinToken, TokenInfo), TokenError> {
        let ttl = new.ttl.unwrap_or(TTL);
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            return Err(TokenError::Ttl { got: DurationText(ttl) });
        }
        for (field, name) in [("namespace", &new.binding.namespace), ("service", &new.binding.service)] {
            if let Some(name) = name {
                check_name(name).map_err(|error| TokenError::Name { field, error })?;
            }
        }
        let now = (self.clock)();
        let id = hex(&random::<6>());
        let secret = URL_SAFE_NO_PAD.encode(random::<32>());
        let kept = Kept {
            secret_sha256: hex(&sha256(secret.as_bytes())),
            created: millis(now),
            expires: millis(now + ttl),
            reusable: new.reusable,
            used: None,
            binding: new.binding,
        };
        let mut transaction = self.sweep(now)?;
        transaction.push(Op::put(key(&id), encode(&kept))).require(key(&id), None);
        let revision = self.store.commit(transaction.clone()).await?;
        self.lock().apply(revision, &transaction.ops);
        let pin = *self.pin.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((JoinToken { id: id.clone(), secret, pin }, kept.info(&id)))
    }

    /// Every token that is not forgotten yet, in order of ids.
    pub fn list(&self) -> Vec<TokenInfo> {
        self.lock().tokens.iter().map(|(id, token)| token.kept.info(id)).collect()
    }

    /// Deletes a token; `false` if there is none of this id.
    ///
    /// # Errors
    ///
    /// The store's.
    pub async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        if !self.lock().tokens.contains_key(id) {
            return Ok(false);
        }
        let mut transaction = Transaction::default();
        transaction.push(Op::delete(key(id)));
        let revision = self.store.commit(transaction.clone()).await?;
        self.lock().apply(revision, &transaction.ops);
        Ok(true)
    }

    /// Uses a token for `service`. When this returns `Ok`, a single-use token is used up, durably.
    ///
    /// # Errors
    ///
    /// [`TokenError`]: all that somebody without the secret learns is [`TokenError::Unknown`].
    pub async fn redeem(&self, presented: &JoinToken, service: &ServiceName) -> Result<(), TokenError> {
        // Each round that fails, another use of the same token has won.
        for _ in 0..CONFLICTS_MAX {
            let found = self.lock().tokens.get(&presented.id).cloned();
            let now = (self.clock)();
            let Token { revision, mut kept } = check(found, presented, service, now)?;
            if kept.reusable {
                return Ok(());
            }
            kept.used = Some(millis(now));
            let mut transaction = Transaction::default();
            let key = key(&presented.id);
            transaction.push(Op::put(key.clone(), encode(&kept))).require(key, Some(revision));
            match self.store.commit(transaction.clone()).await {
                Ok(revision) => {
                    self.lock().apply(revision, &transaction.ops);
                    return Ok(());
                }
                Err(StoreError::Conflict { .. }) => self.reload().await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(TokenError::Used)
    }

    /// Follows what other registries on the same store do to tokens, until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        let mut watch = self.store.watch(&self.lock().at);
        while let Some(next) = stop.run_until_cancelled(watch.next()).await {
            match next {
                Ok(commits) => {
                    let mut known = self.lock();
                    for commit in commits {
                        known.apply(commit.revision, &commit.ops);
                    }
                    drop(known);
                    self.operators_changed.send_replace(());
                }
                Err(compacted) => {
                    tracing::debug!(%compacted, "reading the join tokens again");
                    if let Err(error) = self.reload().await {
                        tracing::warn!(%error, "cannot read the join tokens");
                        tokio::time::sleep(RELOAD_PAUSE).await;
                    }
                    watch = self.store.watch(&self.lock().at);
                }
            }
        }
    }

    /// Waits until the operator's token of this hash is good no more.
    pub async fn operator_ended(&self, secret_sha256: &str) {
        let mut changed = self.operators_changed.subscribe();
        while self.operator(secret_sha256).is_some() {
            tokio::select! {
                _ = changed.changed() => {}
                // It may end by itself.
                () = tokio::time::sleep(ENDED_LOOK) => {}
            }
        }
    }

    async fn reload(&self) -> Result<(), StoreError> {
        let state = self.store.load_space(Space::Token).await?;
        let mut known = self.lock();
        if state.at.epoch != known.at.epoch || state.at.revision > known.at.revision {
            *known = Known::read(&state);
        }
        Ok(())
    }

    /// Forgets tokens that ended a day ago, and counts the rest.
    fn sweep(&self, now: SystemTime) -> Result<Transaction, TokenError> {
        let known = self.lock();
        let over = |token: &Token| token.kept.expires < millis(now).saturating_sub(millis_of(KEPT_AFTER_END));
        let mut transaction = Transaction::default();
        for (id, _) in known.tokens.iter().filter(|(_, token)| over(token)).take(SWEEP_MAX) {
            transaction.push(Op::delete(key(id)));
        }
        if known.tokens.len() - transaction.ops.len() >= TOKENS_MAX {
            return Err(TokenError::TooMany);
        }
        Ok(transaction)
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.clock)()
    }

    pub(super) fn kept_operators(&self) -> BTreeMap<String, operator::Kept> {
        let kept = |(name, (_, kept)): (&String, &(u64, operator::Kept))| (name.clone(), kept.clone());
        self.lock().operators.iter().map(kept).collect()
    }

    /// Commits, and knows it at once.
    pub(super) async fn commit(&self, transaction: Transaction) -> Result<(), StoreError> {
        let revision = self.store.commit(transaction.clone()).await?;
        self.lock().apply(revision, &transaction.ops);
        self.operators_changed.send_replace(());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Random bytes for keys, from the system.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has randomness");
    bytes
}

pub(super) fn millis(at: SystemTime) -> u64 {
    millis_of(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn millis_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn moment(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The lifetimes that may be asked for.
pub(crate) const TTL_WANT: &str = "want 1 min to 366 days";
const TTL: Duration = Duration::from_secs(3600);
pub(super) const TTL_MIN: Duration = Duration::from_secs(60);
pub(super) const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// So long an ended token is answered with "expired" or "used" instead of "unknown".
const KEPT_AFTER_END: Duration = Duration::from_secs(24 * 3600);
const TOKENS_MAX: usize = 10_000;
/// With the token itself within the 128 operations that etcd takes at once.
const SWEEP_MAX: usize = 100;
const CONFLICTS_MAX: usize = 8;
const ENDED_LOOK: Duration = Duration::from_secs(10);
const RELOAD_PAUSE: Duration = Duration::from_secs(1);
