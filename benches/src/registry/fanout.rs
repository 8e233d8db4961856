//! Watchers of one service each, and one service that all of them watch, while services change.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::Arguments;
use super::bare::Bare;
use super::door::Door;
use super::http::{Client, find};
use super::latency::Latencies;
use super::server::Registry;
use super::stream::address;
use super::watch::{Events, Version};
use crate::report::{Budget, Report};

/// Subscribers that connect at the same time.
const CONNECTING: usize = 64;
/// Names of services that are watched begin with this.
pub(super) const WATCHED: &str = "s";
/// Names of services that nobody watches begin with this.
pub(super) const QUIET: &str = "q";
/// Changes of one kind go on for this long at most before the other kind has its turn.
const TURN: Duration = Duration::from_secs(1);
/// Connections of the bare writer, both ends of which are ours.
const BARE_MAX: usize = 4000;
/// The service that everybody watches.
const HOT: &str = "hot";
/// Changes of it.
const HOT_CHANGES: usize = 5;
/// Changes that have the registry to themselves.
const ISOLATED: usize = 50;
/// Time between those: longer than any gathering.
const ISOLATED_EVERY: Duration = Duration::from_millis(250);
/// How long steady states are measured at most.
const WINDOW_MAX: Duration = Duration::from_secs(30);
/// How long stragglers are waited for.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let registry = Registry::start(arguments, data.path()).await?;
    let door = Door::open(registry.api);
    let mut ground = Ground::new(arguments, &registry, door).await?;
    let alone = ground.churn(QUIET, arguments.window.min(WINDOW_MAX)).await?;
    report.row("CPU of a change, without watchers", alone.each(), "µs", None);
    ground.watched("HTTP/2", Version::Http2, report).await?;
    ground.watched("HTTP/1.1", Version::Http1, report).await?;
    registry.kill().await?;
    let data = tempfile::tempdir()?;
    let (registry, door) = Registry::start_secure(arguments, data.path()).await?;
    let mut ground = Ground::new(arguments, &registry, door).await?;
    ground.watched("HTTP/2 over TLS", Version::Http2, report).await
}

/// What changes cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    cpu: Duration,
    changes: usize,
}

impl Cost {
    /// Of one, in microseconds.
    fn each(self) -> f64 {
        micros(self.cpu, self.changes)
    }

    fn add(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.changes += other.changes;
    }
}

/// A registry with services that change.
struct Ground<'a> {
    arguments: &'a Arguments,
    registry: &'a Registry,
    door: Door,
    changer: Changer,
}

impl<'a> Ground<'a> {
    async fn new(arguments: &'a Arguments, registry: &'a Registry, door: Door) -> anyhow::Result<Self> {
        let mut changer = Changer::new(&door, arguments.services).await?;
        changer.once_each().await?;
        Ok(Self { arguments, registry, door, changer })
    }

    /// Changes services of a kind for a while.
    async fn churn(&mut self, kind: &str, time: Duration) -> anyhow::Result<Cost> {
        let before = self.registry.usage()?;
        let changes = self.changer.churn(kind, self.arguments.changes, time).await?;
        Ok(Cost { cpu: self.registry.usage()?.cpu_since(before), changes })
    }

    /// How long what was changed is on its way, at most.
    fn settle(&self) -> Duration {
        SETTLE.min(self.arguments.window / 4)
    }

    /// Everybody watches, while services change. The budgets are those of watchers over plain HTTP/2.
    async fn watched(&mut self, name: &str, version: Version, report: &mut Report) -> anyhow::Result<()> {
        let (arguments, registry) = (self.arguments, self.registry);
        let mut row = |what: &str, value: f64, unit: &'static str, most: Option<f64>| {
            report.row(format!("{name}: {what}"), value, unit, most.map(Budget::AtMost));
        };
        let budget = |most: f64| (version == Version::Http2).then_some(most);
        let board = Arc::clone(&self.changer.board);
        let memory = registry.memory()?;
        let mut subscribers = Subscribers::connect(arguments, &self.door, &board, version).await?;
        let each = (registry.memory()? - memory) / arguments.subscribers as f64;
        row("memory per subscriber", each / 1024.0, "KiB", None);

        sleep(self.settle()).await;
        let before = registry.usage()?;
        sleep(arguments.window.min(WINDOW_MAX)).await;
        let idle = registry.usage()?.cores_since(before);
        row("all subscribers, nothing changes", idle, "cores", None);

