//! The registry as a whole: what it is made of, in the order in which it comes up.

use std::fs::File;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pillion_model::name::{NameError, TrustDomain};
use pillion_model::tls::{ALL_ROOTS_SECRET, Certificate, DownstreamTls, Roots, SVID_SECRET, TlsVersion};
use pillion_net::grpc::{Serve, ServerSecurity};
use pillion_net::identity::{self, IdentityWatch};
use pillion_net::listen::{BindError, Reuse, bind_tcp};
use pillion_net::readiness::Readiness;
use pillion_net::resolve::Target;
use pillion_net::tls::{ServerTls, mesh_server_context};
use pillion_xds::ads::server::Limits;
use pillion_xds::ads::{AdsService, LoadReports};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Auth, TOKEN_FILE, TokenFileError};
use crate::attest::{Attestation, SettingsError};
use crate::audit::Audit;
use crate::ca::{
    Authority, CaError, CaFiles, IdentityService, RegistryNames, Seal, SealError, Settings, keep_identity,
    keep_roots, write_roots,
};
use crate::catalog::Catalog;
use crate::control::Control;
use crate::federation::{self, Federations, Publishing};
use crate::metrics::Metrics;
use crate::registration::RegistrationService;
use crate::store::{self, Engine, EngineTls, OpenError, Opened, StoreError, StoreOptions};
use crate::watch::Hub;

mod dns;
mod mesh;

pub(crate) use mesh::live;

/// The mesh's root certificates, PEM, for clients on the same machine.
pub const ROOTS_FILE: &str = "roots.pem";

/// How to run a registry. Port 0 picks a free port; [`Running`] tells which.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything that must survive is kept, unless it is in etcd.
    pub data_dir: PathBuf,
    /// The store's engine. Default: a file in the data directory.
    pub store: Engine,
    /// For the way to etcd.
    pub store_tls: EngineTls,
    /// The HTTP API: plaintext on loopback, TLS elsewhere. Default `127.0.0.1:7070`.
    pub api: SocketAddr,
    /// gRPC for proxies, over mutual TLS. Default `127.0.0.1:7071`.
    pub mesh: SocketAddr,
    /// DNS, UDP and TCP. Default `127.0.0.1:7053`.
    pub dns: SocketAddr,
    /// Our bundle and exports for other meshes, over TLS. Default: nowhere.
    pub federation: Option<SocketAddr>,
    /// How many answers over UDP one network gets. Default 1000 a second, loopback as many as it wants.
    pub dns_limit: DnsLimit,
    /// Resolvers that are asked for names of other zones, all of them, the first answer wins. Default:
    /// none, such names are refused.
    pub dns_forward: Vec<SocketAddr>,
    /// Names and addresses by which others call this registry; they go into its certificate.
    pub advertise: Vec<Target>,
    /// No token is asked for and certificates are given to everybody on loopback. For trials.
    pub open: bool,
    /// The trust domain of identities, fixed by the first start. Default `mesh.internal`.
    pub trust_domain: Option<TrustDomain>,
    /// How long a certificate is good. Default 24 h.
    pub certificate_lifetime: Duration,
    /// The authority, if others look after it. Default: this mesh makes its own and keeps it in the store.
    pub ca_files: Option<CaFiles>,
    /// The file that says which proofs are taken beside join tokens. Default: none.
    pub attestation: Option<PathBuf>,
    /// The file with the key that seals those of the roots in the store. Default: they are not sealed.
    pub seal_key_file: Option<PathBuf>,
    /// Where changes and refusals are written, `-` for standard output. Default: nowhere.
    pub audit_log: Option<PathBuf>,
    /// How long requests in flight may take when the registry stops. Default 5 s.
    pub grace: Duration,
}

impl Options {
    /// The defaults, with everything kept in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            data_dir: data_dir.into(),
            store: Engine::default(),
            store_tls: EngineTls::default(),
            api: loopback(7070),
            mesh: loopback(7071),
            dns: loopback(7053),
            federation: None,
            dns_limit: DnsLimit { answers_per_second: NonZeroU32::new(1000), loopback: false },
            dns_forward: Vec::new(),
            advertise: Vec::new(),
            open: false,
            trust_domain: None,
            certificate_lifetime: Settings::default().leaf_lifetime,
            ca_files: None,
            attestation: None,
            seal_key_file: None,
            audit_log: None,
            grace: Duration::from_secs(5),
        }
    }
}

