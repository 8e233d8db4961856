//! Endpoints of a service's clusters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use pillion_config::service::{Import, Mtls};
use pillion_model::endpoint::{
    Endpoint, HostAddress, LoadAssignment, Locality, LocalityEndpoints, TRANSPORT_MTLS,
};
use pillion_model::health::Health;
use pillion_model::instance::Instance;
use pillion_model::name::outbound_cluster;

use super::{PortView, ServiceView};

/// Envoy's default overprovisioning factor, in percent.
pub(super) const OVERPROVISIONING: u32 = 140;

/// One assignment for each port and subset; none for a service outside the mesh.
pub(super) fn assignments(view: &ServiceView<'_>) -> Vec<LoadAssignment> {
    if view.is_external() {
        return Vec::new();
    }
    if let Some(import) = view.import() {
        return imported(view, import);
    }
    let mut assignments = Vec::new();
    for port in view.ports {
        for (subset, labels) in view.subsets() {
            assignments.push(assignment(view, port, subset, labels));
        }
    }
    assignments
}

fn assignment(
    view: &ServiceView<'_>,
    port: &PortView,
    subset: &str,
    labels: &BTreeMap<String, String>,
) -> LoadAssignment {
    let instances =
        view.input.registered(view.name).into_iter().flat_map(|service| service.instances.values());
    // By priority, then zone. BTreeMap: the same instances give the same assignment, byte for byte.
    let mut groups: BTreeMap<(u32, &str), Vec<Endpoint>> = BTreeMap::new();
    let meshed = Arc::new(BTreeMap::from([(TRANSPORT_MTLS.0.to_owned(), TRANSPORT_MTLS.1.to_owned())]));
    for instance in instances.filter(|instance| has_labels(&instance.labels, labels)) {
        let Some(endpoint) = endpoint(instance, port, &meshed) else { continue };
        let priority = u32::from(endpoint.health == Health::Stale);
        groups.entry((priority, &instance.zone)).or_default().push(endpoint);
    }
    grouped(outbound_cluster(&port.name, subset, view.name), groups)
}

/// Endpoints by priority and zone.
fn grouped(cluster: String, groups: BTreeMap<(u32, &str), Vec<Endpoint>>) -> LoadAssignment {
    // Priorities begin at 0: where everything is stale, stale is the best there is.
    let lowest = groups.keys().next().map_or(0, |(priority, _)| *priority);
    let localities = groups.into_iter().map(|((priority, zone), endpoints)| LocalityEndpoints {
        locality: Locality { zone: zone.to_owned(), ..Locality::default() },
        weight: None,
        priority: priority - lowest,
        endpoints,
    });
    LoadAssignment {
        cluster,
        localities: localities.collect(),
        drops: Vec::new(),
        overprovisioning: OVERPROVISIONING,
    }
}

/// What the other mesh tells; nothing yet is no endpoints.
fn imported(view: &ServiceView<'_>, import: &Import) -> Vec<LoadAssignment> {
    let told = view.input.imported(import);
    let meshed = Arc::new(BTreeMap::from([(TRANSPORT_MTLS.0.to_owned(), TRANSPORT_MTLS.1.to_owned())]));
    let mut assignments = Vec::new();
    for port in view.ports {
        let endpoints = told.and_then(|told| told.ports.get(&port.name)).map_or(&[][..], |it| &it.endpoints);
        for (subset, labels) in view.subsets() {
            let mut groups: BTreeMap<(u32, &str), Vec<Endpoint>> = BTreeMap::new();
            for endpoint in endpoints.iter().filter(|endpoint| has_labels(&endpoint.labels, labels)) {
                let priority = u32::from(endpoint.health == Health::Stale.as_str());
                let made = endpoint.endpoint(&meshed);
                groups.entry((priority, &endpoint.zone)).or_default().push(made);
            }
            assignments.push(grouped(outbound_cluster(&port.name, subset, view.name), groups));
        }
    }
    assignments
}

/// The endpoint of `instance` on `port`; `None` if it takes no traffic there: down, no such port, weight
/// 0, or no sidecar where mutual TLS is demanded.
fn endpoint(
    instance: &Instance,
    port: &PortView,
    meshed: &Arc<BTreeMap<String, String>>,
) -> Option<Endpoint> {
    let registered = port.of(instance)?;
    let health = Health::combine(instance.health);
    if instance.weight == 0 || health == Health::Down {
        return None;
    }
    let inbound_port = match port.mtls {
        Mtls::Disabled => None,
        Mtls::Strict => Some(instance.inbound_port?),
        Mtls::Permissive => instance.inbound_port,
    };
    Some(Endpoint {
        address: HostAddress::Socket(SocketAddr::new(
            instance.address,
            inbound_port.unwrap_or(registered.port),
        )),
        hostname: instance.id.to_string(),
        weight: instance.weight,
        health,
        labels: Arc::clone(&instance.labels),
        other_labels: Default::default(),
        transport: inbound_port.map(|_| Arc::clone(meshed)).unwrap_or_default(),
    })
}

/// Whether `have` has all of `want`.
pub(super) fn has_labels(have: &BTreeMap<String, String>, want: &BTreeMap<String, String>) -> bool {
    want.iter().all(|(key, value)| have.get(key) == Some(value))
}
