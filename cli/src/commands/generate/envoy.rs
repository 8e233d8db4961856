//! `pillion generate envoy`: what an Envoy needs to join the mesh.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use pillion_model::endpoint::HostAddress;
use pillion_model::name::SpiffeId;
use pillion_net::identity::Identity;
use pillion_net::resolve::Target;
use pillion_registry::control::EnvoyNode;
use pillion_xds::bootstrap::{BootstrapOptions, generate_bootstrap, sds_files};
use pillion_xds::encode::{EnvoyOptions, EnvoySecrets};
use serde_json::{Map, Value, json};

use super::{Member, MemberArguments};
use crate::commands::sidecar::PortText;
use crate::output::line;
use crate::pem::{PemFolder, replace};

/// Arguments of `pillion generate envoy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    member: MemberArguments,
    /// The port on which the Envoy takes calls from the mesh, over mutual TLS.
    #[arg(long, env = "PILLION_INBOUND_PORT", value_name = "PORT", default_value_t = 15006)]
    inbound_port: u16,
    /// Where the Envoy listens for its application's calls.
    #[arg(long, env = "PILLION_OUTBOUND", value_name = "ADDRESS", default_value = "127.0.0.1:15001")]
    outbound: SocketAddr,
    /// Where the Envoy's administration listens.
    #[arg(long, env = "PILLION_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
}

/// Writes the files.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let member = arguments.member.join("envoy").await?;
    let files = Files::in_folder(&arguments.member.out)?;
    files.write(&member.identity, &bootstrap(&arguments, &member, &files)?)?;
    arguments.member.tell(&member);
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

fn bootstrap(arguments: &Arguments, member: &Member, files: &Files) -> anyhow::Result<Value> {
    let Member { node, registries, identity } = member;
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
fn announced(arguments: &Arguments) -> Option<Value> {
    let address = arguments.member.advertise.filter(|_| !arguments.member.port.is_empty())?;
    let port = |port: &PortText| {
        let application = SocketAddr::from((Ipv4Addr::LOCALHOST, port.port));
        let value = json!({"port": port.port, "protocol": port.protocol.as_str(), "appAddress": application});
        (port.name.clone(), value)
    };
    let ports: Map<String, Value> = arguments.member.port.iter().map(port).collect();
    let labels = arguments.member.labels();
    Some(json!({"address": address, "ports": ports, "inboundPort": arguments.inbound_port, "labels": labels}))
}

fn address(target: &Target) -> HostAddress {
    match target.host.parse() {
        Ok(ip) => HostAddress::Socket(SocketAddr::new(ip, target.port)),
        Err(_) => HostAddress::Name { host: target.host.clone(), port: target.port },
    }
}
