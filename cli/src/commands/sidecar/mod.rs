//! What `pillion proxy` and `pillion run` are told about a sidecar: the same flags for both.

mod options;
mod texts;
mod words;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

pub(crate) use options::{host_name, resolve_advertised};
use pillion_net::workload::Agent;
pub(crate) use texts::{LabelText, PortText, UpstreamText};
pub(crate) use words::{Words, value_name};

use crate::logging::LogArguments;

/// A sidecar's flags.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SidecarArguments {
    #[command(flatten)]
    pub(crate) join: JoinArguments,
    #[command(flatten)]
    pub(crate) instance: InstanceArguments,
    #[command(flatten)]
    pub(crate) listen: ListenArguments,
    #[command(flatten)]
    pub(crate) traffic: TrafficArguments,
    #[command(flatten)]
    pub(crate) log: LogArguments,
}

/// The registry to join, and how.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct JoinArguments {
    /// Registries to join, the first that answers: `host[:7071],…`.
    #[arg(
        long,
        env = "PILLION_REGISTRY",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7071"
    )]
    pub(crate) registry: Vec<String>,
    /// The join token for the first start.
    #[arg(long, env = "PILLION_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) join_token: Option<String>,
    /// A file with the join token.
    #[arg(long, env = "PILLION_JOIN_TOKEN_FILE", value_name = "FILE", conflicts_with = "join_token")]
    pub(crate) join_token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) attest: AttestArguments,
}

/// Another proof than a join token, and to whom.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AttestArguments {
    /// What proves who we are, instead of a join token: a certificate of another authority, the pod's
    /// service account token, or AWS credentials.
    #[arg(
        long,
        env = "PILLION_ATTEST",
        value_enum,
        requires = "registry_roots",
        conflicts_with_all = ["join_token", "join_token_file"]
    )]
    pub(crate) attest: Option<AttestMethod>,
    /// The mesh's roots (PEM) by which the registry is verified before anything is proven to it: roots.pem of
    /// its data directory.
    #[arg(long, env = "PILLION_REGISTRY_ROOTS", value_name = "FILE", requires = "attest")]
    pub(crate) registry_roots: Option<PathBuf>,
    /// The certificate for --attest x509 (PEM, leaf first).
    #[arg(long, env = "PILLION_ATTEST_CERT", value_name = "FILE", requires = "attest_key")]
    pub(crate) attest_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "PILLION_ATTEST_KEY", value_name = "FILE", requires = "attest_cert")]
    pub(crate) attest_key: Option<PathBuf>,
    /// The projected token for --attest kubernetes. Default /var/run/secrets/pillion/token.
    #[arg(long, env = "PILLION_ATTEST_TOKEN_FILE", value_name = "FILE", requires = "attest")]
    pub(crate) attest_token_file: Option<PathBuf>,
}

/// What `--attest` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum AttestMethod {
    /// A certificate of another authority.
    X509,
    /// The pod's service account token.
    Kubernetes,
    /// AWS credentials.
    Aws,
}

