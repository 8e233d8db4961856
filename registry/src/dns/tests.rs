//! The zone asked by a resolver we did not write (`dig`), and by hand.

mod fast;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::RwLock;
use std::time::Duration;

use pillion_config::{Format, ResourceSet, Source};
use pillion_dns::serve;
use pillion_model::health::{HealthInputs, Lease, Probe, Reported};
use pillion_model::instance::{Instance, InstancePort, Protocol, TTL_DEFAULT};
use pillion_model::name::{InstanceId, ServiceName};
use pillion_net::listen::bind_udp_and_tcp;
use pillion_tests::support::ports::free_address;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::catalog::{CatalogService, CatalogView, ServicePort};
use crate::resources::Resources;

/// A state of the registry made by hand.
fn state(revision: u64, instances: Vec<Instance>, set: ResourceSet) -> World {
    let resources = Arc::new(Resources { set, ..Resources::default() });
    World { revision, catalog: Arc::new(catalog(instances)), resources, ..World::default() }
}

fn service(namespace: &str, name: &str) -> ServiceName {
    ServiceName::new(namespace, name).expect("a name")
}

fn instance(service: &ServiceName, id: &str, address: &str) -> Instance {
    Instance {
        service: service.clone(),
        id: InstanceId::parse(id).expect("an id"),
        address: address.parse().expect("an address"),
        ports: Arc::new(
            [("http".to_owned(), InstancePort { port: 8080, protocol: Protocol::Http, app_address: None })]
                .into(),
        ),
        inbound_port: None,
        metrics_port: None,
        labels: Arc::default(),
        metadata: Arc::default(),
        weight: 100,
        zone: String::new(),
        ttl: TTL_DEFAULT,
        generation: 1,
        health: HealthInputs::default(),
    }
}

fn catalog(instances: Vec<Instance>) -> CatalogView {
    let mut services: BTreeMap<ServiceName, CatalogService> = BTreeMap::new();
    for instance in instances {
        let service = services.entry(instance.service.clone()).or_default();
        for (name, port) in instance.ports.iter() {
            service.ports.insert(name.clone(), ServicePort { port: port.port, protocol: port.protocol });
        }
        service.instances.insert_mut(instance.id.clone(), Arc::new(instance));
    }
    let services = services.into_iter().map(|(name, service)| (name, Arc::new(service))).collect();
    CatalogView { revision: 7, services }
}

/// `orders.shop` in every state of health and both address families, `empty.shop`, `web`.
fn world() -> World {
    let (orders, web) = (service("shop", "orders"), service("default", "web"));
    let with = |id: &str, address: &str, change: fn(&mut Instance)| {
        let mut instance = instance(&orders, id, address);
        change(&mut instance);
        instance
    };
    let label = |instance: &mut Instance| {
        drop(Arc::make_mut(&mut instance.labels).insert("version".into(), "2".into()))
    };
    let instances = vec![
        with("a", "10.0.0.1", |_| {}),
        with("b", "10.0.0.2", label),
        with("late", "10.0.0.3", |one| one.health.lease = Lease::Late),
        with("six", "2001:db8::1", label),
        with("down", "10.0.0.9", |one| one.health.probe = Probe::Failing),
        with("leaving", "10.0.0.8", |one| one.health.reported = Reported::Draining),
        with("weightless", "10.0.0.7", |one| one.weight = 0),
        instance(&web, "web-1", "10.0.1.1"),
    ];
    let resources = "
kind: Service
name: orders
namespace: shop
ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81}]
subsets: {v2: {version: '2'}, v3: {version: '3'}}
---
kind: Service
name: empty
namespace: shop
ports: [{name: http, port: 80}]
";
    state(7, instances, read(resources))
}

fn read(text: &str) -> ResourceSet {
    let source = Source { name: "test.yaml".into(), text: text.into(), format: Format::Yaml };
    let parsed = pillion_config::parse(&[source]).expect("valid resources");
    parsed.into_iter().map(|positioned| positioned.value).collect()
}

/// A server on loopback.
struct Server {
    address: SocketAddr,
    state: Arc<RwLock<Option<Arc<World>>>>,
    zone: Arc<RegistryZone>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    fn start(state: Option<World>) -> Self {
        Self::start_before(state, Vec::new())
    }

