//! The whole mesh encoded for sidecars, each service once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pillion_model::name::ServiceName;
use pillion_xds::ads::Encoded;
use pillion_xds::encode::{Dialect, encode_cluster, encode_endpoints, encode_routes, encode_service};

use crate::catalog::{ByService, CatalogView};
use crate::resolve::{MeshModel, ServiceModel, egress};

/// Encoded resources by name.
pub(super) type Encodings = Arc<BTreeMap<String, Arc<Encoded>>>;

/// The mesh at one moment.
pub(super) struct Snapshot {
    pub(super) model: Arc<MeshModel>,
    pub(super) catalog: Arc<CatalogView>,
    pub(super) services: ByService<Arc<ServiceEncoded>>,
    /// Routes of destinations outside the mesh.
    pub(super) egress: Encodings,
    pub(super) revisions: Revisions,
}

/// Numbers that rise when anything of a type changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Revisions {
    pub(super) clusters: u64,
    pub(super) endpoints: u64,
    pub(super) routes: u64,
    pub(super) services: u64,
}

/// One service, as its callers' sidecars are told of it.
pub(super) struct ServiceEncoded {
    model: Arc<ServiceModel>,
    pub(super) clusters: Encodings,
    pub(super) endpoints: Encodings,
    pub(super) routes: Encodings,
    /// The answers to questions for each of its names.
    pub(super) answers: Encodings,
}

impl Snapshot {
    pub(super) fn first(model: &Arc<MeshModel>, catalog: &Arc<CatalogView>) -> Self {
        let nothing = Self {
            model: Arc::default(),
            catalog: Arc::default(),
            services: ByService::default(),
            egress: Encodings::default(),
            revisions: Revisions::default(),
        };
        nothing.next(model, catalog, &model.services.keys().cloned().collect())
    }

    /// The next snapshot, in which the models of `different` services are not what they were; the others
    /// are shared with this one.
    pub(super) fn next(
        &self,
        model: &Arc<MeshModel>,
        catalog: &Arc<CatalogView>,
        different: &BTreeSet<ServiceName>,
    ) -> Self {
        let mut next = Self {
            model: Arc::clone(model),
            catalog: Arc::clone(catalog),
            services: self.services.clone(),
            egress: Arc::clone(&self.egress),
            revisions: self.revisions,
        };
        let mut changed = Changed::default();
        for name in different {
            let last = self.services.get(name).map(|last| &**last);
            match model.services.get(name) {
                Some(service) => {
                    let encoded = ServiceEncoded::new(service, last, &mut changed);
                    next.services.insert_mut(name.clone(), Arc::new(encoded));
                }
                None => {
                    next.services.remove_mut(name);
                    changed = Changed { clusters: true, endpoints: true, routes: true, services: true };
                }
            }
        }
        if next.egress.is_empty() || model.egress_allowed != self.model.egress_allowed {
            next.egress = by_name([encode_routes(&egress(model.egress_allowed), Dialect::Pillion)]);
            changed.routes = true;
        }
        // Who is called what may change without any service doing so.
        changed.services |= !Arc::ptr_eq(&model.names, &self.model.names);
        next.revisions.clusters += u64::from(changed.clusters);
        next.revisions.endpoints += u64::from(changed.endpoints);
        next.revisions.routes += u64::from(changed.routes);
        next.revisions.services += u64::from(changed.services);
        next
    }
}

#[derive(Default)]
struct Changed {
    clusters: bool,
    endpoints: bool,
    routes: bool,
    services: bool,
}

impl ServiceEncoded {
    fn new(model: &Arc<ServiceModel>, last: Option<&Self>, changed: &mut Changed) -> Self {
        // Most changes are of endpoints only: the rest is not encoded again.
        let part = |same: fn(&ServiceModel, &ServiceModel) -> bool, pick: fn(&Self) -> &Encodings| {
            last.filter(|last| same(&last.model, model)).map(|last| Arc::clone(pick(last)))
        };
        let made = |flag: &mut bool, all: Vec<Encoded>| {
            *flag = true;
            by_name(all)
        };
        let clusters = part(|a, b| a.clusters == b.clusters, |last| &last.clusters);
        let endpoints = part(|a, b| a.endpoints == b.endpoints, |last| &last.endpoints);
        let routes = part(|a, b| a.routes == b.routes, |last| &last.routes);
        let answers = part(|a, b| a.service == b.service, |last| &last.answers);
        let encode = Dialect::Pillion;
        Self {
            clusters: clusters.unwrap_or_else(|| {
                let all = model.clusters.iter().map(|cluster| encode_cluster(cluster, encode));
                made(&mut changed.clusters, all.collect())
            }),
            endpoints: endpoints.unwrap_or_else(|| {
                let all = model.endpoints.iter().map(|endpoints| encode_endpoints(endpoints, encode));
                made(&mut changed.endpoints, all.collect())
            }),
            routes: routes.unwrap_or_else(|| {
                let all = model.routes.iter().map(|routes| encode_routes(routes, encode));
                made(&mut changed.routes, all.collect())
            }),
            answers: answers.unwrap_or_else(|| {
                let names = model.service.names.iter().map(|name| name.to_ascii_lowercase());
                let all = names.map(|name| encode_service(&model.service, &name));
                made(&mut changed.services, all.collect())
            }),
            model: Arc::clone(model),
        }
    }
}

pub(super) fn by_name(all: impl IntoIterator<Item = Encoded>) -> Encodings {
    Arc::new(all.into_iter().map(|encoded| (encoded.name.clone(), Arc::new(encoded))).collect())
}