        board.reset();
        // The registry closes connections over which nothing has been asked for this long.
        self.changer.client = Client::through(&self.door).await?;
        for _ in 0..ISOLATED.min(arguments.services) {
            self.changer.change_next(WATCHED).await?;
            sleep(ISOLATED_EVERY).await;
        }
        sleep(self.settle()).await;
        let (mut isolated, delivered) = board.take();
        ensure!(delivered > 0, "no change was delivered");
        row("isolated change to its subscribers, p99", isolated.quantile_ms(0.99), "ms", budget(100.0));

        // In pairs: changes that nobody watches, and others. The difference is what delivery costs.
        let mut bare = Bare::connect(arguments.subscribers.min(BARE_MAX)).await?;
        let (mut watched, mut quiet, mut floor) = (Cost::default(), Cost::default(), Cost::default());
        let mut pairs = Vec::new();
        let turn = (arguments.window / 8).min(TURN);
        for _ in 0..arguments.window.as_millis().div_ceil(turn.as_millis()) {
            let (alone, seen) = (self.churn(QUIET, turn).await?, self.churn(WATCHED, turn).await?);
            let (cpu, changes) = bare.turn(arguments.changes, turn).await?;
            floor.add(Cost { cpu, changes });
            pairs.push(seen.each() - alone.each());
            quiet.add(alone);
            watched.add(seen);
        }
        sleep(self.settle()).await;
        let (mut churn, delivered) = board.take();
        let events = delivered as f64 / watched.changes as f64;
        let most = Some(15.0).filter(|_| version == Version::Http2 && !self.door.is_secure());
        let [low, median, high] = quartiles(pairs);
        row("CPU of one delivered event", median / events, "µs", most);
        row("CPU of one bare write, as often", floor.each(), "µs", None);
        row("CPU of one delivered event, lower quartile", low / events, "µs", None);
        row("CPU of one delivered event, upper quartile", high / events, "µs", None);
        row("CPU of a change that nobody watches", quiet.each(), "µs", None);
        row("events delivered per change", events, "events", None);
        row("change under churn to its subscribers, p99", churn.quantile_ms(0.99), "ms", budget(250.0));

        let before = registry.usage()?;
        for _ in 0..HOT_CHANGES {
            self.changer.change(HOT).await?;
            sleep(self.settle()).await;
        }
        let after = registry.usage()?;
        let cpu = after.cpu_since(before).saturating_sub(after.since(before).mul_f64(idle));
        let (mut hot, delivered) = board.take();
        row("a service that all watch, CPU of one event", micros(cpu, delivered), "µs", None);
        row("a service that all watch, p99", hot.quantile_ms(0.99), "ms", budget(500.0));
        let missed = (HOT_CHANGES * arguments.subscribers).saturating_sub(delivered) as f64;
        row("a service that all watch, events missed", missed, "events", Some(0.0));
        let foreign = board.foreign_bytes.load(Ordering::Relaxed) as f64;
        row("bytes about services not asked for", foreign, "bytes", Some(0.0));
        subscribers.tasks.shutdown().await;
        Ok(())
    }
}

/// Lower quartile, median and upper quartile.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

fn micros(cpu: Duration, count: usize) -> f64 {
    cpu.as_secs_f64() * 1e6 / count.max(1) as f64
}

/// When which change was made, and what arrived of it. A change's number is a label of the instance.
struct Board {
    start: Instant,
    /// Microseconds since `start`, by the change's number.
    made: Vec<AtomicU64>,
    arrived: std::sync::Mutex<Latencies>,
    delivered: AtomicUsize,
    /// Of events that are about none of the services that somebody asked for, and of what is no event.
    foreign_bytes: AtomicUsize,
    next: AtomicUsize,
}

