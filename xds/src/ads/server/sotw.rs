//! The state-of-the-world variant: each request carries the full list of names, each response of
//! listeners and clusters the full state.
//!
//! Responses of the other types carry what changed: absence means nothing there. Endpoints asked
//! for that do not exist are answered by an empty assignment, since Envoy waits for all the names
//! of a first request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{ControlPlane, Node};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use prost::Message;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use super::order::Order;
use super::track::{Track, check, has_legacy_wildcard};
use super::{Machine, Refused, ResourceState, ResourceStatus, StreamOptions, TypeStatus};
use crate::ads::view::{Encoded, View};
use crate::ads::warming::endpoints_of;
use crate::type_url;

/// The name that subscribes to everything.
const WILDCARD: &str = "*";

/// One state-of-the-world stream.
#[derive(Debug)]
pub struct SotwStream {
    options: StreamOptions,
    /// In push order.
    types: Vec<SotwType>,
    order: Order,
    nonce: u64,
    wake_at: Option<Instant>,
}

/// Resources by name.
type Set = BTreeMap<String, Arc<Encoded>>;

#[derive(Debug)]
struct SotwType {
    track: Track,
    /// Whether a response is the complete state: listeners and clusters.
    is_complete: bool,
    /// Whether a name was ever listed: an empty list then means nothing, no longer everything.
    ever_named: bool,
    /// What the client was sent last. Shared with the view, until that moves on.
    held: Set,
    /// Names to answer even if nothing changed.
    asked: BTreeSet<Arc<str>>,
    /// A response is due even if it is the same or empty.
    asked_all: bool,
}

impl Machine for SotwStream {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn new(options: StreamOptions) -> Self {
        Self { options, types: Vec::new(), order: Order::default(), nonce: 0, wake_at: None }
    }

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn on_request(&mut self, request: Self::Request, view: &dyn View) -> Result<(), Refused> {
        if request.type_url.is_empty() {
            return Err(Refused::NoType);
        }
        let others = self.types.iter().filter(|kind| kind.track.type_url != request.type_url);
        let have = others.map(|kind| kind.track.names.len()).sum();
        let known = self.types.iter().position(|kind| kind.track.type_url == request.type_url);
        let types = self.types.len() + usize::from(known.is_none());
        check(&self.options.limits, have, &request.resource_names, types)?;
        if let Some(index) = known {
            if let Some(error) = &request.error_detail
                && request.type_url == type_url::CLUSTER
            {
                self.order.refused(&error.message);
            }
            self.types[index].on_request(&request);
        } else {
            self.types.push(SotwType::first(&request, view));
            self.types.sort_by_key(|kind| kind.track.rank);
        }
        Ok(())
    }

    fn asked_otherwise(&mut self) -> Option<(&str, &BTreeSet<Arc<str>>)> {
        self.types.iter_mut().find_map(|kind| kind.track.asked_otherwise())
    }

    fn on_view(&mut self, view: &dyn View) {
        for kind in &mut self.types {
            kind.track.on_view(view);
        }
    }

    fn next(&mut self, view: &dyn View, now: Instant) -> Option<Self::Response> {
        let (index, push) = self.compose(view, now)?;
        self.nonce += 1;
        let kind = &mut self.types[index];
        let names = push.resources.iter().map(|resource| Arc::from(resource.name.as_str())).collect();
        kind.track.sent(self.nonce, now, names, &push.gone);
        let response = DiscoveryResponse {
            version_info: version_of(push.resources.iter()),
            resources: push.resources.iter().map(|resource| resource.body.clone()).collect(),
            type_url: kind.track.type_url.clone(),
            nonce: self.nonce.to_string(),
            control_plane: Some(ControlPlane { identifier: self.options.control_plane.clone() }),
            ..DiscoveryResponse::default()
        };
        match response.type_url.as_str() {
            type_url::CLUSTER => self.announce(&push),
            type_url::ENDPOINTS => self.order.told(push.resources.iter().map(|told| told.name.as_str())),
            _ => {}
        }
        Some(response)
    }

    fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    fn status(&self) -> Vec<TypeStatus> {
        self.types.iter().map(|kind| kind.track.status()).collect()
    }

    fn resources(&self) -> Vec<ResourceStatus> {
        self.types.iter().flat_map(SotwType::resources).collect()
    }
}

/// One response in the making.
struct Push {
    resources: Vec<Arc<Encoded>>,
    /// Those among them that the client does not have in this form.
    changed: Vec<Arc<Encoded>>,
    /// What the client had until now.
    gone: Vec<String>,
}

