//! The instances that answers name, prepared once per state of a service.

use std::collections::hash_map::Entry;
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
    /// Whether nobody takes traffic and these are silent but protected.
    pub(super) stale: bool,
    /// How many there are where none takes traffic.
    pub(super) out_of_service: usize,
    /// Whether they are in more than one availability zone.
    pub(super) several_zones: bool,
}

impl Set {
    fn new(service: &CatalogService, subset: Option<&BTreeMap<String, String>>, select: &Select) -> Self {
        let labelled = |instance: &&Arc<Instance>| {
            subset.is_none_or(|labels| labels.iter().all(|(k, v)| instance.labels.get(k) == Some(v)))
        };
        let health = |instance: &Arc<Instance>| Health::combine(instance.health);
        let wanted = |instance: &&Arc<Instance>| {
            labelled(instance)
                && instance.weight > 0
                && match select {
                    Select::V4 => instance.address.to_canonical().is_ipv4(),
                    Select::V6 => instance.address.to_canonical().is_ipv6(),
                    Select::Port(name) => instance.ports.contains_key(name),
                }
        };
        let of = |fits: fn(Health) -> bool| -> Vec<Arc<Instance>> {
            let all = service.instances.values().filter(wanted);
            all.filter(|instance| fits(health(instance))).cloned().collect()
        };
        let mut instances = of(Health::takes_traffic);
        if instances.is_empty() {
            instances = of(|health| health == Health::Stale); // silent but protected: better than none
        }
        let weights = match select {
            Select::V4 | Select::V6 => merge_by_address(&mut instances),
            Select::Port(_) => instances.iter().map(|instance| instance.weight).collect(),
        };
        let stale = instances.first().is_some_and(|instance| health(instance) == Health::Stale);
        let several_zones = instances.iter().any(|instance| instance.zone != instances[0].zone);
        let others = || service.instances.values().filter(labelled);
        let serves = |instance: &Arc<Instance>| instance.weight > 0 && health(instance).takes_traffic();
        let out_of_service = if others().any(serves) { 0 } else { others().count() };
        Self { instances, weights: Weights::new(weights), stale, out_of_service, several_zones }
    }

    pub(super) fn instances(&self) -> &[Arc<Instance>] {
        &self.instances
    }

    /// Of [`Self::instances`], in their order.
    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(super) fn len(&self) -> usize {
        self.instances.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    /// Up to `count` different ones by weight, in an order of their own each time, with the priority
    /// of each: 0 within zone `near` and 1 elsewhere, or 0 for all.
    pub(super) fn draw(&self, count: usize, near: Option<&str>) -> Vec<(&Instance, u16)> {
        let everybody = if near.is_some() { self.len() } else { count };
        let drawn = self.weights.draw(everybody, &mut fastrand::Rng::new());
        let mut drawn: Vec<(&Instance, u16)> = drawn
            .into_iter()
            .map(|at| &*self.instances[at])
            .map(|instance| (instance, u16::from(near.is_some_and(|zone| instance.zone != zone))))
            .collect();
        if near.is_some() {
            drawn.sort_by_key(|(_, priority)| *priority); // stable: by weight within each
            drawn.truncate(count);
            if drawn.first().is_some_and(|(_, priority)| *priority > 0) {
                drawn.iter_mut().for_each(|(_, priority)| *priority = 0); // nobody is near
            }
        }
        drawn
    }
}

/// Keeps one instance of those that share an address, as records that say the same are one (RFC 2181
/// section 5); the weights of what is left.
fn merge_by_address(instances: &mut Vec<Arc<Instance>>) -> Vec<u32> {
    let (mut places, mut weights) = (HashMap::<_, usize>::new(), Vec::<u32>::new());
    instances.retain(|instance| match places.entry(instance.address.to_canonical()) {
        Entry::Occupied(place) => {
            let weight = &mut weights[*place.get()];
            *weight = weight.saturating_add(instance.weight);
            false
        }
        Entry::Vacant(place) => {
            place.insert(weights.len());
            weights.push(instance.weight);
            true
        }
    });
    weights
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
