//! Scenarios, in rounds that alternate between the proxies.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::configuration::{Carried, Hop, Role, Tls};
use super::load::{Load, Work, run};
use super::mesh;
use super::server::{Kind, Programs, Server};
use super::standing;
use crate::report::{Budget, Report};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// For the report.
    pub name: &'static str,
    /// How many proxies, and what is between them.
    pub way: Shape,
    /// What the client does.
    pub work: Work,
    /// Most that a request may cost.
    pub budgets: &'static [Most],
}

/// The way from client to application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One proxy, without TLS.
    Hop(Carried),
    /// Two proxies with mutual TLS between them.
    Pair(Carried),
    /// The same, with a new connection between them for each request.
    PairOnce,
    /// The same with Pillion's sidecars and their registry, with all that these have by themselves.
    Mesh,
}

/// The most that a request may cost.
#[derive(Clone, Copy, Debug)]
pub enum Most {
    /// As a share of what it costs with another proxy.
    Share(Kind, f64),
    /// In microseconds.
    Micros(f64),
}

const fn kept(connections: u32, bytes: usize) -> Work {
    Work::Kept { connections, bytes }
}

const fn scenario(name: &'static str, way: Shape, work: Work, budgets: &'static [Most]) -> Scenario {
    Scenario { name, way, work, budgets }
}

const HOP: Shape = Shape::Hop(Carried::Http1);
const PAIR: Shape = Shape::Pair(Carried::Http1);
use Most::{Micros, Share};

/// All of them. The budgets are those of `docs/performance.md`.
pub const SCENARIOS: [Scenario; 15] = [
    scenario(
        "one plaintext hop, 32 connections",
        HOP,
        kept(32, 0),
        &[Share(Kind::HaProxy, 1.3), Share(Kind::Envoy, 0.45)],
    ),
    scenario("one plaintext hop, 1 connection", HOP, kept(1, 0), &[Share(Kind::HaProxy, 1.1)]),
    scenario("one plaintext hop, 256 connections", HOP, kept(256, 0), &[]),
    scenario("one plaintext hop, 4096 connections", HOP, kept(4096, 0), &[]),
    scenario("one plaintext hop, 1 KiB", HOP, kept(32, 1 << 10), &[]),
    scenario("one plaintext hop, 64 KiB", HOP, kept(32, 64 << 10), &[]),
    scenario("one plaintext hop, a new connection per request", HOP, Work::Fresh { connections: 32 }, &[]),
    scenario(
        "mutual-TLS pair, 32 connections",
        PAIR,
        kept(32, 0),
        &[Share(Kind::HaProxy, 0.85), Share(Kind::Envoy, 0.4)],
    ),
    scenario(
        "mutual-TLS pair of a registry, 32 connections",
        Shape::Mesh,
        kept(32, 0),
        &[Share(Kind::HaProxy, 0.85), Share(Kind::Envoy, 0.4)],
    ),
    scenario("mutual-TLS pair, 64 KiB", PAIR, kept(32, 64 << 10), &[]),
    scenario("mutual-TLS pair, 1 MiB", PAIR, kept(8, 1 << 20), &[Share(Kind::HaProxy, 1.0 / 0.9)]),
    scenario(
        "mutual-TLS pair, a new mutual-TLS connection per request",
        Shape::PairOnce,
        kept(32, 0),
        &[Micros(800.0)],
    ),
    scenario(
        "gRPC pair, 32 calls at once",
        Shape::Pair(Carried::Grpc),
        Work::Calls { connections: 8, streams: 4 },
        &[Share(Kind::Envoy, 0.45)],
    ),
    scenario("TCP, 1 MiB", Shape::Hop(Carried::Bytes), kept(8, 1 << 20), &[]),
    scenario("TCP, 32 connections", Shape::Hop(Carried::Bytes), kept(32, 0), &[]),
];

/// One run of one proxy.
#[derive(Clone, Copy, Debug)]
struct Found {
    load: Load,
    /// Of the proxy's processes, in seconds.
    cpu: f64,
    /// In bytes, under load.
    memory: f64,
}

/// The way from the client to the origin through one or two proxies of a kind.
struct Way {
    kind: Kind,
    entry: SocketAddr,
    servers: Servers,
}

