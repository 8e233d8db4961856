//! Runs fixtures: both proxies on the same file, case by case.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bootstrap::Ports;
use super::client::{self, Given, Pace};
use super::client_frames;
use super::client_http2;
use super::compare::compare;
use super::fixture::{Case, Fixture, Request, Tally};
use super::origin::{self, Scripts};
use super::report::Summary;
use super::rows;
use super::seen::{Seen, named};
use super::side::{Program, Side};
use crate::support::binary::repository;
use crate::support::ports::free_port;

/// Files at once.
const FILES: usize = 3;
/// Cases of one file at once.
const CASES: usize = 8;
/// Repeated requests on one connection.
const REQUESTS: usize = 25;
/// The first look, and those at what differed: what differs does so each time, however busy the machine
/// was at one of them.
const PACES: [Pace; 4] = [
    Pace { answer: Duration::from_millis(2500), settle: Duration::from_millis(60) },
    PATIENT,
    PATIENT,
    PATIENT,
];
const PATIENT: Pace = Pace { answer: Duration::from_secs(8), settle: Duration::from_millis(800) };

/// Runs the fixtures whose file or case name contains `filter`.
///
/// # Panics
///
/// If a fixture or the table cannot be read, or a proxy does not start.
pub async fn run_all(filter: &str) -> Summary {
    let started = Instant::now();
    let rows = rows::read(&repository().join("docs/deviations.md"));
    let limit = Arc::new(Semaphore::new(FILES));
    let mut files = JoinSet::new();
    for file in fixtures() {
        let (limit, filter) = (Arc::clone(&limit), filter.to_owned());
        files.spawn(async move {
            let _turn = limit.acquire().await.expect("never closed");
            run_file(&file, &filter).await
        });
    }
    let mut summary = Summary { rows, ..Summary::default() };
    while let Some(part) = files.join_next().await {
        match part {
            Ok(part) => summary.add(part),
            Err(error) => summary.mistakes.push(format!("a file could not be run: {error}")),
        }
    }
    for id in summary.shown.keys().filter(|id| !summary.rows.contains_key(*id)) {
        summary.mistakes.push(format!("{id} is in no table of docs/deviations.md"));
    }
    for id in summary.rows.keys().filter(|id| filter.is_empty() && !summary.shown.contains_key(*id)) {
        summary.mistakes.push(format!("no case shows {id} of docs/deviations.md"));
    }
    summary.differences.sort();
    summary.took = started.elapsed();
    summary
}

fn fixtures() -> Vec<PathBuf> {
    let folder = repository().join("tests/parity");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let files = entries.map(|entry| entry.expect("a folder can be listed").path());
    let mut files: Vec<PathBuf> =
        files.filter(|file| file.extension().is_some_and(|end| end == "yaml")).collect();
    files.push(repository().join("docs/parity.md"));
    files.sort();
    files
}

async fn run_file(file: &Path, filter: &str) -> Summary {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut fixture = Fixture::read(file);
    fixture.cases.retain(|case| format!("{stem}: {}", case.name).contains(filter));
    let mut summary = Summary::default();
    if fixture.cases.is_empty() {
        return summary;
    }
    (summary.files, summary.cases) = (1, fixture.cases.len());
    let mut looks = PACES.into_iter();
    while let Some(pace) = looks.next() {
        let last = looks.len() == 0;
        let (envoy, pillion) = both(&fixture, pace).await;
        let mut again = Vec::new();
        for case in &fixture.cases {
            let name = format!("{stem}: {}", case.name);
            let verdict = compare(case, &envoy[&case.name], &pillion[&case.name]);
            if !last && (verdict.unexplained.is_some() || !verdict.idle.is_empty()) {
                again.push(case.clone());
                continue;
            }
            if pace.settle != PACES[0].settle && verdict.unexplained.is_none() && verdict.idle.is_empty() {
                summary.unsteady.push(name.clone());
            }
            for id in verdict.idle {
                summary.mistakes.push(format!("{name}: names {id}, but there is no such difference"));
            }
            for id in verdict.explained {
                summary.shown.entry(id).or_default().insert(name.clone());
            }
            summary.differences.extend(verdict.unexplained.map(|text| (name, text)));
        }
        fixture.cases = again;
        if fixture.cases.is_empty() {
            break;
        }
    }
    summary
}

