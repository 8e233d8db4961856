//! Tunnels: once both sides agreed to change protocol, bytes are carried both ways.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::downstream::{ClientTunnel, Connection, Copied, Rarely, copy_both, serve_tunnelled};
use crate::flags::Flags;
use crate::record::Record;
use crate::upstream::{TcpUpstream, UpstreamTunnel};

/// The upstream's side of a tunnel.
pub(crate) struct Tunnel {
    pub(crate) upstream: Upstream,
    pub(crate) idle: Option<Duration>,
}

/// What the client is connected with.
pub(crate) enum Upstream {
    /// An HTTP stream.
    Upgraded(UpstreamTunnel),
    /// A connection to an endpoint.
    Tcp(TcpUpstream),
    /// A connection to somewhere outside the mesh.
    Plain(TcpStream),
    /// Nobody yet: requests come through the tunnel and are routed by this configuration.
    Inner(Arc<str>),
}

impl Tunnel {
    /// Carries bytes in a task of the worker, once the answer was sent.
    pub(crate) fn start(self, connection: &Rc<Connection>, client: ClientTunnel, mut record: Box<Record>) {
        let cut = connection.worker.cut.clone();
        if let Upstream::Inner(routes) = self.upstream {
            record.finish();
            let connection = Rc::clone(connection);
            let (worker, task) = (Rc::clone(&connection.worker), inner(connection, client, routes));
            worker.tasks.spawn_local(async move {
                cut.run_until_cancelled(Box::pin(task)).await;
            });
            return;
        }
        let peer = Rc::clone(connection);
        let carry = async move {
            let ends = Rarely::new(async move { peer.distrusted().await });
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
    async fn carry(self, client: ClientTunnel, ends: Rarely<impl Future<Output = ()>>) -> Option<Copied> {
        let client = client.open().await?;
        Some(match self.upstream {
            Upstream::Upgraded(upstream) => copy_both(client, upstream, self.idle, ends).await,
            Upstream::Tcp(mut upstream) => {
                let server = Rarely::new(upstream.distrusted());
                let ends = async {
                    tokio::select! {
                        () = ends => {}
                        () = server => {}
                    }
                };
                copy_both(client, upstream, self.idle, ends).await
            }
            Upstream::Plain(upstream) => copy_both(client, upstream, self.idle, ends).await,
            Upstream::Inner(_) => return None,
        })
    }
}

async fn inner(connection: Rc<Connection>, client: ClientTunnel, routes: Arc<str>) {
    if let Some(client) = client.open().await {
        serve_tunnelled(&connection, client, routes).await;
    }
}