enum Servers {
    ByFile(Vec<Server>),
    ByRegistry(mesh::Pair),
}

impl Way {
    fn start(
        kind: Kind,
        shape: Shape,
        programs: &Programs,
        origin: SocketAddr,
        tls: &Tls,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        if shape == Shape::Mesh && kind == Kind::Pillion {
            let pair = mesh::Pair::start(programs, origin, &folder.join("mesh"))?;
            return Ok(Self { kind, entry: pair.entry, servers: Servers::ByRegistry(pair) });
        }
        let (entry, between) = (free()?, free()?);
        let hops = hops(shape, entry, between, origin);
        let mut servers = Vec::new();
        for hop in &hops {
            let folder = folder.join(format!("{}-{:?}", kind.name(), hop.role));
            servers.push(Server::start(kind, programs, hop, Some(tls), &folder)?);
        }
        Ok(Self { kind, entry, servers: Servers::ByFile(servers) })
    }

    fn servers(&self) -> &[Server] {
        match &self.servers {
            Servers::ByFile(servers) => servers,
            Servers::ByRegistry(pair) => &pair.sidecars,
        }
    }

    fn cpu(&self) -> anyhow::Result<f64> {
        self.servers().iter().map(|server| Ok(server.cpu()?.as_secs_f64())).sum()
    }

    fn measure(&self, work: Work, length: Duration, folder: &Path) -> anyhow::Result<Found> {
        let before = self.cpu()?;
        let load = run(self.entry, work, length, folder)?;
        let cpu = self.cpu()? - before;
        let memory =
            self.servers().iter().map(|server| Ok(server.memory()? as f64)).sum::<anyhow::Result<f64>>()?;
        Ok(Found { load, cpu, memory })
    }
}

fn hops(shape: Shape, entry: SocketAddr, between: SocketAddr, origin: SocketAddr) -> Vec<Hop> {
    let hop = |listen, to, role, carried, once| Hop { listen, to, role, carried, once, clusters: 0 };
    match shape {
        Shape::Hop(carried) => vec![hop(entry, origin, Role::Plain, carried, false)],
        Shape::Mesh => hops(PAIR, entry, between, origin),
        Shape::Pair(carried) => vec![
            hop(between, origin, Role::Receiver, carried, false),
            hop(entry, between, Role::Caller, carried, false),
        ],
        Shape::PairOnce => vec![
            hop(between, origin, Role::Receiver, Carried::Http1, false),
            hop(entry, between, Role::Caller, Carried::Http1, true),
        ],
    }
}

/// Runs every scenario whose name contains `filter`.
///
/// # Errors
///
/// If ours does not run; a peer that does not is left out, loudly.
pub fn all(
    programs: &Programs,
    origin: SocketAddr,
    folder: &Path,
    filter: &str,
    rounds: usize,
    length: Duration,
) -> anyhow::Result<Report> {
    let tls = Tls::make(folder)?;
    let mut report = Report::new("proxy");
    for (at, scenario) in SCENARIOS.iter().enumerate().filter(|(_, one)| one.name.contains(filter)) {
        let folder = folder.join(at.to_string());
        let ways = ways(scenario.way, programs, origin, &tls, &folder)?;
        let mut found: BTreeMap<Kind, Vec<Found>> = BTreeMap::new();
        for round in 0..=rounds {
            eprintln!("{}: round {round} of {rounds}", scenario.name);
            for way in &ways {
                let one = way.measure(scenario.work, length, &folder).with_context(|| way.kind.name())?;
                // The first round warms up.
                if round > 0 {
                    found.entry(way.kind).or_default().push(one);
                }
            }
        }
        tell(&mut report, scenario, &found);
    }
    if LATENCY.contains(filter) {
        let folder = folder.join("latency");
        std::fs::create_dir_all(&folder)?;
        let ways = ways(PAIR, programs, origin, &tls, &folder)?;
        latency(&mut report, &ways, origin, (rounds, length), &folder)?;
    }
    standing::all(&mut report, programs, origin, &tls, folder, filter)?;
    mesh::standing(&mut report, programs, folder, filter)?;
    Ok(report)
}

