//! The sidecar: the data plane of one instance, with its registration, health, identity and names.
//!
//! Order of start: ports are bound, an identity is loaded or obtained, the last configuration on
//! disk serves at once, the registry is asked for the current one, and the instance registers.
//! Order of leaving: the instance deregisters, keeps serving what still comes, drains, ends. The
//! outbound side lives until the end, so that the application can finish its own calls.

mod agent;
mod asking;
mod hosts;
mod identity;
mod names;
mod on_demand;
mod options;
mod probe;
mod publish;
mod registration;
mod state;
mod supervise;
mod trust;
mod upstreams;
mod validity;
mod vip;
mod vips;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use pillion_model::health::{Probe, Reported};
use pillion_model::mesh::{EGRESS_ROUTES, INBOUND_LISTENER, OUTBOUND_LISTENER, Resources};
use pillion_net::listen::{BindError, bind_udp_and_tcp};
use pillion_net::readiness::Readiness;
use pillion_net::resolve::Resolver;
use pillion_net::tls::Secrets;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use self::agent::FromAgent;
use self::asking::{RegistryDial, called_names, start_control};
pub use self::identity::{IdentityFailure, IdentityStore, Keeper, StorageError};
use self::identity::{chain, registry_dialer};
use self::names::{LocalZone, Names};
use self::on_demand::AskControl;
pub use self::options::{Advertise, Options, Upstream};
use self::publish::{Publish, closed_listener};
use self::registration::{Leave, Registration};
use self::state::StateDir;
pub use self::state::{StateError, stored_instance};
use self::supervise::Supervise;
use self::upstreams::Upstreams;
use self::vip::Slot;
use self::vips::Vips;
use crate::admin::{Admin, AdminOptions};
use crate::control::Control;
use crate::outbound::OutboundOptions;
use crate::runtime::{self, Published, Runtime};

/// A running sidecar.
pub struct Sidecar {
    runtime: Arc<Runtime>,
    admin: Admin,
    readiness: Readiness,
    bound: Bound,
    drain: CancellationToken,
    drained: CancellationToken,
    /// Set when the inbound side takes nothing any more.
    closed: Arc<AtomicBool>,
    republish: Arc<Notify>,
    state: watch::Sender<registration::State>,
    status: watch::Receiver<registration::Status>,
    leave: Option<oneshot::Sender<Leave>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    grace: Duration,
}

/// What a sidecar is bound to.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Where peers' sidecars connect.
    pub inbound: SocketAddr,
    /// Where the application connects to reach others.
    pub outbound: SocketAddr,
    /// Administration.
    pub admin: SocketAddr,
    /// `/metrics`, `/ready`, `/live`.
    pub metrics: SocketAddr,
    /// Local DNS.
    pub dns: SocketAddr,
    /// The range of virtual addresses; `None`: none was left.
    pub vips: Option<String>,
    /// The local ports of single services.
    pub upstreams: Vec<(Upstream, SocketAddr)>,
}

