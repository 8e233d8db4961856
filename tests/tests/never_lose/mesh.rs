//! Pairs of sidecars with mutual TLS, configured by a registry.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use fastrand::Rng;
use http::Method;
use pillion_tests::support::process::run;
use pillion_tests::support::{DEADLINE, Plan, Registry, Sidecar, eventually};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::load::{Ledger, Load, Target};
use super::origin::{Origin, Temper};
use super::{judge, random, requests};

/// Requests per second: what two sidecars without optimisation and their applications have time for
/// on two processors, with some to spare.
const RATE: usize = 900;
/// Of a certificate: sidecars renew it at about half of that.
const CERTIFICATE: &str = "20s";
/// How long the registry is away.
const AWAY: Duration = Duration::from_secs(1);
/// Changes of configuration before it goes, and the time between two of them.
const CHANGES: u32 = 8;
const PAUSE: Duration = Duration::from_millis(300);

/// Lines of the access log that are told when something fails.
const TOLD_MAX: usize = 40;

const ALL: &[(Method, bool)] =
    &[(Method::GET, false), (Method::POST, true), (Method::PUT, true), (Method::DELETE, false)];
const SAFE: &[(Method, bool)] = &[(Method::GET, false), (Method::PUT, true), (Method::DELETE, false)];
const CALLS: &[(Method, bool)] = &[(Method::POST, true)];

const TARGETS: &[Target] = &[
    Target { host: "orders.default.mesh.internal", path: "/orders", methods: ALL, grpc: false },
    Target { host: "careless.default.mesh.internal", path: "/careless", methods: SAFE, grpc: false },
    Target { host: "ledger.default.mesh.internal", path: "/bank.Ledger", methods: CALLS, grpc: true },
];

/// What the services are; `variant` changes what can change.
fn resources(variant: u32) -> String {
    let timeout = 10 + variant % 3;
    let requests = 5000 + variant % 2;
    let (stable, canary) = (100 - variant % 100, variant % 100);
    // Now and then the route goes, and with it the clusters of the subsets.
    let route = if variant % 4 == 3 {
        String::new()
    } else {
        format!(
            "---\nkind: Route\nname: split\nto: orders\nrules:\n\
             - {{split: [{{subset: a, weight: {stable}}}, {{subset: b, weight: {canary}}}], \
             headers: {{request: {{set: {{x-variant: \"{variant}\"}}}}}}}}\n"
        )
    };
    format!(
        "kind: Service\nname: orders\nports: [{{name: http, port: 80, protocol: http}}]\n\
         subsets: {{a: {{version: \"1\"}}, b: {{version: \"1\"}}}}\ntimeout: {{request: {timeout}s}}\n\
         circuitBreaker: {{maxConnections: 5000, maxPending: 5000, maxRequests: {requests}}}\n\
         ---\nkind: Service\nname: careless\nports: [{{name: http, port: 80, protocol: http}}]\n\
         ---\nkind: Service\nname: ledger\nports: [{{name: grpc, port: 80, protocol: grpc}}]\n\
         ---\nkind: AuthorizationPolicy\nname: callers\nto: orders\naction: allow\n\
         rules: [{{from: [{{service: web}}, {{service: other-{variant}}}]}}]\n{route}"
    )
}

/// An application and the sidecar beside it.
struct Instance {
    sidecar: Sidecar,
    origin: Origin,
}

/// What starts instances.
#[derive(Clone)]
struct Starter {
    registry: SocketAddr,
    ledger: Arc<Ledger>,
    numbers: Arc<AtomicUsize>,
}

impl Starter {
    async fn start(&self, service: &'static str, rng: &mut Rng) -> Instance {
        let (port, temper) = match service {
            "ledger" => ("grpc=", Temper::Http2),
            "careless" => ("http=", Temper::Careless),
            _ => ("http=", Temper::Orderly),
        };
        let origin = Origin::start(service, temper, &self.ledger, rng).await;
        let port = match temper {
            Temper::Http2 => format!("{port}{}:grpc", origin.address.port()),
            _ => format!("{port}{}", origin.address.port()),
        };
        let id = format!("{service}-{}", self.numbers.fetch_add(1, Relaxed));
        let plan = Plan::new(self.registry, &format!("{service}.default"), &port).instance(&id);
        let sidecar = plan.with(&["--label", "version=1"]).start().await;
        Instance { sidecar, origin }
    }
}

impl Instance {
    /// Waits until callers use it, or have nothing more to ask.
    async fn used(&self, over: &AtomicBool) {
        eventually("a new instance is called", 4 * DEADLINE, || async {
            if self.origin.answered() > 0 || over.load(Relaxed) { Ok(()) } else { Err("not yet") }
        })
        .await;
    }

