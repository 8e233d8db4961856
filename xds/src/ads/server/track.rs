//! What both variants keep per type: the subscription, nonces, what is in flight, counters.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use envoy_types::pb::google::rpc::Status;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::{Limits, Refused};
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
    /// Resources that were refused and not replaced by an accepted version since.
    pub refused: usize,
}

/// What is known of one resource on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceStatus {
    /// The type.
    pub type_url: String,
    /// The resource's name.
    pub name: String,
    /// The version the client was sent, where the stream remembers it: in the state-of-the-world variant.
    pub version: Option<String>,
    /// How far it got.
    pub state: ResourceState,
}

/// How far a resource got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceState {
    /// The client has accepted what it was sent.
    Acknowledged,
    /// It was sent, and the client has not answered yet.
    Pending,
    /// The client has refused it, and goes on with the version before, if there was one.
    Refused(Arc<str>),
    /// The client has asked for it, and it does not exist.
    Absent,
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

/// A response without answer yet.
#[derive(Debug)]
struct InFlight {
    nonce: u64,
    names: Vec<Arc<str>>,
}

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
    sends_alone: bool,
    seen_revision: Option<u64>,
    in_flight: VecDeque<InFlight>,
    /// Resources refused, and why.
    refused: BTreeMap<Arc<str>, Arc<str>>,
    /// Resources of responses that were refused without a word on which of them: they are sent one by one.
    suspects: VecDeque<Arc<str>>,
    last_nonce: Option<u64>,
    sent_at: Option<Instant>,
    counts: TypeStatus,
}

impl Track {
    /// `sends_alone`: a response may carry one resource of several without taking the others away.
    pub(super) fn new(type_url: &str, sends_alone: bool) -> Self {
        Self {
            sends_alone,
            type_url: type_url.to_owned(),
            rank: type_url::rank(type_url),
            wildcard: false,
            names: BTreeSet::new(),
            asks_otherwise: false,
            dirty: false,
            dirty_removals: false,
            seen_revision: None,
            in_flight: VecDeque::new(),
            refused: BTreeMap::new(),
            suspects: VecDeque::new(),
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

    /// Whether something may have to be taken away last.
    pub(super) fn may_remove(&self) -> bool {
        self.is_used() && self.dirty_removals
    }

    /// Whether a resource is to be sent alone.
    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// The next resource to be sent alone.
    pub(super) fn next_suspect(&mut self) -> Option<Arc<str>> {
        self.suspects.pop_front()
    }

    /// Whether the client has refused something that it was sent.
    pub(super) fn is_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// When the oldest response without answer was sent.
    pub(super) fn sent_at(&self) -> Option<Instant> {
        self.sent_at.filter(|_| self.is_waiting())
    }

    /// Whether a request with this nonce has seen the last response.
    pub(super) fn is_latest(&self, nonce: &str) -> bool {
        nonce.parse().is_ok_and(|nonce: u64| self.last_nonce == Some(nonce))
    }

    /// A response was sent: with these resources, and without those that are gone.
    pub(super) fn sent(&mut self, nonce: u64, now: Instant, names: Vec<Arc<str>>, gone: &[String]) {
        if self.in_flight.is_empty() {
            self.sent_at = Some(now);
        }
        for name in names.iter().map(|name| &**name).chain(gone.iter().map(String::as_str)) {
            self.refused.remove(name);
        }
        self.last_nonce = Some(nonce);
        self.in_flight.push_back(InFlight { nonce, names });
        if self.in_flight.len() > IN_FLIGHT_MAX {
            self.in_flight.pop_front();
        }
        self.counts.pushes += 1;
    }

    /// Takes the answer to the response `nonce` and to those before it.
    pub(super) fn answered(&mut self, nonce: &str, error: Option<&Status>) {
        let known = nonce
            .parse()
            .ok()
            .and_then(|nonce: u64| self.in_flight.iter().position(|sent| sent.nonce == nonce));
        let Some(position) = known else {
            self.counts.stale += u64::from(!self.is_latest(nonce));
            return;
        };
        let answered = self.in_flight.drain(..=position).next_back();
        match error {
            Some(error) => {
                let message = clip(&error.message, ERROR_BYTES_MAX);
                self.counts.nacks += 1;
                self.refuse(answered.map(|sent| sent.names).unwrap_or_default(), &message);
                self.counts.last_error = Some(message);
            }
            None => {
                self.counts.acks += 1;
                self.counts.last_error = None;
            }
        }
    }

    /// Of a response that was refused, the resources that the message names. If it names none, a client such
    /// as Envoy may have taken none of them: where they can be sent one by one, they are.
    fn refuse(&mut self, sent: Vec<Arc<str>>, message: &str) {
        let is_named = |name: &Arc<str>| names(message, name);
        let names_some = sent.iter().any(is_named);
        if !names_some && sent.len() > 1 && self.sends_alone {
            self.suspects.extend(sent);
            return;
        }
        let why: Arc<str> = Arc::from(message);
        let refused = sent.into_iter().filter(|name| !names_some || is_named(name));
        self.refused.extend(refused.map(|name| (name, Arc::clone(&why))));
    }

    /// The client no longer wants what is not among `wanted`.
    pub(super) fn wants(&mut self, wanted: impl Fn(&str) -> bool) {
        self.refused.retain(|name, _| wanted(name));
    }

    /// How far a resource got that the client was sent.
    pub(super) fn state(&self, name: &str) -> ResourceState {
        if let Some(why) = self.refused.get(name) {
            return ResourceState::Refused(Arc::clone(why));
        }
        let is_pending = self.in_flight.iter().any(|sent| sent.names.iter().any(|sent| **sent == *name));
        if is_pending { ResourceState::Pending } else { ResourceState::Acknowledged }
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
            refused: self.refused.len(),
            ..self.counts.clone()
        }
    }
}

/// Whether a message speaks of `name`, and not only of one that contains it.
pub(super) fn names(message: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_|".contains(c);
    message.match_indices(name).any(|(at, found)| {
        let mut after = message[at + found.len()..].chars();
        let goes_on = match after.next() {
            Some('.') => after.next().is_some_and(|c| c.is_ascii_alphanumeric()), // or ends a sentence
            Some(c) => is_part(c),
            None => false,
        };
        !goes_on && !message[..at].ends_with(|c| is_part(c) || c == '.')
    })
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
