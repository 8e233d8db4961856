//! The connections to the registry: for configuration, and for the registration.

use pillion_model::mesh::EGRESS_ROUTES;
use pillion_net::grpc::Dialer;
use pillion_net::identity::{IdentityWatch, Replacements};
use pillion_xds::ads::NodeInfo;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use super::identity::chain;
use super::options::Options;
use super::registration;
use crate::control::{self, Control};

/// Names of the services that are known to be called.
pub(super) fn called_names(options: &Options, zone: &str) -> Vec<String> {
    let upstreams = options.upstreams.iter().map(|upstream| &upstream.service);
    upstreams.chain(&options.dependencies).map(|service| format!("{service}.{zone}")).collect()
}

/// Starts the control client; the services `pinned` are known from the start.
pub(super) fn start_control(
    options: &Options,
    pinned: Vec<String>,
    dialer: &Dialer,
    identity: IdentityWatch,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Control {
    let node = NodeInfo {
        id: options.node.to_string(),
        user_agent: pillion_xds::ads::PILLION_USER_AGENT.to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..NodeInfo::default()
    };
    let options = control::Options {
        node,
        state_dir: options.state_dir.clone(),
        on_demand_max: control::ON_DEMAND_MAX,
        pinned,
        routes: vec![EGRESS_ROUTES.to_owned()],
        identity: Some(identity),
        stop: stop.clone(),
    };
    let dialer = dialer.clone();
    let connect = move || {
        let dialer = dialer.clone();
        async move { dialer.connect().await.map_err(Into::into) }
    };
    control::start(options, connect, tasks)
}

/// Dials the registry for the registration stream, with the identity of the moment.
pub(super) struct RegistryDial(pub(super) Dialer, pub(super) IdentityWatch);

impl registration::Dial for RegistryDial {
    async fn dial(&self) -> Result<Channel, String> {
        self.0.connect().await.map_err(|error| chain(&error))
    }

    async fn renewed(&self) {
        Replacements::new(self.1.clone()).next().await;
    }
}
