//! A control plane in the test: what each node may see is set, and can be cut off.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pillion_model::name::SpiffeId;
use pillion_tests::support::DEADLINE;
use pillion_xds::ads::server::{Limits, TypeStatus};
use pillion_xds::ads::{AdsService, Encoded, NodeInfo, Source, View};
use pillion_xds::json::any_from_json;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// What every node may see.
#[derive(Default)]
pub(crate) struct World(Mutex<BTreeMap<String, watch::Sender<Arc<dyn View>>>>);

/// Resources by type and name.
#[derive(Default)]
struct Shelf(BTreeMap<String, BTreeMap<String, Arc<Encoded>>>);

impl View for Shelf {
    fn all(&self, type_url: &str) -> Vec<Arc<Encoded>> {
        self.0.get(type_url).map(|all| all.values().cloned().collect()).unwrap_or_default()
    }

    fn find(&self, type_url: &str, name: &str) -> Option<Arc<Encoded>> {
        self.0.get(type_url)?.get(name).cloned()
    }
}

impl World {
    fn views(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Arc<dyn View>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a node these resources, and nothing else.
    pub(crate) fn set(&self, node: &str, resources: &[Value]) {
        let mut shelf = Shelf::default();
        for resource in resources {
            let any = any_from_json(resource).expect("a resource of Envoy's API");
            let name =
                resource["name"].as_str().or_else(|| resource["cluster_name"].as_str()).expect("a name");
            let encoded = Encoded::new(&any.type_url, name, any.value);
            let of_type = shelf.0.entry(encoded.body.type_url.clone()).or_default();
            of_type.insert(name.to_owned(), Arc::new(encoded));
        }
        let view: Arc<dyn View> = Arc::new(shelf);
        self.views().entry(node.to_owned()).or_insert_with(empty).send_replace(view);
    }

    /// Ends the streams of a node; it may come back.
    pub(crate) fn cut(&self, node: &str) {
        let mut views = self.views();
        let view = views
            .get(node)
            .map(|views| Arc::clone(&views.borrow()))
            .expect("a node that was shown something");
        views.insert(node.to_owned(), watch::Sender::new(view));
    }
}

fn empty() -> watch::Sender<Arc<dyn View>> {
    watch::Sender::new(Arc::new(Shelf::default()))
}

/// What the service asks.
struct Views(Arc<World>);

impl Source for Views {
    type Feed = watch::Receiver<Arc<dyn View>>;

    fn open(&self, node: &NodeInfo, _peer: Option<&SpiffeId>) -> Result<Self::Feed, tonic::Status> {
        Ok(self.0.views().entry(node.id.clone()).or_insert_with(empty).subscribe())
    }
}

/// A server that runs.
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    service: AdsService<Views>,
    /// Of its own, so that its connections end with it.
    runtime: Option<Runtime>,
}

impl ControlPlane {
    /// Serves `world` at `address`.
    pub(crate) fn start(address: SocketAddr, world: &Arc<World>) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("the port is free");
        listener.set_nonblocking(true).expect("a socket takes it");
        let service = AdsService::new(Arc::new(Views(Arc::clone(world))), "test", Limits::default());
        let server = Server::builder().add_service(service.clone().into_server());
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("it does not block");
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("served");
        });
        Self { address, service, runtime: Some(runtime) }
    }

    /// Ends it at once, with its connections, as a crash would.
    pub(crate) async fn kill(&mut self, world: &World) {
        if let Some(runtime) = self.runtime.take() {
            let ended = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(DEADLINE));
            ended.await.expect("it ends");
        }
        let nodes: Vec<String> = world.views().keys().cloned().collect();
        nodes.iter().for_each(|node| world.cut(node));
    }

    /// What a node has said of a type.
    pub(crate) fn status(&self, node: &str, type_url: &str) -> Option<TypeStatus> {
        let proxies = self.service.proxies();
        let of_node = proxies.into_iter().filter(|proxy| proxy.node.id == node);
        of_node.flat_map(|proxy| proxy.types).find(|status| status.type_url == type_url)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
