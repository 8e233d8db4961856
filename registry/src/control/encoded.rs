//! The whole mesh encoded for sidecars, each service once, and only what one of them asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use pillion_model::mesh::EGRESS_ROUTES;
use pillion_model::name::ServiceName;
use pillion_xds::ads::Encoded;
use pillion_xds::encode::{Dialect, encode_cluster, encode_endpoints, encode_routes, encode_service};
use pillion_xds::type_url;

use crate::catalog::{ByService, CatalogView};
use crate::resolve::{
    GrpcCredentials, MeshModel, ServiceModel, egress, grpc_clusters, grpc_endpoints, grpc_routes,
};

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

/// What differs between two snapshots.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Resources, by type and name.
    pub(super) names: BTreeSet<(&'static str, String)>,
    /// Services that are not as they were to their own proxies.
    pub(super) services: BTreeSet<ServiceName>,
    /// What cannot be told apart.
    pub(super) everything: bool,
}

/// One service, as its callers' sidecars are told of it. Each part is encoded for the first who asks, and
/// shared by all snapshots in which it is the same.
pub(super) struct ServiceEncoded {
    model: Arc<ServiceModel>,
    clusters: Part,
    endpoints: Part,
    routes: Part,
    answers: Part,
    grpc: Arc<OnceLock<Box<ServiceForGrpc>>>,
}

type Part = Arc<OnceLock<Encodings>>;

/// One service, as gRPC clients without a proxy are told of it.
pub(super) struct ServiceForGrpc {
    pub(super) routes: Encodings,
    /// For applications with the credentials that xDS describes, then for those without.
    secure: Hops,
    plaintext: Hops,
}

/// Clusters and their endpoints.
pub(super) struct Hops {
    pub(super) clusters: Encodings,
    pub(super) endpoints: Encodings,
}

impl ServiceForGrpc {
    fn new(service: &ServiceModel) -> Self {
        let hops = |credentials| Hops {
            clusters: by_name(
                grpc_clusters(service, credentials).iter().map(|one| encode_cluster(one, Dialect::Grpc)),
            ),
            endpoints: by_name(
                grpc_endpoints(service, credentials).iter().map(|one| encode_endpoints(one, Dialect::Grpc)),
            ),
        };
        Self {
            routes: by_name(grpc_routes(service).iter().map(|one| encode_routes(one, Dialect::Grpc))),
            secure: hops(GrpcCredentials::Xds),
            plaintext: hops(GrpcCredentials::Plaintext),
        }
    }

    pub(super) fn hops(&self, credentials: GrpcCredentials) -> &Hops {
        match credentials {
            GrpcCredentials::Xds => &self.secure,
            GrpcCredentials::Plaintext => &self.plaintext,
        }
    }
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
        nothing.next(model, catalog, &model.services.keys().cloned().collect()).0
    }

    /// The next snapshot, in which the models of `different` services are not what they were; the others
    /// are shared with this one. And what is not as it was.
    pub(super) fn next(
        &self,
        model: &Arc<MeshModel>,
        catalog: &Arc<CatalogView>,
        different: &BTreeSet<ServiceName>,
    ) -> (Self, News) {
        let mut news = News { everything: model.zone != self.model.zone, ..News::default() };
        news.services.clone_from(different);
        let mut next = Self {
            model: Arc::clone(model),
            catalog: Arc::clone(catalog),
            services: self.services.clone(),
            egress: Arc::clone(&self.egress),
            revisions: self.revisions,
        };
        let mut changed = Changed::default();
        for name in different {
            news.compare(self.model.services.get(name), model.services.get(name));
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
            news.names.insert((type_url::ROUTE, EGRESS_ROUTES.to_owned()));
        }
        // Who is called what may change without any service doing so.
        if !Arc::ptr_eq(&model.names, &self.model.names) {
            changed.services = true;
            news.compare_names(&self.model.names, &model.names);
        }
        next.revisions.clusters += u64::from(changed.clusters);
        next.revisions.endpoints += u64::from(changed.endpoints);
        next.revisions.routes += u64::from(changed.routes);
        next.revisions.services += u64::from(changed.services);
        (next, news)
    }
}