    /// One that asks these resolvers about what is not its own.
    fn start_before(state: Option<World>, resolvers: Vec<SocketAddr>) -> Self {
        let state = Arc::new(RwLock::new(state.map(Arc::new)));
        let current: CurrentView = {
            let state = Arc::clone(&state);
            Box::new(move || state.read().expect("not poisoned").clone())
        };
        let zone = Arc::new(RegistryZone::new(
            current,
            Box::new(|| false),
            vec!["10.0.9.9".parse().expect("an address")],
            Forwarder::new(resolvers),
        ));
        let (udp, tcp) = bind_udp_and_tcp("dns", free_address()).expect("a port");
        let address = udp.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let (udp, tcp) =
            (UdpSocket::from_std(udp).expect("tokio"), TcpListener::from_std(tcp).expect("tokio"));
        let (answering, ending) = (Arc::clone(&zone), stop.clone());
        let task = tokio::spawn(async move { serve("test", udp, tcp, answering, ending).await });
        Self { address, state, zone, stop, task }
    }

    fn set(&self, state: World) {
        *self.state.write().expect("not poisoned") = Some(Arc::new(state));
    }

    /// What `dig` prints for these arguments, with single blanks.
    async fn dig(&self, args: &str) -> String {
        let mut command = Command::new("dig");
        command.args(["@127.0.0.1", "-p", &self.address.port().to_string(), "+tries=1", "+time=5"]);
        command.args(args.split_whitespace());
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("ran").expect("dig");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Columns are set by tabs and blanks, as it comes.
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
    }

    /// The answer section, one record a line, sorted.
    async fn short(&self, args: &str) -> Vec<String> {
        let text = self.dig(&format!("+short {args}")).await;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// The status, the flags and the authority section's record type of an answer.
    async fn status(&self, args: &str) -> String {
        let text = self.dig(args).await;
        let status = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("none");
        let soa = text.contains(" IN SOA ");
        format!("{status}{}", if soa { " with SOA" } else { "" })
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.task).await.expect("ends").expect("no panic");
    }
}

/// Whether `dig` is there; its absence is said, and is a failure in CI.
fn has_dig() -> bool {
    if Command::new("dig").arg("-v").output().is_ok() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "dig is needed in CI: install dnsutils");
    eprintln!("SKIPPED: dig is not installed (dnsutils)");
    false
}

#[tokio::test]
async fn every_form_of_name_is_answered_as_dig_sees_it() {
    if !has_dig() {
        return;
    }
    let server = Server::start(Some(world()));
    let serving = "10.0.0.1 10.0.0.2 10.0.0.3";
    let srv = |ids: &[&str]| {
        let line = |id: &&str| format!("0 100 8080 {id}.inst.orders.shop.mesh.internal.");
        ids.iter().map(line).collect::<Vec<_>>().join("|")
    };
    let everywhere = srv(&["a", "b", "late", "six"]);
    let second = srv(&["b", "six"]);
    for (ask, want) in [
        ("orders.shop.mesh.internal A", serving),
        ("orders.shop.svc.mesh.internal A", serving),
        ("all.orders.shop.mesh.internal A", serving),
        ("all.orders.shop.svc.mesh.internal A", serving),
        ("ORDERS.Shop.Mesh.Internal A", serving),
        ("orders.shop.mesh.internal AAAA", "2001:db8::1"),
        ("v2.sub.orders.shop.mesh.internal A", "10.0.0.2"),
        ("v2.sub.orders.shop.svc.mesh.internal AAAA", "2001:db8::1"),
        ("a.inst.orders.shop.mesh.internal A", "10.0.0.1"),
        ("down.inst.orders.shop.mesh.internal A", "10.0.0.9"),
        ("web.mesh.internal A", "10.0.1.1"),
        ("web.default.mesh.internal A", "10.0.1.1"),
        ("web.default.svc.mesh.internal A", "10.0.1.1"),
        ("all.web.mesh.internal A", "10.0.1.1"),
        ("web-1.inst.web.mesh.internal A", "10.0.1.1"),
        ("_http._tcp.web.mesh.internal SRV", "0 100 8080 web-1.inst.web.default.mesh.internal."),
        ("_http._tcp.orders.shop.mesh.internal SRV", &everywhere),
        ("_http._tcp.all.orders.shop.svc.mesh.internal SRV", &everywhere),
        ("_http._tcp.v2.sub.orders.shop.mesh.internal SRV", &second),
        ("-x 10.0.0.2", "b.inst.orders.shop.mesh.internal."),
        ("-x 2001:db8::1", "six.inst.orders.shop.mesh.internal."),
        ("mesh.internal NS", "ns.all.mesh.internal."),
        ("ns.all.mesh.internal A", "10.0.9.9"),
        ("mesh.internal SOA", "ns.all.mesh.internal. hostmaster.mesh.internal. 7 7200 1800 86400 5"),
        ("orders.shop.mesh.internal ANY", serving),
    ] {
        let separator = if want.contains(" 100 ") || ask.ends_with("SOA") { '|' } else { ' ' };
        let mut want: Vec<&str> = want.split(separator).collect();
        want.sort_unstable();
        for transport in ["+notcp", "+tcp"] {
            assert_eq!(server.short(&format!("{transport} {ask}")).await, want, "{transport} {ask}");
        }
    }
    server.end().await;
}

