//! Taking identities back before their certificates end. The list is one value in the store; sidecars are
//! told it with the roots.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_net::revoked::{Revocation, RevocationError, Revoked};
use serde::{Deserialize, Serialize};

use super::{Authority, CaError, millis, moment};
use crate::store::{Entry, Key, Op, Space, State, StoreError, Transaction};

/// What is revoked, as of a revision of the store.
#[derive(Clone, Default)]
pub(super) struct Revocations {
    pub(super) revision: Option<u64>,
    pub(super) list: Vec<Revoking>,
    pub(super) revoked: Arc<Revoked>,
}

/// One thing that is revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoking {
    /// An identity, an instance or a serial number.
    pub what: String,
    /// Since when.
    pub since: SystemTime,
    /// Why, for people.
    pub reason: String,
}

/// Why nothing is revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// It names nothing that could be.
    #[error(transparent)]
    What(#[from] RevocationError),
    /// No certificate of this authority can bear it.
    #[error("`{0}` is of another trust domain; this registry signs for `{1}`")]
    Foreign(String, String),
    /// Too many.
    #[error("{REVOCATIONS_MAX} revocations are kept at most; take some back, or change the root")]
    TooMany,
    /// The reason is too long.
    #[error("reason: want at most {REASON_BYTES_MAX} bytes")]
    Reason,
    /// The authority or its store.
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// As the store keeps it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    what: String,
    /// Unix milliseconds.
    since: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
}

impl Revocations {
    /// The key under which they are kept.
    pub(super) fn key() -> Key {
        Key::new(Space::Ca, "revoked")
    }

    pub(super) fn read(state: &State) -> Result<Self, CaError> {
        let Some(Entry { revision, value }) = state.entries.get(&Self::key()) else {
            return Ok(Self::default());
        };
        let kept: Vec<Kept> =
            serde_json::from_slice(value).map_err(|error| CaError::Material(format!("revoked: {error}")))?;
        let revoked = Arc::new(Revoked::new(kept.iter().map(|kept| &kept.what)));
        let list = kept.into_iter().map(|kept| Revoking {
            what: kept.what,
            since: moment(kept.since),
            reason: kept.reason,
        });
        Ok(Self { revision: Some(*revision), list: list.collect(), revoked })
    }
}

impl Authority {
    /// Everything that is revoked, the oldest first.
    pub fn revocations(&self) -> Vec<Revoking> {
        self.material().revocations.list.clone()
    }

    /// Revokes an identity, an instance or a certificate. Doing it again changes nothing.
    ///
    /// # Errors
    ///
    /// [`RevokeError`]: nothing was changed.
    pub async fn revoke(&self, what: &str, reason: &str) -> Result<Revoking, RevokeError> {
        let revocation = what.parse::<Revocation>()?;
        let own = self.info().trust_domain;
        if let Revocation::Id(id) = &revocation
            && *id.trust_domain() != own
        {
            return Err(RevokeError::Foreign(what.to_owned(), own.to_string()));
        }
        let what = revocation.to_string();
        if reason.len() > REASON_BYTES_MAX {
            return Err(RevokeError::Reason);
        }
        let revoking = Revoking { what, since: (self.clock)(), reason: reason.to_owned() };
        self.change_revocations(|list| {
            if list.iter().any(|have| have.what == revoking.what) {
                return Ok(false);
            }
            if list.len() >= REVOCATIONS_MAX {
                return Err(RevokeError::TooMany);
            }
            list.push(revoking.clone());
            Ok(true)
        })
        .await?;
        tracing::warn!(what = revoking.what, reason, "revoked");
        Ok(revoking)
    }

    /// Takes a revocation back; `false` if there is none.
    ///
    /// # Errors
    ///
    /// [`RevokeError`]: nothing was changed.
    pub async fn unrevoke(&self, what: &str) -> Result<bool, RevokeError> {
        let what = what.parse::<Revocation>()?.to_string();
        let mut found = false;
        self.change_revocations(|list| {
            let before = list.len();
            list.retain(|have| have.what != what);
            found = list.len() < before;
            Ok(found)
        })
        .await?;
        Ok(found)
    }

    async fn change_revocations(
        &self,
        mut change: impl FnMut(&mut Vec<Revoking>) -> Result<bool, RevokeError>,
    ) -> Result<(), RevokeError> {
        loop {
            self.reload().await?;
            let material = self.material();
            let mut list = material.revocations.list.clone();
            self.forget_over(&mut list, material.leaf_lifetime_max);
            if !change(&mut list)? {
                return Ok(());
            }
            let kept: Vec<Kept> = list
                .into_iter()
                .map(|it| Kept { what: it.what, since: millis(it.since), reason: it.reason })
                .collect();
            let value = serde_json::to_vec(&kept).expect("plain fields have a JSON form");
            let mut transaction = Transaction::default();
            let key = Revocations::key();
            transaction.require(key.clone(), material.revocations.revision).push(Op::put(key, value));
            match self.store.commit(transaction).await {
                Ok(_) => {
                    self.reload().await?;
                    return Ok(());
                }
                Err(StoreError::Conflict { .. }) => {} // somebody else changed it: look again
                Err(error) => return Err(CaError::from(error).into()),
            }
        }
    }

    /// A single certificate has ended a lifetime after it was revoked, at the latest.
    fn forget_over(&self, list: &mut Vec<Revoking>, lifetime: Duration) {
        let now = (self.clock)();
        let serial = |it: &Revoking| matches!(it.what.parse(), Ok(Revocation::Serial(_)));
        list.retain(|it| !serial(it) || now < it.since + lifetime + KEPT_AFTER_END);
    }
}

/// All of them are told to every sidecar.
const REVOCATIONS_MAX: usize = 1000;
const REASON_BYTES_MAX: usize = 256;
/// For clocks that differ.
const KEPT_AFTER_END: Duration = Duration::from_secs(3600);
