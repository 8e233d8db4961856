//! Tables of resources and instances, and what they resolve to.

mod callers;
mod grpc;
mod own;
mod whole;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pillion_config::{ResourceSet, Source, check, locate, parse};
use pillion_model::cluster::{Cluster, Discovery, LoadBalancing, UpstreamProtocol};
use pillion_model::endpoint::{HostAddress, LoadAssignment};
use pillion_model::health::{Lease, Reported};
use pillion_model::http::HttpFilter;
use pillion_model::instance::{Instance, InstancePort, Protocol, TTL_DEFAULT};
use pillion_model::listener::{ConnectionFacts, FilterChain, Terminal, choose};
use pillion_model::matcher::RequestView;
use pillion_model::mesh::Resources;
use pillion_model::name::{InstanceId, ServiceName};
use pillion_model::rbac::Peer;
use pillion_model::retry::RetryOn;
use pillion_model::route::{ClusterChoice, Forward, PathRewrite, RouteAction, RouteTable};

use super::*;
use crate::catalog::{ByService, ServicePort};

/// Resources and instances under construction.
#[derive(Default)]
pub(crate) struct Mesh {
    resources: ResourceSet,
    catalog: CatalogView,
    indexes: ByService<u16>,
    pub(crate) imports: Imports,
}

impl Mesh {
    pub(crate) fn new(yaml: &str) -> Self {
        let resources = parse(&[Source::new("test.yaml", yaml)]).unwrap_or_else(|errors| panic!("{errors}"));
        Self { resources: resources.into_iter().map(|resource| resource.value).collect(), ..Self::default() }
    }

    pub(crate) fn with(mut self, instance: Instance) -> Self {
        let service = self.catalog.services.get(&instance.service).cloned();
        let mut service = service.map(Arc::unwrap_or_clone).unwrap_or_default();
        for (name, port) in instance.ports.iter() {
            let declared = ServicePort { port: port.port, protocol: port.protocol };
            service.ports.entry(name.clone()).or_insert(declared);
        }
        let name = instance.service.clone();
        service.instances.insert_mut(instance.id.clone(), Arc::new(instance));
        self.catalog.services.insert_mut(name, Arc::new(service));
        let names: BTreeSet<_> =
            self.resources.services().keys().chain(self.catalog.services.keys()).cloned().collect();
        self.indexes = names.into_iter().zip(1..).collect();
        self
    }

    pub(crate) fn input(&self) -> Input<'_> {
        Input {
            resources: &self.resources,
            catalog: &self.catalog,
            indexes: &self.indexes,
            imports: &self.imports,
        }
    }

    pub(crate) fn catalog(&self) -> Arc<CatalogView> {
        Arc::new(self.catalog.clone())
    }

    pub(crate) fn model(&self) -> MeshModel {
        resolve(&self.input())
    }
}

pub(crate) fn name(text: &str) -> ServiceName {
    text.parse().expect(text)
}

/// A ready instance with a sidecar and one port `http` on 8080.
pub(crate) fn instance(service: &str, id: &str, labels: &[(&str, &str)]) -> Instance {
    let port = InstancePort { port: 8080, protocol: Protocol::Http, app_address: None };
    let last = id.bytes().last().unwrap_or(b'0') - b'0';
    Instance {
        service: name(service),
        id: InstanceId::parse(id).expect(id),
        address: [10, 0, 0, last].into(),
        ports: Arc::new([("http".to_owned(), port)].into()),
        inbound_port: Some(15006),
        metrics_port: None,
        labels: Arc::new(labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()),
        metadata: Arc::default(),
        weight: 100,
        zone: "a".to_owned(),
        ttl: TTL_DEFAULT,
        generation: 1,
        health: Default::default(),
    }
}

/// A request as `explain` and the proxy show it to matchers.
pub(crate) struct Request<'a>(pub(crate) &'a str, pub(crate) &'a str, pub(crate) &'a [(&'a str, &'a str)]);

impl RequestView for Request<'_> {
    fn method(&self) -> &str {
        self.0
    }
    fn path(&self) -> &str {
        self.1.split('?').next().unwrap_or_default()
    }
    fn query(&self) -> Option<&str> {
        self.1.split_once('?').map(|(_, query)| query)
    }
    fn authority(&self) -> &str {
        "orders.shop.mesh.internal"
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.2.iter().filter(|(have, _)| *have == name).for_each(|(_, value)| each(value.as_bytes()));
    }
}

const ORDERS: &str = "
kind: Service
name: orders
namespace: shop
ports: [{name: http, port: 80, targetPort: 8080}]
subsets: {v1: {version: \"1\"}, v2: {version: \"2\"}}
";
