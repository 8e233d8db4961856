//! The task of a connection: moves its bytes, and finds a peer that has vanished.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::Connection;
use h2::{Ping, PingPong};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::Traffic;
use crate::upstream::io::Io;

/// Runs one connection.
pub(in crate::upstream) struct Driver {
    connection: Connection<Io, Bytes>,
    traffic: Rc<Traffic>,
}

impl Driver {
    pub(super) fn new(connection: Connection<Io, Bytes>, traffic: Rc<Traffic>) -> Self {
        Self { connection, traffic }
    }

    /// Runs the connection to its end, with whatever is on it then.
    pub(in crate::upstream) async fn run(mut self) {
        let pings = self.connection.ping_pong();
        tokio::select! {
            biased;
            _ended = &mut self.connection => {}
            () = vanished(pings, &self.traffic) => {}
        }
    }
}

/// Waits until the peer has left a ping unanswered. It is asked only while streams are open and
/// nothing comes.
async fn vanished(pings: Option<PingPong>, traffic: &Traffic) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    let mut ticks = interval_at(Instant::now() + KEEP_ALIVE_INTERVAL, KEEP_ALIVE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if traffic.heard.replace(false) || traffic.streams.get() == 0 {
            continue;
        }
        if pings.send_ping(Ping::opaque()).is_err() {
            // The connection is ending.
            return std::future::pending().await;
        }
        let answered = poll_fn(|cx| pings.poll_pong(cx).map(|pong| pong.is_ok()));
        match tokio::time::timeout(KEEP_ALIVE_TIMEOUT, answered).await {
            Ok(true) => {}
            Ok(false) => return std::future::pending().await,
            Err(_elapsed) => return,
        }
    }
}

/// A peer that vanished is found by pings while streams are open.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
