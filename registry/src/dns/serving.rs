//! The instances that answers name, prepared once per state of a service.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pillion_dns::sample::Weights;
use pillion_model::health::Health;
use pillion_model::instance::Instance;
use pillion_model::name::ServiceName;

use crate::catalog::CatalogService;

/// Which instances of a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Select {
    /// Those with an IPv4 address.
    V4,
    /// Those with an IPv6 address.
    V6,
    /// Those with a port of this name.
    Port(String),
}

/// Instances to draw from.
#[derive(Debug, Default)]
pub(super) struct Set {
    instances: Vec<Arc<Instance>>,
    weights: Weights,
}

impl Set {
    fn new(service: &CatalogService, subset: Option<&BTreeMap<String, String>>, select: &Select) -> Self {
        let wanted = |instance: &&Arc<Instance>| {
            let labelled =
                subset.is_none_or(|labels| labels.iter().all(|(k, v)| instance.labels.get(k) == Some(v)));
            labelled
                && instance.weight > 0
                && match select {
                    Select::V4 => instance.address.to_canonical().is_ipv4(),
                    Select::V6 => instance.address.to_canonical().is_ipv6(),
                    Select::Port(name) => instance.ports.contains_key(name),
                }
        };
        let of = |fits: fn(Health) -> bool| -> Vec<Arc<Instance>> {
            let all = service.instances.values().filter(wanted);
            all.filter(|instance| fits(Health::combine(instance.health))).cloned().collect()
        };
        let mut instances = of(Health::takes_traffic);
        if instances.is_empty() {
            instances = of(|health| health == Health::Stale); // silent but protected: better than none
        }
        let weights = Weights::new(instances.iter().map(|instance| instance.weight));
        Self { instances, weights }
    }

    pub(super) fn len(&self) -> usize {
        self.instances.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    /// Up to `count` different ones by weight, in an order of their own each time.
    pub(super) fn draw(&self, count: usize) -> Vec<&Instance> {
        let drawn = self.weights.draw(count, &mut fastrand::Rng::new());
        drawn.into_iter().map(|at| &*self.instances[at]).collect()
    }
}

/// Sets by service, kept for as long as the service is unchanged.
#[derive(Default)]
pub(super) struct Cache(Mutex<HashMap<ServiceName, Prepared>>);

/// The sets of one state of a service.
struct Prepared {
    service: Arc<CatalogService>,
    sets: Vec<Known>,
}

struct Known {
    subset: Option<BTreeMap<String, String>>,
    select: Select,
    set: Arc<Set>,
}

impl Cache {
    pub(super) fn set(
        &self,
        name: &ServiceName,
        service: Option<&Arc<CatalogService>>,
        subset: Option<&BTreeMap<String, String>>,
        select: Select,
    ) -> Arc<Set> {
        let Some(service) = service else { return Arc::default() };
        let mut cache = self.lock();
        if cache.len() >= SERVICES_MAX && !cache.contains_key(name) {
            cache.clear();
        }
        let fresh = || Prepared { service: Arc::clone(service), sets: Vec::new() };
        let prepared = cache.entry(name.clone()).or_insert_with(fresh);
        if !Arc::ptr_eq(&prepared.service, service) || prepared.sets.len() >= SETS_MAX {
            *prepared = fresh();
        }
        let same = |known: &&Known| known.subset.as_ref() == subset && known.select == select;
        if let Some(known) = prepared.sets.iter().find(same) {
            return Arc::clone(&known.set);
        }
        let set = Arc::new(Set::new(service, subset, &select));
        prepared.sets.push(Known { subset: subset.cloned(), select, set: Arc::clone(&set) });
        set
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceName, Prepared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Services prepared at a time.
const SERVICES_MAX: usize = 20_000;
/// Subsets and ports of one service prepared at a time.
const SETS_MAX: usize = 64;
