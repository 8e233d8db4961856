//! `cargo xtask bench dns`: what an answer costs, beside Knot, NSD and Unbound.
//!
//! Every server has the same data and CPU 0; dnsperf asks from CPU 1, one server after the other, in
//! rounds. Ours is asked once idle and once while instances change. The figure that counts is CPU time
//! per answer, as the scheduler counts it: it hardly moves when others use the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use pillion_benches::dns::changes::{Changes, register};
use pillion_benches::dns::data::{Asked, Data, NAMESPACE, ZONE};
use pillion_benches::dns::load::{Found, ask};
use pillion_benches::dns::server::{PEERS, Server};
use pillion_benches::report::{Budget, Report};
use tokio::time::Instant;

/// What a DNS answer costs, beside other servers.
#[derive(Parser)]
struct Arguments {
    /// The binary under test.
    #[arg(long, env = "PILLION_BIN")]
    pillion: PathBuf,
    /// Services with several instances, and as many with one.
    #[arg(long, default_value_t = 1000)]
    services: u32,
    /// How many several are.
    #[arg(long, default_value_t = 3)]
    instances: u32,
    /// Instance changes per second while ours is asked.
    #[arg(long, default_value_t = 1000)]
    changes: u32,
    /// Each server is asked once a round; figures are medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one run of dnsperf.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
}

/// Of ours while instances change, for the report.
const CHANGING: &str = "Pillion, changing";

type Figures = BTreeMap<(usize, &'static str), Vec<Found>>;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let data = Data { services: arguments.services, instances: arguments.instances };
    let folder = tempfile::tempdir().context("make a folder")?;
    let mut questions = Vec::new();
    for (at, asked) in Asked::ALL.into_iter().enumerate() {
        questions.push(folder.path().join(format!("questions-{at}")));
        std::fs::write(&questions[at], data.questions(asked))?;
    }

    let ours = Server::pillion(&arguments.pillion, &folder.path().join("pillion"))?;
    let api = ours.api.context("ours has an API")?;
    let instances: Vec<_> = data.all().collect();
    register(api, instances.clone()).await?;
    let mut servers = vec![ours];
    for (name, program) in PEERS {
        match Server::peer(name, data, &folder.path().join(name)) {
            Ok(server) => servers.push(server),
            Err(error) => {
                eprintln!("\n*** {name} ({program}) IS MISSING: nothing is held against it: {error:#}\n")
            }
        }
    }

    let length = Duration::from_secs(arguments.seconds);
    let (mut figures, mut rates) = (Figures::new(), Vec::new());
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        for (at, asked) in Asked::ALL.into_iter().enumerate() {
            let measure = |server: &Server| ask(server, &questions[at], asked.code(), length);
            for server in &servers {
                let found = measure(server)?;
                figures.entry((at, server.name)).or_default().push(found);
            }
            let changes = Changes::start(api, &instances, arguments.changes);
            let found = tokio::task::block_in_place(|| measure(&servers[0]))?;
            figures.entry((at, CHANGING)).or_default().push(found);
            let (rate, last) = changes.end().await?;
            rates.push(rate);
            let name = format!("{}.{NAMESPACE}.{ZONE}", last.service);
            let end = Instant::now() + Duration::from_secs(5);
            while !servers[0].has_address(&name, last.address)? {
                ensure!(Instant::now() < end, "{name} does not have {} in DNS", last.address);
            }
        }
    }
    report(&arguments, data, &figures, &rates).finish()
}

fn report(arguments: &Arguments, data: Data, figures: &Figures, rates: &[f64]) -> Report {
    let mut report = Report::new("dns");
    let names = PEERS.map(|(name, _)| name).into_iter().chain(["Pillion", CHANGING]);
    for (at, asked) in Asked::ALL.into_iter().enumerate() {
        let found = |name| figures.get(&(at, name)).map(Vec::as_slice).unwrap_or_default();
        let cost = |one: &Found| 1e6 * one.cpu_answering.unwrap_or(one.cpu) / one.answers;
        let knot = median(found("Knot"), cost);
        for name in names.clone() {
            let Some(cpu) = median(found(name), cost) else { continue };
            let what = |what: &str| format!("{}: {name}: {what}", asked.name(data));
            let budget = knot.filter(|_| name.starts_with("Pillion")).map(Budget::AtMost);
            report.row(what("CPU per answer"), cpu, "µs", budget);
            let mut row = |text: &str, unit, of: &dyn Fn(&Found) -> f64| {
                if let Some(value) = median(found(name), of) {
                    report.row(what(text), value, unit, None);
                }
            };
            if found(name).iter().all(|one| one.cpu_answering.is_some()) {
                row("CPU per answer, whole process", "µs", &|one| 1e6 * one.cpu / one.answers);
            }
            row("answers", "per s", &|one| one.answers / one.seconds);
            row("mean latency", "µs", &|one| 1e6 * one.latency);
        }
    }
    let mut rates = rates.to_vec();
    rates.sort_by(f64::total_cmp);
    if let Some(rate) = rates.get(rates.len() / 2) {
        let wanted = f64::from(arguments.changes) * 0.95;
        report.row("instance changes while ours was asked", *rate, "per s", Some(Budget::AtLeast(wanted)));
    }
    report
}

fn median(found: &[Found], of: impl Fn(&Found) -> f64) -> Option<f64> {
    let mut values: Vec<f64> = found.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
