//! Both transports of one zone.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connections::Connections;
use crate::handler::Shared;
use crate::limit::Limiter;
use crate::stats::Stats;
use crate::zone::Zone;
use crate::{tcp, udp};

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// Answers per second over UDP to one network (/24 of IPv4, /56 of IPv6) that shows no cookie of
    /// ours; beyond, it is told to use TCP. `None`: no limit.
    pub answers_per_second: Option<NonZeroU32>,
    /// Whether the limit holds for loopback, too: its sources cannot be forged from elsewhere.
    pub limit_loopback: bool,
    /// Connections at a time; beyond, the client with most of them loses its oldest.
    pub connections_max: usize,
    /// Where to count.
    pub stats: Arc<Stats>,
}

impl Default for Options {
    /// No limit on answers; 10,000 connections, or half of the descriptors that the process may have
    /// where that is less, so that the rest of it can go on.
    fn default() -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self {
            answers_per_second: None,
            limit_loopback: false,
            connections_max: usize::try_from(descriptors / 2).unwrap_or(usize::MAX).clamp(1, 10_000),
            stats: Arc::default(),
        }
    }
}

/// Answers on both sockets until `stop`, without a limit on answers. `name` is for logs.
pub async fn serve(
    name: &str,
    udp: UdpSocket,
    tcp: TcpListener,
    zone: Arc<dyn Zone>,
    stop: CancellationToken,
) {
    serve_with(name, udp, tcp, zone, Options::default(), stop).await;
}

/// Answers on both sockets until `stop`. `name` is for logs.
pub async fn serve_with(
    name: &str,
    udp: UdpSocket,
    tcp: TcpListener,
    zone: Arc<dyn Zone>,
    options: Options,
    stop: CancellationToken,
) {
    let connections = Connections::new(options.connections_max, Arc::clone(&options.stats));
    let shared = Arc::new(Shared::new(zone, options.stats));
    let limited = |rate| Limiter::new(rate, options.limit_loopback, Instant::now());
    let limiter = options.answers_per_second.map(limited);
    let over_udp = async {
        let socket = udp.into_std();
        let served = async { udp::serve(name, socket?, Arc::clone(&shared), limiter, stop.clone()).await };
        if let Err(error) = served.await {
            tracing::error!(server = name, %error, "cannot answer over UDP");
        }
    };
    tokio::join!(over_udp, tcp::serve(name, tcp, Arc::clone(&shared), connections, stop.clone()));
}

/// Answers at once where the answer is known, which is the rule, and in a task of its own otherwise.
pub(crate) fn now_or_aside(answer: impl Future<Output = ()> + Send + 'static, aside: &mut JoinSet<()>) {
    let mut answer: Pin<Box<_>> = Box::pin(answer);
    if answer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        aside.spawn(answer);
    }
}
