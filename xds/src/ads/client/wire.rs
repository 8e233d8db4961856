//! The two variants of the protocol, as the driver sees them.

use std::future::Future;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use super::{Client, Decode, Update};

pub(super) trait Wire {
    type Request: Send + 'static;
    type Response: Send;

    fn open(
        service: &mut AggregatedDiscoveryServiceClient<Channel>,
        requests: mpsc::Receiver<Self::Request>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Response>>, Status>> + Send;

    fn next(client: &mut Client) -> Option<Self::Request>;

    fn take<T>(client: &mut Client, response: Self::Response, decode: &Decode<T>) -> Update<T>;
}

/// Incremental.
pub(super) struct Delta;

/// State of the world.
pub(super) struct Sotw;

impl Wire for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    async fn open(
        service: &mut AggregatedDiscoveryServiceClient<Channel>,
        requests: mpsc::Receiver<Self::Request>,
    ) -> Result<Response<Streaming<Self::Response>>, Status> {
        service.delta_aggregated_resources(ReceiverStream::new(requests)).await
    }

    fn next(client: &mut Client) -> Option<Self::Request> {
        client.next_request()
    }

    fn take<T>(client: &mut Client, response: Self::Response, decode: &Decode<T>) -> Update<T> {
        client.on_response(response, decode)
    }
}

impl Wire for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    async fn open(
        service: &mut AggregatedDiscoveryServiceClient<Channel>,
        requests: mpsc::Receiver<Self::Request>,
    ) -> Result<Response<Streaming<Self::Response>>, Status> {
        service.stream_aggregated_resources(ReceiverStream::new(requests)).await
    }

    fn next(client: &mut Client) -> Option<Self::Request> {
        client.next_full_request()
    }

    fn take<T>(client: &mut Client, response: Self::Response, decode: &Decode<T>) -> Update<T> {
        client.on_full_response(response, decode)
    }
}
