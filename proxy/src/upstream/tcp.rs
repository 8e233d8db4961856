//! Connections for whoever speaks no HTTP: TCP proxying and tunnels to a cluster.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use pillion_model::retry::Reset;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::cluster::Cluster;
use super::connect::dial;
use super::failure::Failure;
use super::io::{ConnectionGuard, Io};
use super::send::Attempt;
use super::state::{EndpointState, Outcome};
use super::worker::Pools;

/// A connection of its own to an endpoint; counts as one of its active requests.
pub struct TcpUpstream {
    io: Io,
    active: Active,
    distrusted: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// One of an endpoint's active requests, until dropped.
struct Active(Arc<EndpointState>);

impl Pools {
    /// Opens a connection to an endpoint of `cluster`, with TLS where its transport says so: one
    /// try. The outcome is reported to passive health.
    ///
    /// # Errors
    ///
    /// [`Failure`] tells why there is no connection; at `max_connections` it is an overflow.
    pub async fn connect(
        &self,
        cluster: &Arc<Cluster>,
        attempt: &mut Attempt,
    ) -> Result<TcpUpstream, Failure> {
        let now = self.tick();
        let (asked, member) = (cluster, self.member(cluster, attempt)?);
        let cluster = member.as_ref().unwrap_or(asked);
        let view = self.view(cluster);
        let at = self.choose(asked, &view, attempt, now).map_err(Failure::new)?;
        let hosts = view.hosts();
        let host = &hosts.hosts[at];
        let endpoint = Arc::clone(&host.endpoint);
        attempt.begin(&endpoint, now);
        let max = cluster.limits(attempt.priority).connections_max;
        let Some(counted) = ConnectionGuard::acquire(&endpoint, attempt.priority, max, false) else {
            return Err(Failure::reset(Reset::Overflow).at(&endpoint));
        };
        let active = Active::new(&endpoint);
        endpoint.stats.rq_total.fetch_add(1, Relaxed);
        let opened = dial(cluster, &endpoint, &host.transport, counted).await;
        attempt.end();
        let outcome = if opened.is_ok() { Outcome::Response(200) } else { Outcome::Failure };
        endpoint.report(outcome, now);
        match opened {
            Ok(io) => {
                let distrusted = Some(Box::pin(self.worker.distrusted(&io)) as _);
                Ok(TcpUpstream { io, active, distrusted })
            }
            Err(error) => Err(Failure::reset(error.reset).detail(error.detail).at(&endpoint)),
        }
    }
}

impl TcpUpstream {
    /// Whom it leads to.
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.active.0
    }

    /// Waits until the server is trusted no more. To be asked once.
    pub(crate) fn distrusted(&mut self) -> impl Future<Output = ()> + use<> {
        let distrusted = self.distrusted.take();
        async move {
            match distrusted {
                Some(distrusted) => distrusted.await,
                None => std::future::pending().await,
            }
        }
    }

    /// The stream underneath.
    pub fn io(&self) -> &Io {
        &self.io
    }
}

impl Active {
    fn new(endpoint: &Arc<EndpointState>) -> Self {
        endpoint.active.fetch_add(1, Relaxed);
        Self(Arc::clone(endpoint))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

impl AsyncRead for TcpUpstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for TcpUpstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
