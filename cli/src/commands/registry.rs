//! `pillion registry`: the registry server.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use pillion_config::DurationText;
use pillion_dns::forward::Forwarder;
use pillion_model::name::TrustDomain;
use pillion_net::resolve::Target;
use pillion_registry::app::{self, StartError};
use pillion_registry::ca::CaFiles;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::allocator;
use crate::api::data_directory;
use crate::arguments::MESH_PORT;
use crate::exit::Usage;
use crate::logging::LogArguments;
use crate::output::{line, note};
use crate::store::StoreArguments;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;
/// Below this a certificate would end before its renewal has been tried a few times.
const LIFETIME_MIN: Duration = Duration::from_secs(10);

/// Arguments of `pillion registry`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where everything that must survive is kept; with --store, only what is this registry's own.
    #[arg(long, env = "PILLION_DATA_DIR", default_value_os_t = data_directory(), value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    store: StoreArguments,
    /// The HTTP API. Port 0 picks a free one, here and below; what was bound is printed.
    #[arg(long, env = "PILLION_LISTEN_API", value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    api: SocketAddr,
    /// gRPC for proxies, over mutual TLS.
    #[arg(long, env = "PILLION_LISTEN_MESH", value_name = "ADDRESS", default_value = "127.0.0.1:7071")]
    mesh: SocketAddr,
    /// DNS, UDP and TCP.
    #[arg(long, env = "PILLION_LISTEN_DNS", value_name = "ADDRESS", default_value = "127.0.0.1:7053")]
    dns: SocketAddr,
    /// DNS answers per second over UDP to one network (/24 of IPv4, /56 of IPv6); beyond, its clients
    /// are told to use TCP. 0: no limit.
    #[arg(long, env = "PILLION_DNS_RATE_LIMIT", value_name = "NUMBER", default_value_t = 1000)]
    dns_rate_limit: u32,
    /// Let the limit on DNS answers hold for programs on this machine, too.
    #[arg(long, env = "PILLION_DNS_LIMIT_LOOPBACK")]
    dns_limit_loopback: bool,
    /// Resolvers that are asked for names of other zones, all of them, of which the first answer wins;
    /// `system`: those of /etc/resolv.conf. For clients at private addresses; without it, such names are refused.
    #[arg(long, env = "PILLION_DNS_FORWARD", value_name = "IP[:PORT]", value_delimiter = ',', value_parser = resolver)]
    dns_forward: Vec<Resolvers>,
    /// The federation port: our trust bundle for other meshes, and what is exported to them, over TLS. Without
    /// it other meshes learn nothing from this registry. The usual port is 7072.
    #[arg(long, env = "PILLION_LISTEN_FEDERATION", value_name = "ADDRESS")]
    federation: Option<SocketAddr>,
    /// Names and addresses by which others call this registry; they go into its certificate.
    #[arg(long, env = "PILLION_ADVERTISE", value_name = "HOST[:PORT]", value_delimiter = ',', value_parser = advertised)]
    advertise: Vec<Target>,
    /// The trust domain of every identity, fixed by the first start; without it `mesh.internal`.
    #[arg(long, env = "PILLION_TRUST_DOMAIN", value_name = "DOMAIN", value_parser = TrustDomain::parse)]
    trust_domain: Option<TrustDomain>,
    /// How long the certificates of sidecars and of the registry itself are good, 10 s or more; each is
    /// renewed at half of it.
    #[arg(long, env = "PILLION_CERTIFICATE_LIFETIME", value_name = "DURATION", default_value = "24h", value_parser = lifetime)]
    certificate_lifetime: Duration,
    /// Ask for no token and give certificates to everybody on this machine: for trials, on loopback.
    #[arg(long, env = "PILLION_OPEN")]
    open: bool,
    /// The certificate (PEM) of the authority that signs, a root or an intermediate, where the mesh is not
    /// to make its own. Every registry of the mesh needs one below the same roots, at every start.
    #[arg(
        long,
        env = "PILLION_CA_CERT",
        value_name = "FILE",
        requires = "ca_key",
        conflicts_with = "seal_key_file"
    )]
    ca_cert: Option<PathBuf>,
    /// Its key (PEM): ECDSA P-256 or P-384.
    #[arg(long, env = "PILLION_CA_KEY", value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// The certificates above it up to the root (PEM), and further roots that are to be trusted.
    #[arg(long, env = "PILLION_CA_CHAIN", value_name = "FILE", requires = "ca_cert")]
    ca_chain: Option<PathBuf>,
    /// A file (YAML) that says which proofs of identity are taken beside join tokens, and which service
    /// whoever has one may be.
    #[arg(long, env = "PILLION_ATTESTATION", value_name = "FILE")]
    attestation: Option<PathBuf>,
    /// A file with 64 hex digits (`openssl rand -hex 32`) by which the keys of the roots are sealed in the
    /// store. Every registry of the mesh needs it, at every start.
    #[arg(long, env = "PILLION_SEAL_KEY_FILE", value_name = "FILE")]
    seal_key_file: Option<PathBuf>,
    /// Write every change and every refusal to this file, as JSON lines; `-` for standard output.
    #[arg(long, env = "PILLION_AUDIT_LOG", value_name = "FILE")]
    audit_log: Option<PathBuf>,
    #[command(flatten)]
    log: LogArguments,
}