#[tokio::test]
async fn no_is_said_in_the_right_way() {
    if !has_dig() {
        return;
    }
    let server = Server::start(Some(world()));
    let (nodata, nothing) = ("NOERROR with SOA", "NXDOMAIN with SOA");
    for (ask, want) in [
        // Names that exist without such records.
        ("empty.shop.mesh.internal A", nodata),
        ("orders.shop.mesh.internal TXT", nodata),
        ("orders.shop.mesh.internal SRV", nodata),
        ("web.mesh.internal AAAA", nodata),
        ("a.inst.orders.shop.mesh.internal AAAA", nodata),
        ("v3.sub.orders.shop.mesh.internal A", nodata),
        ("_admin._tcp.orders.shop.mesh.internal SRV", nodata),
        ("_http._tcp.empty.shop.mesh.internal SRV", nodata),
        ("mesh.internal A", nodata),
        // Names that only have names below them.
        ("shop.mesh.internal A", nodata),
        ("svc.mesh.internal A", nodata),
        ("shop.svc.mesh.internal A", nodata),
        ("all.mesh.internal A", nodata),
        ("sub.orders.shop.mesh.internal A", nodata),
        ("inst.orders.shop.mesh.internal A", nodata),
        ("_tcp.orders.shop.mesh.internal A", nodata),
        // Names that do not exist.
        ("missing.shop.mesh.internal A", nothing),
        ("orders.missing.mesh.internal A", nothing),
        ("missing.mesh.internal A", nothing),
        ("missing.svc.mesh.internal A", nothing),
        ("v9.sub.orders.shop.mesh.internal A", nothing),
        ("sub.empty.shop.mesh.internal A", nothing),
        ("x.inst.orders.shop.mesh.internal A", nothing),
        ("inst.empty.shop.mesh.internal A", nothing),
        ("_smtp._tcp.orders.shop.mesh.internal SRV", nothing),
        ("_http._udp.orders.shop.mesh.internal SRV", nothing),
        ("http._tcp.orders.shop.mesh.internal SRV", nothing),
        ("x.orders.shop.mesh.internal A", nothing),
        ("orders\\.shop.mesh.internal A", nothing),
        // Not ours.
        ("example.com A", "REFUSED"),
        ("internal A", "REFUSED"),
        ("othermesh.internal A", "REFUSED"),
        ("-x 192.0.2.1", "REFUSED"),
        ("orders.shop.mesh.internal A -c CH", "REFUSED"),
        ("-x 10.0.0.2 -t A", nodata),
    ] {
        assert_eq!(server.status(ask).await, want, "{ask}");
    }
    let text = server.dig("missing.shop.mesh.internal A").await;
    assert!(text.contains("\nmesh.internal. 5 IN SOA "), "{text}");
    server.end().await;
}