impl News {
    /// Takes in what is not the same in two models of a service.
    fn compare(&mut self, last: Option<&Arc<ServiceModel>>, next: Option<&Arc<ServiceModel>>) {
        let clusters = [last, next].map(|it| it.map_or(&[][..], |it| &it.clusters));
        let endpoints = [last, next].map(|it| it.map_or(&[][..], |it| &it.endpoints));
        let routes = [last, next].map(|it| it.map_or(&[][..], |it| &it.routes));
        self.differing(type_url::CLUSTER, clusters, |cluster| &cluster.name);
        self.differing(type_url::ENDPOINTS, endpoints, |assignment| &assignment.cluster);
        self.differing(type_url::ROUTE, routes, |routes| &routes.name);
        let [last, next] = [last, next].map(|it| it.map(|it| &it.service));
        if last != next {
            let names = last.into_iter().chain(next).flat_map(|service| &service.names);
            self.names.extend(names.map(|name| (type_url::SERVICE, name.to_ascii_lowercase())));
        }
    }

    fn compare_names(&mut self, last: &BTreeMap<String, ServiceName>, next: &BTreeMap<String, ServiceName>) {
        let other = |(name, service): &(&String, &ServiceName), map: &BTreeMap<String, ServiceName>| {
            map.get(*name) != Some(*service)
        };
        let gone = last.iter().filter(|entry| other(entry, next));
        let new = next.iter().filter(|entry| other(entry, last));
        self.names.extend(gone.chain(new).map(|(name, _)| (type_url::SERVICE, name.clone())));
    }

    fn differing<'a, T: PartialEq>(
        &mut self,
        type_url: &'static str,
        [last, next]: [&'a [T]; 2],
        name: impl Fn(&'a T) -> &'a str,
    ) {
        let gone = last.iter().filter(|one| !next.contains(one));
        let new = next.iter().filter(|one| !last.contains(one));
        self.names.extend(gone.chain(new).map(|one| (type_url, name(one).to_owned())));
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
        let part =
            |same: fn(&ServiceModel, &ServiceModel) -> bool, of: fn(&Self) -> &Part, flag: &mut bool| {
                let kept = last.filter(|last| same(&last.model, model)).map(|last| Arc::clone(of(last)));
                *flag |= kept.is_none();
                kept.unwrap_or_default()
            };
        Self {
            clusters: part(|a, b| a.clusters == b.clusters, |last| &last.clusters, &mut changed.clusters),
            endpoints: part(
                |a, b| a.endpoints == b.endpoints,
                |last| &last.endpoints,
                &mut changed.endpoints,
            ),
            routes: part(|a, b| a.routes == b.routes, |last| &last.routes, &mut changed.routes),
            answers: part(|a, b| a.service == b.service, |last| &last.answers, &mut changed.services),
            grpc: last
                .filter(|last| {
                    let (a, b) = (&last.model, model);
                    a.clusters == b.clusters && a.endpoints == b.endpoints && a.routes == b.routes
                })
                .map(|last| Arc::clone(&last.grpc))
                .unwrap_or_default(),
            model: Arc::clone(model),
        }
    }

    pub(super) fn clusters(&self) -> &Encodings {
        let encode = || by_name(self.model.clusters.iter().map(|one| encode_cluster(one, Dialect::Pillion)));
        self.clusters.get_or_init(encode)
    }

    pub(super) fn endpoints(&self) -> &Encodings {
        let encode =
            || by_name(self.model.endpoints.iter().map(|one| encode_endpoints(one, Dialect::Pillion)));
        self.endpoints.get_or_init(encode)
    }

    pub(super) fn routes(&self) -> &Encodings {
        let encode = || by_name(self.model.routes.iter().map(|one| encode_routes(one, Dialect::Pillion)));
        self.routes.get_or_init(encode)
    }

    pub(super) fn grpc(&self) -> &ServiceForGrpc {
        self.grpc.get_or_init(|| Box::new(ServiceForGrpc::new(&self.model)))
    }

    /// The answers to questions for each of its names.
    pub(super) fn answers(&self) -> &Encodings {
        let service = &self.model.service;
        let answer = |name: &String| encode_service(service, &name.to_ascii_lowercase());
        self.answers.get_or_init(|| by_name(service.names.iter().map(answer)))
    }
}

pub(super) fn by_name(all: impl IntoIterator<Item = Encoded>) -> Encodings {
    Arc::new(all.into_iter().map(|encoded| (encoded.name.clone(), Arc::new(encoded))).collect())
}