impl Arguments {
    fn ca_files(&self) -> Option<CaFiles> {
        let (certificate, key) = (self.ca_cert.clone()?, self.ca_key.clone()?);
        Some(CaFiles { certificate, key, chain: self.ca_chain.clone() })
    }
}

/// Serves until SIGTERM or Ctrl-C.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let _set_log_filter = arguments.log.start()?;
    raise_descriptors();
    allocator::decline_huge_pages();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut options = app::Options::new(&arguments.data_dir);
    (options.store, options.store_tls) = arguments.store.engine();
    options.api = arguments.api;
    options.mesh = arguments.mesh;
    options.dns = arguments.dns;
    options.federation = arguments.federation;
    options.dns_limit = app::DnsLimit {
        answers_per_second: NonZeroU32::new(arguments.dns_rate_limit),
        loopback: arguments.dns_limit_loopback,
    };
    options.dns_forward = Resolvers::all(&arguments.dns_forward)?;
    options.open = arguments.open;
    options.advertise = arguments.advertise.clone();
    options.trust_domain = arguments.trust_domain.clone();
    options.certificate_lifetime = arguments.certificate_lifetime;
    options.ca_files = arguments.ca_files();
    options.attestation = arguments.attestation.clone();
    options.seal_key_file = arguments.seal_key_file.clone();
    options.audit_log = arguments.audit_log.clone();
    let registry = app::start(options).await.map_err(|error| match error {
        StartError::OpenBeyondLoopback(_) | StartError::ForwardToItself(_) => Usage(error.to_string()).into(),
        error => anyhow::Error::from(error),
    })?;
    let scheme = if registry.api_tls { "https" } else { "http" };
    line(format_args!("api      {scheme}://{}", registry.api_addr))?;
    line(format_args!("mesh     {}", registry.mesh_addr))?;
    line(format_args!("dns      {}", registry.dns_addr))?;
    if let Some(address) = registry.federation_addr {
        line(format_args!("federation {address}"))?;
    }
    if let Some(file) = registry.token_file.as_ref().filter(|_| registry.token_is_new) {
        note(format_args!("the operator's token is in {}", file.display()));
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    registry.stop().await;
    Ok(())
}

/// Whom to ask for names of other zones.
#[derive(Clone, Copy, Debug)]
enum Resolvers {
    At(SocketAddr),
    System,
}

impl Resolvers {
    fn all(resolvers: &[Self]) -> anyhow::Result<Vec<SocketAddr>> {
        let mut found = Vec::new();
        for resolver in resolvers {
            match resolver {
                Self::At(address) => found.push(*address),
                Self::System => {
                    let text = std::fs::read_to_string(RESOLV_CONF)
                        .with_context(|| format!("--dns-forward system: read {RESOLV_CONF}"))?;
                    let system = Forwarder::from_resolv_conf(&text, &[]);
                    ensure!(!system.resolvers().is_empty(), "--dns-forward system: {RESOLV_CONF} names none");
                    found.extend_from_slice(system.resolvers());
                }
            }
        }
        Ok(found)
    }
}

fn advertised(text: &str) -> Result<Target, String> {
    Target::parse(text, MESH_PORT).map_err(|error| error.to_string())
}

fn resolver(text: &str) -> Result<Resolvers, String> {
    if text == "system" {
        return Ok(Resolvers::System);
    }
    let alone = || text.parse().map(|ip: IpAddr| SocketAddr::new(ip, DNS_PORT));
    let address = text.parse().or_else(|_| alone());
    address
        .map(Resolvers::At)
        .map_err(|_| "want an IP address such as 10.0.0.2 or [fd00::2]:53, or system".to_owned())
}

/// Every stream is a descriptor: as many as the hard limit allows, rather than the 1024 that shells give.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    match DurationText::parse(text) {
        Some(DurationText(lifetime)) if lifetime >= LIFETIME_MIN => Ok(lifetime),
        _ => Err("want a duration of 10s or more, such as 24h".to_owned()),
    }
}
