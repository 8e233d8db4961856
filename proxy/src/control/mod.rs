//! The sidecar's side of the control plane: one incremental ADS stream to the registry.
//!
//! The proxy's own listeners and clusters come by wildcard. Services come on demand: a
//! [`lookup`](Control::lookup) subscribes to a name, and routes, clusters and endpoints of the
//! service follow by themselves. What takes effect is published as one set; parts that belong
//! together take effect together. The last set is on disk, so a sidecar that starts while the
//! registry is away serves with it.
//!
//! While the registry is away the last set stays in effect; the stream is tried again after
//! jittered waits of at most five seconds.

mod decode;
mod names;
mod saved;
mod state;
#[cfg(test)]
mod tests;
mod wanted;
mod worker;

pub(crate) use self::wanted::clusters_of_routes;

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_model::mesh::{MeshService, Resources};
use pillion_net::identity::{IdentityWatch, Replacements};
use pillion_xds::ads::NodeInfo;
use pillion_xds::ads::client::{Client, Decode, run};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tracing::warn;

use self::names::normalise;
use self::saved::Saved;
use self::state::{Item, State};
use self::worker::{Body, Command, Kept, Worker};

/// How long a lookup waits for the registry.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// Names kept on demand unless told otherwise.
pub const ON_DEMAND_MAX: usize = 1024;
/// Lookups on their way to the task.
const COMMANDS_MAX: usize = 256;

/// What the control client is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who this proxy is; `user_agent` is [`pillion_xds::ads::PILLION_USER_AGENT`].
    pub node: NodeInfo,
    /// Where the last configuration is kept; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Services kept on demand, see [`ON_DEMAND_MAX`]; the least recently used goes first.
    pub on_demand_max: usize,
    /// Names of services that are always kept: the declared dependencies.
    pub pinned: Vec<String>,
    /// Route configurations that are always kept.
    pub routes: Vec<String>,
    /// The identity that connections are made with: another certificate, another connection. `None`: none.
    pub identity: Option<IdentityWatch>,
    /// Ends everything.
    pub stop: CancellationToken,
}

/// A handle to the control client. Clones share it.
#[derive(Clone, Debug)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    resources: watch::Receiver<Arc<Resources>>,
    status: watch::Receiver<Status>,
}

/// What the mesh knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is this service's; its parts are in [`Control::resources`].
    Service(Arc<MeshService>),
    /// No service is called so.
    NxDomain,
    /// The registry has not answered within [`LOOKUP_TIMEOUT`].
    Timeout,
}

/// State of the control client, for the admin page and for readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// A stream is open.
    pub connected: bool,
    /// The proxy's own listeners and clusters are complete: from the registry, or from the disk.
    pub synced: bool,
    /// Why the stream ended or could not be opened, while there is none.
    pub last_error: Option<String>,
    /// When the last response came.
    pub last_update: Option<SystemTime>,
    /// Responses refused, in whole or in part.
    pub nacks: u64,
    /// The first thing refused in the last one.
    pub last_nack: Option<String>,
    /// Resources that were taken over from the disk at the start.
    pub restored: usize,
    /// What is wrong with the file in the state directory.
    pub state_file_error: Option<String>,
}

impl Control {
    /// Everything in effect. The first value is what was on disk, or empty.
    #[must_use]
    pub fn resources(&self) -> watch::Receiver<Arc<Resources>> {
        self.resources.clone()
    }

    /// The state of the client.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// What the mesh knows of a name; asks the registry at the first time. A service that is
    /// returned is in [`Self::resources`], normally with all its parts; a part that is late is
    /// missing there and comes with a later set.
    ///
    /// That a name does not exist is remembered for 5 s. The subscription stays, so a service
    /// created meanwhile is known at once.
    pub async fn lookup(&self, name: &str) -> Lookup {
        let Some(name) = normalise(name) else {
            return Lookup::NxDomain;
        };
        let known = self.resources.borrow().services.get(&name).cloned();
        if let Some(service) = known {
            let _ = self.commands.try_send(Command::Touch(name)); // a lost touch costs nothing
            return Lookup::Service(Arc::new(service));
        }
        let (reply, answer) = oneshot::channel();
        let ask = async {
            self.commands.send(Command::Lookup { name, reply }).await.ok()?;
            answer.await.ok()
        };
        timeout(LOOKUP_TIMEOUT, ask).await.ok().flatten().unwrap_or(Lookup::Timeout)
    }