/// The limit on answers over UDP to one network (/24 of IPv4, /56 of IPv6), whose source addresses
/// may be forged. Beyond it, clients are told to use TCP; those that show a DNS cookie are not counted.
#[derive(Clone, Copy, Debug)]
pub struct DnsLimit {
    /// `None`: no limit.
    pub answers_per_second: Option<NonZeroU32>,
    /// Whether it holds for loopback, too.
    pub loopback: bool,
}

/// Why a registry did not start. Nothing of it is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A resolver to forward to is this registry.
    #[error("--dns-forward: {0} is this registry's own DNS: name the resolvers that know other zones")]
    ForwardToItself(SocketAddr),
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operator's token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenFileError),
    /// The certificate authority cannot be used.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// The proofs that are to be taken cannot be read.
    #[error(transparent)]
    Attestation(#[from] SettingsError),
    /// The sealing key cannot be used.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// `--open` beyond this machine.
    #[error(
        "--open answers anybody who asks, so it listens on loopback only; {0} is not: choose 127.0.0.1, or \
         leave --open out"
    )]
    OpenBeyondLoopback(SocketAddr),
    /// Another trust domain than at the first start.
    #[error(
        "the trust domain is {fixed} since this registry's first start, not {asked}; leave --trust-domain \
         out, or start with an empty data directory"
    )]
    TrustDomain {
        /// As at the first start.
        fixed: String,
        /// As asked for now.
        asked: TrustDomain,
    },
    /// The trust domain in the store is none.
    #[error("the trust domain in the store cannot be used")]
    BadTrustDomain(#[from] NameError),
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
}

/// A registry that runs. Dropping it stops it without waiting; see [`Running::stop`].
pub struct Running {
    /// Where the HTTP API listens.
    pub api_addr: SocketAddr,
    /// Whether the API is behind TLS: `https` rather than `http`.
    pub api_tls: bool,
    /// Where proxies connect.
    pub mesh_addr: SocketAddr,
    /// Where DNS answers, UDP and TCP.
    pub dns_addr: SocketAddr,
    /// Where other meshes are told our bundle and exports, if anywhere.
    pub federation_addr: Option<SocketAddr>,
    /// The operator's token file, unless the API is open.
    pub token_file: Option<PathBuf>,
    /// Whether the token was made by this start.
    pub token_is_new: bool,
    readiness: Readiness,
    catalog: Arc<Catalog>,
    hub: Arc<Hub>,
    control: Arc<Control>,
    authority: Arc<Authority>,
    serving: CancellationToken,
    background: CancellationToken,
    servers: TaskTracker,
    tasks: TaskTracker,
    _data_dir_lock: Option<File>,
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
    let mesh_listener = listen("mesh gRPC", options.mesh, "--mesh")?;
    let federation_listener =
        options.federation.map(|at| listen("federation", at, "--federation")).transpose()?;
    let federation_addr = federation_listener.as_ref().map(address).transpose()?;
    let (api_addr, mesh_addr) = (address(&api_listener)?, address(&mesh_listener)?);
    let dns_sockets = dns::bind(options.dns)?;
    let dns_addr = address(&dns_sockets.tcp)?;

    // Whoever asks before the state is loaded is told so.
    let (serving, background) = (CancellationToken::new(), CancellationToken::new());
    let if_dropped = (serving.clone().drop_guard(), background.clone().drop_guard());
    let (servers, tasks) = (TaskTracker::new(), TaskTracker::new());
    let advertised = advertised(&options, &[api_addr, mesh_addr, dns_addr]);
    let loaded = Arc::new(OnceLock::new());
    let forwarder = dns::forwarder(&options.dns_forward, dns_addr)?;
    let zone = dns::zone(Arc::clone(&loaded), &advertised, forwarder);
    servers.spawn(dns::serve(dns_sockets, Arc::clone(&zone), options.dns_limit, serving.clone()));

    let readiness = Readiness::new();
    let Opened { store, run, lock } =
        store::open(&store_options(&options, &advertised), background.clone()).await?;
    tasks.spawn(run);
    let (auth, token_is_new) = match options.open {
        true => (Auth::Open, false),
        false => Auth::operator(&options.data_dir)?,
    };
    let catalog = Catalog::open(Arc::clone(&store)).await?;
    loaded.get_or_init(|| Arc::clone(&catalog)); // names are answered from here on
    catalog.adopt();
    let (following, stop) = (Arc::clone(&catalog), background.clone());
    tasks.spawn(async move { following.follow(stop).await });

