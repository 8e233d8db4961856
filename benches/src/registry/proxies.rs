//! Connected sidecars, each of which uses one service, while services change.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use pillion_model::name::{InstanceId, NodeId, ServiceName, SpiffeId, TrustDomain};
use pillion_net::bootstrap::{Credential, join};
use pillion_net::grpc::{Dialer, Security};
use pillion_net::identity::{Identity, IdentityWatch};
use pillion_net::resolve::{Resolver, Target};
use pillion_net::tls::{ClientTls, mesh_client_context};
use pillion_xds::ads::client::{Client, Decode, Handler, Link, Update, run as follow};
use pillion_xds::ads::{NodeInfo, PILLION_USER_AGENT};
use pillion_xds::type_url;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Arguments;
use super::door::Door;
use super::fanout::{Changer, QUIET, WATCHED};
use super::server::Registry;
use crate::report::{Budget, Report};

/// Sidecars that connect at the same time.
const CONNECTING: usize = 64;
/// How long they may take to be told what they use.
const TOLD_MAX: Duration = Duration::from_secs(120);
/// How long what was changed is on its way, at most.
const SETTLE: Duration = Duration::from_secs(2);
/// What makes an instance an endpoint where mutual TLS is strict.
const MESHED: &str = r#","inboundPort":15006"#;

pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let registry = Registry::start(arguments, data.path()).await?;
    let mut changer = Changer::new(&Door::open(registry.api), arguments.services).await?.with(MESHED);
    changer.once_each().await?;
    let window = arguments.window / 4;
    let mut row = |what: String, value: f64, unit, most: Option<f64>| {
        report.row(format!("proxies: {what}"), value, unit, most.map(Budget::AtMost));
    };
    let cost = async |changer: &mut Changer, kind: &str| {
        let before = registry.usage()?;
        let changes = changer.churn(kind, arguments.changes, window).await?;
        sleep(SETTLE.min(window)).await;
        let cpu = registry.usage()?.cpu_since(before);
        anyhow::Ok((cpu.as_secs_f64() * 1e6 / changes.max(1) as f64, changes))
    };
    let (alone, _) = cost(&mut changer, QUIET).await?;
    row("CPU of a change, nobody connected".to_owned(), alone, "µs", None);

    let told = Arc::new(AtomicUsize::new(0));
    let memory = registry.memory()?;
    let mut sidecars = connect(arguments, &registry, &told).await?;
    let each = (registry.memory()? - memory) / arguments.proxies as f64;
    row("memory of one".to_owned(), each / 1024.0, "KiB", None);
    told.store(0, Ordering::Relaxed);
    let (quiet, changes) = cost(&mut changer, QUIET).await?;
    let beside = format!("CPU of a change that none of {} uses", arguments.proxies);
    row(beside, quiet, "µs", None);
    let others = told.swap(0, Ordering::Relaxed) as f64;
    row("resources told of changes that nobody uses".to_owned(), others, "resources", Some(0.0));
    let (used, changed) = cost(&mut changer, WATCHED).await?;
    let pushed = told.swap(0, Ordering::Relaxed) as f64;
    row("resources told per change of a service".to_owned(), pushed / changed as f64, "resources", None);
    let each = (used - quiet) * changed as f64 / pushed.max(1.0);
    row("CPU of one resource told and acknowledged".to_owned(), each, "µs", None);
    ensure!(changes > 0, "no change was made");
    sidecars.shutdown().await;
    Ok(())
}

/// Connects everybody, and waits until each has been told what it uses.
async fn connect(
    arguments: &Arguments,
    registry: &Registry,
    told: &Arc<AtomicUsize>,
) -> anyhow::Result<JoinSet<()>> {
    let target = Target { host: registry.mesh.ip().to_string(), port: registry.mesh.port() };
    let service = ServiceName::new("bench", "sidecar")?;
    let node = NodeId { service, instance: InstanceId::parse("bench")? };
    let resolver = Resolver::system();
    let identity =
        Arc::new(join(std::slice::from_ref(&target), &Credential::OpenLoopback, &node, &resolver).await?);
    let mut sidecars = JoinSet::new();
    let all: Vec<usize> = (0..arguments.proxies).collect();
    let started = Instant::now();
    for some in all.chunks(CONNECTING) {
        for number in some {
            let sidecar = Sidecar::new(*number, number % arguments.services, Arc::clone(told));
            sidecars.spawn(sidecar.run(target.clone(), Arc::clone(&identity)));
        }
        let upto = (some.last().map_or(0, |last| last + 1)) * Sidecar::NAMES;
        while told.load(Ordering::Relaxed) < upto {
            ensure!(started.elapsed() < TOLD_MAX, "the sidecars were not told all within {TOLD_MAX:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(sidecars)
}

/// One that counts the resources it is told.
struct Sidecar {
    client: Client,
    told: Arc<AtomicUsize>,
}

impl Sidecar {
    /// What each asks for of its service.
    const NAMES: usize = 4;

    fn new(number: usize, service: usize, told: Arc<AtomicUsize>) -> Self {
        let mut client = Client::new(NodeInfo {
            id: format!("bench/sidecar/n{number}"),
            user_agent: PILLION_USER_AGENT.to_owned(),
            ..NodeInfo::default()
        });
        let service = format!("{WATCHED}{service}");
        let cluster = format!("outbound|http||{service}.bench");
        client.subscribe(type_url::SERVICE, &format!("{service}.bench.mesh.internal"));
        client.subscribe(type_url::CLUSTER, &cluster);
        client.subscribe(type_url::ENDPOINTS, &cluster);
        client.subscribe(type_url::ROUTE, &format!("http.{service}.bench"));
        Self { client, told }
    }

    async fn run(mut self, registry: Target, identity: Arc<Identity>) {
        let context = mesh_client_context(&[SpiffeId::registry(TrustDomain::default())], "", &["h2"]);
        let tls = ClientTls::new(context, IdentityWatch::fixed(identity));
        let dialer = Dialer::new(vec![registry], Security::Mesh(Arc::new(tls)), Resolver::system());
        let connect = || async { dialer.connect().await.map_err(Into::into) };
        follow(&mut self, connect, &CancellationToken::new()).await;
    }
}

impl Handler for Sidecar {
    type Value = ();

    fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    fn decode(&self) -> Decode<()> {
        Arc::new(|_, _, _| Ok(()))
    }

    fn on_update(&mut self, update: Update<()>) {
        self.told.fetch_add(update.changed.len(), Ordering::Relaxed);
    }

    fn on_link(&mut self, _link: Link) {}

    async fn work(&mut self) {
        std::future::pending::<()>().await;
    }
}
