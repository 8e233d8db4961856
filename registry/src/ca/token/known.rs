//! Tokens as the store has them, and whether one of them is good.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::Bytes;
use pillion_model::name::ServiceName;
use pillion_net::bootstrap::JoinToken;
use pillion_net::tls::{hex, sha256};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::operator::{self, OPERATOR};
use super::{Binding, TokenError, TokenInfo, millis, moment};
use crate::store::{Entry, Key, Op, Position, Space, State};

/// The tokens as of a revision of the store.
#[derive(Default)]
pub(super) struct Known {
    pub(super) at: Position,
    pub(super) tokens: BTreeMap<String, Token>,
    pub(super) operators: BTreeMap<String, (u64, operator::Kept)>,
}

#[derive(Clone)]
pub(super) struct Token {
    pub(super) revision: u64,
    pub(super) kept: Kept,
}

/// A token as the store keeps it; moments in Unix milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Kept {
    pub(super) secret_sha256: String,
    pub(super) created: u64,
    pub(super) expires: u64,
    pub(super) reusable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) used: Option<u64>,
    #[serde(default)]
    pub(super) binding: Binding,
}

impl Known {
    pub(super) fn read(state: &State) -> Self {
        let mut known = Self { at: state.at.clone(), ..Self::default() };
        for (id, Entry { revision, value }) in state.space(Space::Token) {
            known.put(id, *revision, Some(value));
        }
        known
    }

    fn put(&mut self, id: &str, revision: u64, value: Option<&Bytes>) {
        if let Some(name) = id.strip_prefix(OPERATOR) {
            let known = self.operators.get(name);
            if known.is_some_and(|(known, _)| *known > revision) {
                return; // our own later write is known already
            }
            match value.and_then(|value| read(id, value)) {
                Some(kept) => drop(self.operators.insert(name.to_owned(), (revision, kept))),
                None => drop(self.operators.remove(name)),
            }
            return;
        }
        if self.tokens.get(id).is_some_and(|token| token.revision > revision) {
            return;
        }
        match value.and_then(|value| read(id, value)) {
            Some(kept) => drop(self.tokens.insert(id.to_owned(), Token { revision, kept })),
            None => drop(self.tokens.remove(id)),
        }
    }

    pub(super) fn apply(&mut self, revision: u64, ops: &[Op]) {
        for op in ops.iter().filter(|op| op.key.space == Space::Token) {
            self.put(&op.key.name, revision, op.value.as_ref());
        }
        self.at.revision = self.at.revision.max(revision);
    }
}

impl Kept {
    pub(super) fn info(&self, id: &str) -> TokenInfo {
        TokenInfo {
            id: id.to_owned(),
            created: moment(self.created),
            expires: moment(self.expires),
            reusable: self.reusable,
            used: self.used.map(moment),
            binding: self.binding.clone(),
        }
    }
}

/// Decides about a use. The secret comes first: nothing else is told without it.
pub(super) fn check(
    found: Option<Token>,
    presented: &JoinToken,
    service: &ServiceName,
    now: SystemTime,
) -> Result<Token, TokenError> {
    let offered = hex(&sha256(presented.secret.as_bytes()));
    // An id that does not exist costs the same comparison.
    let want = found.as_ref().map_or(NO_HASH, |token| &token.kept.secret_sha256);
    let same = verify_slices_are_equal(offered.as_bytes(), want.as_bytes()).is_ok();
    let Some(token) = found.filter(|_| same) else { return Err(TokenError::Unknown) };
    if token.kept.used.is_some() {
        return Err(TokenError::Used);
    }
    let (now, expires) = (millis(now), token.kept.expires);
    if now >= expires {
        return Err(TokenError::Expired { ago: Duration::from_secs((now - expires) / 1000) });
    }
    let binding = &token.kept.binding;
    let fits = |bound: &Option<String>, name: &str| bound.as_deref().is_none_or(|bound| bound == name);
    if fits(&binding.namespace, service.namespace()) && fits(&binding.service, service.service()) {
        return Ok(token);
    }
    let bound = match (&binding.service, &binding.namespace) {
        (Some(service), Some(namespace)) => format!("{service}.{namespace}"),
        (Some(service), None) => format!("services named {service}"),
        (None, Some(namespace)) => format!("namespace {namespace}"),
        (None, None) => "nobody".to_owned(),
    };
    Err(TokenError::Binding { bound, asked: service.clone() })
}

fn read<T: DeserializeOwned>(id: &str, value: &[u8]) -> Option<T> {
    serde_json::from_slice(value)
        .inspect_err(|error| tracing::warn!(id, %error, "a token in the store cannot be read and is ignored"))
        .ok()
}

pub(super) fn encode(kept: &Kept) -> Vec<u8> {
    serde_json::to_vec(kept).expect("plain fields have a JSON form")
}

pub(super) fn key(id: &str) -> Key {
    Key::new(Space::Token, id)
}

/// As long as a hash, and no hash.
const NO_HASH: &str = "----------------------------------------------------------------";
