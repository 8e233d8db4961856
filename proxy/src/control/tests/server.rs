//! The whole client over TCP, against the server that the registry runs.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pillion_model::mesh::Resources;
use pillion_model::name::SpiffeId;
use pillion_xds::ads::server::Limits;
use pillion_xds::ads::{AdsService, Encoded, NodeInfo, PILLION_USER_AGENT, Source, Variant, View};
use pillion_xds::type_url::{CLUSTER, LISTENER, ROUTE, SERVICE};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Server};

use super::fixture::{self, mesh};
use crate::control::{Control, Lookup, ON_DEMAND_MAX, Options, Status, saved, start_with};

/// Everything here happens within this.
const DEADLINE: Duration = Duration::from_secs(20);

type Texts = BTreeMap<(String, String), String>;

struct Shelf(Texts);

impl View for Shelf {
    fn all(&self, type_url: &str) -> Vec<Arc<Encoded>> {
        let own = self.0.keys().filter(|(url, name)| url == type_url && name.starts_with("inbound"));
        own.filter_map(|(url, name)| self.find(url, name)).collect()
    }

    fn find(&self, type_url: &str, name: &str) -> Option<Arc<Encoded>> {
        let text = self.0.get(&(type_url.to_owned(), name.to_owned()))?;
        Some(Arc::new(Encoded::new(type_url, name, text.clone().into_bytes())))
    }
}

/// One view for all nodes, as long as the registry runs.
struct Mesh(Mutex<Option<watch::Sender<Arc<dyn View>>>>);

impl Source for Mesh {
    type Feed = watch::Receiver<Arc<dyn View>>;

    fn open(&self, node: &NodeInfo, _peer: Option<&SpiffeId>) -> Result<Self::Feed, tonic::Status> {
        match node.id.as_str() {
            "shop/web/a" => {
                let views = self.0.lock().expect("not poisoned");
                views
                    .as_ref()
                    .map(watch::Sender::subscribe)
                    .ok_or_else(|| tonic::Status::unavailable("stopping"))
            }
            other => Err(tonic::Status::permission_denied(format!("node {other:?} is not yours"))),
        }
    }
}

struct Registry {
    address: SocketAddr,
    mesh: Arc<Mesh>,
    service: AdsService<Mesh>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Registry {
    async fn start(address: SocketAddr, texts: Texts) -> Self {
        let listener = TcpListener::bind(address).await.expect("bound");
        let address = listener.local_addr().expect("bound above");
        let view: Arc<dyn View> = Arc::new(Shelf(texts));
        let mesh = Arc::new(Mesh(Mutex::new(Some(watch::channel(view).0))));
        let service = AdsService::new(Arc::clone(&mesh), "registry-1", Limits::default());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let server = Server::builder().add_service(service.clone().into_server());
        let stopped = stop.clone().cancelled_owned();
        let incoming = TcpListenerStream::new(listener);
        tasks.spawn(
            async move { server.serve_with_incoming_shutdown(incoming, stopped).await.expect("served") },
        );
        Self { address, mesh, service, stop, tasks }
    }

    fn set(&self, texts: Texts) {
        let views = self.mesh.0.lock().expect("not poisoned");
        views.as_ref().expect("running").send_replace(Arc::new(Shelf(texts)));
    }

    async fn stop(self) {
        drop(self.mesh.0.lock().expect("not poisoned").take());
        self.stop.cancel();
        self.tasks.close();
        timeout(DEADLINE, self.tasks.wait()).await.expect("every stream ends with its view");
    }
}

struct Sidecar {
    control: Control,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Sidecar {
    fn start(registry: SocketAddr, state_dir: Option<PathBuf>) -> Self {
        Self::start_as("shop/web/a", registry, state_dir)
    }

    fn start_as(id: &str, registry: SocketAddr, state_dir: Option<PathBuf>) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let node = NodeInfo { id: id.into(), user_agent: PILLION_USER_AGENT.into(), ..NodeInfo::default() };
        let options = Options {
            node,
            state_dir,
            on_demand_max: ON_DEMAND_MAX,
            routes: Vec::new(),
            pinned: vec!["pinned.".into()],
            identity: None,
            stop: stop.clone(),
        };
        let connect =
            move || async move { Ok(Channel::from_shared(format!("http://{registry}"))?.connect().await?) };
        let control = start_with(options, connect, &tasks, Arc::new(fixture::read));
        Self { control, stop, tasks }
    }