/// For the report.
const LATENCY: &str = "latency that a mutual-TLS pair adds at half of saturation";

/// One way for each proxy that is there; nginx has plaintext HTTP only.
fn ways(
    shape: Shape,
    programs: &Programs,
    origin: SocketAddr,
    tls: &Tls,
    folder: &Path,
) -> anyhow::Result<Vec<Way>> {
    let mut ways = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| shape == HOP || *kind != Kind::Nginx) {
        match Way::start(kind, shape, programs, origin, tls, folder) {
            Ok(way) => ways.push(way),
            Err(error) if kind != Kind::Pillion => {
                let name = kind.name();
                eprintln!("\n*** {name} IS MISSING: nothing is held against it: {error:#}\n");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ways)
}

fn tell(report: &mut Report, scenario: &Scenario, found: &BTreeMap<Kind, Vec<Found>>) {
    let cost = |kind: &Kind| median(found.get(kind)?, |one| 1e6 * one.cpu / one.load.requests);
    let most = |most: &Most| match most {
        Share(kind, share) => Some(cost(kind)? * share),
        Micros(micros) => Some(*micros),
    };
    let budget = scenario.budgets.iter().filter_map(most).min_by(f64::total_cmp);
    for (kind, runs) in found {
        let what = |what: &str| format!("{}: {}: {what}", scenario.name, kind.name());
        let budget = budget.filter(|_| *kind == Kind::Pillion).map(Budget::AtMost);
        let mut row = |text: &str, unit, budget, of: &dyn Fn(&Found) -> f64| {
            if let Some(value) = median(runs, of) {
                report.row(what(text), value, unit, budget);
            }
        };
        row("CPU per request", "µs", budget, &|one| 1e6 * one.cpu / one.load.requests);
        row("requests", "per s", None, &|one| one.load.requests / one.load.seconds);
        row("p50", "µs", None, &|one| 1e6 * one.load.p50);
        row("p99", "µs", None, &|one| 1e6 * one.load.p99);
        row("memory", "MiB", None, &|one| one.memory / f64::from(1 << 20));
    }
}

/// What a pair adds to the time of an answer at half of what the slowest can do, each at that rate.
fn latency(
    report: &mut Report,
    ways: &[Way],
    origin: SocketAddr,
    (rounds, length): (usize, Duration),
    folder: &Path,
) -> anyhow::Result<()> {
    let mut most = f64::INFINITY;
    for way in ways {
        let load = way.measure(kept(32, 0), length, folder)?.load;
        most = most.min(load.requests / load.seconds);
    }
    let work = Work::Rate { connections: 32, rate: most / 2.0 };
    let mut found: BTreeMap<Option<Kind>, Vec<Load>> = BTreeMap::new();
    for round in 0..rounds {
        eprintln!("{LATENCY}: round {} of {rounds}, {:.0} requests/s", round + 1, most / 2.0);
        found.entry(None).or_default().push(run(origin, work, length, folder)?);
        for way in ways {
            let one = way.measure(work, length, folder).with_context(|| way.kind.name())?;
            found.entry(Some(way.kind)).or_default().push(one.load);
        }
    }
    for (name, of) in [("p50", (|load| load.p50) as fn(&Load) -> f64), ("p99", |load| load.p99)] {
        let value = |kind: Option<Kind>| middle(found.get(&kind)?.iter().map(of).collect());
        let direct = value(None).unwrap_or_default();
        let added = |kind| Some(1e6 * (value(Some(kind))? - direct));
        let shares = [(Kind::HaProxy, 1.0), (Kind::Envoy, 0.6)];
        let budget = shares.into_iter().filter_map(|(kind, share)| Some(added(kind)? * share));
        let budget = budget.min_by(f64::total_cmp).map(Budget::AtMost);
        for way in ways {
            let Some(added) = added(way.kind) else { continue };
            let budget = budget.filter(|_| way.kind == Kind::Pillion);
            report.row(format!("{LATENCY}: {}: {name}", way.kind.name()), added, "µs", budget);
        }
    }
    Ok(())
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn median(found: &[Found], of: impl Fn(&Found) -> f64) -> Option<f64> {
    middle(found.iter().map(of).collect())
}

pub(super) fn free() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
