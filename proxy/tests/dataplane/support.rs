//! Origins, clients and configurations for the tests.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pillion_model::cluster::{CircuitBreakers, Cluster, Discovery, LoadBalancing, UpstreamProtocol};
use pillion_model::endpoint::{Endpoint, HostAddress, LoadAssignment, LocalityEndpoints};
use pillion_model::health::Health;
use pillion_model::http::{HttpConnectionManager, RouteSource};
use pillion_model::listener::{Direction, FilterChain, FilterChainMatch, Listener, Terminal};
use pillion_model::mesh::Resources;
use pillion_model::route::{Forward, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost};
use pillion_net::tls::{NoSecrets, Secrets};
use pillion_proxy::{Options, Runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The whole answer to a request without a body.
pub(crate) async fn ask(address: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// What origins answer with.
pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// A body of this text.
pub(crate) fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

/// An HTTP server of both versions that answers by a function.
pub(crate) struct Origin {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Requests seen.
    pub(crate) seen: Arc<AtomicUsize>,
    _stop: tokio_util::sync::DropGuard,
}

impl Origin {
    /// Starts one.
    pub(crate) async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let stop = tokio_util::sync::CancellationToken::new();
        let (answer, counter, stopped) = (Arc::new(answer), Arc::clone(&seen), stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = stopped.run_until_cancelled(listener.accept()).await {
                let (answer, counter, stopped) = (Arc::clone(&answer), Arc::clone(&counter), stopped.clone());
                let service = service_fn(move |request| {
                    counter.fetch_add(1, SeqCst);
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                tokio::spawn(async move {
                    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    builder.http2().enable_connect_protocol();
                    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                    stopped.run_until_cancelled(serving).await;
                });
            }
        });
        Self { address, seen, _stop: stop.drop_guard() }
    }

    /// One that answers with its name.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::start(move |_request| async move { Response::new(text(name)) }).await
    }

    /// Requests seen.
    pub(crate) fn seen(&self) -> usize {
        self.seen.load(SeqCst)
    }
}

/// A static cluster of these endpoints.
pub(crate) fn cluster(name: &str, addresses: &[SocketAddr]) -> Cluster {
    let endpoints = addresses
        .iter()
        .map(|address| Endpoint {
            address: HostAddress::Socket(*address),
            hostname: String::new(),
            weight: 1,
            health: Health::Serving,
            labels: Default::default(),
            other_labels: Default::default(),
            transport: Default::default(),
        })
        .collect();
    Cluster {
        name: name.to_owned(),
        discovery: Discovery::Static(LoadAssignment {
            cluster: name.to_owned(),
            localities: vec![LocalityEndpoints { endpoints, ..Default::default() }],
            drops: Vec::new(),
            overprovisioning: 140,
        }),
        connect_timeout: Duration::from_secs(5),
        load_balancing: LoadBalancing::RoundRobin,
        slow_start: None,
        subsets: None,
        limits: CircuitBreakers::default(),
        limits_high: CircuitBreakers::default(),
        outlier_detection: None,
        health_check: None,
        panic_threshold_percent: 50,
        protocol: UpstreamProtocol::Http1,
        idle_timeout: Some(Duration::from_secs(3600)),
        requests_per_connection_max: 0,
        tls: None,
        transports: Vec::new(),
        destination: None,
    }
}

/// A route of this name for everything that `matches`.
pub(crate) fn route(name: &str, matches: RouteMatch, action: RouteAction) -> Route {
    Route { name: name.to_owned(), matches, action, headers: Default::default(), filters: Default::default() }
}

/// Forwards to `cluster`.
pub(crate) fn forward(cluster: &str) -> RouteAction {
    RouteAction::Forward(Box::new(Forward::to(cluster)))
}

/// One virtual host for every domain.
pub(crate) fn routes(routes: Vec<Route>) -> RouteConfiguration {
    RouteConfiguration {
        name: "routes".to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "all".to_owned(),
            domains: vec!["*".to_owned()],
            routes,
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

/// A connection manager over these routes.
pub(crate) fn manager(configuration: RouteConfiguration) -> HttpConnectionManager {
    HttpConnectionManager::new("test", RouteSource::Inline(configuration))
}

/// A listener on a free port with one chain.
pub(crate) fn listener(name: &str, terminal: Terminal) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some("127.0.0.1:0".parse().unwrap()),
        direction: Direction::Inbound,
        proxy_protocol: None,
        tls_inspector: false,
        original_dst: false,
        listener_filters_timeout: Duration::from_secs(15),
        filter_chains: vec![chain("main", terminal)],
        default_filter_chain: None,
        access_logs: Vec::new(),
        api_listener: None,
    }
}

/// A plaintext chain.
pub(crate) fn chain(name: &str, terminal: Terminal) -> FilterChain {
    FilterChain {
        name: name.to_owned(),
        matches: FilterChainMatch::default(),
        tls: None,
        rbac: Vec::new(),
        terminal,
    }
}

/// These listeners and clusters.
pub(crate) fn resources(listeners: Vec<Listener>, clusters: Vec<Cluster>) -> Resources {
    Resources {
        listeners: listeners.into_iter().map(|listener| (listener.name.clone(), listener)).collect(),
        clusters: clusters.into_iter().map(|cluster| (cluster.name.clone(), cluster)).collect(),
        ..Resources::default()
    }
}

/// A running proxy and where its only listener is.
pub(crate) struct Proxy {
    /// The proxy.
    pub(crate) runtime: Runtime,
    /// Its listener `main`.
    pub(crate) address: SocketAddr,
}

/// Knows no secrets.
pub(crate) fn no_secrets() -> Arc<dyn Secrets> {
    Arc::new(NoSecrets)
}

impl Proxy {
    /// Runs `resources`, which have a listener `main`.
    pub(crate) fn start(resources: Resources) -> Self {
        Self::start_with(resources, &no_secrets())
    }

    /// Runs `resources` with `secrets`.
    pub(crate) fn start_with(resources: Resources, secrets: &Arc<dyn Secrets>) -> Self {
        let options = Options {
            workers: NonZeroUsize::new(2).unwrap(),
            service: "me.test".to_owned(),
            ..Options::default()
        };
        let runtime = Runtime::start(&options).unwrap();
        let published = runtime.publish(resources, secrets);
        assert_eq!(published.rejected, []);
        let address = runtime.bound("main").unwrap();
        Self { runtime, address }
    }

    /// An HTTP listener `main` with these routes over these clusters.
    pub(crate) fn http(configuration: RouteConfiguration, clusters: Vec<Cluster>) -> Self {
        Self::manager(manager(configuration), clusters)
    }

    /// An HTTP listener `main` with this connection manager.
    pub(crate) fn manager(manager: HttpConnectionManager, clusters: Vec<Cluster>) -> Self {
        Self::start(resources(vec![listener("main", Terminal::Http(Box::new(manager)))], clusters))
    }

    /// Sends one GET.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let response = self.send(get(path)).await;
        let status = response.status().as_u16();
        (status, body_text(response).await)
    }

    /// Sends one request on a new HTTP/1.1 connection.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let mut client = self.client1().await;
        client.send_request(request).await.unwrap()
    }

    /// A new HTTP/1.1 connection.
    pub(crate) async fn client1(&self) -> http1::SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        client
    }

    /// A new HTTP/2 connection.
    pub(crate) async fn client2(&self) -> http2::SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (client, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

/// A GET request to host `test`.
pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "test").body(Full::default()).unwrap()
}

/// The body as text.
pub(crate) async fn body_text(response: Response<Incoming>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Waits until `condition` holds, and fails with `what` after ten seconds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