/// Who the instance beside the sidecar is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InstanceArguments {
    /// A SPIFFE agent (such as SPIRE's) that gives the identity instead of the registry:
    /// `unix:///run/spire/agent.sock`.
    #[arg(
        long,
        env = "SPIFFE_ENDPOINT_SOCKET",
        value_name = "ADDRESS",
        value_parser = agent,
        conflicts_with_all = ["join_token", "join_token_file", "attest"]
    )]
    pub(crate) spiffe_socket: Option<Agent>,
    /// The mesh's DNS zone, where an agent gives the identity. Default mesh.internal.
    #[arg(long, env = "PILLION_MESH_DOMAIN", value_name = "DOMAIN", requires = "spiffe_socket")]
    pub(crate) mesh_domain: Option<String>,
    /// The service that the application beside the sidecar belongs to.
    #[arg(long, env = "PILLION_SERVICE", value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// The service's namespace.
    #[arg(long, env = "PILLION_NAMESPACE", value_name = "NAME", default_value = "default")]
    pub(crate) namespace: String,
    /// A port the application listens on: `[name=]port[:protocol]`, protocol http, http2, grpc or tcp.
    /// Without any it only calls: it has an identity and is no instance of the service.
    #[arg(long, env = "PILLION_PORT", value_name = "PORT", value_delimiter = ',')]
    pub(crate) port: Vec<PortText>,
    /// The instance's id within the service; without it, the one in the state
    /// directory, else host name and port.
    #[arg(long, env = "PILLION_INSTANCE_ID", value_name = "ID")]
    pub(crate) instance_id: Option<String>,
    /// Labels of the instance, by which subsets select: `version=v1`.
    #[arg(long, env = "PILLION_LABEL", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub(crate) label: Vec<LabelText>,
    /// Availability zone of the instance.
    #[arg(long, env = "PILLION_ZONE", value_name = "ZONE", default_value = "")]
    pub(crate) zone: String,
    /// Relative share of traffic, 0 to 65535.
    #[arg(long, env = "PILLION_WEIGHT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=65535))]
    pub(crate) weight: u32,
    /// How long the registration lives unrenewed, in seconds.
    #[arg(long, env = "PILLION_TTL", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..=86400))]
    pub(crate) ttl: u64,
    /// The address others reach this instance at; without it, the one that reaches the registry.
    #[arg(long, env = "PILLION_ADVERTISE", value_name = "HOST[:PORT]")]
    pub(crate) advertise: Option<String>,
    /// Where the last configuration, the identity and the generation are kept.
    #[arg(long, env = "PILLION_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// Where the sidecar listens. Port 0 picks a free one; what was bound is printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ListenArguments {
    /// For other sidecars, over mutual TLS. Default 0.0.0.0:15006, with `run` a free port.
    #[arg(long, env = "PILLION_INBOUND", value_name = "ADDRESS")]
    pub(crate) inbound: Option<SocketAddr>,
    /// For the application's calls: routed by Host, and an HTTP proxy. Default 127.0.0.1:15001, with
    /// `run` a free port.
    #[arg(long, env = "PILLION_OUTBOUND", value_name = "ADDRESS")]
    pub(crate) outbound: Option<SocketAddr>,
    /// Administration; loopback only. Default 127.0.0.1:15000, with `run` a free port; a bootstrap
    /// names its own.
    #[arg(long, env = "PILLION_ADMIN", value_name = "ADDRESS")]
    pub(crate) admin: Option<SocketAddr>,
    /// `/metrics`, `/ready` and `/live`. Default 0.0.0.0:15020, with `run` a free port; with a
    /// bootstrap, none.
    #[arg(long, env = "PILLION_METRICS", value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// DNS for the application; loopback only. Default 127.0.0.1:15053, with `run` port 53 of a
    /// loopback address where that can be bound, else a free port.
    #[arg(long, env = "PILLION_DNS", value_name = "ADDRESS")]
    pub(crate) dns: Option<SocketAddr>,
    /// A local port of 127.0.0.1 for one service: `port=service[.namespace][:port]`, as in
    /// `9001=orders.shop:80`. May be repeated.
    #[arg(long, env = "PILLION_UPSTREAM", value_name = "PORT=SERVICE:PORT", value_delimiter = ',')]
    pub(crate) upstream: Vec<UpstreamText>,
    /// A hosts file to keep: its lines stay, and the names of services are added as they are learnt.
    #[arg(long, env = "PILLION_HOSTS_FILE", value_name = "FILE")]
    pub(crate) hosts_file: Option<PathBuf>,
    /// A service whose name is to be known from the start: `service[.namespace]`. May be repeated.
    #[arg(long, env = "PILLION_DEPENDENCY", value_name = "SERVICE", value_delimiter = ',')]
    pub(crate) dependency: Vec<String>,
}

/// What happens to traffic, and what is written down of it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TrafficArguments {
    /// Destinations outside the mesh: forwarded to unless the mesh denies it, or refused.
    #[arg(long, env = "PILLION_EGRESS", value_enum, default_value_t)]
    pub(crate) egress: Egress,
    /// Where access logs go: a file, or /dev/stdout; without it, nowhere.
    #[arg(long, env = "PILLION_ACCESS_LOG", value_name = "FILE")]
    pub(crate) access_log: Option<String>,
    /// How a line of the access log looks.
    #[arg(long, env = "PILLION_ACCESS_LOG_FORMAT", value_enum, default_value_t)]
    pub(crate) access_log_format: AccessLogFormat,
    /// Worker threads; without it, one for each CPU that this process may use.
    #[arg(long, env = "PILLION_WORKERS", value_name = "COUNT", value_parser = workers)]
    pub(crate) workers: Option<NonZeroUsize>,
    /// Memory past which requests are refused with 503, such as 256MiB; without it, there is no limit.
    #[arg(long, env = "PILLION_MEMORY_MAX", value_name = "SIZE", value_parser = size)]
    pub(crate) memory_max: Option<u64>,
}

/// `1234`, `512KiB`, `256MiB` or `2GiB`.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = [("KiB", 10), ("MiB", 20), ("GiB", 30)]
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))
        .unwrap_or((text, 0));
    let bytes = digits.trim_end().parse::<u64>().ok().and_then(|count| count.checked_mul(1 << shift));
    let bytes = bytes.ok_or_else(|| "want a size such as 256MiB".to_owned())?;
    match bytes < MEMORY_MIN {
        true => Err("no proxy runs in less than 1MiB; want a size such as 256MiB".to_owned()),
        false => Ok(bytes),
    }
}

fn agent(text: &str) -> Result<Agent, String> {
    Agent::parse(text).map_err(|error| error.to_string())
}

/// What is less is a size without its unit.
const MEMORY_MIN: u64 = 1 << 20;

/// What `--egress` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Egress {
    /// As the mesh says.
    #[default]
    Allow,
    /// Refused, whatever the mesh says.
    Deny,
}

/// What `--access-log-format` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum AccessLogFormat {
    /// Envoy's default line.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl TrafficArguments {
    /// Worker threads to start.
    pub(crate) fn workers(&self) -> NonZeroUsize {
        let available = || std::thread::available_parallelism().ok();
        self.workers.or_else(available).unwrap_or(NonZeroUsize::MIN)
    }
}

/// Workers at most: each has sockets and pools of its own.
const WORKERS_MAX: usize = 1024;

fn workers(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse::<NonZeroUsize>().ok().filter(|count| count.get() <= WORKERS_MAX);
    count.ok_or_else(|| format!("want 1 to {WORKERS_MAX}"))
}
