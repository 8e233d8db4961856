//! Discovering instances by namespace, service, attributes and health.

use std::sync::Arc;

use pillion_model::instance::Instance;
use pillion_model::name::ServiceName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Api;
use super::attributes::{self, Attributes};
use super::fault::Fault;
use super::within_zone;
use crate::catalog::World;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Discover {
    #[serde(flatten)]
    named: Named,
    max_results: Option<usize>,
    #[serde(default)]
    query_parameters: Attributes,
    #[serde(default)]
    optional_parameters: Attributes,
    #[serde(default)]
    health_status: HealthFilter,
}

/// Which service.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Named {
    namespace_name: String,
    service_name: String,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum HealthFilter {
    #[default]
    Healthy,
    Unhealthy,
    All,
    HealthyOrElseAll,
}

/// As in Cloud Map.
const RESULTS_DEFAULT: usize = 100;
const RESULTS_MAX: usize = 1000;

pub(super) fn instances(api: &Api, call: &Discover) -> Result<Value, Fault> {
    let max = call.max_results.unwrap_or(RESULTS_DEFAULT);
    if !(1..=RESULTS_MAX).contains(&max) {
        return Err(Fault::input(format!("MaxResults: got {max}, want 1 to {RESULTS_MAX}")));
    }
    let world = api.catalog.world();
    let service = call.named.find(&world)?;
    let have = world.catalog.services.get(&service);
    let all = have.into_iter().flat_map(|have| have.instances.values());
    let mut chosen = choose(call, all);
    if chosen.len() > max {
        // Not the same ones for everybody.
        fastrand::shuffle(&mut chosen);
        chosen.truncate(max);
    }
    let told = chosen.into_iter().map(|Candidate { instance, attributes }| {
        json!({
            "InstanceId": attributes::given_id(instance),
            "NamespaceName": call.named.namespace_name,
            "ServiceName": call.named.service_name,
            "HealthStatus": attributes::health(instance),
            "Attributes": attributes,
        })
    });
    Ok(json!({
        "Instances": told.collect::<Vec<_>>(),
        "InstancesRevision": revision_of(&world, &service),
    }))
}

/// Rises with every change to the service's instances, their health included.
pub(super) fn revision(api: &Api, call: &Named) -> Result<Value, Fault> {
    let world = api.catalog.world();
    let service = call.find(&world)?;
    Ok(json!({"InstancesRevision": revision_of(&world, &service)}))
}

struct Candidate<'a> {
    instance: &'a Instance,
    attributes: Attributes,
}

/// Attributes that must match, then health, then attributes that are heeded if anybody has them.
fn choose<'a>(call: &Discover, all: impl Iterator<Item = &'a Arc<Instance>>) -> Vec<Candidate<'a>> {
    let candidates = all.map(|instance| Candidate { instance, attributes: attributes::of(instance) });
    let mut chosen: Vec<_> = candidates.filter(|one| one.has(&call.query_parameters)).collect();
    let healthy = |one: &Candidate<'_>| attributes::health(one.instance) == "HEALTHY";
    match call.health_status {
        HealthFilter::All => {}
        HealthFilter::HealthyOrElseAll if !chosen.iter().any(healthy) => {}
        HealthFilter::Unhealthy => chosen.retain(|one| !healthy(one)),
        HealthFilter::Healthy | HealthFilter::HealthyOrElseAll => chosen.retain(healthy),
    }
    if chosen.iter().any(|one| one.has(&call.optional_parameters)) {
        chosen.retain(|one| one.has(&call.optional_parameters));
    }
    chosen
}

impl Candidate<'_> {
    fn has(&self, wanted: &Attributes) -> bool {
        wanted.iter().all(|(name, value)| self.attributes.get(name) == Some(value))
    }
}

impl Named {
    fn find(&self, world: &World) -> Result<ServiceName, Fault> {
        let namespace = within_zone(&self.namespace_name, world);
        let Ok(service) = ServiceName::new(namespace, &self.service_name) else {
            let got = format!("`{}` in `{}`", self.service_name, self.namespace_name);
            let want = "labels as `orders` in `shop`, or in the namespace's DNS name";
            return Err(Fault::input(format!("ServiceName, NamespaceName: got {got}, want {want}")));
        };
        if world.indexes.contains_key(&service) {
            return Ok(service);
        }
        match world.indexes.keys().any(|known| known.namespace() == namespace) {
            true => Err(Fault::service_not_found(&service)),
            false => Err(Fault::namespace_not_found(&self.namespace_name)),
        }
    }
}

fn revision_of(world: &World, service: &ServiceName) -> u64 {
    world.catalog.services.get(service).map_or(0, |have| have.revision)
}
