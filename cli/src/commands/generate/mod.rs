//! `pillion generate`: what programs that are not ours need to join the mesh.

mod envoy;
mod grpc;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context;
use pillion_model::name::{InstanceId, NodeId, ServiceName};
use pillion_net::bootstrap::join;
use pillion_net::identity::Identity;
use pillion_net::resolve::{Resolver, Target};
use serde_json::Value;

use super::cert::remaining;
use super::sidecar::{JoinArguments, LabelText, PortText, host_name};
use crate::exit::Usage;
use crate::output::note;
use crate::pem::PemFolder;

/// `pillion generate`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// A bootstrap and certificates with which an Envoy joins the mesh.
    Envoy(envoy::Arguments),
    /// A bootstrap and certificates with which a gRPC client or server joins the mesh without a proxy.
    Grpc(grpc::Arguments),
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Envoy(arguments) => envoy::run(arguments).await,
        Command::Grpc(arguments) => grpc::run(arguments).await,
    }
}

/// Who joins.
#[derive(Debug, clap::Args)]
struct MemberArguments {
    #[command(flatten)]
    join: JoinArguments,
    /// The service that it belongs to.
    #[arg(long, env = "PILLION_SERVICE", value_name = "NAME")]
    service: String,
    /// The service's namespace.
    #[arg(long, env = "PILLION_NAMESPACE", value_name = "NAME", default_value = "default")]
    namespace: String,
    /// The instance's id within the service. Default: host name and port with --port, else envoy or grpc.
    #[arg(long, env = "PILLION_INSTANCE_ID", value_name = "ID")]
    instance_id: Option<String>,
    /// A port of an application: `[name=]port[:protocol]`. With it, the stream to the registry registers
    /// the instance while it is open.
    #[arg(long, env = "PILLION_PORT", value_name = "PORT", value_delimiter = ',', requires = "advertise")]
    port: Vec<PortText>,
    /// The IP address at which others reach it.
    #[arg(long, env = "PILLION_ADVERTISE", value_name = "ADDRESS")]
    advertise: Option<IpAddr>,
    /// Labels of the instance, by which subsets choose.
    #[arg(long, env = "PILLION_LABELS", value_name = "KEY=VALUE", value_delimiter = ',')]
    label: Vec<LabelText>,
    /// Where to write the bootstrap, certificates and key.
    #[arg(long, env = "PILLION_OUT", value_name = "DIR")]
    out: PathBuf,
}

/// Who has joined.
struct Member {
    node: NodeId,
    registries: Vec<Target>,
    identity: Identity,
}

impl MemberArguments {
    /// Gets a certificate.
    async fn join(&self, default_id: &str) -> anyhow::Result<Member> {
        let service = ServiceName::new(&self.namespace, &self.service).context("--service, --namespace")?;
        let instance = match (&self.instance_id, self.port.first()) {
            (Some(id), _) => InstanceId::parse(id).context("--instance-id")?,
            // Those of two machines must not take each other out.
            (None, Some(port)) => InstanceId::from_host_and_port(&host_name(), port.port),
            (None, None) => InstanceId::parse(default_id).context("--instance-id")?,
        };
        let node = NodeId { service, instance };
        let there = PemFolder::open(&self.out)?.leaf()?;
        let there = there.and_then(|leaf| leaf.spiffe_id()?.service_name().cloned());
        if let Some(there) = there.filter(|there| *there != node.service) {
            let text = format!("{} holds the certificate of {there}; want another --out", self.out.display());
            return Err(Usage(text).into());
        }
        let registries = self.join.targets()?;
        let credential = self.join.credential()?;
        let identity =
            join(&registries, &credential, &node, &Resolver::system()).await.context("join the mesh")?;
        Ok(Member { node, registries, identity })
    }

    /// The labels, as an instance has them.
    fn labels(&self) -> Value {
        self.label.iter().map(|label| (label.key.clone(), Value::from(label.value.clone()))).collect()
    }

    /// Says who it is, and how its certificate stays fresh.
    fn tell(&self, Member { node, identity, .. }: &Member) {
        note(format_args!(
            "{node} may speak as {} for {}; `pillion cert watch --dir {}` renews its certificate in time",
            identity.svid.id,
            remaining(identity.svid.not_after, SystemTime::now()),
            self.out.display()
        ));
    }
}
