//! Tunnels: once both sides agreed to change protocol, bytes are carried both ways.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::downstream::{Connection, Copied, copy_both, serve_tunnelled};
use crate::flags::Flags;
use crate::record::Record;
use crate::upstream::{TcpUpstream, TunnelGuard};

/// The upstream's side of a tunnel.
pub(crate) struct Tunnel {
    pub(crate) upstream: Upstream,
    pub(crate) idle: Option<Duration>,
}

/// What the client is connected with.
pub(crate) enum Upstream {
    /// An HTTP stream; the guard keeps it counted as a request in flight.
    Upgraded(OnUpgrade, TunnelGuard),
    /// A connection to an endpoint.
    Tcp(TcpUpstream),
    /// A connection to somewhere outside the mesh.
    Plain(TcpStream),
    /// Nobody yet: requests come through the tunnel and are routed by this configuration.
    Inner(Arc<str>),
}

impl Tunnel {
    /// Carries bytes in a task of the worker, once hyper has handed over the client's stream.
    pub(crate) fn start(self, connection: &Rc<Connection>, client: OnUpgrade, mut record: Box<Record>) {
        let cut = connection.worker.cut.clone();
        if let Upstream::Inner(routes) = self.upstream {
            record.finish();
            let connection = Rc::clone(connection);
            let (worker, task) = (Rc::clone(&connection.worker), inner(connection, client, routes));
            worker.tasks.spawn_local(async move {
                cut.run_until_cancelled(task).await;
            });
            return;
        }
        let ends = connection.certificate_ends();
        let carry = async move {
            match self.carry(client, ends).await {
                Some(copied) => record.tunnel_bytes = Some((copied.from_client, copied.to_client)),
                None => record.flags.add(Flags::UPSTREAM_CONNECTION_TERMINATION),
            }
            record.finish();
        };
        connection.worker.tasks.spawn_local(async move {
            cut.run_until_cancelled(carry).await;
        });
    }

    /// `None`: one side did not come about.
    async fn carry(self, client: OnUpgrade, ends: Option<Instant>) -> Option<Copied> {
        let client = TokioIo::new(client.await.ok()?);
        Some(match self.upstream {
            Upstream::Upgraded(upstream, _guard) => {
                copy_both(client, TokioIo::new(upstream.await.ok()?), self.idle, ends).await
            }
            Upstream::Tcp(upstream) => copy_both(client, upstream, self.idle, ends).await,
            Upstream::Plain(upstream) => copy_both(client, upstream, self.idle, ends).await,
            Upstream::Inner(_) => return None,
        })
    }
}

async fn inner(connection: Rc<Connection>, client: OnUpgrade, routes: Arc<str>) {
    if let Ok(client) = client.await {
        serve_tunnelled(&connection, client, routes).await;
    }
}