#[tokio::test]
async fn flags_case_and_edns_are_as_the_rules_want_them() {
    if !has_dig() {
        return;
    }
    let server = Server::start(Some(world()));
    let text = server.dig("WeB.MesH.InternaL A").await;
    assert!(text.contains("WeB.MesH.InternaL. 5 IN A 10.0.1.1"), "{text}");
    assert!(text.contains("flags: qr aa rd;"), "{text}");
    assert!(text.contains("udp: 1232"), "{text}");
    let text = server.dig("+noedns web.mesh.internal A").await;
    assert!(!text.contains("EDNS"), "{text}");
    assert_eq!(server.status("+edns=1 +noednsneg web.mesh.internal A").await, "BADVERS");
    assert_eq!(
        server.status("+ednsopt=100:00 +cookie +subnet=10.0.0.0/8 web.mesh.internal A").await,
        "NOERROR"
    );
    let text = server.dig("+subnet=10.0.0.0/8 +nocookie web.mesh.internal A").await;
    assert!(!text.contains("CLIENT-SUBNET"), "{text}");
    let text = server.dig("+opcode=NOTIFY web.mesh.internal SOA").await;
    assert!(text.contains("status: NOTIMP"), "{text}");
    let text = server.dig("_http._tcp.orders.shop.mesh.internal SRV").await;
    assert!(text.contains("b.inst.orders.shop.mesh.internal. 5 IN A 10.0.0.2"), "{text}");
    assert!(text.contains("six.inst.orders.shop.mesh.internal. 5 IN AAAA 2001:db8::1"), "{text}");
    server.end().await;
}

