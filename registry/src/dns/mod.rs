//! The registry's DNS: instances by name, straight from the catalog.
//!
//! Answers name instances, not virtual addresses: those are each sidecar's own. Sets hold the
//! instances that take traffic, drawn by weight, at most as many as fit; a single instance is
//! answered by its id whatever its health.

mod away;
mod chain;
mod elsewhere;
mod fast;
mod names;
mod records;
mod reverse;
mod serving;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pillion_dns::forward::Forwarder;
use pillion_dns::{Answer, Fast, Name, Question, Reply, ResponseCode, Stats, Zone, wire_name};

use crate::catalog::World;
use away::Away;
use elsewhere::Elsewhere;
use reverse::Reverse;
use serving::Cache;

/// Gives the state in force; `None` before the first load.
pub type CurrentView = Box<dyn Fn() -> Option<Arc<World>> + Send + Sync>;
/// Whether the store is away, so that the state in force may be out of date.
pub type StoreAway = Box<dyn Fn() -> bool + Send + Sync>;

/// The mesh's DNS zone.
pub struct RegistryZone {
    inner: Arc<Inner>,
}

struct Inner {
    current: CurrentView,
    away: Away,
    /// Addresses of the registry itself: of the name server in NS and SOA records.
    addresses: Vec<IpAddr>,
    cache: Cache,
    reverse: Reverse,
    elsewhere: Option<Elsewhere>,
    apex: Mutex<Option<Arc<Apex>>>,
    counters: Counters,
    stats: Arc<Stats>,
}

/// The zone's own names, made once per revision.
struct Apex {
    revision: u64,
    zone: Arc<str>,
    zone_name: Name,
    name_server: Name,
    mailbox: Name,
}

/// Answers given, by response code.
#[derive(Debug, Default)]
struct Counters {
    no_error: AtomicU64,
    no_such_name: AtomicU64,
    refused: AtomicU64,
    server_failure: AtomicU64,
}

impl RegistryZone {
    /// The zone over the state that `current` gives; answers are marked while the store is `away`.
    /// `addresses`: where this name server is. Clients at private addresses that ask for names of other
    /// zones get what the `forwarder` is told, if it has resolvers.
    pub fn new(current: CurrentView, away: StoreAway, addresses: Vec<IpAddr>, forwarder: Forwarder) -> Self {
        Self {
            inner: Arc::new(Inner {
                current,
                away: Away::new(away),
                addresses,
                cache: Cache::default(),
                reverse: Reverse::default(),
                elsewhere: Elsewhere::new(forwarder),
                apex: Mutex::new(None),
                counters: Counters::default(),
                stats: Arc::default(),
            }),
        }
    }

    /// Where its servers count.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.inner.stats
    }

    /// Questions passed on to other resolvers since the start.
    pub fn forwarded_total(&self) -> u64 {
        self.inner.elsewhere.as_ref().map_or(0, Elsewhere::forwarded)
    }

    /// Answers given since the start by response code (lower case), for metrics.
    pub fn answers_total(&self) -> [(&'static str, u64); 4] {
        let Counters { no_error, no_such_name, refused, server_failure } = &self.inner.counters;
        [
            ("noerror", no_error.load(Ordering::Relaxed)),
            ("nxdomain", no_such_name.load(Ordering::Relaxed)),
            ("refused", refused.load(Ordering::Relaxed)),
            ("servfail", server_failure.load(Ordering::Relaxed)),
        ]
    }
}

impl Zone for RegistryZone {
    fn answer(&self, question: &Question<'_>) -> Reply {
        chain::answer(&self.inner, question)
    }

    fn fast(&self) -> Option<Box<dyn Fast>> {
        Some(Box::new(fast::Answers::new(Arc::clone(&self.inner))))
    }
}

impl Inner {
    fn apex(&self, view: &World) -> Arc<Apex> {
        let mut apex = self.apex.lock().unwrap_or_else(PoisonError::into_inner);
        match &*apex {
            Some(apex) if apex.revision == view.revision => Arc::clone(apex),
            _ => {
                let made = Arc::new(Apex::new(view));
                *apex = Some(Arc::clone(&made));
                made
            }
        }
    }

    /// Counts the answer on its way out, and marks it where it may be out of date.
    fn count(&self, mut answer: Answer) -> Answer {
        self.count_code(answer.code);
        if answer.authoritative && answer.note.is_none() && self.away.now() {
            answer.note = Some(Away::note());
        }
        answer
    }

    fn count_code(&self, code: ResponseCode) {
        let counter = match code {
            ResponseCode::NoError => &self.counters.no_error,
            ResponseCode::NXDomain => &self.counters.no_such_name,
            ResponseCode::Refused => &self.counters.refused,
            _ => &self.counters.server_failure,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Apex {
    fn new(view: &World) -> Self {
        let zone = view.resources.set.mesh().zone;
        let zone = zone.trim_end_matches('.').to_ascii_lowercase();
        // The zone is checked when the Mesh resource is read.
        let name = |text: &str| wire_name(text).unwrap_or_default();
        Self {
            revision: view.revision,
            // `all` is reserved as a service and as a namespace: no service can have this name.
            name_server: name(&format!("{NAME_SERVER}.{zone}")),
            mailbox: name(&format!("hostmaster.{zone}")),
            zone_name: name(&zone),
            zone: zone.into(),
        }
    }
}

/// The name server's name within the zone.
const NAME_SERVER: &str = "ns.all";
/// How long answers, and "no", may be kept, in seconds.
const TTL: u32 = 5;
