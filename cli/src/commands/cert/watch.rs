//! `pillion cert watch`: keeps certificate, key and roots fresh for a program that is not ours.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context;
use pillion_model::name::{InstanceId, NodeId, ServiceName};
use pillion_net::identity::{Identity, channel};
use pillion_net::resolve::Resolver;
use pillion_proxy::sidecar::Keeper;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::remaining;
use crate::commands::sidecar::JoinArguments;
use crate::exit::Usage;
use crate::logging::LogArguments;
use crate::output::line;
use crate::pem::PemFolder;

/// Arguments of `pillion cert watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    join: JoinArguments,
    /// The service whose certificate it is; without it, that of the certificate in the folder.
    #[arg(long, env = "PILLION_SERVICE", value_name = "NAME")]
    service: Option<String>,
    /// The service's namespace.
    #[arg(long, env = "PILLION_NAMESPACE", value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Which instance's certificate it is; without it, that of the certificate in the folder, or
    /// `cert-watch`.
    #[arg(long, env = "PILLION_INSTANCE_ID", value_name = "ID")]
    instance_id: Option<String>,
    /// Where chain.pem, key.pem and roots.pem are kept.
    #[arg(long, env = "PILLION_DIR", value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    log: LogArguments,
}

/// Obtains a certificate unless a good one is there, renews it at half of its life, and so on until
/// SIGTERM or Ctrl-C.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let _set_log_filter = arguments.log.start()?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let folder = PemFolder::open(&arguments.dir)?;
    let keeper = Keeper {
        node: node(&arguments, &folder)?,
        registries: arguments.join.targets()?,
        credential: Some(arguments.join.credential()?),
        store: Box::new(folder),
        resolver: Resolver::system(),
    };
    let (publisher, mut identity) = channel();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let work = async {
        publisher.publish(keeper.first().await?);
        tasks.spawn(keeper.keep(publisher, stop.clone()));
        while let Some(current) = identity.changed().await {
            tell(&arguments, &current)?;
        }
        anyhow::bail!("nothing renews the certificate any more")
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    outcome
}

fn node(arguments: &Arguments, folder: &PemFolder) -> anyhow::Result<NodeId> {
    // A certificate is renewed for its own instance only.
    let leaf = folder.leaf()?;
    let there = leaf.as_ref().and_then(|leaf| leaf.common_name.as_deref());
    let instance = arguments.instance_id.as_deref().or(there).unwrap_or("cert-watch");
    let instance = InstanceId::parse(instance).context("--instance-id")?;
    let service = match &arguments.service {
        Some(service) => ServiceName::new(&arguments.namespace, service).context("--service, --namespace")?,
        None => {
            let there = leaf.and_then(|leaf| leaf.spiffe_id()?.service_name().cloned());
            let missing = || {
                let dir = arguments.dir.display();
                Usage(format!("--service is needed: {dir} holds no certificate yet that would name it"))
            };
            there.ok_or_else(missing)?
        }
    };
    Ok(NodeId { service, instance })
}

/// One line for each certificate, for whoever must tell a program to read it again.
fn tell(arguments: &Arguments, identity: &Identity) -> anyhow::Result<()> {
    let left = remaining(identity.svid.not_after, SystemTime::now());
    line(format_args!("{} is good for {left}: {}", arguments.dir.display(), identity.svid.id))
}