    async fn until(&self, what: &str, is_met: impl Fn(&Resources) -> bool) -> Arc<Resources> {
        let mut resources = self.control.resources();
        match timeout(DEADLINE, resources.wait_for(|now| is_met(now))).await {
            Ok(met) => Arc::clone(&met.expect("running")),
            Err(_elapsed) => {
                panic!("{what}: {:#?}, {:?}", *self.control.resources.borrow(), *self.control.status.borrow())
            }
        }
    }

    async fn until_status(&self, what: &str, is_met: impl Fn(&Status) -> bool) -> Status {
        let mut status = self.control.status();
        match timeout(DEADLINE, status.wait_for(|now| is_met(now))).await {
            Ok(met) => met.expect("running").clone(),
            Err(_elapsed) => panic!("{what}: {:?}", *self.control.status.borrow()),
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        timeout(DEADLINE, self.tasks.wait()).await.expect("every task ends");
    }
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

#[tokio::test]
async fn a_sidecar_learns_services_when_it_asks_and_follows_their_changes() {
    let registry = Registry::start(any_port(), mesh(&["web.shop", "pinned"])).await;
    let sidecar = Sidecar::start(registry.address, None);
    sidecar.until_status("own configuration", |status| status.connected && status.synced).await;
    sidecar.until("declared dependencies come unasked", |now| now.services.contains_key("pinned")).await;

    let Lookup::Service(service) = sidecar.control.lookup("Web.shop.").await else {
        panic!("the service exists");
    };
    assert_eq!(*service, fixture::service("r-web.shop", &["c-web.shop"]));
    let now = sidecar.control.resources().borrow().clone();
    assert_eq!(now.listeners.keys().collect::<Vec<_>>(), ["inbound"]);
    assert!(now.routes.contains_key("r-web.shop") && now.endpoints.contains_key("c-web.shop"), "{now:#?}");

    assert_eq!(sidecar.control.lookup("later.shop").await, Lookup::NxDomain);
    assert_eq!(sidecar.control.lookup("10.0.0.1").await, Lookup::NxDomain, "nobody is asked");
    registry.set(mesh(&["web.shop", "later.shop"]));
    sidecar.until("creation is pushed", |now| now.services.contains_key("later.shop")).await;
    assert!(matches!(sidecar.control.lookup("later.shop").await, Lookup::Service(_)));
    registry.set(mesh(&["later.shop"]));
    let now = sidecar.until("deletion is pushed", |now| !now.services.contains_key("web.shop")).await;
    assert!(!now.services.contains_key("pinned"));
    assert_eq!(sidecar.control.lookup("web.shop").await, Lookup::NxDomain);

    let proxies = registry.service.proxies();
    assert_eq!(
        (proxies.len(), proxies[0].node.id.as_str(), proxies[0].variant),
        (1, "shop/web/a", Variant::Delta)
    );
    let names = |url: &str| proxies[0].types.iter().find(|kind| kind.type_url == url).map(|kind| kind.names);
    assert_eq!((names(SERVICE), names(ROUTE)), (Some(3), Some(1)));
    sidecar.stop().await;
    registry.stop().await;
}

#[tokio::test]
async fn what_is_refused_is_reported_on_both_sides_and_the_last_good_version_stays() {
    let registry = Registry::start(any_port(), mesh(&["web.shop"])).await;
    let sidecar = Sidecar::start(registry.address, None);
    assert!(matches!(sidecar.control.lookup("web.shop").await, Lookup::Service(_)));
    let mut texts = mesh(&["web.shop", "new.shop"]);
    texts.insert((ROUTE.into(), "r-web.shop".into()), "bad".into());
    registry.set(texts);
    let status = sidecar.until_status("refused", |status| status.nacks == 1).await;
    assert_eq!(status.last_nack, Some(format!("{ROUTE}: r-web.shop: port: got 0, want 1 to 65535")));
    assert!(matches!(sidecar.control.lookup("new.shop").await, Lookup::Service(_)), "the stream goes on");
    assert!(sidecar.control.resources().borrow().routes.contains_key("r-web.shop"));
    let nacks = || registry.service.totals().get("route").map(|totals| totals.nacks);
    assert_eq!(nacks(), Some(1));
    sidecar.stop().await;
    registry.stop().await;
}

#[tokio::test]
async fn a_registry_may_go_and_come_back_while_the_sidecar_serves_on() {
    let registry = Registry::start(any_port(), mesh(&["web.shop"])).await;
    let address = registry.address;
    let sidecar = Sidecar::start(address, None);
    assert!(matches!(sidecar.control.lookup("web.shop").await, Lookup::Service(_)));
    registry.stop().await;
    let status = sidecar.until_status("lost", |status| !status.connected).await;
    assert!(status.last_error.is_some() && status.synced);
    assert!(matches!(sidecar.control.lookup("web.shop").await, Lookup::Service(_)), "known names stay known");
    assert_eq!(sidecar.control.lookup("other.shop").await, Lookup::Timeout, "nobody can be asked");

    let registry = Registry::start(address, mesh(&["web.shop", "other.shop"])).await;
    sidecar.until("asked again", |now| now.services.contains_key("other.shop")).await;
    let now = sidecar.control.resources().borrow().clone();
    assert!(now.services.contains_key("web.shop") && now.listeners.contains_key("inbound"));
    registry.set(mesh(&["other.shop"]));
    sidecar.until("changes arrive again", |now| !now.services.contains_key("web.shop")).await;
    sidecar.stop().await;
    registry.stop().await;
}

#[tokio::test]
async fn a_sidecar_that_starts_during_an_outage_serves_what_it_had() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let registry = Registry::start(any_port(), mesh(&["web.shop"])).await;
    let address = registry.address;
    let state_dir = Some(dir.path().to_owned());
    let sidecar = Sidecar::start(address, state_dir.clone());
    sidecar.until_status("own configuration", |status| status.synced).await;
    assert!(matches!(sidecar.control.lookup("web.shop").await, Lookup::Service(_)));
    sidecar.stop().await;
    registry.stop().await;

    let sidecar = Sidecar::start(address, state_dir.clone());
    let now = sidecar.control.resources().borrow().clone();
    assert!(now.listeners.contains_key("inbound") && now.clusters.contains_key("inbound|http"), "{now:#?}");
    assert!(matches!(sidecar.control.lookup("web.shop").await, Lookup::Service(_)));
    let status = sidecar.until_status("lost", |status| status.last_error.is_some()).await;
    assert_eq!((status.restored, status.synced, status.connected), (6, true, false));

    // Nothing travels again but what changed: one more endpoint-less service, one service less.
    let registry = Registry::start(address, mesh(&["web.shop"])).await;
    sidecar.until_status("back", |status| status.connected && status.last_update.is_some()).await;
    assert_eq!(sidecar.control.lookup("gone.shop").await, Lookup::NxDomain);
    let pushes = registry.service.totals();
    assert_eq!(pushes.get("route").map_or(0, |it| it.pushes), 0, "held by version: {pushes:?}");
    assert_eq!(pushes.get("endpoints").map_or(0, |it| it.pushes), 0, "held by version: {pushes:?}");
    sidecar.stop().await;
    registry.stop().await;

    fs::write(dir.path().join(saved::FILE), "garbage").expect("written");
    let sidecar = Sidecar::start(address, state_dir);
    let status = sidecar.until_status("reported", |status| status.state_file_error.is_some()).await;
    assert!(status.state_file_error.expect("met above").contains("is damaged"));
    assert!(sidecar.control.resources().borrow().listeners.is_empty());
    sidecar.stop().await;
}

#[tokio::test]
async fn a_stream_the_registry_refuses_is_reported_with_its_reason() {
    let registry = Registry::start(any_port(), mesh(&[])).await;
    let sidecar = Sidecar::start_as("shop/other/a", registry.address, None);
    let status = sidecar.until_status("refused", |status| status.last_error.is_some()).await;
    let error = status.last_error.expect("met above");
    assert!(error.contains("node \"shop/other/a\" is not yours"), "{error}");
    assert!(registry.service.proxies().is_empty());
    let own = [LISTENER, CLUSTER].map(pillion_xds::type_url::label);
    assert!(own.iter().all(|label| !registry.service.totals().contains_key(label)));
    sidecar.stop().await;
    registry.stop().await;
}
