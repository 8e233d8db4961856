//! Client status discovery (CSDS): how far every connected client got, for Envoy's own tools.

use std::pin::Pin;

use envoy_types::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};
use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{AdsService, PeerId, ProxyStatus};
use crate::ads::Source;
use crate::ads::server::{ResourceState, ResourceStatus};

/// Tells of the clients of an [`AdsService`]: a client of itself, the registry's own certificate of all.
///
/// The resources' contents are left out: they may be asked of the client.
#[derive(Debug)]
pub struct StatusService<S>(AdsService<S>);

impl<S: Source> AdsService<S> {
    /// The service that tells of this one's clients.
    #[must_use]
    pub fn into_status_server(self) -> ClientStatusDiscoveryServiceServer<StatusService<S>> {
        ClientStatusDiscoveryServiceServer::new(StatusService(self))
    }
}

impl<S: Source> StatusService<S> {
    fn answer(
        service: &AdsService<S>,
        request: &ClientStatusRequest,
        peer: Option<&PeerId>,
    ) -> Result<ClientStatusResponse, Status> {
        if !request.node_matchers.is_empty() {
            return Err(Status::unimplemented("node_matchers are not supported: leave them out"));
        }
        let may_see = |proxy: &ProxyStatus| match (peer, &proxy.peer) {
            (Some(PeerId(peer)), Some(own)) => peer.is_registry() || peer == own,
            _ => false,
        };
        let proxies = service.proxies();
        let config = proxies.iter().filter(|proxy| may_see(proxy)).map(client).collect();
        Ok(ClientStatusResponse { config })
    }
}

#[tonic::async_trait]
impl<S: Source> ClientStatusDiscoveryService for StatusService<S> {
    type StreamClientStatusStream = Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let (service, peer) = (self.0.clone(), request.extensions().get::<PeerId>().cloned());
        let answers =
            request.into_inner().map(move |request| Self::answer(&service, &request?, peer.as_ref()));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        let peer = request.extensions().get::<PeerId>().cloned();
        Self::answer(&self.0, request.get_ref(), peer.as_ref()).map(Response::new)
    }
}

fn client(proxy: &ProxyStatus) -> ClientConfig {
    ClientConfig {
        node: Some(proxy.node.to_proto()),
        generic_xds_configs: proxy.resources().into_iter().map(config).collect(),
        ..ClientConfig::default()
    }
}

fn config(resource: ResourceStatus) -> GenericXdsConfig {
    let (status, client, why) = match resource.state {
        ResourceState::Acknowledged => (ConfigStatus::Synced, ClientResourceStatus::Acked, None),
        ResourceState::Pending => (ConfigStatus::Stale, ClientResourceStatus::Requested, None),
        ResourceState::Refused(why) => (ConfigStatus::Error, ClientResourceStatus::Nacked, Some(why)),
        ResourceState::Absent => (ConfigStatus::NotSent, ClientResourceStatus::DoesNotExist, None),
    };
    GenericXdsConfig {
        type_url: resource.type_url,
        name: resource.name,
        version_info: resource.version.unwrap_or_default(),
        config_status: status.into(),
        client_status: client.into(),
        error_state: why
            .map(|why| UpdateFailureState { details: why.to_string(), ..UpdateFailureState::default() }),
        ..GenericXdsConfig::default()
    }
}