/// Why a sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread could not be started.
    #[error(transparent)]
    Runtime(#[from] runtime::StartError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no identity.
    #[error("no identity for {node}")]
    Identity {
        /// Whose.
        node: String,
        /// Why.
        source: IdentityFailure,
    },
    /// The hosts file cannot be used.
    #[error("--hosts-file {}: {source}", path.display())]
    Hosts {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A port could not be bound; the text names it and says what to do.
    #[error("{0}")]
    Bind(String),
}

impl Sidecar {
    /// Starts everything and returns once ports are bound and there is an identity. Serving begins
    /// with the first configuration: see [`Sidecar::ready`].
    ///
    /// # Errors
    ///
    /// [`StartError`]; whatever was started has ended by then.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let state_dir = StateDir::open(options.state_dir.as_deref(), &options.node)?;
        let generation = state_dir.next_generation(SystemTime::now())?;
        let readiness = Readiness::new();
        let first_configuration = readiness.part("first configuration");
        let registered = readiness.part("registration");
        let runtime = Arc::new(Runtime::start(&runtime::Options {
            workers: NonZeroUsize::new(options.workers).unwrap_or(NonZeroUsize::MIN),
            service: options.node.service.to_string(),
            memory_max: options.memory_max,
            ..runtime::Options::default()
        })?);
        let inbound = bind_inbound(&runtime, &options)?;
        let (udp, tcp) = bind_udp_and_tcp("local DNS", options.dns).map_err(|error| bind("--dns", error))?;
        let dns = udp.local_addr().map_err(|error| StartError::Bind(format!("local DNS: {error}")))?;
        let (publisher, identity) = pillion_net::identity::channel();
        let (drain, drained) = (CancellationToken::new(), CancellationToken::new());
        let (secrets, shown_names) = (identity.clone(), Arc::<OnceLock<_>>::default());
        let admin = runtime.serve_admin(AdminOptions {
            admin: Some(options.admin),
            metrics: Some(options.metrics),
            readiness: readiness.clone(),
            drain: drain.clone(),
            drained: drained.clone(),
            set_log_filter: options.set_log_filter.clone(),
            names: Arc::clone(&shown_names),
            discovery: None,
            secrets: Some(Arc::new(move || secrets.current().map(|identity| identity as Arc<dyn Secrets>))),
        })?;

        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let resolver = Resolver::system();
        let (zone, dialer) = match options.agent.clone() {
            Some(agent) => {
                let agent =
                    FromAgent { node: options.node.clone(), agent, zone: options.mesh_domain.clone() };
                let (first, stream) = agent.first().await;
                publisher.publish(first);
                let dialer = registry_dialer(options.registries.clone(), identity.clone(), resolver);
                tasks.spawn(agent.keep(stream, publisher, dialer.clone(), stop.clone()));
                (options.mesh_domain.clone(), dialer)
            }
            None => {
                let keeper = Keeper {
                    node: options.node.clone(),
                    registries: options.registries.clone(),
                    credential: options.credential.clone(),
                    store: Box::new(state_dir),
                    resolver: resolver.clone(),
                };
                let first = keeper.first().await;
                let first = first
                    .map_err(|source| StartError::Identity { node: options.node.to_string(), source })?;
                let zone = first.zone.clone();
                publisher.publish(first);
                let dialer = registry_dialer(options.registries.clone(), identity.clone(), resolver);
                tasks.spawn(keeper.keep(publisher, stop.clone()));
                (zone, dialer)
            }
        };
        tasks.spawn(validity::watch(identity.clone(), readiness.clone(), stop.clone()));
        let called = called_names(&options, &zone);
        let control = start_control(&options, called.clone(), &dialer, identity.clone(), &stop, &tasks);

        let slot = Slot::claim().map_err(|error| warn!(%error, "names have no addresses here")).ok();
        let vips = slot.as_ref().map(Slot::range);
        let names = Arc::new(Names {
            zone,
            control: control.clone(),
            vips: Vips::new(Arc::clone(&runtime), slot, options.ports.values().map(Options::app_address)),
            forwarder: names::forwarder(dns),
        });
        let shown = Arc::clone(&names);
        shown_names.get_or_init(|| Arc::new(move || shown.vips.show()));
        let outbound = open_outbound(&runtime, &options, &control, names.zone.clone())?;
        let (upstreams, upstreams_bound) = Upstreams::bind(&runtime, &options.upstreams)?;
        let hosts = options.hosts_file.as_deref().map(hosts::Hosts::open).transpose()?;
        let (udp, tcp) = (to_tokio(udp.try_into())?, to_tokio(tcp.try_into())?);
        let (dns_zone, dns_stop) = (Arc::new(LocalZone::new(Arc::clone(&names))), stop.clone());
        tasks.spawn(async move { pillion_dns::serve("local DNS", udp, tcp, dns_zone, dns_stop).await });

        let (state, state_watch) =
            watch::channel(registration::State { reported: Reported::Starting, probe: Probe::Unknown });
        let (status_sender, status) = watch::channel(registration::Status::Connecting);
        let (leave, leave_asked) = oneshot::channel();
        let metrics_port = admin.metrics.map_or(0, |address| address.port());
        let registration = Registration {
            dial: Arc::new(RegistryDial(dialer, identity.clone())),
            instance: options.instance(inbound.port(), metrics_port, generation),
            state: state_watch,
            status: status_sender,
            leave: leave_asked,
            stop: stop.clone(),
        };
        // A program that only calls is no instance that others could call.
        let registered = (!options.ports.is_empty()).then_some(registered);
        if registered.is_some() {
            tasks.spawn(registration.run());
        }
        let (closed, republish) = (Arc::<AtomicBool>::default(), Arc::<Notify>::default());
        let publish = Publish {
            runtime: Arc::clone(&runtime),
            names,
            upstreams,
            hosts,
            awaited: called,
            inbound: options.inbound,
            is_called: !options.ports.is_empty(),
            access_logs: options.access_logs.clone(),
            closed: Arc::clone(&closed),
            again: Arc::clone(&republish),
        };
        let control_status = control.status();
        tasks.spawn(publish.run(control, identity, first_configuration, stop.clone()));
        let supervise = Supervise {
            status: status.clone(),
            state: state.clone(),
            control: control_status,
            accepts: Arc::clone(&republish),
        };
        tasks.spawn(supervise.run(options.clone(), registered, stop.clone()));
        let address = |address: Option<SocketAddr>| address.unwrap_or(inbound);
        let (admin_address, metrics) = (address(admin.admin), address(admin.metrics));
        Ok(Self {
            runtime,
            admin,
            readiness,
            bound: Bound {
                inbound,
                outbound,
                admin: admin_address,
                metrics,
                dns,
                vips,
                upstreams: upstreams_bound,
            },
            drain,
            drained,
            closed,
            republish,
            state,
            status,
            leave: Some(leave),
            tasks,
            stop,
            grace: options.drain_grace,
        })
    }

    /// What it is bound to.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Waits until it serves and is registered.
    pub async fn ready(&self) {
        self.readiness.ready().await;
    }

    /// Waits until the registry has refused the registration for good; gives the reason.
    pub async fn refused(&self) -> String {
        let mut status = self.status.clone();
        loop {
            if let registration::Status::Refused { reason, last: true } = &*status.borrow_and_update() {
                return reason.clone();
            }
            if status.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until `POST /drain` was asked.
    pub async fn drain_asked(&self) {
        self.drain.cancelled().await;
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.leave.is_none()
    }

    /// Leaves the mesh on the inbound side: deregisters, serves what still comes, lets requests in
    /// flight finish. The outbound side goes on. Doing it again changes nothing.
    pub async fn drain(&mut self) {
        let Some(leave) = self.leave.take() else { return };
        self.readiness.leave();
        self.state.send_modify(|state| state.reported = Reported::Draining);
        let (done, left) = oneshot::channel();
        if leave.send(done).is_ok() && timeout(LEAVE_TIMEOUT, left).await.is_err() {
            warn!("the registry did not confirm the deregistration; the lease will run out");
        }
        // Callers learn of it within moments; requests they have sent by then are served.
        let until = Instant::now() + self.grace;
        tokio::time::sleep(LATE_REQUESTS.min(self.grace)).await;
        self.closed.store(true, Relaxed);
        self.republish.notify_one();
        while self.runtime.bound(INBOUND_LISTENER).is_some() || self.runtime.inbound_connections() > 0 {
            if Instant::now() >= until {
                warn!(connections = self.runtime.inbound_connections(), "the time to drain is over");
                break;
            }
            tokio::time::sleep(DRAIN_POLL).await;
        }
        self.drained.cancel();
    }

    /// Drains, then ends everything.
    pub async fn stop(mut self) {
        self.drain().await;
        let left = self.runtime.drain(OUTBOUND_GRACE.min(self.grace)).await;
        if left > 0 {
            warn!(connections = left, "connections are cut");
        }
        drop(self.admin);
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Binds the inbound listener before anything is known to serve on it: a connection that comes
/// this early is closed.
fn bind_inbound(runtime: &Runtime, options: &Options) -> Result<SocketAddr, StartError> {
    let mut resources = Resources::default();
    resources.listeners.insert(INBOUND_LISTENER.to_owned(), closed_listener(options.inbound));
    let no_secrets: Arc<dyn Secrets> = Arc::new(pillion_net::tls::NoSecrets);
    let published = runtime.publish(resources, &no_secrets);
    runtime.bound(INBOUND_LISTENER).ok_or_else(|| unbound(&published, "--inbound"))
}

fn open_outbound(
    runtime: &Runtime,
    options: &Options,
    control: &Control,
    zone: String,
) -> Result<SocketAddr, StartError> {
    let published = runtime.outbound(OutboundOptions {
        listen: Some(options.outbound),
        egress: options.egress,
        egress_routes: Some(EGRESS_ROUTES.to_owned()),
        zone,
        on_demand: Some(Arc::new(AskControl(control.clone()))),
        access_logs: options.access_logs.clone(),
    });
    runtime.bound(OUTBOUND_LISTENER).ok_or_else(|| unbound(&published, "--outbound"))
}

fn unbound(published: &Published, flag: &str) -> StartError {
    let reasons: Vec<&str> = published.rejected.iter().map(|rejected| rejected.reason.as_str()).collect();
    StartError::Bind(format!("{} ({flag})", reasons.join("; ")))
}

fn bind(flag: &str, error: BindError) -> StartError {
    StartError::Bind(chain(&error.with_flag(flag)))
}

fn to_tokio<T>(socket: std::io::Result<T>) -> Result<T, StartError> {
    socket.map_err(|error| StartError::Bind(format!("local DNS: {error}")))
}

/// How long the registry may take to confirm a deregistration.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the application's own calls may take once the sidecar ends.
const OUTBOUND_GRACE: Duration = Duration::from_secs(5);
/// How often a drain looks whether it is over.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// How long requests may still arrive after the deregistration.
const LATE_REQUESTS: Duration = Duration::from_secs(1);
