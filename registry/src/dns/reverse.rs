//! Names and zone by address, for PTR and for who asks, from an index made when somebody asks.
//!
//! Making it takes time in a large mesh, so it is done aside and at most once per lifetime of an
//! answer; until then the index may be that much old, as answers in caches are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillion_dns::Name;
use tokio::time::Instant;

use super::TTL;
use super::records::instance_name;
use crate::catalog::World;

/// The index, and as of when.
#[derive(Default)]
pub(super) struct Reverse(Mutex<Option<Index>>);

struct Index {
    revision: u64,
    made: Instant,
    hosts: HashMap<IpAddr, Host>,
}

/// What is known of an address.
#[derive(Clone, Debug, Default)]
pub(super) struct Host {
    /// Of instances there; none: not ours.
    pub(super) names: Vec<Name>,
    /// Availability zone of an instance there; empty: unknown.
    pub(super) zone: Arc<str>,
}

/// The outcome of a look into the index.
pub(super) enum Lookup {
    /// Looked up.
    Known(Host),
    /// The index must be made first.
    Stale,
}

impl Reverse {
    pub(super) fn lookup(&self, view: &World, address: IpAddr) -> Lookup {
        match &*self.lock() {
            Some(index) if index.serves(view) => Lookup::Known(index.host(address)),
            _ => Lookup::Stale,
        }
    }

    /// Makes the index, unless another did meanwhile. Blocks.
    pub(super) fn rebuild(&self, view: &World, zone: &str, address: IpAddr) -> Host {
        let mut held = self.lock();
        match &*held {
            Some(index) if index.serves(view) => index.host(address),
            _ => held.insert(Index::new(view, zone)).host(address),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Index>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn new(view: &World, zone: &str) -> Self {
        let mut hosts: HashMap<IpAddr, Host> = HashMap::new();
        for (service, registered) in &view.catalog.services {
            for instance in registered.instances.values() {
                let here = hosts.entry(instance.address.to_canonical()).or_default();
                if here.zone.is_empty() && !instance.zone.is_empty() {
                    here.zone = instance.zone.as_str().into();
                }
                if here.names.len() < NAMES_MAX {
                    here.names.extend(instance_name(service, instance, zone));
                }
            }
        }
        Self { revision: view.revision, made: Instant::now(), hosts }
    }

    fn serves(&self, view: &World) -> bool {
        self.revision == view.revision || self.made.elapsed() < Duration::from_secs(u64::from(TTL))
    }

    fn host(&self, address: IpAddr) -> Host {
        self.hosts.get(&address.to_canonical()).cloned().unwrap_or_default()
    }
}

/// Names of one address at most: on one host, many instances may share it.
const NAMES_MAX: usize = 16;