impl SotwStream {
    fn compose(&mut self, view: &dyn View, now: Instant) -> Option<(usize, Push)> {
        let budget = self.options.limits.response_bytes;
        let mut round = self.order.begin(now);
        for (index, kind) in self.types.iter_mut().enumerate() {
            let is_asked = kind.asked_all || !kind.asked.is_empty();
            let waits = kind.track.is_waiting() || round.holds(&kind.track);
            let is_due = kind.track.dirty || kind.track.has_suspects();
            if (is_asked || (!waits && is_due))
                && let Some(push) = kind.compose(view, budget)
            {
                self.wake_at = None;
                return Some((index, push));
            }
            round.pass(&kind.track);
        }
        let (wake_at, may_remove) =
            self.order.end(&round, self.types.iter().any(|kind| kind.track.may_remove()));
        self.wake_at = wake_at;
        if !may_remove {
            return None;
        }
        // One after the other: endpoints stay as long as their clusters.
        for (index, kind) in self.types.iter_mut().enumerate().filter(|(_, kind)| kind.track.is_used()) {
            if kind.track.is_waiting() {
                return None;
            }
            if let Some(push) = kind.compose_removals(view, budget) {
                return Some((index, push));
            }
        }
        None
    }

    /// A cluster announced anew is warmed, and for that the client waits for endpoints: for new ones, and
    /// (if it is one that forgets them) for those it already has.
    fn announce(&mut self, clusters: &Push) {
        self.order.told(clusters.gone.iter().map(String::as_str));
        let Some(kind) = self.types.iter_mut().find(|kind| kind.track.type_url == type_url::ENDPOINTS) else {
            return;
        };
        for endpoints in clusters.changed.iter().filter_map(|cluster| endpoints_of(&cluster.body.value)) {
            let asked = kind.track.names.get(endpoints.as_str()).cloned();
            if asked.is_none() || self.options.endpoints_follow_clusters {
                self.order.announced([endpoints]);
            }
            kind.asked.extend(asked.filter(|_| self.options.endpoints_follow_clusters));
        }
    }
}

impl SotwType {
    fn first(request: &DiscoveryRequest, view: &dyn View) -> Self {
        let is_complete = matches!(request.type_url.as_str(), type_url::LISTENER | type_url::CLUSTER);
        let mut kind = Self {
            track: Track::new(&request.type_url, !is_complete),
            is_complete,
            ever_named: false,
            held: Set::new(),
            asked: BTreeSet::new(),
            asked_all: false,
        };
        kind.track.on_view(view);
        kind.subscribe(&request.resource_names);
        // A complete state known from an earlier stream needs no second copy. Names could have
        // been dropped and asked for again in between, the wildcard not.
        let current = kind.current(view, Gone::Kept);
        let knows = !request.version_info.is_empty() && request.version_info == version_of(current.values());
        if kind.is_complete && kind.track.wildcard && kind.track.names.is_empty() && knows {
            kind.held = current;
            kind.asked_all = false;
        }
        kind
    }

    fn on_request(&mut self, request: &DiscoveryRequest) {
        if !request.response_nonce.is_empty() {
            if !self.track.is_latest(&request.response_nonce) {
                self.track.stale();
                return;
            }
            self.track.answered(&request.response_nonce, request.error_detail.as_ref());
        }
        self.subscribe(&request.resource_names);
    }

    /// `names` is the whole subscription.
    fn subscribe(&mut self, names: &[String]) {
        let had_wildcard = self.track.wildcard;
        self.ever_named |= !names.is_empty();
        let legacy = !self.ever_named && has_legacy_wildcard(&self.track.type_url);
        self.track.wildcard = legacy || names.iter().any(|name| name == WILDCARD);
        let wanted: BTreeSet<Arc<str>> =
            names.iter().filter(|name| *name != WILDCARD).map(|name| Arc::from(name.as_str())).collect();
        self.asked.retain(|name| wanted.contains(name));
        self.asked.extend(wanted.difference(&self.track.names).cloned());
        let changed = wanted != self.track.names || had_wildcard != self.track.wildcard;
        self.track.asks_otherwise |= wanted != self.track.names;
        self.track.names = wanted;
        if !self.track.wildcard {
            self.held.retain(|name, _| self.track.names.contains(name.as_str()));
            self.track.wants(|name| self.held.contains_key(name));
        }
        self.asked_all |= self.track.wildcard && !had_wildcard;
        if changed {
            self.track.touch();
        }
    }

    /// Everything subscribed to that exists. Endpoints that went away: as `gone` says.
    fn current(&self, view: &dyn View, gone: Gone) -> Set {
        let url = &self.track.type_url;
        let all = if self.track.wildcard { view.all(url) } else { Vec::new() };
        let named = self
            .track
            .names
            .iter()
            .filter_map(|name| view.find(url, name).or_else(|| self.absent(name, gone)));
        all.into_iter().chain(named).map(|resource| (resource.name.clone(), resource)).collect()
    }

    /// What stands for endpoints that do not exist: what the client has, or an empty assignment.
    fn absent(&self, name: &str, gone: Gone) -> Option<Arc<Encoded>> {
        if self.track.type_url != type_url::ENDPOINTS {
            return None;
        }
        let held = self.held.get(name).filter(|_| gone == Gone::Kept);
        Some(held.cloned().unwrap_or_else(|| no_endpoints(name)))
    }

