//! Load at a steady rate: requests leave when they are due, whether or not answers have come (open
//! loop), over keep-alive connections, and everything but 200 counts as a failure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How many different failures are told.
const TOLD_MAX: usize = 10;

/// Load that runs until it is stopped.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    tally: Arc<Mutex<Tally>>,
    work: JoinSet<()>,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests answered or failed.
    pub sent: u64,
    /// Those answered 200.
    pub ok: u64,
    /// Everything else, by what it was.
    pub failures: BTreeMap<String, u64>,
    /// Answers by the member `name` (or `instance`) of their JSON.
    pub by_name: BTreeMap<String, u64>,
    /// The longest time from when a request was due to its answer.
    pub slowest: Duration,
    /// When that one was due, from the start of the load.
    pub slowest_at: Duration,
}

impl Tally {
    /// # Panics
    ///
    /// If anything failed, or nothing was sent.
    pub fn expect_no_failure(&self) {
        assert!(self.sent > 0, "nothing was sent");
        assert!(self.failures.is_empty() && self.ok == self.sent, "requests failed: {self:#?}");
    }

    /// Answers of the one of this name.
    pub fn of(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or(0)
    }
}

/// A connection with what drives it.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    _driver: JoinSet<()>,
}

type Idle = Arc<Mutex<Vec<Connection>>>;

impl Load {
    /// Starts to ask the sidecar at `outbound` for `/` of `host`, so often per second.
    pub fn start(outbound: SocketAddr, host: &str, per_second: u32) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let tally = Arc::<Mutex<Tally>>::default();
        let (counted, host): (_, Arc<str>) = (Arc::clone(&tally), host.into());
        let mut work = JoinSet::new();
        work.spawn(async move {
            let (idle, mut requests, begin) = (Idle::default(), JoinSet::new(), Instant::now());
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst); // late ones are sent, and count as late
            loop {
                tokio::select! {
                    biased;
                    _ = stopped.wait_for(|stopped| *stopped) => break,
                    due = ticks.tick() => {
                        let (idle, host, tally) = (Arc::clone(&idle), Arc::clone(&host), Arc::clone(&counted));
                        requests.spawn(async move { one(outbound, &host, (begin, due), &idle, &tally).await });
                    }
                    Some(_ended) = requests.join_next() => {}
                }
            }
            while requests.join_next().await.is_some() {} // each has its own deadline
        });
        Self { stop, tally, work }
    }

    /// What has come back so far.
    pub fn so_far(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops, waits for the answers still on their way, and tells what came back.
    ///
    /// # Panics
    ///
    /// If the load itself failed.
    pub async fn stop(mut self) -> Tally {
        self.stop.send_replace(true);
        while let Some(ended) = self.work.join_next().await {
            ended.expect("the load does not panic");
        }
        self.so_far()
    }
}

async fn one(
    outbound: SocketAddr,
    host: &str,
    (begin, due): (Instant, Instant),
    idle: &Idle,
    tally: &Mutex<Tally>,
) {
    let outcome = tokio::time::timeout(ANSWER_TIMEOUT, ask(outbound, host, idle)).await;
    let outcome = outcome.unwrap_or_else(|_elapsed| Err(format!("no answer within {ANSWER_TIMEOUT:?}")));
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.sent += 1;
    if due.elapsed() > tally.slowest {
        (tally.slowest, tally.slowest_at) = (due.elapsed(), due - begin);
    }
    match outcome {
        Ok(name) => {
            tally.ok += 1;
            *tally.by_name.entry(name).or_default() += 1;
        }
        Err(why) => {
            let told = tally.failures.len() < TOLD_MAX || tally.failures.contains_key(&why);
            *tally.failures.entry(if told { why } else { "others".to_owned() }).or_default() += 1;
        }
    }
}

/// Asks once; the name in the answer.
async fn ask(outbound: SocketAddr, host: &str, idle: &Idle) -> Result<String, String> {
    let mut connection = match usable(idle) {
        Some(connection) => connection,
        None => connect(outbound).await?,
    };
    let request = http::Request::get("/").header("host", host).body(Empty::new());
    let request = request.map_err(|error| error.to_string())?;
    let answer = connection.sender.send_request(request).await.map_err(|error| format!("{error:?}"))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|error| format!("body: {error:?}"))?.to_bytes();
    if status != http::StatusCode::OK {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim()));
    }
    idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    let page: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let name = page["name"].as_str().or_else(|| page["instance"].as_str());
    Ok(name.unwrap_or_default().to_owned())
}

/// A connection that is neither closed nor in use.
fn usable(idle: &Idle) -> Option<Connection> {
    let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
    idle.retain(|connection| !connection.sender.is_closed());
    let ready = idle.iter().position(|connection| connection.sender.is_ready())?;
    Some(idle.swap_remove(ready))
}

async fn connect(to: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(to).await.map_err(|error| format!("connect: {error}"))?;
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|error| format!("handshake: {error:?}"))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        let _ended = connection.await; // requests on it tell how
    });
    Ok(Connection { sender, _driver: driver })
}