#[tokio::test]
async fn instances_on_one_address_are_one_record_with_their_weights_together() {
    let orders = service("shop", "orders");
    let instances = ["10.0.0.1", "10.0.0.1", "10.0.0.2"];
    let instances = instances.iter().zip(["a", "b", "c"]).map(|(address, id)| instance(&orders, id, address));
    let catalog = catalog(instances.collect());
    let cache = super::serving::Cache::default();
    let set = |select| cache.set(&orders, catalog.services.get(&orders), None, select);
    let addresses = set(super::serving::Select::V4);
    assert_eq!(addresses.instances().iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    let mut first = [0; 2];
    for _ in 0..3000 {
        let [one, ..] = addresses.draw(1, None)[..] else { panic!("nobody") };
        first[usize::from(one.0.id.as_str() == "c")] += 1;
    }
    assert!((1800..2200).contains(&first[0]), "2 of 3 at the shared address: {first:?}");
    assert_eq!(set(super::serving::Select::Port("http".to_owned())).len(), 3, "SRV names each");
}

/// A thousand instances of one service.
fn crowd() -> World {
    let crowd = service("shop", "crowd");
    let one = |at: u32| instance(&crowd, &format!("crowd-{at}"), &format!("10.1.{}.{}", at / 250, at % 250));
    state(1, (0..1000).map(one).collect(), ResourceSet::default())
}

#[tokio::test]
async fn what_does_not_fit_is_cut_whole_and_complete_over_tcp() {
    if !has_dig() {
        return;
    }
    let server = Server::start(Some(crowd()));
    for (size, fit) in [
        ("+noedns", 25..=29),
        ("+bufsize=512", 25..=29),
        ("+bufsize=1232", 70..=74),
        ("+bufsize=4096", 70..=74),
    ] {
        let text = server.dig(&format!("+ignore +notcp {size} crowd.shop.mesh.internal A")).await;
        assert!(text.contains("flags: qr aa tc rd;"), "{size}: {text}");
        let answers = text.lines().filter(|line| line.contains(" IN A 10.1.")).count();
        assert!(fit.contains(&answers), "{size}: {answers}");
    }
    let all = server.short("crowd.shop.mesh.internal A").await; // retried over TCP by itself
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!((all.len(), distinct.len()), (1000, 1000));
    let text = server.dig("+tcp _http._tcp.crowd.shop.mesh.internal SRV").await;
    assert!(!text.contains(" tc "), "{text:.300}");
    assert!(text.lines().filter(|line| line.contains(" IN SRV ")).count() > 900, "{text:.300}");
    server.end().await;
}

#[tokio::test]
async fn before_the_first_load_nobody_is_told_no() {
    if !has_dig() {
        return;
    }
    let server = Server::start(None);
    assert_eq!(server.status("orders.shop.mesh.internal A").await, "SERVFAIL");
    assert_eq!(server.status("mesh.internal SOA").await, "SERVFAIL");
    server.set(world());
    assert_eq!(server.status("web.mesh.internal A").await, "NOERROR");
    let zone = read("{kind: Mesh, zone: prod.example.com}");
    let resources = Arc::new(Resources { set: zone, ..Resources::default() });
    server.set(World { revision: 8, resources, ..world() });
    assert_eq!(server.short("web.prod.example.com A").await, ["10.0.1.1"]);
    assert_eq!(server.status("web.mesh.internal A").await, "REFUSED");
    assert_eq!(
        server.zone.answers_total(),
        [("noerror", 2), ("nxdomain", 0), ("refused", 1), ("servfail", 2)]
    );
    server.end().await;
}

#[tokio::test]
async fn stale_instances_answer_only_when_nobody_serves() {
    if !has_dig() {
        return;
    }
    let web = service("default", "web");
    let one = |id: &str, address: &str, lease| {
        let mut instance = instance(&web, id, address);
        instance.health.lease = lease;
        instance
    };
    let state = |revision, instances| state(revision, instances, ResourceSet::default());
    let server = Server::start(Some(state(
        1,
        vec![one("a", "10.0.0.1", Lease::Heard), one("b", "10.0.0.2", Lease::Protected)],
    )));
    assert_eq!(server.short("web.mesh.internal A").await, ["10.0.0.1"]);
    server.set(state(2, vec![one("a", "10.0.0.1", Lease::Silent), one("b", "10.0.0.2", Lease::Protected)]));
    assert_eq!(server.short("web.mesh.internal A").await, ["10.0.0.2"]);
    server.end().await;
}

#[tokio::test]
async fn reasons_are_told_to_people() {
    if !has_dig() {
        return;
    }
    let server = Server::start(None);
    let text = server.dig("web.mesh.internal A").await;
    assert!(text.contains("EDE: 14 (Not Ready): (the registry has not loaded its state yet)"), "{text}");
    let web = service("default", "web");
    let silent = |lease| {
        let mut instance = instance(&web, "a", "10.0.0.1");
        instance.health.lease = lease;
        state(1, vec![instance], ResourceSet::default())
    };
    for (world, ask, want) in [
        (world(), "example.com A", "EDE: 20 (Not Authoritative): (this server answers mesh.internal)"),
        (world(), "-x 192.0.2.1", "EDE: 20 (Not Authoritative): (no instance has this address)"),
        (world(), "web.mesh.internal A -c CH", "EDE: 21 (Not Supported): (only class IN is answered)"),
        (silent(Lease::Protected), "web.mesh.internal A", "EDE: 3 (Stale Answer)"),
        (silent(Lease::Silent), "web.mesh.internal A", "EDE: 0 (Other): (none of 1 instances takes traffic)"),
    ] {
        server.set(world);
        let text = server.dig(ask).await;
        assert!(text.contains(want), "{ask}: {text}");
    }
    for ask in
        ["web.mesh.internal A", "web.mesh.internal AAAA", "empty.shop.mesh.internal A", "x.mesh.internal"]
    {
        server.set(world());
        let text = server.dig(ask).await;
        assert!(!text.contains("EDE:"), "{ask}: {text}");
    }
    server.end().await;
}

#[tokio::test]
async fn instances_in_the_clients_zone_come_first() {
    if !has_dig() {
        return;
    }
    let web = service("default", "web");
    let one = |id: &str, address: &str, zone: &str, weight| Instance {
        zone: zone.to_owned(),
        weight,
        ..instance(&web, id, address)
    };
    let state = |instances| state(1, instances, ResourceSet::default());
    let near = one("near", "127.0.0.1", "east", 5);
    let far = [one("far", "10.0.0.2", "west", 900), one("off", "10.0.0.3", "", 100)];
    let [far, nowhere] = far;
    for (instances, want) in [
        // dig asks from 127.0.0.1, where `near` is.
        (vec![near.clone(), far.clone(), nowhere.clone()], "0 5 near, 1 100 off, 1 900 far"),
        (vec![far.clone(), nowhere.clone()], "0 100 off, 0 900 far"),
        (vec![near, one("also", "10.0.0.4", "east", 1)], "0 1 also, 0 5 near"),
    ] {
        let server = Server::start(Some(state(instances)));
        let answers = server.short("_http._tcp.web.mesh.internal SRV").await;
        let found: Vec<String> = answers
            .iter()
            .map(|line| line.replace(" 8080", "").replace(".inst.web.default.mesh.internal.", ""))
            .collect();
        assert_eq!(found.join(", "), want);
        server.end().await;
    }
}