    let auth = auth.share(&catalog).await?;
    let trust_domain = trust_domain(&catalog, options.trust_domain.clone()).await?;
    let domain = catalog.world().resources.set.mesh().zone;
    let settings = Settings { trust_domain, zone: domain, leaf_lifetime: options.certificate_lifetime };
    let authority = match (&options.ca_files, &options.seal_key_file) {
        (Some(files), _) => Authority::open_files(store, settings, files).await?,
        (None, Some(file)) => Authority::open_sealed(store, settings, Seal::open_file(file)?).await?,
        (None, None) => Authority::open(store, settings).await?,
    };
    let roots_file = options.data_dir.join(ROOTS_FILE);
    write_roots(&authority, &roots_file)
        .map_err(|source| StartError::Io { what: format!("write {}", roots_file.display()), source })?;
    tasks.spawn(keep_roots(Arc::clone(&authority), roots_file, background.clone()));
    let (publisher, mut identity) = identity::channel();
    let names = RegistryNames::new(&advertised);
    tasks.spawn(keep_identity(Arc::clone(&authority), names, publisher, background.clone()));
    let (redeeming, stop) = (Arc::clone(&authority), background.clone());
    tasks.spawn(async move { redeeming.tokens().follow(stop).await });
    let alive = mesh::alive(Arc::clone(&catalog));
    tasks.spawn(Arc::clone(&authority).follow(alive, background.clone()));
    let identity_ready = readiness.part("certificate");

    let (control, updating) = Control::new(Arc::clone(&catalog), background.clone());
    tasks.spawn(updating);
    let (configured, model, stop) = (Arc::clone(&authority), control.model(), background.clone());
    tasks.spawn(async move { stop.run_until_cancelled(mesh::follow_zone(configured, model)).await });
    let (keeping, stop) = (Arc::clone(&catalog), background.clone());
    tasks.spawn(async move { keeping.keep(stop).await });
    let hub = Hub::new(&catalog.world());
    let (watched, telling, stop) = (Arc::clone(&catalog), Arc::clone(&hub), background.clone());
    tasks.spawn(async move { telling.run(&watched, stop).await });

    let metrics = Arc::new(Metrics::new());
    let ads = AdsService::new(Arc::clone(&control), control_plane(), Limits::default());
    let registration = RegistrationService::new(
        Arc::clone(&catalog),
        control.checks(),
        Arc::clone(&metrics),
        serving.clone(),
    );
    let audit = Audit::open(options.audit_log.as_deref())
        .map_err(|source| StartError::Io { what: "open the audit log (--audit-log)".to_owned(), source })?;
    let audit = Arc::new(audit);
    let attestation = options.attestation.as_deref();
    let attestation = attestation.map(|file| Attestation::open(file, metrics.registry())).transpose()?;
    let issuing =
        IdentityService::new(Arc::clone(&authority), options.open, serving.clone(), Arc::clone(&audit))
            .attesting(attestation);
    let (health, telling) = mesh::health(readiness.clone(), serving.clone());
    tasks.spawn(telling);
    let loads = LoadReports::default();
    let grpc = mesh::router(ads.clone(), loads.clone(), registration, issuing, health);
    let mut mesh = Serve::new("mesh gRPC", mesh_security(identity.clone()), grpc);
    mesh.grace = options.grace;

    let federations =
        Federations::new(Arc::clone(&catalog), Arc::clone(&authority), identity.clone(), metrics.registry());
    tasks.spawn(Arc::clone(&federations).run(background.clone()));
    let publishing = Publishing {
        authority: Arc::clone(&authority),
        catalog: Arc::clone(&catalog),
        model: control.model(),
        stop: serving.clone(),
    };

    let parts = api::Parts {
        catalog: Arc::clone(&catalog),
        hub: Arc::clone(&hub),
        control: Arc::clone(&control),
        ads,
        loads,
        authority: Arc::clone(&authority),
        audit,
        zone,
        federations,
        metrics,
        readiness: readiness.clone(),
        stop: serving.clone(),
    };
    let api_tls = !api_addr.ip().is_loopback();
    let security = if api_tls { api_security(identity.clone()) } else { ServerSecurity::Plaintext };
    let mut api = Serve::new("HTTP API", security, api::router(parts, auth));
    api.grace = options.grace;

    identity.first().await;
    drop(identity_ready);
    servers.spawn(mesh.run(mesh_listener, serving.clone()));
    servers.spawn(api.run(api_listener, serving.clone()));
    if let Some(listener) = federation_listener {
        let router = federation::router(publishing);
        let mut federation = Serve::new("federation", federation_security(identity), router);
        federation.grace = options.grace;
        servers.spawn(federation.run(listener, serving.clone()));
    }
    let token_file = (!options.open).then(|| options.data_dir.join(TOKEN_FILE));
    if_dropped.0.disarm();
    if_dropped.1.disarm();
    Ok(Running {
        api_addr,
        api_tls,
        mesh_addr,
        dns_addr,
        federation_addr,
        token_file,
        token_is_new,
        readiness,
        catalog,
        hub,
        control,
        authority,
        serving,
        background,
        servers,
        tasks,
        _data_dir_lock: lock,
    })
}