type ByCase = BTreeMap<String, Seen>;

/// What both proxies do in all cases.
async fn both(fixture: &Fixture, pace: Pace) -> (ByCase, ByCase) {
    let scripts = Scripts::default();
    let mut origins = JoinSet::new();
    let mut ports = Ports::from([("refused".to_owned(), free_port())]);
    for (name, protocol) in &fixture.origins {
        let port = origin::start(name, *protocol, &scripts, &mut origins).await.expect("a port");
        ports.insert(name.clone(), port);
    }
    let fixture = Arc::new(fixture.clone());
    let anonymous = Arc::new(Mutex::new(()));
    let mut sides = [Program::Envoy, Program::Pillion].map(|program| {
        let (fixture, ports, scripts) = (Arc::clone(&fixture), ports.clone(), scripts.clone());
        let anonymous = Arc::clone(&anonymous);
        let mut task = JoinSet::new();
        task.spawn(async move { one_side(program, fixture, ports, scripts, anonymous, pace).await });
        task
    });
    let mut result = Vec::new();
    for side in &mut sides {
        match side.join_next().await.expect("one task") {
            Ok(seen) => result.push(seen),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    let pillion = result.pop().expect("two sides");
    (result.pop().expect("two sides"), pillion)
}

/// A proxy on which cases run.
struct Running {
    side: Side,
    scripts: Scripts,
    pace: Pace,
    default_listener: String,
    started: Instant,
    /// Held by a case whose requests do not say which case they belong to.
    anonymous: Arc<Mutex<()>>,
}

async fn one_side(
    program: Program,
    fixture: Arc<Fixture>,
    origins: Ports,
    scripts: Scripts,
    anonymous: Arc<Mutex<()>>,
    pace: Pace,
) -> ByCase {
    let side = Side::start(program, &fixture, &origins).await;
    let default_listener = fixture.listeners.keys().next().cloned().expect("a listener");
    let started = Instant::now();
    let running = Arc::new(Running { side, scripts, pace, default_listener, started, anonymous });
    let mut seen = ByCase::new();
    let (alone, together): (Vec<_>, Vec<_>) =
        fixture.cases.iter().cloned().enumerate().partition(|(_, case)| {
            case.alone || case.is_anonymous() || case.times.is_some() || !case.stats.is_empty()
        });
    let limit = Arc::new(Semaphore::new(CASES));
    let mut tasks = JoinSet::new();
    for (number, case) in together {
        let (running, limit) = (Arc::clone(&running), Arc::clone(&limit));
        tasks.spawn(async move {
            let _turn = limit.acquire().await.expect("never closed");
            let seen = running.case(number, &case).await;
            (case.name, seen)
        });
    }
    seen.extend(tasks.join_all().await);
    for (number, case) in alone {
        let one = running.case(number, &case).await;
        seen.insert(case.name, one);
    }
    if running.side.output().contains("panicked") {
        let line = format!("{} panicked:\n{}", program.name(), running.side.output());
        seen.values_mut().for_each(|seen| seen.lines.push(line.clone()));
    }
    seen
}

impl Running {
    async fn case(&self, number: usize, case: &Case) -> Seen {
        let tag = match self.side.program {
            _ if case.is_anonymous() => String::new(),
            Program::Envoy => format!("case-e-{number:04}"),
            Program::Pillion => format!("case-p-{number:04}"),
        };
        let _turn = if case.is_anonymous() { Some(self.anonymous.lock().await) } else { None };
        tokio::time::sleep_until(self.started + Duration::from_millis(case.since_start)).await;
        let before = if case.stats.is_empty() { BTreeMap::new() } else { self.side.stats().await };
        self.scripts.begin(&tag, &case.origin);
        let started = Instant::now();
        let given = self.send(case, &tag).await;
        let mut seen = Seen {
            took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..Seen::default()
        };
        let clients: Vec<u16> = given.iter().map(|given| given.port).collect();
        if case.times.is_some() {
            self.scripts.end(&tag, Duration::ZERO, false).await;
            count(case, given, &mut seen);
            return seen;
        }
        let answers = given.iter().map(|given| given.answers).sum::<usize>();
        for (index, given) in given.into_iter().enumerate() {
            let which = if index == 0 { String::new() } else { format!("{} ", index + 1) };
            seen.lines.extend(given.lines.into_iter().map(|line| which.clone() + &line));
        }
        let listener = case.to.as_ref().unwrap_or(&self.default_listener);
        let mut at_origins = self.scripts.end(&tag, self.pace.settle * 4, case.at_once).await;
        seen.lines.append(&mut at_origins);
        let wanted = answers.max(case.all_requests().len());
        let mut logged = self.side.log(listener, &clients, wanted, self.pace.settle * 6).await;
        if case.at_once {
            logged.sort();
        }
        seen.lines.append(&mut logged);
        seen.lines.extend(self.grown(case, &before).await);
        named(&mut seen.lines, &self.side.ports, &clients, if tag.is_empty() { "{case}" } else { &tag });
        seen
    }

    /// What became of the statistics that the case names.
    async fn grown(&self, case: &Case, before: &BTreeMap<String, i64>) -> Vec<String> {
        if case.stats.is_empty() {
            return Vec::new();
        }
        let after = self.side.stats().await;
        let grown = |name: &String| {
            let of = |all: &BTreeMap<String, i64>| all.get(name).copied().unwrap_or_default();
            format!("stat {name} {:+}", of(&after) - of(before))
        };
        case.stats.iter().map(grown).collect()
    }

    async fn send(&self, case: &Case, tag: &str) -> Vec<Given> {
        let to = self.side.address(case.to.as_ref().unwrap_or(&self.default_listener));
        let tls = case.tls.as_ref();
        if !case.raw.is_empty() {
            return vec![client::raw(to, tls, &case.raw, tag, self.pace).await];
        }
        if !case.fields.is_empty() {
            let body = case.field_body.as_deref();
            return vec![client_frames::request(to, &case.fields, body, tag, self.pace).await];
        }
        let requests = case.all_requests();
        if let Some(times) = case.times {
            let quick = Pace { settle: Duration::ZERO, ..self.pace };
            let all: Vec<Request> =
                (0..times).flat_map(|n| requests.iter().map(move |request| request.numbered(n))).collect();
            let mut given = Vec::new();
            for part in all.chunks(REQUESTS) {
                given.push(client::requests(to, tls, part, tag, quick).await);
            }
            return given;
        }
        if case.http2 {
            return vec![client_http2::requests(to, tls, &requests, case.at_once, tag, self.pace).await];
        }
        if !case.at_once {
            return vec![client::requests(to, tls, &requests, tag, self.pace).await];
        }
        let mut tasks = JoinSet::new();
        for (index, request) in requests.into_iter().enumerate() {
            let (tag, tls, pace) = (tag.to_owned(), tls.cloned(), self.pace);
            tasks.spawn(
                async move { (index, client::requests(to, tls.as_ref(), &[request], &tag, pace).await) },
            );
        }
        let mut given = tasks.join_all().await;
        given.sort_by_key(|(index, _)| *index);
        given.into_iter().map(|(_, given)| given).collect()
    }
}

/// What repeated requests were answered with: each, or only how often which.
fn count(case: &Case, given: Vec<Given>, seen: &mut Seen) {
    let short = |line: &String| line.contains(" HTTP/1.1 ") || line.contains("  body ");
    let mut answers: Vec<String> = Vec::new();
    for line in given.into_iter().flat_map(|given| given.lines).filter(short) {
        let line = line.replace("client got", "");
        match answers.last_mut() {
            Some(answer) if !line.contains(" HTTP/1.1 ") => *answer += &line,
            _ => answers.push(line),
        }
    }
    for (n, answer) in answers.into_iter().enumerate() {
        match case.tally {
            Tally::Each => seen.lines.push(format!("request {n} gave {answer}")),
            Tally::Chance => *seen.tally.entry(answer).or_default() += 1,
        }
    }
}