    /// Ends it in order: told to drain first, or by SIGTERM alone; then the application.
    async fn end(mut self, drained_first: bool) {
        if drained_first {
            let finished = run(["drain", "--admin", &self.sidecar.admin.to_string()]).await;
            assert_eq!(finished.code, 0, "{finished:?}");
        }
        self.sidecar.process.signal(Signal::TERM);
        let status = self.sidecar.process.exit(DEADLINE).await;
        assert!(status.success(), "{status}: {}", self.sidecar.process.output());
        drop(self.origin);
    }
}

/// Instances come and go until `over`; how many have.
async fn replace_instances(
    starter: &Starter,
    mut running: [VecDeque<Instance>; 2],
    over: &AtomicBool,
    mut rng: Rng,
) -> usize {
    let mut replaced = 0;
    while !over.load(Relaxed) {
        let (service, instances) =
            if rng.bool() { ("orders", &mut running[0]) } else { ("ledger", &mut running[1]) };
        // One more and then one fewer, or the other way round.
        if rng.bool() || instances.len() < 2 {
            let instance = starter.start(service, &mut rng).await;
            instance.used(over).await;
            instances.push_back(instance);
        }
        if instances.len() > 2
            && let Some(oldest) = instances.pop_front()
        {
            oldest.end(rng.bool()).await;
            replaced += 1;
        }
    }
    replaced
}

/// The registry changes its mind, dies and comes back until `over`; how often.
async fn trouble_registry(mut registry: Registry, over: &AtomicBool, mut rng: Rng) -> (Registry, [u32; 3]) {
    let mut counts = [0; 3];
    while !over.load(Relaxed) {
        for _ in 0..CHANGES {
            registry.apply(&resources(rng.u32(..))).await;
            counts[0] += 1;
            sleep(PAUSE).await;
        }
        let killed = rng.bool();
        let ended = if killed { registry.crash().await } else { registry.stop().await };
        sleep(AWAY).await;
        registry = ended.restart().await;
        counts[if killed { 1 } else { 2 }] += 1;
    }
    (registry, counts)
}

async fn fleet(starter: &Starter, service: &'static str, count: usize, rng: &mut Rng) -> VecDeque<Instance> {
    let mut instances = VecDeque::new();
    for _ in 0..count {
        instances.push_back(starter.start(service, rng).await);
    }
    instances
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_in_a_mesh_that_never_rests() {
    let mut rng = random();
    let data: TempDir = tempfile::tempdir().expect("a folder");
    let registry =
        Registry::start_with(data.path(), &["--open", "--certificate-lifetime", CERTIFICATE]).await;
    registry.apply(&resources(0)).await;
    let load = Load::new(requests(), RATE);
    let starter =
        Starter { registry: registry.mesh, ledger: Arc::clone(&load.ledger), numbers: Arc::default() };
    let orders = fleet(&starter, "orders", 2, &mut rng).await;
    let ledger = fleet(&starter, "ledger", 2, &mut rng).await;
    let _careless = fleet(&starter, "careless", 1, &mut rng).await;
    let log = data.path().join("access.log");
    let web = Plan::caller(registry.mesh, "web.default");
    let web = web.with(&["--access-log", &log.display().to_string(), "--access-log-format", "json"]);
    let web = web.start().await;
    for target in TARGETS {
        web.get_until(target.host, target.path, 200).await;
    }
    let (begun, over) = (Instant::now(), AtomicBool::new(false));
    let requests = async {
        let outcome = load.run(web.outbound, TARGETS, rng.fork()).await;
        over.store(true, Relaxed);
        println!("{} requests in {:?}", load.requests, begun.elapsed());
        outcome
    };
    let (outcome, replaced, (_registry, [applied, killed, stopped])) = tokio::join!(
        requests,
        replace_instances(&starter, [orders, ledger], &over, Rng::with_seed(1)),
        trouble_registry(registry, &over, Rng::with_seed(2)),
    );
    println!(
        "{replaced} instances replaced, {applied} changes applied, registry killed {killed} times and stopped {stopped} times"
    );
    if !outcome.failures.is_empty() {
        let lines = std::fs::read_to_string(&log).unwrap_or_default();
        // Those with a response flag.
        let flagged = lines.lines().filter(|line| !line.contains(r#""responseFlags":"-""#));
        flagged.take(TOLD_MAX).for_each(|line| println!("{line}"));
    }
    judge(&outcome, load.requests);
}
