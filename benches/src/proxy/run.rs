//! Scenarios, in rounds that alternate between the proxies.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::configuration::{Hop, Role, Tls};
use super::load::{Load, run};
use super::server::{Kind, Programs, Server};
use crate::report::{Budget, Report};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// For the report.
    pub name: &'static str,
    /// Two proxies with mutual TLS between them, instead of one.
    pub pair: bool,
    /// Connections of the client.
    pub connections: u32,
    /// Length of answers.
    pub bytes: usize,
    /// Most that a request may cost, as a share of what it costs with another proxy.
    pub budgets: &'static [(Kind, f64)],
}

/// All of them. The budgets are those of `docs/performance.md`.
pub const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "one plaintext hop, 32 connections",
        pair: false,
        connections: 32,
        bytes: 0,
        budgets: &[(Kind::HaProxy, 1.3), (Kind::Envoy, 0.45)],
    },
    Scenario {
        name: "one plaintext hop, 1 connection",
        pair: false,
        connections: 1,
        bytes: 0,
        budgets: &[(Kind::HaProxy, 1.1)],
    },
    Scenario {
        name: "one plaintext hop, 256 connections",
        pair: false,
        connections: 256,
        bytes: 0,
        budgets: &[],
    },
    Scenario {
        name: "one plaintext hop, 64 KiB",
        pair: false,
        connections: 32,
        bytes: 64 << 10,
        budgets: &[],
    },
    Scenario {
        name: "mutual-TLS pair, 32 connections",
        pair: true,
        connections: 32,
        bytes: 0,
        budgets: &[(Kind::HaProxy, 0.85), (Kind::Envoy, 0.4)],
    },
    Scenario { name: "mutual-TLS pair, 64 KiB", pair: true, connections: 32, bytes: 64 << 10, budgets: &[] },
    Scenario {
        name: "mutual-TLS pair, 1 MiB",
        pair: true,
        connections: 8,
        bytes: 1 << 20,
        budgets: &[(Kind::HaProxy, 1.0 / 0.9)],
    },
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
    servers: Vec<Server>,
}

impl Way {
    fn start(
        kind: Kind,
        pair: bool,
        programs: &Programs,
        origin: SocketAddr,
        tls: &Tls,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let (entry, between) = (free()?, free()?);
        let hop = |listen, to, role| Hop { listen, to, role };
        let hops = match pair {
            false => vec![hop(entry, origin, Role::Plain)],
            true => vec![hop(between, origin, Role::Receiver), hop(entry, between, Role::Caller)],
        };
        let mut servers = Vec::new();
        for hop in &hops {
            let folder = folder.join(format!("{}-{:?}", kind.name(), hop.role));
            servers.push(Server::start(kind, programs, hop, Some(tls), &folder)?);
        }
        Ok(Self { kind, entry, servers })
    }

    fn cpu(&self) -> anyhow::Result<f64> {
        self.servers.iter().map(|server| Ok(server.cpu()?.as_secs_f64())).sum()
    }

    fn measure(&self, scenario: &Scenario, length: Duration) -> anyhow::Result<Found> {
        let before = self.cpu()?;
        let load = run(self.entry, scenario.bytes, scenario.connections, length)?;
        let cpu = self.cpu()? - before;
        let memory =
            self.servers.iter().map(|server| Ok(server.memory()? as f64)).sum::<anyhow::Result<f64>>()?;
        Ok(Found { load, cpu, memory })
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
        let mut ways = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| !scenario.pair || *kind != Kind::Nginx) {
            match Way::start(kind, scenario.pair, programs, origin, &tls, &folder) {
                Ok(way) => ways.push(way),
                Err(error) if kind != Kind::Pillion => {
                    let name = kind.name();
                    eprintln!("\n*** {name} IS MISSING: nothing is held against it: {error:#}\n");
                }
                Err(error) => return Err(error),
            }
        }
        let mut found: BTreeMap<Kind, Vec<Found>> = BTreeMap::new();
        for round in 0..=rounds {
            eprintln!("{}: round {round} of {rounds}", scenario.name);
            for way in &ways {
                let one = way.measure(scenario, length).with_context(|| way.kind.name())?;
                // The first round warms up.
                if round > 0 {
                    found.entry(way.kind).or_default().push(one);
                }
            }
        }
        tell(&mut report, scenario, &found);
    }
    Ok(report)
}

fn tell(report: &mut Report, scenario: &Scenario, found: &BTreeMap<Kind, Vec<Found>>) {
    let cost = |kind: &Kind| median(found.get(kind)?, |one| 1e6 * one.cpu / one.load.requests);
    let peer = |(kind, share): &(Kind, f64)| Some(cost(kind)? * share);
    let budget = scenario.budgets.iter().filter_map(peer).min_by(f64::total_cmp);
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

fn median(found: &[Found], of: impl Fn(&Found) -> f64) -> Option<f64> {
    let mut values: Vec<f64> = found.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn free() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
