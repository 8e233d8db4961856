//! Requests at a steady rate, in bursts, and what came of each of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use fastrand::Rng;
use http::{Method, Request, Version};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::client::Clients;
use super::origin::{CHECK, ID, fill, reply_bytes};

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests in flight: a machine that is too slow makes the load wait rather than pile up.
const IN_FLIGHT_MAX: usize = 48;
/// How often some are sent.
const EVERY: Duration = Duration::from_millis(20);
/// How many different failures are told.
const TOLD_MAX: usize = 20;

/// What one kind of request is sent to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Host, or authority.
    pub(crate) host: &'static str,
    /// Beginning of the path.
    pub(crate) path: &'static str,
    /// Methods that are used, with whether they have a body.
    pub(crate) methods: &'static [(Method, bool)],
    /// Whether it is called like gRPC.
    pub(crate) grpc: bool,
}

/// How often each request was carried out, by its number.
#[derive(Debug)]
pub(crate) struct Ledger(Vec<AtomicU8>);

impl Ledger {
    pub(crate) fn new(requests: usize) -> Arc<Self> {
        Arc::new(Self(std::iter::repeat_with(AtomicU8::default).take(requests).collect()))
    }

    /// An application has carried out this one.
    pub(crate) fn carried_out(&self, id: usize) {
        if let Some(entry) = self.0.get(id) {
            entry.fetch_add(1, Relaxed);
        }
    }

    fn times(&self, id: usize) -> u8 {
        self.0[id].load(Relaxed)
    }
}

/// What came back.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) answered: u64,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) by_kind: BTreeMap<String, u64>,
    pub(crate) slowest: Duration,
    /// Safe requests that were carried out more than once.
    pub(crate) repeated: u64,
}

impl Outcome {
    fn fail(&mut self, why: String) {
        let told = self.failures.len() < TOLD_MAX || self.failures.contains_key(&why);
        *self.failures.entry(if told { why } else { "others".to_owned() }).or_default() += 1;
    }
}

/// The load's length and pace.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) requests: usize,
    pub(crate) per_second: usize,
    pub(crate) ledger: Arc<Ledger>,
    /// How many have been answered, for who waits for that.
    pub(crate) done: Arc<AtomicU64>,
}

/// What is asked, and what must come back.
struct Question {
    id: usize,
    kind: String,
    target: Target,
    method: Method,
    version: Version,
    body: usize,
    chunked: bool,
    answer: usize,
}

impl Load {
    pub(crate) fn new(requests: usize, per_second: usize) -> Self {
        Self { requests, per_second, ledger: Ledger::new(requests), done: Arc::default() }
    }

    /// Sends all requests to `proxy`, and tells what came of them.
    pub(crate) async fn run(&self, proxy: SocketAddr, targets: &'static [Target], mut rng: Rng) -> Outcome {
        let (clients, places) = (Clients::new(proxy), Arc::new(Semaphore::new(IN_FLIGHT_MAX)));
        let (mut outcome, mut sent, mut asked) = (Outcome::default(), 0, JoinSet::new());
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mean = (self.per_second * EVERY.as_millis() as usize).div_ceil(1000);
        while sent < self.requests {
            ticks.tick().await;
            for _ in 0..rng.usize(0..=2 * mean).min(self.requests - sent) {
                let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
                let question = question(sent, targets, &mut rng);
                let clients = clients.clone();
                sent += 1;
                asked.spawn(async move {
                    let begun = Instant::now();
                    let answer = timeout(ANSWER_TIMEOUT, ask(&clients, &question)).await;
                    drop(place);
                    let answer =
                        answer.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_TIMEOUT:?}")));
                    (question, answer, begun.elapsed())
                });
            }
            while let Some(ended) = asked.try_join_next() {
                self.note(&mut outcome, ended.expect("no panic"));
            }
        }
        while let Some(ended) = asked.join_next().await {
            self.note(&mut outcome, ended.expect("no panic"));
        }
        outcome
    }

    fn note(&self, outcome: &mut Outcome, ended: (Question, Result<(), String>, Duration)) {
        let (question, answer, time) = ended;
        let times = self.ledger.times(question.id);
        let safe = question.method != Method::POST;
        outcome.slowest = outcome.slowest.max(time);
        *outcome.by_kind.entry(question.kind.clone()).or_default() += 1;
        self.done.fetch_add(1, Relaxed);
        match answer {
            Err(why) => outcome.fail(format!("{}: {why}; carried out {times} times", question.kind)),
            Ok(()) if times == 0 || (times > 1 && !safe) => {
                outcome.fail(format!("{}: answered, and carried out {times} times", question.kind));
            }
            Ok(()) => {
                outcome.answered += 1;
                outcome.repeated += u64::from(times > 1);
            }
        }
    }
}

fn question(id: usize, targets: &'static [Target], rng: &mut Rng) -> Question {
    let target = targets[rng.usize(0..targets.len())];
    let (method, has_body) = target.methods[rng.usize(0..target.methods.len())].clone();
    let http2 = target.grpc || rng.u8(0..3) == 0;
    let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    // Most bodies are small, some take several frames and writes.
    let mut size = || if rng.u8(0..20) == 0 { rng.usize(20_000..100_000) } else { rng.usize(1..2000) };
    let (body, answer) = (if has_body { size() } else { 0 }, size().min(60_000));
    let kind = format!("{method} {} by {version:?}", target.host);
    Question { id, kind, target, method, version, body, chunked: rng.bool(), answer }
}

async fn ask(clients: &Clients, question: &Question) -> Result<(), String> {
    let Question { id, target, .. } = question;
    let uri = format!("http://{}{}/{id}?answer={}", target.host, target.path, question.answer);
    let mut request = Request::builder().method(&question.method).uri(uri).header(ID, id.to_string());
    if target.grpc {
        request = request.header("content-type", "application/grpc").header("te", "trailers");
    }
    let body = fill(*id, question.body);
    let request = request.body(body).map_err(|error| error.to_string())?;
    let answer = clients.ask(question.version, question.chunked, request).await?;
    if answer.status != 200 || answer.headers.contains_key("grpc-message") {
        if let Some(told) = answer.headers.get("grpc-message") {
            return Err(format!("gRPC: {told:?}"));
        }
        return Err(format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body).trim()));
    }
    if answer.headers.get(ID).is_none_or(|echoed| echoed.as_bytes() != id.to_string().as_bytes()) {
        return Err("the answer is another request's".to_owned());
    }
    if answer.headers.get(CHECK).is_none_or(|check| check.as_bytes() != question.body.to_string().as_bytes())
    {
        return Err(format!("the application got another body: {:?}", answer.headers.get(CHECK)));
    }
    if answer.body != reply_bytes(*id, question.answer) {
        return Err(format!("{} bytes came, {} were due", answer.body.len(), question.answer));
    }
    if target.grpc && answer.trailers.get("grpc-status").is_none_or(|status| status != "0") {
        return Err(format!("trailers are {:?}", answer.trailers));
    }
    Ok(())
}
