//! Resources and catalog in, the model out: what each service means for its callers and for itself.
//!
//! Pure: no clock, no I/O. One service can be resolved alone ([`resolve_service`]); what did not change
//! keeps its `Arc` ([`Resolver`]), so that the cost of a change follows the change. Nothing here judges
//! configuration: [`pillion_config::check`] did that before it was stored. What still does not fit
//! (a service that went away under a route) becomes a cluster that does not exist, which the proxy
//! answers with 503, and never a hole in authorization.

mod cluster;
mod egress;
mod endpoint;
mod envoy;
mod grpc;
mod inbound;
mod policy;
mod port;
mod resolver;
mod route;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pillion_config::ResourceSet;
use pillion_config::service::Import;
use pillion_model::cluster::Cluster;
use pillion_model::endpoint::LoadAssignment;
use pillion_model::mesh::{MeshPort, MeshService};
use pillion_model::name::{ServiceName, TrustDomain};
use pillion_model::route::RouteConfiguration;
use pillion_model::tls::Roots;

pub(crate) use egress::egress;
pub use envoy::{EnvoyOptions, envoy};
pub use grpc::{
    GrpcCredentials, grpc_clusters, grpc_endpoints, grpc_listener, grpc_routes, grpc_server, grpc_target,
};
pub use inbound::{HealthCheckPlan, InboundPolicy, InboundPort, ProbeKind, inbound};
pub use port::PortView;
pub use resolver::Resolver;

use crate::catalog::{ByService, CatalogService, CatalogView};
use crate::federation::{ExportedService, Imports};

/// What the model is made of.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Every resource.
    pub resources: &'a ResourceSet,
    /// Every registered instance.
    pub catalog: &'a CatalogView,
    /// The stable index of each service; 0 and absent mean that it has none yet.
    pub indexes: &'a ByService<u16>,
    /// What other meshes export to us.
    pub imports: &'a Imports,
}

/// The whole mesh, resolved.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeshModel {
    /// DNS zone.
    pub zone: String,
    /// Trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// Whether destinations outside the mesh may be called.
    pub egress_allowed: bool,
    /// Every service, with a Service resource or registered.
    pub services: ByService<Arc<ServiceModel>>,
    /// Every DNS name (lower case, no trailing dot) and the service it leads to.
    pub names: Arc<BTreeMap<String, ServiceName>>,
}

/// One service, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceModel {
    /// What callers' sidecars are told.
    pub service: MeshService,
    /// One route configuration for each port that carries requests, with one virtual host for `*`.
    pub routes: Vec<RouteConfiguration>,
    /// One cluster for each port and subset.
    pub clusters: Vec<Cluster>,
    /// The endpoints of these clusters; none for services outside the mesh, whose clusters hold them.
    pub endpoints: Vec<LoadAssignment>,
    /// What the service's own sidecars enforce.
    pub inbound: InboundPolicy,
}

impl ServiceModel {
    /// Whether another mesh serves it: only sidecars know that mesh's roots, so nobody else is told of it.
    pub fn is_imported(&self) -> bool {
        let tls = self.clusters.iter().filter_map(|cluster| cluster.tls.as_ref()?.validation.as_ref());
        tls.into_iter().any(|it| matches!(&it.roots, Roots::Secret(name) if name.starts_with("spiffe://")))
    }
}

/// Resolves everything.
pub fn resolve(input: &Input<'_>) -> MeshModel {
    let mesh = input.resources.mesh();
    let services: ByService<_> = input
        .services()
        .into_iter()
        .filter_map(|name| Some((name.clone(), Arc::new(resolve_service(input, name)?))))
        .collect();
    MeshModel {
        names: Arc::new(names(input.resources, services.keys(), &mesh.zone)),
        zone: mesh.zone,
        trust_domain: TrustDomain::parse(&mesh.trust_domain).unwrap_or_default(),
        egress_allowed: mesh.egress == pillion_config::mesh::Access::Allow,
        services,
    }
}

/// Resolves one service; `None` if there is neither a Service resource nor a registration of it.
pub fn resolve_service(input: &Input<'_>, name: &ServiceName) -> Option<ServiceModel> {
    if !input.exists(name) {
        return None;
    }
    let ports = input.ports(name);
    let view = ServiceView { input, name, ports: &ports, service: input.resources.service(name) };
    let routes: Vec<_> = ports
        .iter()
        .filter(|port| port.protocol.is_http())
        .map(|port| route::configuration(&view, port))
        .collect();
    let clusters = cluster::clusters(&view);
    Some(ServiceModel {
        service: mesh_service(&view, &routes),
        endpoints: endpoint::assignments(&view),
        inbound: inbound::policy(&view),
        routes,
        clusters,
    })
}

/// One service while it is being resolved.
struct ServiceView<'a> {
    input: &'a Input<'a>,
    name: &'a ServiceName,
    /// Its ports, from the resource or else from what instances registered.
    ports: &'a [PortView],
    /// Its resource; `None` for a service that is only registered.
    service: Option<&'a pillion_config::Service>,
}

impl<'a> Input<'a> {
    /// Every service there is.
    fn services(&self) -> BTreeSet<&'a ServiceName> {
        self.resources.services().keys().chain(self.catalog.services.keys()).collect()
    }

    /// What another mesh tells of the service that this one imports.
    fn imported(&self, import: &Import) -> Option<&'a ExportedService> {
        let domain = TrustDomain::parse(&import.trust_domain).ok()?;
        self.imports.get(&domain)?.services.get(&import.service)
    }

    fn exists(&self, name: &ServiceName) -> bool {
        self.resources.service(name).is_some() || self.catalog.services.contains_key(name)
    }

    fn registered(&self, name: &ServiceName) -> Option<&'a CatalogService> {
        self.catalog.services.get(name).map(|service| &**service)
    }
}

fn mesh_service(view: &ServiceView<'_>, routes: &[RouteConfiguration]) -> MeshService {
    let zone = view.input.resources.mesh().zone;
    let mut names = pillion_config::service::dns_names(view.name, &zone);
    names.extend(view.service.iter().flat_map(|service| service.hosts.clone()));
    let ports = view.ports.iter().map(|port| {
        let route = pillion_model::name::route_configuration(&port.name, view.name);
        let configuration = routes.iter().find(|configuration| configuration.name == route);
        MeshPort {
            name: port.name.clone(),
            port: port.port,
            protocol: port.protocol,
            clusters: match configuration {
                Some(configuration) => route::clusters_of(configuration),
                None => vec![pillion_model::name::outbound_cluster(&port.name, "", view.name)],
            },
            route_configuration: configuration.map_or_else(String::new, |_| route),
        }
    });
    MeshService {
        service: view.name.clone(),
        names,
        index: view.input.indexes.get(view.name).copied().unwrap_or_default(),
        ports: ports.collect(),
    }
}

/// Every DNS name. Names of the zone come first; a further host that two services claim goes to the
/// first of them by name.
fn names<'a>(
    resources: &ResourceSet,
    services: impl Iterator<Item = &'a ServiceName>,
    zone: &str,
) -> BTreeMap<String, ServiceName> {
    let mut names = BTreeMap::new();
    for name in services {
        for text in pillion_config::service::dns_names(name, zone) {
            names.entry(text).or_insert_with(|| name.clone());
        }
    }
    for (name, service) in resources.services() {
        for host in &service.hosts {
            names.entry(host.to_ascii_lowercase()).or_insert_with(|| name.clone());
        }
    }
    names
}
