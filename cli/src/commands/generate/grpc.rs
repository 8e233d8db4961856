//! `pillion generate grpc`: what a gRPC client or server needs to join the mesh without a proxy.

use std::path::Path;

use anyhow::Context;
use pillion_registry::control::{SERVER_LISTENER, grpc_metadata};
use pillion_registry::resolve::GrpcCredentials;
use pillion_xds::encode::GRPC_CERTIFICATES;
use serde_json::{Map, Value, json};

use super::{Member, MemberArguments};
use crate::commands::sidecar::PortText;
use crate::output::line;
use crate::pem::{PemFolder, replace};

/// Arguments of `pillion generate grpc`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    member: MemberArguments,
    /// The application gives its channels and servers no xDS credentials: it speaks in plaintext, with
    /// services that permit that.
    #[arg(long, env = "PILLION_PLAINTEXT")]
    plaintext: bool,
}

/// How often gRPC looks at the certificate's files.
const REFRESH: &str = "10s";

/// Writes the files.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let member = arguments.member.join("grpc").await?;
    let pem = PemFolder::open(&arguments.member.out)?;
    pem.write(&member.identity)?;
    let file = pem.file("grpc.json");
    let text = bootstrap(&arguments, &member, &pem).context("write gRPC's bootstrap")?;
    replace(&file, &format!("{text:#}\n"))?;
    arguments.member.tell(&member);
    line(format_args!("export GRPC_XDS_BOOTSTRAP={}", file.display()))
}

fn bootstrap(arguments: &Arguments, member: &Member, pem: &PemFolder) -> anyhow::Result<Value> {
    let certificates = json!({
        "certificate_file": text(&pem.chain())?,
        "private_key_file": text(&pem.key())?,
        "ca_certificate_file": text(&pem.roots())?,
        "refresh_interval": REFRESH,
    });
    let server = |registry: &dyn std::fmt::Display| {
        json!({
            "server_uri": registry.to_string(),
            "channel_creds": [{"type": "tls", "config": certificates}],
            "server_features": ["xds_v3"],
        })
    };
    let credentials = if arguments.plaintext { GrpcCredentials::Plaintext } else { GrpcCredentials::Xds };
    let instance = announced(&arguments.member, credentials);
    Ok(json!({
        "xds_servers": member.registries.iter().map(|one| server(one)).collect::<Vec<_>>(),
        "node": {
            "id": member.node.to_string(),
            "cluster": member.node.service.to_string(),
            "metadata": grpc_metadata(credentials, instance.as_ref()),
        },
        "certificate_providers": {
            GRPC_CERTIFICATES: {"plugin_name": "file_watcher", "config": certificates},
        },
        "server_listener_resource_name_template": format!("{SERVER_LISTENER}%s"),
    }))
}

/// The instance that the server's stream registers: it takes calls of the mesh at its own port.
fn announced(member: &MemberArguments, credentials: GrpcCredentials) -> Option<Value> {
    let (address, first) = (member.advertise?, member.port.first()?);
    let port =
        |port: &PortText| (port.name.clone(), json!({"port": port.port, "protocol": port.protocol.as_str()}));
    let ports: Map<String, Value> = member.port.iter().map(port).collect();
    let mut instance = json!({"address": address, "ports": ports, "labels": member.labels()});
    if credentials == GrpcCredentials::Xds {
        instance["inboundPort"] = json!(first.port);
    }
    Some(instance)
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8, which JSON has to be", path.display()))
}
