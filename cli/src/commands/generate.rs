//! `pillion generate envoy`: what an Envoy needs to join the mesh.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use pillion_model::endpoint::HostAddress;
use pillion_model::name::{InstanceId, NodeId, ServiceName, SpiffeId};
use pillion_net::bootstrap::join;
use pillion_net::identity::Identity;
use pillion_net::resolve::{Resolver, Target};
use pillion_registry::control::EnvoyNode;
use pillion_xds::bootstrap::{BootstrapOptions, generate_bootstrap, sds_files};
use pillion_xds::encode::{EnvoyOptions, EnvoySecrets};
use serde_json::{Map, Value, json};

use super::cert::remaining;
use super::sidecar::{JoinArguments, PortText};
use crate::output::{line, note};
use crate::pem::{PemFolder, replace};

/// `pillion generate`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// A bootstrap and certificates with which an Envoy joins the mesh.
    Envoy(EnvoyArguments),
}

/// Arguments of `pillion generate envoy`.
#[derive(Debug, clap::Args)]
pub(crate) struct EnvoyArguments {
    #[command(flatten)]
    join: JoinArguments,
    /// The service that the Envoy belongs to.
    #[arg(long, env = "PILLION_SERVICE", value_name = "NAME")]
    service: String,
    /// The service's namespace.
    #[arg(long, env = "PILLION_NAMESPACE", value_name = "NAME", default_value = "default")]
    namespace: String,
    /// The instance's id within the service.
    #[arg(long, env = "PILLION_INSTANCE_ID", value_name = "ID", default_value = "envoy")]
    instance_id: String,
    /// A port of an application behind the Envoy: `[name=]port[:protocol]`. With it, the Envoy's
    /// stream registers the instance while it is open.
    #[arg(long, env = "PILLION_PORT", value_name = "PORT", value_delimiter = ',', requires = "advertise")]
    port: Vec<PortText>,
    /// The IP address at which others reach the Envoy.
    #[arg(long, env = "PILLION_ADVERTISE", value_name = "ADDRESS")]
    advertise: Option<std::net::IpAddr>,
    /// The port on which the Envoy takes calls from the mesh, over mutual TLS.
    #[arg(long, env = "PILLION_INBOUND_PORT", value_name = "PORT", default_value_t = 15006)]
    inbound_port: u16,
    /// Where the Envoy listens for its application's calls.
    #[arg(long, env = "PILLION_OUTBOUND", value_name = "ADDRESS", default_value = "127.0.0.1:15001")]
    outbound: SocketAddr,
    /// Where the Envoy's administration listens.
    #[arg(long, env = "PILLION_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// Where to write envoy.json, certificates and key.
    #[arg(long, env = "PILLION_OUT", value_name = "DIR")]
    out: PathBuf,
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    let Command::Envoy(arguments) = command;
    let service =
        ServiceName::new(&arguments.namespace, &arguments.service).context("--service, --namespace")?;
    let instance = InstanceId::parse(&arguments.instance_id).context("--instance-id")?;
    let node = NodeId { service, instance };
    let registries = arguments.join.targets()?;
    let credential = arguments.join.credential()?;
    let identity =
        join(&registries, &credential, &node, &Resolver::system()).await.context("join the mesh")?;
    let files = Files::in_folder(&arguments.out)?;
    files.write(&identity, &bootstrap(&arguments, &node, &registries, &identity, &files)?)?;
    note(format_args!(
        "{node} may speak as {} for {}; `pillion cert watch --dir {}` renews its certificate in time",
        identity.svid.id,
        remaining(identity.svid.not_after, SystemTime::now()),
        arguments.out.display()
    ));
    line(format_args!("envoy -c {}", files.bootstrap.display()))
}

/// The files that make an Envoy a member: certificate, key and roots, SDS files that name them, and
/// the bootstrap.
struct Files {
    pem: PemFolder,
    own_secret: PathBuf,
    roots_secret: PathBuf,
    bootstrap: PathBuf,
}

impl Files {
    fn in_folder(folder: &Path) -> anyhow::Result<Self> {
        let pem = PemFolder::open(folder)?;
        let [own_secret, roots_secret, bootstrap] =
            ["svid.json", "roots.json", "envoy.json"].map(|name| pem.file(name));
        Ok(Self { pem, own_secret, roots_secret, bootstrap })
    }

    fn write(&self, identity: &Identity, bootstrap: &Value) -> anyhow::Result<()> {
        self.pem.write(identity)?;
        let (own, roots) = sds_files(&self.pem.chain(), &self.pem.key(), &self.pem.roots());
        for (file, value) in
            [(&self.own_secret, &own), (&self.roots_secret, &roots), (&self.bootstrap, bootstrap)]
        {
            replace(file, &format!("{value:#}\n"))?;
        }
        Ok(())
    }
}

fn bootstrap(
    arguments: &EnvoyArguments,
    node: &NodeId,
    registries: &[Target],
    identity: &Identity,
    files: &Files,
) -> anyhow::Result<Value> {
    let envoy = EnvoyOptions {
        secrets: EnvoySecrets::Sds {
            certificate: files.own_secret.display().to_string(),
            roots: files.roots_secret.display().to_string(),
        },
    };
    let told = EnvoyNode { envoy: envoy.clone(), outbound: arguments.outbound, vip_slot: None };
    let instance = announced(arguments);
    let options = BootstrapOptions {
        node_id: node.to_string(),
        node_cluster: node.service.to_string(),
        metadata: told.to_metadata(instance.as_ref()),
        registries: registries.iter().map(address).collect(),
        registry_id: SpiffeId::registry(identity.svid.id.trust_domain().clone()),
        envoy,
        admin: Some(arguments.admin),
    };
    generate_bootstrap(&options).context("write Envoy's bootstrap")
}

/// The instance that the Envoy's stream registers, if an application is behind it.
fn announced(arguments: &EnvoyArguments) -> Option<Value> {
    let address = arguments.advertise.filter(|_| !arguments.port.is_empty())?;
    let port = |port: &PortText| {
        let application = SocketAddr::from((Ipv4Addr::LOCALHOST, port.port));
        let value = json!({"port": port.port, "protocol": port.protocol.as_str(), "appAddress": application});
        (port.name.clone(), value)
    };
    let ports: Map<String, Value> = arguments.port.iter().map(port).collect();
    Some(json!({"address": address, "ports": ports, "inboundPort": arguments.inbound_port}))
}

fn address(target: &Target) -> HostAddress {
    match target.host.parse() {
        Ok(ip) => HostAddress::Socket(SocketAddr::new(ip, target.port)),
        Err(_) => HostAddress::Name { host: target.host.clone(), port: target.port },
    }
}
