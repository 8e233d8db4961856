//! The registry as a whole: what it is made of, in the order in which it comes up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pillion_net::grpc::{Serve, ServerSecurity};
use pillion_net::listen::{BindError, Reuse, bind_tcp};
use pillion_net::readiness::Readiness;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Auth, TOKEN_FILE, TokenFileError};
use crate::catalog::Catalog;
use crate::metrics::Metrics;
use crate::store::StoreError;
use crate::store::redb::RedbStore;
use crate::watch::Hub;

/// How to run a registry. Port 0 picks a free port; [`Running`] tells which.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything that must survive is kept.
    pub data_dir: PathBuf,
    /// The HTTP API. Default `127.0.0.1:7070`.
    pub api: SocketAddr,
    /// No token is asked for and certificates are given to everybody on loopback. For trials.
    pub open: bool,
    /// How long requests in flight may take when the registry stops. Default 5 s.
    pub grace: Duration,
}

impl Options {
    /// The defaults, with everything kept in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            api: SocketAddr::from(([127, 0, 0, 1], 7070)),
            open: false,
            grace: Duration::from_secs(5),
        }
    }
}

/// Why a registry did not start. Nothing of it is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operator's token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenFileError),
    /// `--open` beyond this machine.
    #[error(
        "--open answers anybody who asks, so it listens on loopback only; {0} is not: choose 127.0.0.1, or \
         leave --open out"
    )]
    OpenBeyondLoopback(SocketAddr),
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

/// A registry that runs. Dropping it stops it without waiting; see [`Running::stop`].
pub struct Running {
    /// Where the HTTP API listens.
    pub api_addr: SocketAddr,
    /// The operator's token file, unless the API is open.
    pub token_file: Option<PathBuf>,
    /// Whether the token was made by this start.
    pub token_is_new: bool,
    readiness: Readiness,
    catalog: Arc<Catalog>,
    serving: CancellationToken,
    background: CancellationToken,
    servers: TaskTracker,
    tasks: TaskTracker,
}

/// Starts a registry.
///
/// # Errors
///
/// [`StartError`] says what is in the way; nothing is left running then.
pub async fn start(options: Options) -> Result<Running, StartError> {
    if options.open && !options.api.ip().is_loopback() {
        return Err(StartError::OpenBeyondLoopback(options.api));
    }
    // Sockets first: a taken port is told before anything is written.
    let api_listener = listen("HTTP API", options.api, "--api")?;
    let readiness = Readiness::new();
    let catalog_ready = readiness.part("catalog");

    let store = open_store(&options.data_dir).await?;
    let (auth, token_is_new) = match options.open {
        true => (Auth::Open, false),
        false => Auth::operator(&options.data_dir)?,
    };
    let catalog = Catalog::open(store).await?;
    let hub = Hub::new(&catalog.world());
    let metrics = Arc::new(Metrics::new());

    let (serving, background) = (CancellationToken::new(), CancellationToken::new());
    let (servers, tasks) = (TaskTracker::new(), TaskTracker::new());
    let (following, stop) = (Arc::clone(&catalog), background.clone());
    tasks.spawn(async move { following.follow(stop).await });
    let (keeping, stop) = (Arc::clone(&catalog), background.clone());
    tasks.spawn(async move { keeping.keep(stop).await });
    let (watched, telling, stop) = (Arc::clone(&catalog), Arc::clone(&hub), background.clone());
    tasks.spawn(async move { telling.run(&watched, stop).await });

    let parts = api::Parts {
        catalog: Arc::clone(&catalog),
        hub,
        metrics,
        readiness: readiness.clone(),
        stop: serving.clone(),
    };
    let api_addr = address(&api_listener)?;
    let mut api = Serve::new("HTTP API", ServerSecurity::Plaintext, api::router(parts, auth));
    api.grace = options.grace;
    servers.spawn(api.run(api_listener, serving.clone()));
    drop(catalog_ready);

    let token_file = (!options.open).then(|| options.data_dir.join(TOKEN_FILE));
    Ok(Running {
        api_addr,
        token_file,
        token_is_new,
        readiness,
        catalog,
        serving,
        background,
        servers,
        tasks,
    })
}

impl Running {
    /// Waits until every part is up.
    pub async fn ready(&self) {
        self.readiness.ready().await;
    }

    /// The catalog, for tests and for whoever runs a registry inside another process.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Stops: not ready any more, requests in flight are given their time, and the store is closed
    /// with everything acknowledged in it.
    pub async fn stop(self) {
        self.readiness.leave();
        self.serving.cancel();
        self.servers.close();
        self.servers.wait().await;
        self.background.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.cancel();
        self.background.cancel();
    }
}

/// Checks and opens the store on a thread that may wait for the disk.
async fn open_store(directory: &Path) -> Result<Arc<RedbStore>, StartError> {
    let directory = directory.to_owned();
    let opened = tokio::task::spawn_blocking(move || RedbStore::open(&directory)).await;
    match opened {
        Ok(store) => Ok(Arc::new(store?)),
        Err(error) => Err(StoreError::Unavailable(error.to_string()).into()),
    }
}

fn listen(name: &str, address: SocketAddr, flag: &str) -> Result<TcpListener, StartError> {
    let socket = bind_tcp(name, address, Reuse::Exclusive).map_err(|error| error.with_flag(flag))?;
    TcpListener::from_std(socket).map_err(|source| StartError::Io { what: "use the socket", source })
}

fn address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Io { what: "read the socket's address", source })
}
