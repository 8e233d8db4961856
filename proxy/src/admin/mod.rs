//! The pages for operators: configuration, clusters, certificates, readiness, metrics.
//!
//! Served by a thread of their own over plain HTTP/1.1. The admin port belongs on loopback: it can
//! drain the proxy. The metrics port shows metrics and health only.

mod envoy;
mod pages;
mod stats;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pillion_net::listen::{Reuse, bind_tcp, pause_accept};
use pillion_net::readiness::Readiness;
use pillion_net::tls::Secrets;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dynamic;
use crate::metrics::Scrape;
use crate::runtime::StartError;
use crate::snapshot::Snapshot;
use crate::worker::{Command, Shared};

/// Changes the log filter; the error says what is wrong with it.
pub type SetLogFilter = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Gives the secrets of the moment.
pub type CurrentSecrets = Arc<dyn Fn() -> Option<Arc<dyn Secrets>> + Send + Sync>;

/// Gives what `/names` shows.
pub type ShowNames = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What pages show of dynamic resources.
#[derive(Clone)]
pub struct Discovery(pub(crate) Arc<dynamic::Shared>);

/// What is served where.
#[derive(Clone, Default)]
pub struct AdminOptions {
    /// Every page; loopback only. `None`: not served.
    pub admin: Option<SocketAddr>,
    /// `/metrics`, `/ready`, `/live`. `None`: not served.
    pub metrics: Option<SocketAddr>,
    /// What `/ready` says.
    pub readiness: Readiness,
    /// Cancelled by `POST /drain`: whoever started the proxy drains it.
    pub drain: CancellationToken,
    /// Cancelled when the drain is over: `POST /drain?wait=true` is answered then.
    pub drained: CancellationToken,
    /// `/logging?level=`; `None`: not offered.
    pub set_log_filter: Option<SetLogFilter>,
    /// What `/certs` shows.
    pub secrets: Option<CurrentSecrets>,
    /// What `/names` shows, once there are any.
    pub names: Arc<OnceLock<ShowNames>>,
    /// Dynamic resources of a bootstrap.
    pub discovery: Option<Discovery>,
}

/// What pages read of the data plane.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) scrape: Scrape,
    pub(crate) shared: Arc<Shared>,
    /// What workers are told with.
    pub(crate) workers: Arc<[UnboundedSender<Command>]>,
    pub(crate) started: Instant,
    pub(crate) discovery: Option<Discovery>,
}

/// The running admin thread; dropping it ends it.
pub struct Admin {
    /// Where the admin pages are.
    pub admin: Option<SocketAddr>,
    /// Where the metrics are.
    pub metrics: Option<SocketAddr>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// Which pages a port shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    All,
    Metrics,
}

/// What every page needs.
struct State {
    options: AdminOptions,
    view: View,
}

impl Admin {
    /// Binds and starts.
    pub(crate) fn start(options: AdminOptions, view: View) -> Result<Self, StartError> {
        let bind = |name, flag, address: Option<SocketAddr>| {
            let bound = address.map(|address| bind_tcp(name, address, Reuse::Exclusive)).transpose();
            bound.map_err(|error| error.with_flag(flag))
        };
        let admin = bind("admin listener", "--admin", options.admin)?;
        let metrics = bind("metrics listener", "--metrics", options.metrics)?;
        let address = |socket: &Option<std::net::TcpListener>| socket.as_ref()?.local_addr().ok();
        let stop = CancellationToken::new();
        let (stopped, state) = (stop.clone(), Arc::new(State { options, view }));
        let (admin_address, metrics_address) = (address(&admin), address(&metrics));
        let failed = |source: io::Error| StartError::Thread { name: "admin".to_owned(), source };
        let thread = std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                    Ok(runtime) => runtime.block_on(run(state, admin, metrics, stopped)),
                    Err(error) => tracing::error!(%error, "the admin thread cannot start its runtime"),
                }
            })
            .map_err(failed)?;
        Ok(Self { admin: admin_address, metrics: metrics_address, stop, thread: Some(thread) })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(
    state: Arc<State>,
    admin: Option<std::net::TcpListener>,
    metrics: Option<std::net::TcpListener>,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    for (socket, pages) in [(admin, Pages::All), (metrics, Pages::Metrics)] {
        let Some(socket) = socket else { continue };
        match tokio::net::TcpListener::from_std(socket) {
            Ok(socket) => {
                let serving = accept(Arc::clone(&state), socket, pages, stop.clone(), tasks.clone());
                tasks.spawn_local(serving);
            }
            Err(error) => tracing::error!(%error, "admin pages cannot be served"),
        }
    }
    stop.cancelled().await;
    tasks.close();
    tasks.wait().await;
}

async fn accept(
    state: Arc<State>,
    socket: tokio::net::TcpListener,
    pages: Pages,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    while let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
        match accepted {
            Ok((stream, _)) if tasks.len() < CONNECTIONS_MAX => {
                let (state, stop) = (Arc::clone(&state), stop.clone());
                tasks.spawn_local(async move {
                    let service = service_fn(|request| {
                        let response = pages::answer(&state, pages, &request);
                        let drained = pages::waits(pages, &request).then(|| state.options.drained.clone());
                        async move {
                            if let Some(drained) = drained {
                                drained.cancelled().await;
                            }
                            Ok::<_, Infallible>(response)
                        }
                    });
                    let mut builder = http1::Builder::new();
                    builder.timer(TokioTimer::new());
                    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
                    if stop.run_until_cancelled(serving.as_mut()).await.is_none() {
                        serving.as_mut().graceful_shutdown();
                        let _cut = tokio::time::timeout(LAST_ANSWERS, serving).await;
                    }
                });
            }
            Ok((stream, _)) => drop(stream),
            Err(error) => pause_accept(&error).await,
        }
    }
}

/// How long answers may take to leave when the proxy ends, such as the one to a drain.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Connections to both ports at once.
const CONNECTIONS_MAX: usize = 256;
