//! Names by address (PTR), from an index made when somebody asks.
//!
//! Making it takes time in a large mesh, so it is done aside and at most once per lifetime of an
//! answer; until then the index may be that much old, as answers in caches are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillion_dns::Name;
use tokio::time::Instant;

use super::TTL;
use super::chain::instance_name;
use crate::catalog::World;

/// The index, and as of when.
#[derive(Default)]
pub(super) struct Reverse(Mutex<Option<Index>>);

struct Index {
    revision: u64,
    made: Instant,
    names: HashMap<IpAddr, Vec<Name>>,
}

/// The outcome of a look into the index.
pub(super) enum Lookup {
    /// Names of the address; none: not ours.
    Known(Vec<Name>),
    /// The index must be made first.
    Stale,
}

impl Reverse {
    pub(super) fn lookup(&self, view: &World, address: IpAddr) -> Lookup {
        match &*self.lock() {
            Some(index) if index.serves(view) => Lookup::Known(index.names_of(address)),
            _ => Lookup::Stale,
        }
    }

    /// Makes the index, unless another did meanwhile. Blocks.
    pub(super) fn rebuild(&self, view: &World, zone: &str, address: IpAddr) -> Vec<Name> {
        let mut held = self.lock();
        match &*held {
            Some(index) if index.serves(view) => index.names_of(address),
            _ => held.insert(Index::new(view, zone)).names_of(address),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Index>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn new(view: &World, zone: &str) -> Self {
        let mut names: HashMap<IpAddr, Vec<Name>> = HashMap::new();
        for (service, registered) in &view.catalog.services {
            for instance in registered.instances.values() {
                let here = names.entry(instance.address.to_canonical()).or_default();
                if here.len() < NAMES_MAX {
                    here.extend(instance_name(service, instance, zone));
                }
            }
        }
        Self { revision: view.revision, made: Instant::now(), names }
    }

    fn serves(&self, view: &World) -> bool {
        self.revision == view.revision || self.made.elapsed() < Duration::from_secs(u64::from(TTL))
    }

    fn names_of(&self, address: IpAddr) -> Vec<Name> {
        self.names.get(&address).cloned().unwrap_or_default()
    }
}

/// Names of one address at most: on one host, many instances may share it.
const NAMES_MAX: usize = 16;