    /// Marks a name as in use, so that it is not the one that goes when there are too many. For
    /// callers that take services from [`Self::resources`] directly; every few seconds is enough.
    pub fn touch(&self, name: &str) {
        if let Some(name) = normalise(name) {
            let _ = self.commands.try_send(Command::Touch(name)); // a lost touch costs nothing
        }
    }
}

/// Starts the control client on `tasks`. `connect` opens a channel to a registry, another one
/// each time if there are several; give the channel HTTP/2 keep-alive.
pub fn start<F, A>(options: Options, connect: F, tasks: &TaskTracker) -> Control
where
    F: FnMut() -> A + Send + 'static,
    A: Future<Output = Result<Channel, Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    start_with(options, connect, tasks, Arc::new(decode::read))
}

fn start_with<F, A>(options: Options, connect: F, tasks: &TaskTracker, decode: Decode<Item>) -> Control
where
    F: FnMut() -> A + Send + 'static,
    A: Future<Output = Result<Channel, Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let (commands, queue) = mpsc::channel(COMMANDS_MAX);
    let (resources, _) = watch::channel(Arc::default());
    let (status, _) = watch::channel(Status::default());
    let control = Control { commands, resources: resources.subscribe(), status: status.subscribe() };
    let pinned: Vec<String> = options.pinned.iter().filter_map(|name| normalise(name)).collect();
    let mut worker = Worker {
        node_id: options.node.id.clone(),
        state: State::new(Client::new(options.node), options.on_demand_max, &pinned, options.routes),
        decode,
        commands: queue,
        resources,
        status: status.clone(),
        waiting: HashMap::new(),
        published_at: None,
        kept: None,
        identity: options.identity.map(Replacements::new),
        renewed: false,
    };
    if let Some(dir) = options.state_dir {
        let saved = saved::load(&dir, &worker.node_id).unwrap_or_else(|error| {
            report_file(&status, Some(error.to_string()));
            None
        });
        let (states, offered) = watch::channel(None);
        let bodies = saved.map(|saved| worker.restore(saved)).unwrap_or_default();
        worker.kept = Some(Kept { states, bodies, save_at: None, saved_at: None });
        tasks.spawn(saved::keep(dir, offered, move |error| report_file(&status, error)));
    }
    let stop = options.stop;
    tasks.spawn(async move {
        run(&mut worker, connect, &stop).await;
        worker.finish();
    });
    control
}

fn report_file(status: &watch::Sender<Status>, error: Option<String>) {
    if let Some(error) = &error {
        warn!(error, "the last configuration on disk");
    }
    status.send_modify(|status| status.state_file_error = error);
}

impl Worker {
    /// Takes over what was on disk; gives the resources that could be read.
    fn restore(&mut self, saved: Saved) -> BTreeMap<(String, String), Body> {
        let mut bodies = BTreeMap::new();
        for resource in saved.resources {
            match (self.decode)(&resource.type_url, &resource.name, &resource.body) {
                Ok(item) => {
                    self.state.restore(&resource.type_url, &resource.name, &resource.version, item);
                    let body = Body { version: resource.version, bytes: resource.body };
                    bodies.insert((resource.type_url, resource.name), body);
                }
                Err(reason) => {
                    let (type_url, name) = (&resource.type_url, &resource.name);
                    warn!(type_url, name, reason, "a saved resource cannot be read, asking for it again");
                }
            }
        }
        let now = Instant::now();
        self.state.restore_names(saved.on_demand.iter().map(String::as_str), now);
        self.status.send_modify(|status| {
            status.restored = bodies.len();
            status.synced = bodies.keys().any(|(type_url, _)| type_url == pillion_xds::type_url::LISTENER);
        });
        self.publish(now);
        bodies
    }
}
