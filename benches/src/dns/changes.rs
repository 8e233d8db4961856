//! Instances that register, and go on changing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::data::Instance;

/// Connections that share the work.
const CONNECTIONS: usize = 32;

/// Registers all instances.
///
/// # Errors
///
/// If one is refused.
pub async fn register(api: u16, instances: Vec<Instance>) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for part in instances.chunks(instances.len().div_ceil(CONNECTIONS)) {
        let part = part.to_vec();
        tasks.spawn(async move {
            let mut client = Client::connect(api).await?;
            for instance in part {
                client.put(&instance).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Gives instances other addresses, one after the other, at a steady rate.
pub struct Changes {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    started: Instant,
    tasks: JoinSet<anyhow::Result<Option<Instance>>>,
}

impl Changes {
    /// Begins.
    pub fn start(api: u16, instances: &[Instance], per_second: u32) -> Self {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut tasks = JoinSet::new();
        // Each task has instances of its own, so that their changes are in order.
        for at in 0..CONNECTIONS {
            let own: Vec<Instance> = instances.iter().skip(at).step_by(CONNECTIONS).cloned().collect();
            let pace = Duration::from_secs(1) * u32::try_from(CONNECTIONS).unwrap_or(1) / per_second;
            tasks.spawn(change(api, own, pace, Arc::clone(&stop), Arc::clone(&made)));
        }
        Self { stop, made, started: Instant::now(), tasks }
    }

    /// Ends, and tells how many were acknowledged per second, and an instance as it was changed last.
    ///
    /// # Errors
    ///
    /// If a change was refused.
    pub async fn end(mut self) -> anyhow::Result<(f64, Instance)> {
        self.stop.store(true, Ordering::Relaxed);
        let rate = self.made.load(Ordering::Relaxed) as f64 / self.started.elapsed().as_secs_f64();
        let mut last = None;
        while let Some(done) = self.tasks.join_next().await {
            last = done??.or(last);
        }
        Ok((rate, last.context("nothing was changed")?))
    }
}

async fn change(
    api: u16,
    mut instances: Vec<Instance>,
    pace: Duration,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
) -> anyhow::Result<Option<Instance>> {
    let mut client = Client::connect(api).await?;
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut next, mut last) = (0, None);
    while !stop.load(Ordering::Relaxed) && !instances.is_empty() {
        ticks.tick().await;
        let at = next % instances.len();
        next += 1;
        let instance = &mut instances[at];
        // Between 10.x and 11.x, never an address it has had just before.
        instance.address = Ipv4Addr::from_bits(instance.address.to_bits() ^ 0x0100_0000);
        client.put(instance).await?;
        made.fetch_add(1, Ordering::Relaxed);
        last = Some(instance.clone());
    }
    Ok(last)
}

struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    /// Ends with the sender.
    _driving: JoinSet<()>,
}

impl Client {
    async fn connect(api: u16) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], api));
        let stream = TcpStream::connect(address).await.context("connect to the API")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let mut driving = JoinSet::new();
        driving.spawn(async move { drop(connection.await) });
        Ok(Self { sender, host: address.to_string(), _driving: driving })
    }

    async fn put(&mut self, instance: &Instance) -> anyhow::Result<()> {
        let request = http::Request::put(instance.path())
            .header("host", &self.host)
            .header("content-type", "application/json")
            .body(Full::new(instance.body().to_string().into()))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{}: {status} {}", instance.path(), String::from_utf8_lossy(&body));
        Ok(())
    }
}