impl Running {
    /// Waits until every part is up.
    pub async fn ready(&self) {
        self.readiness.ready().await;
    }

    /// The catalog, for whoever runs a registry inside another process.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The certificate authority, for whoever runs a registry inside another process.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Stops: not ready any more, proxies are asked to reconnect, requests in flight are given their
    /// time, and the store is closed with everything acknowledged in it.
    pub async fn stop(self) {
        self.readiness.leave();
        self.serving.cancel();
        self.control.close();
        self.hub.close();
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
        self.control.close();
        self.hub.close();
        self.background.cancel();
    }
}

fn store_options(options: &Options, advertised: &[Target]) -> StoreOptions {
    StoreOptions {
        engine: options.store.clone(),
        tls: options.store_tls.clone(),
        data_dir: options.data_dir.clone(),
        address: advertised.first().map(ToString::to_string).unwrap_or_default(),
    }
}

/// The trust domain of the first start, which this may be.
async fn trust_domain(catalog: &Catalog, asked: Option<TrustDomain>) -> Result<TrustDomain, StartError> {
    let fixed = catalog.world().trust_domain.clone();
    match (fixed, asked) {
        (Some(fixed), Some(asked)) if *fixed != *asked.as_str() => {
            Err(StartError::TrustDomain { fixed: fixed.to_string(), asked })
        }
        (Some(fixed), _) => Ok(TrustDomain::parse(&fixed)?),
        (None, asked) => {
            let domain = asked.clone().unwrap_or_default();
            match catalog.fix_trust_domain(domain.as_str()).await {
                Ok(()) => Ok(domain),
                // Another registry on this store was quicker: its word counts.
                Err(StoreError::Conflict { .. }) => {
                    catalog.catch_up().await;
                    Box::pin(trust_domain(catalog, asked)).await
                }
                Err(error) => Err(error.into()),
            }
        }
    }
}

/// The addresses the registry is bound to, beside those it is told to advertise.
fn advertised(options: &Options, bound: &[SocketAddr]) -> Vec<Target> {
    let bound = bound.iter().filter(|bound| !bound.ip().is_unspecified());
    let bound = bound.map(|bound| Target { host: bound.ip().to_string(), port: bound.port() });
    options.advertise.iter().cloned().chain(bound).collect()
}

/// A certificate is asked of the client, and whoever has none may only obtain one.
fn mesh_security(identity: IdentityWatch) -> ServerSecurity {
    let context = DownstreamTls { require_client_certificate: false, ..mesh_server_context(&["h2"]) };
    ServerSecurity::Mesh(Arc::new(ServerTls::new(context, identity)))
}

/// Anybody may have the bundle; registries of other meshes say who they are. Nowhere else does this process
/// look at identities of other trust domains.
fn federation_security(identity: IdentityWatch) -> ServerSecurity {
    let mut context =
        DownstreamTls { require_client_certificate: false, ..mesh_server_context(&["http/1.1"]) };
    if let Some(validation) = &mut context.validation {
        validation.roots = Roots::Secret(ALL_ROOTS_SECRET.to_owned());
    }
    context.min_version = TlsVersion::V1_2;
    ServerSecurity::Mesh(Arc::new(ServerTls::new(context, identity)))
}

/// Callers of the API bring a token, not a certificate.
fn api_security(identity: IdentityWatch) -> ServerSecurity {
    let context = DownstreamTls {
        certificates: vec![Certificate::Secret(SVID_SECRET.to_owned())],
        validation: None,
        require_client_certificate: false,
        alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
    };
    ServerSecurity::Mesh(Arc::new(ServerTls::new(context, identity)))
}

/// How this registry names itself in ADS responses.
fn control_plane() -> String {
    format!("pillion-registry/{}", env!("CARGO_PKG_VERSION"))
}

fn listen(name: &str, address: SocketAddr, flag: &str) -> Result<TcpListener, StartError> {
    let socket = bind_tcp(name, address, Reuse::Exclusive).map_err(|error| error.with_flag(flag))?;
    let failed = |source| StartError::Io { what: format!("use the socket of the {name}"), source };
    TcpListener::from_std(socket).map_err(failed)
}

fn address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    let failed = |source| StartError::Io { what: "read a socket's address".to_owned(), source };
    listener.local_addr().map_err(failed)
}
