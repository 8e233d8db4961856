//! Tunnels: once both sides agreed to change protocol, bytes are carried both ways.

use std::rc::Rc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::downstream::{Connection, copy_both};
use crate::flags::Flags;
use crate::record::Record;
use crate::router::timeout::Timers;
use crate::upstream::TunnelGuard;

/// The upstream's side of a tunnel.
pub(crate) struct Tunnel {
    pub(crate) upstream: OnUpgrade,
    /// Keeps it counted as a request in flight.
    pub(crate) guard: TunnelGuard,
    pub(crate) idle: Option<Duration>,
}

impl Tunnel {
    /// Carries bytes in a task of the worker, once hyper has handed over both streams.
    pub(crate) fn start(
        self,
        connection: &Rc<Connection>,
        client: OnUpgrade,
        mut record: Box<Record>,
        timers: Timers,
    ) {
        let Self { upstream, guard, idle } = self;
        drop(timers);
        let cut = connection.worker.cut.clone();
        let ends = connection.certificate_ends();
        let carry = async move {
            let (Ok(client), Ok(upstream)) = (client.await, upstream.await) else {
                record.flags.add(Flags::UPSTREAM_CONNECTION_TERMINATION);
                record.finish();
                return;
            };
            let copied = copy_both(TokioIo::new(client), TokioIo::new(upstream), idle, ends).await;
            record.tunnel_bytes = Some((copied.from_client, copied.to_client));
            record.finish();
            drop(guard);
        };
        connection.worker.tasks.spawn_local(async move {
            cut.run_until_cancelled(carry).await;
        });
    }
}
