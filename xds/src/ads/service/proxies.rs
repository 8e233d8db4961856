//! Who is connected, and how far each of them got.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use pillion_model::name::SpiffeId;

use super::lock;
use crate::ads::NodeInfo;
use crate::ads::server::{Machine, ResourceStatus, TypeStatus};
use crate::type_url;

/// Which variant of the protocol a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// State of the world.
    Sotw,
    /// Incremental.
    Delta,
}

/// One connected stream.
#[derive(Clone, Debug)]
pub struct ProxyStatus {
    /// Who it says it is; the source has accepted it.
    pub node: NodeInfo,
    /// The identity its certificate proves.
    pub peer: Option<SpiffeId>,
    /// What it speaks.
    pub variant: Variant,
    /// When its first request came.
    pub since: SystemTime,
    /// What was sent and answered, by type.
    pub types: Vec<TypeStatus>,
    stream: Reported,
}

impl ProxyStatus {
    /// What the client was told or asks for, resource by resource: as it is now.
    #[must_use]
    pub fn resources(&self) -> Vec<ResourceStatus> {
        self.stream.resources()
    }
}

/// The state of a stream, whatever its variant.
type Reported = Arc<dyn Report>;

pub(super) trait Report: Debug + Send + Sync {
    fn status(&self) -> Vec<TypeStatus>;

    fn resources(&self) -> Vec<ResourceStatus>;
}

impl<M: Machine> Report for Mutex<M> {
    fn status(&self) -> Vec<TypeStatus> {
        lock(self).status()
    }

    fn resources(&self) -> Vec<ResourceStatus> {
        lock(self).resources()
    }
}

/// Sums over all streams of one type: what was done by all there ever were, and how those stand that are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Responses sent.
    pub pushes: u64,
    /// Responses accepted.
    pub acks: u64,
    /// Responses refused.
    pub nacks: u64,
    /// Requests with an outdated nonce.
    pub stale: u64,
    /// Resources that connected clients refuse now.
    pub refused: u64,
    /// Connected clients that have not answered yet.
    pub pending: u64,
}

/// The streams connected now, and what those that ended have done.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    next_id: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    streams: BTreeMap<u64, Entry>,
    ended: BTreeMap<&'static str, Totals>,
}

#[derive(Clone, Debug)]
struct Entry {
    node: NodeInfo,
    peer: Option<SpiffeId>,
    variant: Variant,
    since: SystemTime,
    stream: Reported,
}

impl Proxies {
    pub(super) fn enter(
        self: &Arc<Self>,
        node: NodeInfo,
        peer: Option<SpiffeId>,
        variant: Variant,
        stream: Reported,
    ) -> ProxyGuard {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.lock().streams.insert(id, Entry { node, peer, variant, since: SystemTime::now(), stream });
        ProxyGuard { proxies: Arc::clone(self), id }
    }

    pub(super) fn all(&self) -> Vec<ProxyStatus> {
        // Streams are asked one by one, after the list was let go.
        let entries: Vec<Entry> = self.lock().streams.values().cloned().collect();
        let status = |Entry { node, peer, variant, since, stream }| ProxyStatus {
            node,
            peer,
            variant,
            since,
            types: stream.status(),
            stream,
        };
        entries.into_iter().map(status).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().streams.len()
    }

    pub(super) fn totals(&self) -> BTreeMap<&'static str, Totals> {
        let inner = self.lock();
        let mut totals = inner.ended.clone();
        let streams: Vec<Reported> = inner.streams.values().map(|entry| Arc::clone(&entry.stream)).collect();
        drop(inner);
        streams.iter().for_each(|stream| add(&mut totals, &stream.status(), Standing::Open));
        totals
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

/// Lists a stream for as long as it lives.
#[derive(Debug)]
pub(super) struct ProxyGuard {
    proxies: Arc<Proxies>,
    id: u64,
}

impl Drop for ProxyGuard {
    fn drop(&mut self) {
        let mut inner = self.proxies.lock();
        if let Some(entry) = inner.streams.remove(&self.id) {
            add(&mut inner.ended, &entry.stream.status(), Standing::Ended);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Open,
    Ended,
}

fn add(totals: &mut BTreeMap<&'static str, Totals>, types: &[TypeStatus], standing: Standing) {
    for kind in types {
        let total = totals.entry(type_url::label(&kind.type_url)).or_default();
        total.pushes += kind.pushes;
        total.acks += kind.acks;
        total.nacks += kind.nacks;
        total.stale += kind.stale;
        if standing == Standing::Open {
            total.refused += kind.refused as u64;
            total.pending += u64::from(kind.in_flight);
        }
    }
}
