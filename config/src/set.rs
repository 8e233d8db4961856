//! All resources of a mesh, by kind and name.

use std::collections::BTreeMap;

use pillion_model::name::ServiceName;

use crate::{AuthorizationPolicy, Federation, Kind, Mesh, Resource, ResourceKey, Route, Service};

/// All resources of a mesh. A resource put in replaces the one of the same key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSet {
    mesh: Option<Mesh>,
    services: BTreeMap<ServiceName, Service>,
    /// By namespace and name.
    routes: BTreeMap<(String, String), Route>,
    policies: BTreeMap<(String, String), AuthorizationPolicy>,
    federations: BTreeMap<(String, String), Federation>,
}

impl ResourceSet {
    /// Puts `resource` in; gives back the one it replaces.
    pub fn insert(&mut self, resource: Resource) -> Option<Resource> {
        match resource {
            Resource::Mesh(mesh) => self.mesh.replace(mesh).map(Resource::Mesh),
            Resource::Service(service) => {
                let name = service.service_name()?;
                self.services.insert(name, service).map(Resource::Service)
            }
            Resource::Route(route) => {
                let key = (route.namespace.clone(), route.name.clone());
                self.routes.insert(key, route).map(Resource::Route)
            }
            Resource::AuthorizationPolicy(policy) => {
                let key = (policy.namespace.clone(), policy.name.clone());
                self.policies.insert(key, policy).map(Resource::AuthorizationPolicy)
            }
            Resource::Federation(federation) => {
                let key = (federation.namespace.clone(), federation.name.clone());
                self.federations.insert(key, federation).map(Resource::Federation)
            }
        }
    }

    /// Takes the resource of this key out.
    pub fn remove(&mut self, key: &ResourceKey) -> Option<Resource> {
        let pair = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Mesh => self.mesh.take().map(Resource::Mesh),
            Kind::Service => {
                let name = ServiceName::new(&key.namespace, &key.name).ok()?;
                self.services.remove(&name).map(Resource::Service)
            }
            Kind::Route => self.routes.remove(&pair).map(Resource::Route),
            Kind::AuthorizationPolicy => self.policies.remove(&pair).map(Resource::AuthorizationPolicy),
            Kind::Federation => self.federations.remove(&pair).map(Resource::Federation),
        }
    }

    /// The resource of this key.
    pub fn find(&self, key: &ResourceKey) -> Option<Resource> {
        self.iter().find(|resource| resource.key() == *key)
    }

    /// Every resource, kind by kind, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = Resource> + '_ {
        let mesh = self.mesh.iter().cloned().map(Resource::Mesh);
        let services = self.services.values().cloned().map(Resource::Service);
        let routes = self.routes.values().cloned().map(Resource::Route);
        let policies = self.policies.values().cloned().map(Resource::AuthorizationPolicy);
        let federations = self.federations.values().cloned().map(Resource::Federation);
        mesh.chain(services).chain(routes).chain(policies).chain(federations)
    }

    /// The mesh's settings, or the defaults.
    pub fn mesh(&self) -> Mesh {
        self.mesh.clone().unwrap_or_default()
    }

    /// The services, by name.
    pub fn services(&self) -> &BTreeMap<ServiceName, Service> {
        &self.services
    }

    /// The service of this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)
    }

    /// Every route, in the order of namespace and name.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values()
    }

    /// The routes of a service, in the order of their names: the order in which they are tried.
    pub fn routes_to<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = &'a Route> {
        in_namespace(&self.routes, service.namespace()).filter(|route| route.to == service.service())
    }

    /// Every authorization policy, in the order of namespace and name.
    pub fn policies(&self) -> impl Iterator<Item = &AuthorizationPolicy> {
        self.policies.values()
    }

    /// Every other mesh, in the order of namespace and name.
    pub fn federations(&self) -> impl Iterator<Item = &Federation> {
        self.federations.values()
    }

    /// The authorization policies of a service, in the order of their names.
    pub fn policies_to<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = &'a AuthorizationPolicy> {
        in_namespace(&self.policies, service.namespace()).filter(|policy| policy.to == service.service())
    }
}

fn in_namespace<'a, T>(
    map: &'a BTreeMap<(String, String), T>,
    namespace: &'a str,
) -> impl Iterator<Item = &'a T> {
    map.range((namespace.to_owned(), String::new())..)
        .take_while(move |((have, _), _)| have == namespace)
        .map(|(_, value)| value)
}

impl FromIterator<Resource> for ResourceSet {
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        let mut set = Self::default();
        for resource in resources {
            set.insert(resource);
        }
        set
    }
}
