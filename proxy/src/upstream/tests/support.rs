//! Origins on loopback, and clusters that point at them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pillion_model::cluster::{
    CircuitBreakers, Cluster as Config, Discovery, LoadBalancing, UpstreamProtocol,
};
use pillion_model::endpoint::{Endpoint, HostAddress, LoadAssignment, Locality, LocalityEndpoints};
use pillion_model::health::Health;
use pillion_net::tls::{NoSecrets, Secrets};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::Notify;

use crate::body::Body;
use crate::upstream::{Attempt, Cluster, Clusters, Failure, Pools, Sent};

/// Runs a test on a worker-like runtime.
pub(in crate::upstream) fn on_worker<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build_local(LocalOptions::default()).expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test ends within 20 s")
    })
}

/// A configuration with Envoy's defaults.
pub(in crate::upstream) fn config(name: &str) -> Config {
    Config {
        name: name.to_owned(),
        discovery: Discovery::Eds { service_name: String::new() },
        connect_timeout: Duration::from_secs(5),
        load_balancing: LoadBalancing::Ewma,
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

/// An endpoint that serves.
pub(in crate::upstream) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint {
        address: HostAddress::Socket(address),
        hostname: String::new(),
        weight: 1,
        health: Health::Serving,
        labels: Default::default(),
        other_labels: Default::default(),
        transport: Default::default(),
    }
}

/// One locality with these endpoints.
pub(in crate::upstream) fn assignment(addresses: &[SocketAddr]) -> LoadAssignment {
    LoadAssignment {
        cluster: String::new(),
        localities: vec![LocalityEndpoints {
            locality: Locality::default(),
            weight: None,
            priority: 0,
            endpoints: addresses.iter().copied().map(endpoint).collect(),
        }],
        drops: Vec::new(),
        overprovisioning: 140,
    }
}

/// A process with one worker.
pub(in crate::upstream) struct Proxy {
    pub(in crate::upstream) clusters: Arc<Clusters>,
    pub(in crate::upstream) pools: Pools,
}

impl Proxy {
    pub(in crate::upstream) fn new() -> Self {
        let clusters = Arc::new(Clusters::new());
        Self { pools: Pools::new(Arc::clone(&clusters)), clusters }
    }

    /// Applies one cluster.
    pub(in crate::upstream) fn cluster(&self, config: Config, addresses: &[SocketAddr]) -> Arc<Cluster> {
        self.secured(config, assignment(addresses), &NoSecrets)
    }

    /// Applies one cluster with its endpoints and secrets.
    pub(in crate::upstream) fn secured(
        &self,
        config: Config,
        endpoints: LoadAssignment,
        secrets: &dyn Secrets,
    ) -> Arc<Cluster> {
        let name = config.name.clone();
        let endpoints = BTreeMap::from([(name.clone(), endpoints)]);
        let clusters = BTreeMap::from([(name.clone(), config)]);
        let (map, rejected) = self.clusters.apply(&clusters, &endpoints, secrets);
        assert_eq!(rejected, []);
        Arc::clone(&map[&name])
    }

    pub(in crate::upstream) async fn get(&self, cluster: &Arc<Cluster>) -> Result<Sent, Failure> {
        self.pools.send(cluster, &mut Attempt::default(), &mut get("/")).await
    }

    /// Sends a GET and reads the answer to its end.
    pub(in crate::upstream) async fn text(&self, cluster: &Arc<Cluster>) -> String {
        read(self.get(cluster).await.expect("an answer")).await
    }
}

pub(in crate::upstream) fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "test").body(Body::Empty).expect("a request")
}

pub(in crate::upstream) async fn read(sent: Sent) -> String {
    let bytes = sent.response.into_body().collect().await.expect("a whole body").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Waits until `done`, with other tasks running meanwhile.
pub(in crate::upstream) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "still waiting until {what}");
        tokio::task::yield_now().await;
    }
}

/// What an origin has seen.
#[derive(Default)]
pub(in crate::upstream) struct Seen {
    pub(in crate::upstream) connections: Cell<usize>,
    pub(in crate::upstream) requests: RefCell<Vec<http::request::Parts>>,
    /// Tells the HTTP/2 connections to go away.
    pub(in crate::upstream) goaway: Notify,
}

/// An HTTP/1 origin that answers what `answer` says.
pub(in crate::upstream) async fn http1_origin<F, R>(answer: F) -> (SocketAddr, Rc<Seen>)
where
    F: Fn(Request<Incoming>) -> R + Clone + 'static,
    R: Future<Output = Response<Full<Bytes>>> + 'static,
{
    let seen = Rc::new(Seen::default());
    let note = Rc::clone(&seen);
    let address = origin(move |stream| {
        note.connections.set(note.connections.get() + 1);
        let (note, answer) = (Rc::clone(&note), answer.clone());
        async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (parts, body) = request.into_parts();
                note.requests.borrow_mut().push(parts.clone());
                let answer = answer(Request::from_parts(parts, body));
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        }
    })
    .await;
    (address, seen)
}

/// An HTTP/2 origin by prior knowledge; `setup` adjusts each connection, `answer` answers.
pub(in crate::upstream) async fn http2_origin<S, F, R>(setup: S, answer: F) -> (SocketAddr, Rc<Seen>)
where
    S: Fn(&mut hyper::server::conn::http2::Builder<Local>) + 'static,
    F: Fn(Request<Incoming>) -> R + Clone + 'static,
    R: Future<Output = Response<Full<Bytes>>> + 'static,
{
    let seen = Rc::new(Seen::default());
    let note = Rc::clone(&seen);
    let address = origin(move |stream| {
        note.connections.set(note.connections.get() + 1);
        let (note, answer) = (Rc::clone(&note), answer.clone());
        let mut builder = hyper::server::conn::http2::Builder::new(Local);
        builder.timer(TokioTimer::new());
        setup(&mut builder);
        async move {
            let goaway = Rc::clone(&note);
            let service = service_fn(move |request: Request<Incoming>| {
                let (parts, body) = request.into_parts();
                note.requests.borrow_mut().push(parts.clone());
                let answer = answer(Request::from_parts(parts, body));
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                _ = &mut connection => return,
                () = goaway.goaway.notified() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }
    })
    .await;
    (address, seen)
}

/// Runs hyper's tasks on the test's thread.
#[derive(Clone, Copy)]
pub(in crate::upstream) struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Accepts connections and runs `serve` on each.
pub(in crate::upstream) async fn origin<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound above");
    tokio::task::spawn_local(async move {
        while let Ok((stream, _peer)) = listener.accept().await {
            tokio::task::spawn_local(serve(stream));
        }
    });
    address
}

pub(in crate::upstream) fn ok(text: &'static str) -> Response<Full<Bytes>> {
    Response::new(Full::from(text))
}
