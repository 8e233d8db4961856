//! Connections carried as bytes.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Connection;
use super::io::Io;
use super::rarely::Rarely;
use crate::flags::Flags;
use crate::local_reply::{Cause as Reply, LocalReply};
use crate::record::{Owner, Record};
use crate::snapshot::{ClusterRef, Target, TcpProxy};
use crate::upstream::{Attempt, Cause, Failure, TcpUpstream, relay};

/// What was carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) from_client: u64,
    pub(crate) to_client: u64,
}

/// Carries an accepted connection to one of the proxy's clusters.
pub(super) async fn serve_tcp(connection: Rc<Connection>, proxy: Arc<TcpProxy>, io: Io) {
    let owner = Owner::Tcp(Arc::clone(&proxy));
    let mut record = Record::new(Rc::clone(&connection), owner, Version::HTTP_09, Method::default());
    record.complete = true;
    let Some(target) = choose(&proxy) else {
        note(&mut record, Reply::NoCluster(http::StatusCode::SERVICE_UNAVAILABLE));
        return;
    };
    record.target = Some(target.clone());
    let mut upstream = match connect(&connection, &proxy, &target, &mut record).await {
        Ok(upstream) => upstream,
        Err(failure) => {
            note(&mut record, reply(failure));
            return;
        }
    };
    let server = upstream.distrusted();
    let ends = async {
        tokio::select! {
            () = connection.distrusted() => {}
            () = server => {}
        }
    };
    let copying = copy_both(io, upstream, proxy.idle_timeout, Rarely::new(ends));
    let cut = connection.worker.cut.clone();
    if let Some(copied) = cut.run_until_cancelled(copying).await {
        record.bytes_received = copied.from_client;
        record.bytes_sent = copied.to_client;
    }
}

fn choose(proxy: &TcpProxy) -> Option<Target> {
    let total: u64 = proxy.clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut rest = fastrand::u64(..).checked_rem(total)?;
    proxy.clusters.iter().find_map(|(cluster, weight)| {
        let weight = u64::from(*weight);
        let hit = rest < weight;
        rest = rest.wrapping_sub(weight);
        match cluster {
            ClusterRef::Ready(target) if hit => Some(target.clone()),
            _ => None,
        }
    })
}

async fn connect(
    connection: &Connection,
    proxy: &TcpProxy,
    target: &Target,
    record: &mut Record,
) -> Result<TcpUpstream, Failure> {
    let mut tries = 0;
    let mut attempt = Attempt::default();
    loop {
        tries += 1;
        record.attempts = tries;
        match connection.worker.pools.connect(&target.cluster, &mut attempt).await {
            Ok(upstream) => {
                record.upstream_host = Some(upstream.endpoint().address.to_string().into());
                return Ok(upstream);
            }
            Err(failure) => {
                if let Some(endpoint) = &failure.endpoint {
                    record.upstream_host = Some(endpoint.address.to_string().into());
                }
                if tries >= proxy.connect_attempts || failure.cause.reset().is_none() {
                    if tries > 1 {
                        record.flags.add(Flags::RETRY_LIMIT);
                    }
                    return Err(failure);
                }
            }
        }
    }
}

fn reply(failure: Failure) -> Reply {
    match failure.cause {
        Cause::NoHealthyUpstream => Reply::NoHealthyUpstream,
        Cause::Dropped => Reply::DropOverload,
        Cause::Reset(reset) => Reply::UpstreamReset { reset, detail: failure.detail, retried: false },
    }
}

/// A TCP connection has no reply, but the same flags.
fn note(record: &mut Record, cause: Reply) {
    let reply = LocalReply::from(cause);
    record.flags.add(reply.flags);
    record.details = Some(reply.details);
}

/// Carries bytes both ways until both sides ended, an error, `idle` without a byte, or `ends`. One
/// side's end is passed on and the other goes on.
pub(crate) async fn copy_both(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut upstream: impl AsyncRead + AsyncWrite + Unpin,
    idle: Option<Duration>,
    ends: impl Future<Output = ()>,
) -> Copied {
    tokio::select! {
        relayed = relay(&mut client, &mut upstream, idle) => {
            Copied { from_client: relayed.sent, to_client: relayed.received }
        }
        // The peer is trusted no more: its connection ends, and what it carried is not known.
        () = ends => Copied::default(),
    }
}
