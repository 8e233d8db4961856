//! What both variants keep per type: the subscription, nonces, what is in flight, counters.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use envoy_types::pb::google::rpc::Status;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::{HOLD, Limits, Refused};
use crate::ads::View;
use crate::type_url;

/// What a stream has done for one type; for `GET /v1/proxies`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeStatus {
    /// The type.
    pub type_url: String,
    /// Whether everything is subscribed to.
    pub wildcard: bool,
    /// Names subscribed to.
    pub names: usize,
    /// Whether a response waits for its ACK or NACK.
    pub in_flight: bool,
    /// Responses sent.
    pub pushes: u64,
    /// Responses accepted.
    pub acks: u64,
    /// Responses refused.
    pub nacks: u64,
    /// Requests with an outdated nonce.
    pub stale: u64,
    /// Message of the last NACK, until an ACK follows.
    pub last_error: Option<String>,
}

/// What a version is remembered by: 8 bytes instead of its text.
pub(super) fn fingerprint(version: &str) -> u64 {
    xxh3_64(version.as_bytes())
}

/// Whether an empty first list means everything, as it did before `*` existed.
pub(super) fn has_legacy_wildcard(url: &str) -> bool {
    !matches!(url, type_url::ENDPOINTS | type_url::ROUTE | type_url::SECRET | type_url::SERVICE)
}

/// Nonces of responses without answer yet: more than this and the oldest is forgotten.
const IN_FLIGHT_MAX: usize = 64;
/// Bytes kept of a NACK's message.
const ERROR_BYTES_MAX: usize = 2048;

#[derive(Debug)]
pub(super) struct Track {
    pub(super) type_url: String,
    pub(super) rank: u8,
    pub(super) wildcard: bool,
    pub(super) names: BTreeSet<Arc<str>>,
    /// The names are not what they were when last asked about.
    pub(super) asks_otherwise: bool,
    /// Something may have to be added or changed.
    pub(super) dirty: bool,
    /// Something may have to be taken away.
    pub(super) dirty_removals: bool,
    seen_revision: Option<u64>,
    in_flight: VecDeque<u64>,
    last_nonce: Option<u64>,
    sent_at: Option<Instant>,
    counts: TypeStatus,
}

impl Track {
    pub(super) fn new(type_url: &str) -> Self {
        Self {
            type_url: type_url.to_owned(),
            rank: type_url::rank(type_url),
            wildcard: false,
            names: BTreeSet::new(),
            asks_otherwise: false,
            dirty: false,
            dirty_removals: false,
            seen_revision: None,
            in_flight: VecDeque::new(),
            last_nonce: None,
            sent_at: None,
            counts: TypeStatus::default(),
        }
    }

    /// Clusters and endpoints: what others use, taken away last.
    pub(super) fn is_used(&self) -> bool {
        self.rank <= type_url::rank(type_url::ENDPOINTS)
    }

    /// Listeners and routes: what uses clusters.
    pub(super) fn is_user(&self) -> bool {
        matches!(self.type_url.as_str(), type_url::LISTENER | type_url::ROUTE)
    }

    pub(super) fn on_view(&mut self, view: &dyn View) {
        let revision = view.revision(&self.type_url);
        if revision.is_none() || revision != self.seen_revision {
            self.seen_revision = revision;
            self.touch();
        }
    }

    /// The names, if they are not what they were at the last call.
    pub(super) fn asked_otherwise(&mut self) -> Option<(&str, &BTreeSet<Arc<str>>)> {
        std::mem::take(&mut self.asks_otherwise).then_some((&self.type_url, &self.names))
    }

    pub(super) fn touch(&mut self) {
        self.dirty = true;
        self.dirty_removals = true;
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether what is gone may be taken away now, after everything else was sent.
    pub(super) fn may_remove_last(&self) -> bool {
        self.is_used() && !self.is_waiting()
    }

    /// Whether a request with this nonce has seen the last response.
    pub(super) fn is_latest(&self, nonce: &str) -> bool {
        nonce.parse().is_ok_and(|nonce: u64| self.last_nonce == Some(nonce))
    }

    pub(super) fn sent(&mut self, nonce: u64, now: Instant) {
        if self.in_flight.is_empty() {
            self.sent_at = Some(now);
        }
        self.last_nonce = Some(nonce);
        self.in_flight.push_back(nonce);
        if self.in_flight.len() > IN_FLIGHT_MAX {
            self.in_flight.pop_front();
        }
        self.counts.pushes += 1;
    }

    /// Takes the answer to the response `nonce` and to those before it.
    pub(super) fn answered(&mut self, nonce: &str, error: Option<&Status>) {
        let known =
            nonce.parse().ok().and_then(|nonce: u64| self.in_flight.iter().position(|sent| *sent == nonce));
        let Some(position) = known else {
            self.counts.stale += u64::from(!self.is_latest(nonce));
            return;
        };
        self.in_flight.drain(..=position);
        match error {
            Some(error) => {
                self.counts.nacks += 1;
                self.counts.last_error = Some(clip(&error.message, ERROR_BYTES_MAX));
            }
            None => {
                self.counts.acks += 1;
                self.counts.last_error = None;
            }
        }
    }

    pub(super) fn stale(&mut self) {
        self.counts.stale += 1;
    }

    pub(super) fn status(&self) -> TypeStatus {
        TypeStatus {
            type_url: self.type_url.clone(),
            wildcard: self.wildcard,
            names: self.names.len(),
            in_flight: self.is_waiting(),
            ..self.counts.clone()
        }
    }
}

/// Make before break, within one round over the types in push order: news that waits for an ACK
/// holds what depends on it, for at most [`HOLD`].
#[derive(Debug)]
pub(super) struct Hold {
    now: Instant,
    /// Until when listeners and routes wait for clusters and endpoints.
    users: Option<Instant>,
    /// Until when removals wait for listeners and routes.
    removals: Option<Instant>,
}

impl Hold {
    pub(super) fn new(now: Instant) -> Self {
        Self { now, users: None, removals: None }
    }

    /// `track` has news that waits for an ACK.
    pub(super) fn add(&mut self, track: &Track) {
        let until = track.sent_at.map(|at| at + HOLD).filter(|until| *until > self.now);
        let held = if track.is_used() { &mut self.users } else { &mut self.removals };
        if track.is_used() || track.is_user() {
            *held = earlier(*held, until);
        }
    }

    /// Whether the news of `track` has to wait.
    pub(super) fn holds(&self, track: &Track) -> bool {
        track.is_user() && self.users.is_some()
    }

    /// When to look again; `None`: nothing is held.
    pub(super) fn until(&self) -> Option<Instant> {
        earlier(self.users, self.removals)
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    [a, b].into_iter().flatten().min()
}

fn clip(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

/// Refuses what goes over a bound; `more` are the names about to be added.
pub(super) fn check(limits: &Limits, have: usize, more: &[String], types: usize) -> Result<(), Refused> {
    let refuse =
        |what, got, limit| if got > limit { Err(Refused::Limit { what, got, limit }) } else { Ok(()) };
    refuse("resource types on one stream", types, limits.types)?;
    refuse("resource names on one stream", have + more.len(), limits.names)?;
    refuse("bytes of a resource name", more.iter().map(String::len).max().unwrap_or(0), limits.name_bytes)
}
