//! Resources as control planes and files send them, read and tried.

use pillion_model::cluster::Cluster;
use pillion_model::endpoint::LoadAssignment;
use pillion_model::listener::Listener;
use pillion_model::route::RouteConfiguration;
use pillion_xds::decode::{
    DecodeError, Decoded, Reference, Secret, decode_cluster, decode_endpoints, decode_listener,
    decode_routes, decode_secret,
};
use pillion_xds::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET};

use crate::runtime::Runtime;

/// A resource as read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Listener(Box<Listener>, Vec<Reference>),
    Cluster(Box<Cluster>, Vec<Reference>),
    Routes(Box<RouteConfiguration>),
    Endpoints(LoadAssignment),
    Secret(Secret),
}

/// Reads one resource; the error lists the fields that are refused, by path.
pub(super) fn read(type_url: &str, body: &[u8]) -> Result<Item, DecodeError> {
    fn with<T>(
        decoded: Result<Decoded<T>, DecodeError>,
        wrap: impl FnOnce(T, Vec<Reference>) -> Item,
    ) -> Result<Item, DecodeError> {
        decoded.map(|decoded| wrap(decoded.value, decoded.references))
    }
    match type_url {
        LISTENER => with(decode_listener(body), |it, named| Item::Listener(Box::new(it), named)),
        CLUSTER => with(decode_cluster(body), |it, named| Item::Cluster(Box::new(it), named)),
        ROUTE => with(decode_routes(body), |it, _| Item::Routes(Box::new(it))),
        ENDPOINTS => with(decode_endpoints(body), |it, _| Item::Endpoints(it)),
        SECRET => with(decode_secret(body), |it, _| Item::Secret(it)),
        _ => Err(DecodeError {
            problems: vec![pillion_xds::decode::Problem {
                path: "@type".to_owned(),
                reason: format!("{type_url:?} is not a type this proxy asks for"),
            }],
        }),
    }
}

impl Item {
    /// The name it carries.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Listener(listener, _) => &listener.name,
            Self::Cluster(cluster, _) => &cluster.name,
            Self::Routes(routes) => &routes.name,
            Self::Endpoints(endpoints) => &endpoints.cluster,
            Self::Secret(secret) => &secret.name,
        }
    }

    /// Whether the data plane can run it.
    pub(super) fn check(&self, runtime: &Runtime) -> Result<(), String> {
        match self {
            Self::Listener(listener, _) => runtime.check_listener(listener),
            Self::Cluster(cluster, _) => runtime.check_cluster(cluster),
            Self::Routes(routes) => runtime.check_routes(routes),
            Self::Endpoints(_) => Ok(()),
            Self::Secret(secret) => super::secrets::check(secret),
        }
    }
}