    fn differs(&self, now: &Encoded) -> bool {
        self.held.get(&now.name).is_none_or(|held| held.version != now.version)
    }

    fn resources(&self) -> impl Iterator<Item = ResourceStatus> {
        let status = |name: &str, version: Option<&String>, state| ResourceStatus {
            type_url: self.track.type_url.clone(),
            name: name.to_owned(),
            version: version.cloned(),
            state,
        };
        let held = self
            .held
            .values()
            .map(move |held| status(&held.name, Some(&held.version), self.track.state(&held.name)));
        let missing = self.track.names.iter().filter(|name| !self.held.contains_key(&***name));
        held.chain(missing.map(move |name| status(name, None, ResourceState::Absent)))
    }

    fn compose(&mut self, view: &dyn View, budget: usize) -> Option<Push> {
        if self.is_complete {
            return self.compose_state(view);
        }
        let current = self.current(view, Gone::Kept);
        while let Some(name) = self.track.next_suspect() {
            if let Some(resource) = current.get(&*name) {
                self.held.insert(resource.name.clone(), Arc::clone(resource));
                let resources = vec![Arc::clone(resource)];
                return Some(Push { resources, changed: Vec::new(), gone: Vec::new() });
            }
        }
        self.compose_changes(&current, budget)
    }

    /// The complete state, still with what is gone: that goes last.
    fn compose_state(&mut self, view: &dyn View) -> Option<Push> {
        let current = self.current(view, Gone::Kept);
        let changed: Vec<Arc<Encoded>> = current.values().filter(|now| self.differs(now)).cloned().collect();
        let is_due = self.asked_all || !self.asked.is_empty() || !changed.is_empty();
        if self.track.is_user() {
            return self.compose_exactly(current, is_due, changed);
        }
        self.track.dirty = false;
        self.asked_all = false;
        self.asked.clear();
        self.held.extend(current);
        is_due.then(|| Push { resources: self.held.values().cloned().collect(), changed, gone: Vec::new() })
    }

    /// What is gone: the complete state without it, or empty endpoints.
    fn compose_removals(&mut self, view: &dyn View, budget: usize) -> Option<Push> {
        if !self.track.dirty_removals {
            return None;
        }
        let current = self.current(view, Gone::Dropped);
        if self.is_complete {
            return self.compose_exactly(current, false, Vec::new());
        }
        self.track.dirty_removals = false;
        self.compose_changes(&current, budget)
    }

    fn compose_exactly(&mut self, current: Set, is_due: bool, changed: Vec<Arc<Encoded>>) -> Option<Push> {
        let gone: Vec<String> =
            self.held.keys().filter(|name| !current.contains_key(*name)).cloned().collect();
        let is_due = is_due || !gone.is_empty();
        self.track.dirty = false;
        self.track.dirty_removals = false;
        self.asked_all = false;
        self.asked.clear();
        self.held = current;
        is_due.then(|| Push { resources: self.held.values().cloned().collect(), changed, gone })
    }

    /// What changed or was asked for, up to the budget.
    fn compose_changes(&mut self, current: &Set, budget: usize) -> Option<Push> {
        let (mut resources, mut bytes) = (Vec::new(), 0);
        for resource in current.values() {
            if !self.differs(resource) && !self.asked.contains(resource.name.as_str()) {
                continue;
            }
            if bytes >= budget {
                self.track.touch(); // the rest follows when this is answered
                return Some(Push { changed: Vec::new(), resources, gone: Vec::new() });
            }
            bytes += resource.body.value.len() + resource.body.type_url.len();
            self.asked.remove(resource.name.as_str());
            self.held.insert(resource.name.clone(), Arc::clone(resource));
            resources.push(Arc::clone(resource));
        }
        self.held.retain(|name, _| current.contains_key(name));
        self.asked.clear();
        self.track.dirty = false;
        let is_due = std::mem::take(&mut self.asked_all) || !resources.is_empty();
        is_due.then_some(Push { changed: Vec::new(), resources, gone: Vec::new() })
    }
}

/// What stands for resources that went away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// They stay for now.
    Kept,
    /// They are gone.
    Dropped,
}

fn no_endpoints(name: &str) -> Arc<Encoded> {
    let empty = ClusterLoadAssignment { cluster_name: name.to_owned(), ..ClusterLoadAssignment::default() };
    Arc::new(Encoded::new(type_url::ENDPOINTS, name, empty.encode_to_vec()))
}

/// Version of a set: the hash of its names and versions.
fn version_of<'a>(resources: impl Iterator<Item = &'a Arc<Encoded>>) -> String {
    let mut hash = Xxh3::new();
    for resource in resources {
        hash.update(resource.name.as_bytes());
        hash.update(&[0]);
        hash.update(resource.version.as_bytes());
        hash.update(&[0]);
    }
    format!("{:016x}", hash.digest())
}
