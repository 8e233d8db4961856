//! Envoy's dynamic resources: what a bootstrap does not hold itself comes by ADS or from files.
//!
//! One task owns the [`state`]: it feeds it with what the control plane and the files say, asks for
//! what the state then wants, and publishes what is in effect as one snapshot. The protocol is the
//! sidecar's own [client](pillion_xds::ads::client).

mod files;
mod item;
mod kind;
mod leaf;
mod report;
mod secrets;
mod state;
mod worker;

use std::sync::Arc;

use pillion_xds::ads::NodeInfo;
use pillion_xds::ads::client::{Client, Decode, Handler, run_variant};
use pillion_xds::bootstrap::Bootstrap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::files::Files;
use self::item::Item;
pub(crate) use self::report::StatOf;
use self::secrets::Loaded;
use self::state::{State, Wanted};
pub(crate) use self::worker::Shared;
use self::worker::{Current, Worker};
use crate::runtime::Runtime;

/// Follows what `bootstrap` names, on `tasks`, until `stop`; gives what the admin pages
/// show. `begun` is cancelled when
/// everything that the start waits for is in effect. Static resources have been published before: ADS is
/// reached through one of their clusters.
pub(crate) fn follow(
    bootstrap: &Bootstrap,
    runtime: &Arc<Runtime>,
    begun: CancellationToken,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Arc<Shared> {
    let node = &bootstrap.node;
    let client = Client::new(NodeInfo {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        user_agent: USER_AGENT.to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        metadata: node.metadata.clone(),
        client_features: Vec::new(),
    });
    let state = State::new(bootstrap, Instant::now());
    let shared = Arc::new(Shared { state: state.into(), is_connected: false.into() });
    let own = Arc::<Loaded>::default();
    let mut worker = Worker {
        client,
        shared: Arc::clone(&shared),
        runtime: Arc::clone(runtime),
        decode: decoder(Arc::clone(runtime)),
        files: Files::new(),
        wanted: Wanted::default(),
        loaded: Current { published: Arc::clone(&own) as _, own },
        published_at: None,
        begun,
    };
    let (ads, runtime) = (bootstrap.dynamic.ads.clone(), Arc::clone(runtime));
    tasks.spawn(async move {
        worker.follow();
        match ads {
            Some(ads) => {
                let connect = || {
                    let (runtime, ads) = (Arc::clone(&runtime), ads.clone());
                    async move { runtime.channel(&ads.cluster, &ads.authority).await }
                };
                run_variant(ads.variant, &mut worker, connect, &stop).await;
            }
            None => while stop.run_until_cancelled(worker.work()).await.is_some() {},
        }
    });
    shared
}

/// Reads a resource and tries it.
fn decoder(runtime: Arc<Runtime>) -> Decode<Item> {
    Arc::new(move |type_url, name, body| {
        let item = item::read(type_url, body).map_err(|error| error.to_string())?;
        if item.name() != name {
            return Err(format!("the resource says its name is {:?}", item.name()));
        }
        item.check(&runtime)?;
        Ok(item)
    })
}

/// How control planes see it: not as a sidecar of the mesh, for whom the registry has other words.
const USER_AGENT: &str = "pillion-proxy";
