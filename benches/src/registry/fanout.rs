//! Watchers of one service each, and one service that all of them watch, while services change.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::Arguments;
use super::http::{Client, find};
use super::latency::Latencies;
use super::server::Registry;
use super::stream::address;
use crate::report::{Budget, Report};

/// Subscribers that connect at the same time.
const CONNECTING: usize = 64;
/// The service that everybody watches.
const HOT: &str = "hot";
/// Changes of it.
const HOT_CHANGES: usize = 5;
/// Changes that have the registry to themselves.
const ISOLATED: usize = 50;
/// Time between those: longer than any gathering.
const ISOLATED_EVERY: Duration = Duration::from_millis(250);
/// How long stragglers are waited for.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let registry = Registry::start(arguments, data.path()).await?;
    let mut changer = Changer::new(&registry, arguments.services).await?;
    changer.once_each().await?;
    // The same changes without anybody who listens: what a delivery costs is what comes on top.
    let before = registry.usage()?;
    let made = changer.churn(arguments, SETTLE).await?;
    let alone = registry.usage()?.cpu_since(before);
    report.row("CPU of one change that nobody watches", micros(alone, made), "µs", None);

    let board = Arc::clone(&changer.board);
    let memory = registry.memory()?;
    let mut subscribers = Subscribers::connect(arguments, &registry, &board).await?;
    let each = (registry.memory()? - memory) / arguments.subscribers as f64;
    report.row("memory per subscriber", each / 1024.0, "KiB", None);

    board.reset();
    for _ in 0..ISOLATED.min(arguments.services) {
        changer.change_next().await?;
        sleep(ISOLATED_EVERY).await;
    }
    sleep(SETTLE).await;
    let (mut isolated, delivered) = board.take();
    ensure!(delivered > 0, "no change was delivered");
    report.row(
        "isolated change to its subscribers, p99",
        isolated.quantile_ms(0.99),
        "ms",
        Some(Budget::AtMost(100.0)),
    );

    let before = registry.usage()?;
    let changes = changer.churn(arguments, SETTLE).await?;
    let cpu = registry.usage()?.cpu_since(before);
    let (mut churn, delivered) = board.take();
    // Both windows are as long; the changes of the first one may have been a few more or less.
    let on_top = cpu.saturating_sub(alone.mul_f64(changes as f64 / made.max(1) as f64));
    report.row("CPU of one delivered event", micros(on_top, delivered), "µs", Some(Budget::AtMost(15.0)));
    report.row("CPU of one delivered event, its change included", micros(cpu, delivered), "µs", None);
    report.row("events delivered per change", delivered as f64 / changes as f64, "events", None);
    report.row(
        "change under churn to its subscribers, p99",
        churn.quantile_ms(0.99),
        "ms",
        Some(Budget::AtMost(250.0)),
    );
    let foreign = board.foreign.load(Ordering::Relaxed) as f64;
    report.row("events about services not asked for", foreign, "events", Some(Budget::AtMost(0.0)));

    for _ in 0..HOT_CHANGES {
        changer.change(HOT).await?;
        sleep(SETTLE).await;
    }
    let (mut hot, delivered) = board.take();
    report.row("a service that all watch, p99", hot.quantile_ms(0.99), "ms", Some(Budget::AtMost(500.0)));
    let share = delivered as f64 / (HOT_CHANGES * arguments.subscribers) as f64;
    report.row("a service that all watch, told to", share * 100.0, "% of them", Some(Budget::AtLeast(100.0)));
    subscribers.tasks.shutdown().await;
    Ok(())
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
    foreign: AtomicUsize,
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
            foreign: AtomicUsize::new(0),
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
        self.foreign.store(0, Ordering::Relaxed);
    }

    fn take(&self) -> (Latencies, usize) {
        (std::mem::take(&mut *self.lock()), self.delivered.swap(0, Ordering::Relaxed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Latencies> {
        self.arrived.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Who changes services: over HTTP, as an operator's script would.
struct Changer {
    client: Client,
    services: usize,
    next: usize,
    board: Arc<Board>,
}

impl Changer {
    async fn new(registry: &Registry, services: usize) -> anyhow::Result<Self> {
        let client = Client::connect(registry.api).await?;
        Ok(Self { client, services, next: 0, board: Board::new(1 << 20) })
    }

    async fn once_each(&mut self) -> anyhow::Result<()> {
        self.change(HOT).await?;
        for _ in 0..self.services {
            self.change_next().await?;
        }
        Ok(())
    }

    async fn change_next(&mut self) -> anyhow::Result<()> {
        let service = format!("s{}", self.next % self.services);
        self.next += 1;
        self.change(&service).await
    }

    async fn change(&mut self, service: &str) -> anyhow::Result<()> {
        let number = self.board.make();
        let path = format!("/v1/namespaces/bench/services/{service}/instances/{service}-0");
        let address = address(number);
        let body =
            format!(r#"{{"address":"{address}","port":8080,"ttl":"24h","labels":{{"number":"{number}"}}}}"#);
        let (status, text) = self.client.call("PUT", &path, &body).await?;
        ensure!(status == 200 || status == 201, "PUT {path}: {status} {text}");
        Ok(())
    }

    /// Changes services in turn at the rate asked for; returns how many, some time after the last.
    async fn churn(&mut self, arguments: &Arguments, settle: Duration) -> anyhow::Result<usize> {
        let window = arguments.window.min(Duration::from_secs(30));
        let (start, every) = (Instant::now(), Duration::from_secs(1) / arguments.changes as u32);
        let (mut made, mut next) = (0, start);
        while next < start + window {
            sleep_until(next).await;
            self.change_next().await?;
            (made, next) = (made + 1, next + every);
        }
        sleep(settle).await;
        Ok(made)
    }
}

/// Everybody who watches.
struct Subscribers {
    tasks: JoinSet<()>,
}

impl Subscribers {
    async fn connect(arguments: &Arguments, registry: &Registry, board: &Arc<Board>) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        let all: Vec<usize> = (0..arguments.subscribers).collect();
        for some in all.chunks(CONNECTING) {
            let connecting: JoinSet<_> = some
                .iter()
                .map(|number| {
                    let service = format!("s{}", number % arguments.services);
                    let (api, board) = (registry.api, Arc::clone(board));
                    async move { Subscriber::connect(api, service, board).await }
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
    stream: tokio::net::TcpStream,
    board: Arc<Board>,
}

impl Subscriber {
    /// Connects and reads the state at the beginning.
    async fn connect(api: std::net::SocketAddr, service: String, board: Arc<Board>) -> anyhow::Result<Self> {
        let path = format!("/v1/watch?service={service}.bench&service={HOT}.bench");
        let mut stream = Client::connect(api).await?.stream(&path).await?;
        let mut seen = Vec::new();
        while find(&seen, b"event: progress").is_none() {
            ensure!(stream.read_buf(&mut seen).await? > 0, "a watch ended at once");
        }
        Ok(Self { service: format!("\"service\":\"{service}\""), stream, board })
    }

    async fn run(mut self) {
        let mut buffer = Vec::with_capacity(2048);
        while let Ok(1..) = self.stream.read_buf(&mut buffer).await {
            // Events end with an empty line; what came of the next one stays.
            while let Some(end) = find(&buffer, b"\n\n") {
                self.event(&buffer[..end]);
                buffer.drain(..end + 2);
            }
        }
    }

    fn event(&self, event: &[u8]) {
        const NUMBER: &[u8] = b"\"number\":\"";
        let Some(at) = find(event, NUMBER) else { return };
        let digits = event[at + NUMBER.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        let number = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
        let ours = find(event, self.service.as_bytes()).is_some();
        if ours || find(event, br#""service":"hot""#).is_some() {
            self.board.arrive(number);
        } else {
            self.board.foreign.fetch_add(1, Ordering::Relaxed);
        }
    }
}
