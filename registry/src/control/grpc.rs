//! What a gRPC client or server without a proxy may see: all services, each when it asks for it.

use std::sync::Arc;

use pillion_model::name::{ServiceName, parse_outbound_cluster};
use pillion_xds::ads::{Encoded, View};
use pillion_xds::encode::{Dialect, encode_listener};
use pillion_xds::type_url;

use super::encoded::{Revisions, ServiceForGrpc, Snapshot};
use super::view::Own;
use crate::resolve::{GrpcCredentials, grpc_listener, grpc_server};

/// What a gRPC server asks for begins so, the address at which it listens follows: the bootstrap's
/// `server_listener_resource_name_template` says it.
pub const SERVER_LISTENER: &str = "grpc/server/";

/// A gRPC client's view, and a server's.
pub(super) struct GrpcView {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) own: Arc<Own>,
    pub(super) credentials: GrpcCredentials,
}

impl GrpcView {
    fn service(&self, name: &ServiceName) -> Option<&ServiceForGrpc> {
        self.snapshot.services.get(name).map(|service| service.grpc())
    }

    fn listener(&self, name: &str) -> Option<Encoded> {
        let model = &self.snapshot.model;
        let listener = match name.strip_prefix(SERVER_LISTENER) {
            None => grpc_listener(model, name)?,
            Some(address) => {
                grpc_server(model, self.own.instance()?, name, address.parse().ok()?, self.credentials)?
            }
        };
        Some(encode_listener(&listener, Dialect::Grpc))
    }
}

impl View for GrpcView {
    fn all(&self, _type_url: &str) -> Vec<Arc<Encoded>> {
        Vec::new() // it asks by name
    }

    fn find(&self, type_url: &str, name: &str) -> Option<Arc<Encoded>> {
        let hops = |name| Some(self.service(&parse_outbound_cluster(name)?.2)?.hops(self.credentials));
        let part = match type_url {
            type_url::LISTENER => return self.listener(name).map(Arc::new),
            type_url::ROUTE => &self.service(&name.split_once('.')?.1.parse().ok()?)?.routes,
            type_url::CLUSTER => &hops(name)?.clusters,
            type_url::ENDPOINTS => &hops(name)?.endpoints,
            _ => return None,
        };
        part.get(name).cloned()
    }

    fn revision(&self, type_url: &str) -> Option<u64> {
        let Revisions { clusters, endpoints, routes, services } = self.snapshot.revisions;
        Some(match type_url {
            // Both parts only rise: the sum is another one whenever either is.
            type_url::LISTENER => services + self.own.number(),
            type_url::CLUSTER => clusters,
            type_url::ENDPOINTS => endpoints,
            type_url::ROUTE => routes,
            _ => return None,
        })
    }
}
