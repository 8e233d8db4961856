//! The service over TCP: how streams open and end, and what is known of them.

use std::net::SocketAddr;
use std::sync::Mutex;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use pillion_model::name::{ServiceName, TrustDomain};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::Code;
use tonic::transport::{Channel, Server};

use super::*;
use crate::ads::server::ResourceState;
use crate::ads::{Encoded, View};
use crate::type_url::CLUSTER;

const DEADLINE: Duration = Duration::from_secs(20);

/// One cluster, `a`.
struct OneCluster(&'static str);

impl View for OneCluster {
    fn all(&self, type_url: &str) -> Vec<Arc<Encoded>> {
        self.find(type_url, "a").into_iter().collect()
    }

    fn find(&self, type_url: &str, name: &str) -> Option<Arc<Encoded>> {
        (type_url == CLUSTER && name == "a").then(|| Arc::new(Encoded::new(type_url, name, self.0.into())))
    }
}

/// Admits nodes whose id is their peer's service.
struct ByPeer(Mutex<Option<watch::Sender<Arc<dyn View>>>>);

impl Source for ByPeer {
    type Feed = watch::Receiver<Arc<dyn View>>;

    fn open(&self, node: &NodeInfo, peer: Option<&SpiffeId>) -> Result<Self::Feed, Status> {
        let service = peer.and_then(SpiffeId::service_name).map(ToString::to_string);
        if service.as_ref() != Some(&node.id) {
            return Err(Status::permission_denied(format!("the certificate is {service:?}'s")));
        }
        Ok(self.0.lock().expect("not poisoned").as_ref().expect("running").subscribe())
    }
}

struct Running {
    service: AdsService<ByPeer>,
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Running {
    async fn start() -> Self {
        let view: Arc<dyn View> = Arc::new(OneCluster("1"));
        let source = ByPeer(Mutex::new(Some(watch::channel(view).0)));
        let limits = Limits { names: 3, ..Limits::default() };
        let service = AdsService::new(Arc::new(source), "registry-1", limits);
        let peer = ServiceName::new("shop", "orders").expect("a name");
        let peer = PeerId(SpiffeId::service(TrustDomain::default(), peer));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound above");
        let admit = move |mut request: Request<()>| {
            request.extensions_mut().insert(peer.clone());
            Ok(request)
        };
        let inner = service.clone().into_server();
        let router =
            Server::builder().add_service(tonic::service::interceptor::InterceptedService::new(inner, admit));
        let server = tokio::spawn(async move {
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("served");
        });
        Self { service, address, server }
    }

    async fn sotw(&self) -> (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
        let channel = Channel::from_shared(format!("http://{}", self.address)).expect("a URI");
        let mut client = AggregatedDiscoveryServiceClient::new(channel.connect().await.expect("connected"));
        let (requests, queue) = mpsc::channel(8);
        let opened = client.stream_aggregated_resources(ReceiverStream::new(queue)).await.expect("opened");
        (requests, opened.into_inner())
    }
}

fn first(id: &str) -> DiscoveryRequest {
    let node = Node { id: id.into(), user_agent_name: "gRPC Go".into(), ..Node::default() };
    DiscoveryRequest { node: Some(node), type_url: CLUSTER.into(), ..DiscoveryRequest::default() }
}

async fn next(responses: &mut Streaming<DiscoveryResponse>) -> Result<Option<DiscoveryResponse>, Status> {
    timeout(DEADLINE, responses.message()).await.expect("an answer in time")
}

#[tokio::test]
async fn a_state_of_the_world_stream_is_served_and_listed_while_it_is_open() {
    let running = Running::start().await;
    let (requests, mut responses) = running.sotw().await;
    requests.send(first("orders.shop")).await.expect("open");
    let response = next(&mut responses).await.expect("served").expect("a response");
    assert_eq!((response.resources[0].value.as_slice(), response.nonce.as_str()), (&b"1"[..], "1"));
    let ack = DiscoveryRequest {
        type_url: CLUSTER.into(),
        version_info: response.version_info,
        response_nonce: response.nonce,
        ..DiscoveryRequest::default()
    };
    requests.send(ack).await.expect("open");
    let views = running.service.source.0.lock().expect("not poisoned").clone().expect("running");
    views.send_replace(Arc::new(OneCluster("2")));
    let response = next(&mut responses).await.expect("served").expect("a response");
    assert_eq!(response.resources[0].value, b"2");

    let proxies = running.service.proxies();
    let [proxy] = proxies.as_slice() else { panic!("one stream: {proxies:?}") };
    assert_eq!((proxy.variant, proxy.node.user_agent.as_str()), (Variant::Sotw, "gRPC Go"));
    assert_eq!(
        proxy.peer.as_ref().and_then(SpiffeId::service_name).map(ToString::to_string).as_deref(),
        Some("orders.shop")
    );
    let want = Totals { pushes: 2, acks: 1, ..Totals::default() };
    assert_eq!(running.service.totals()["cluster"], Totals { pending: 1, ..want });
    let resources = proxy.resources();
    let [resource] = resources.as_slice() else { panic!("one cluster: {resources:?}") };
    assert_eq!((resource.name.as_str(), &resource.state), ("a", &ResourceState::Pending));

    drop(requests);
    assert_eq!(next(&mut responses).await.expect("ends well"), None);
    assert!(running.service.proxies().is_empty());
    assert_eq!(running.service.totals()["cluster"], want, "remembered");
}

#[tokio::test]
async fn streams_end_with_the_reason() {
    let running = Running::start().await;
    let named = |names: usize| DiscoveryRequest {
        resource_names: (0..names).map(|name| name.to_string()).collect(),
        ..first("orders.shop")
    };
    for (case, request, code, reason) in [
        (
            "no node",
            DiscoveryRequest { node: None, ..named(1) },
            Code::InvalidArgument,
            "the first request has no node",
        ),
        (
            "another's node",
            first("web.shop"),
            Code::PermissionDenied,
            "the certificate is Some(\"orders.shop\")'s",
        ),
        (
            "no type",
            DiscoveryRequest { type_url: String::new(), ..named(1) },
            Code::InvalidArgument,
            "type_url is empty",
        ),
        ("too many names", named(4), Code::ResourceExhausted, "got 4, want at most 3"),
    ] {
        let (requests, mut responses) = running.sotw().await;
        requests.send(request).await.expect("open");
        let status = next(&mut responses).await.expect_err(case);
        assert_eq!(status.code(), code, "{case}");
        assert!(status.message().contains(reason), "{case}: {status}");
    }
    let (requests, mut responses) = running.sotw().await;
    requests.send(first("orders.shop")).await.expect("open");
    next(&mut responses).await.expect("served");
    running.service.source.0.lock().expect("not poisoned").take();
    let status = next(&mut responses).await.expect_err("the registry stops");
    assert_eq!(status.code(), Code::Unavailable);
}