impl Board {
    fn new(changes: usize) -> Arc<Self> {
        let made = (0..changes).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            start: Instant::now(),
            made,
            arrived: std::sync::Mutex::default(),
            delivered: AtomicUsize::new(0),
            foreign_bytes: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        })
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn make(&self) -> usize {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.made.len();
        self.made[number].store(self.now(), Ordering::Relaxed);
        number
    }

    fn arrive(&self, number: usize) {
        let Some(made) = self.made.get(number) else { return };
        let took = self.now().saturating_sub(made.load(Ordering::Relaxed));
        self.delivered.fetch_add(1, Ordering::Relaxed);
        self.lock().add(Duration::from_micros(took));
    }

    fn reset(&self) {
        drop(self.take());
        self.foreign_bytes.store(0, Ordering::Relaxed);
    }

    fn take(&self) -> (Latencies, usize) {
        (std::mem::take(&mut *self.lock()), self.delivered.swap(0, Ordering::Relaxed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Latencies> {
        self.arrived.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Who changes services: over HTTP, as an operator's script would.
pub(super) struct Changer {
    client: Client,
    services: usize,
    next: usize,
    board: Arc<Board>,
    /// Further fields of the instances.
    more: &'static str,
}

impl Changer {
    pub(super) async fn new(door: &Door, services: usize) -> anyhow::Result<Self> {
        let client = Client::through(door).await?;
        Ok(Self { client, services, next: 0, board: Board::new(1 << 20), more: "" })
    }

    /// With these fields in each instance, too.
    pub(super) fn with(self, more: &'static str) -> Self {
        Self { more, ..self }
    }

    pub(super) async fn once_each(&mut self) -> anyhow::Result<()> {
        self.change(HOT).await?;
        for kind in [WATCHED, QUIET] {
            for _ in 0..self.services {
                self.change_next(kind).await?;
            }
        }
        Ok(())
    }

    async fn change_next(&mut self, kind: &str) -> anyhow::Result<()> {
        let service = format!("{kind}{}", self.next % self.services);
        self.next += 1;
        self.change(&service).await
    }

    async fn change(&mut self, service: &str) -> anyhow::Result<()> {
        let number = self.board.make();
        let path = format!("/v1/namespaces/bench/services/{service}/instances/{service}-0");
        let address = address(number);
        let body = format!(
            r#"{{"address":"{address}","port":8080,"ttl":"24h","labels":{{"number":"{number}"}}{}}}"#,
            self.more
        );
        let (status, text) = self.client.call("PUT", &path, &body).await?;
        ensure!(status == 200 || status == 201, "PUT {path}: {status} {text}");
        Ok(())
    }

    /// Changes services in turn, so many a second; returns how many.
    pub(super) async fn churn(
        &mut self,
        kind: &str,
        per_second: usize,
        time: Duration,
    ) -> anyhow::Result<usize> {
        let (start, every) = (Instant::now(), Duration::from_secs(1) / per_second as u32);
        let (mut made, mut next) = (0, start);
        while next < start + time {
            sleep_until(next).await;
            self.change_next(kind).await?;
            (made, next) = (made + 1, next + every);
        }
        Ok(made)
    }
}

/// Everybody who watches.
struct Subscribers {
    tasks: JoinSet<()>,
}

impl Subscribers {
    async fn connect(
        arguments: &Arguments,
        door: &Door,
        board: &Arc<Board>,
        version: Version,
    ) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        let all: Vec<usize> = (0..arguments.subscribers).collect();
        for some in all.chunks(CONNECTING) {
            let connecting: JoinSet<_> = some
                .iter()
                .map(|number| {
                    let service = format!("{WATCHED}{}", number % arguments.services);
                    let (door, board) = (door.clone(), Arc::clone(board));
                    async move { Subscriber::connect(&door, service, board, version).await }
                })
                .collect();
            for subscriber in connecting.join_all().await {
                tasks.spawn(subscriber?.run());
            }
        }
        Ok(Self { tasks })
    }
}

struct Subscriber {
    service: String,
    events: Events,
    board: Arc<Board>,
}

impl Subscriber {
    /// Connects and reads the state at the beginning.
    async fn connect(
        door: &Door,
        service: String,
        board: Arc<Board>,
        version: Version,
    ) -> anyhow::Result<Self> {
        let path = format!("/v1/watch?service={service}.bench&service={HOT}.bench");
        let mut events = Events::open(door, &path, version).await?;
        let mut seen = Vec::new();
        while find(&seen, PROGRESS).is_none() {
            ensure!(events.more(&mut seen).await? > 0, "a watch ended at once");
        }
        Ok(Self { service: format!("\"service\":\"{service}\""), events, board })
    }

    async fn run(mut self) {
        let mut buffer = Vec::with_capacity(2048);
        while let Ok(1..) = self.events.more(&mut buffer).await {
            // Events end with an empty line; what came of the next one stays.
            while let Some(end) = find(&buffer, b"\n\n") {
                self.event(&buffer[..end]);
                buffer.drain(..end + 2);
            }
        }
    }

    fn event(&self, event: &[u8]) {
        const NUMBER: &[u8] = b"\"number\":\"";
        let ours = find(event, self.service.as_bytes()).is_some();
        if ours || find(event, br#""service":"hot""#).is_some() {
            let Some(at) = find(event, NUMBER) else { return };
            let digits = event[at + NUMBER.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            let number = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
            self.board.arrive(number);
        } else if find(event, PROGRESS).is_none() {
            self.board.foreign_bytes.fetch_add(event.len(), Ordering::Relaxed);
        }
    }
}

/// What tells a watcher how far it is.
const PROGRESS: &[u8] = b"event: progress";
