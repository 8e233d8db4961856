//! Connections for gRPC of the proxy's own, such as discovery: by the cluster's endpoints, TLS and
//! connect timeout, outside of pools.

use std::error::Error;
use std::future::{Ready, ready};
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};

use super::cluster::Cluster;
use super::connect::{ConnectError, open};
use super::hosts::Host;
use super::io::Io;

/// A channel over one connection to an endpoint: the first that answers, of the healthy ones if there
/// are any. It does not reconnect.
pub(crate) async fn channel(
    cluster: &Cluster,
    authority: &str,
) -> Result<Channel, Box<dyn Error + Send + Sync>> {
    let hosts = cluster.hosts();
    let any_healthy = hosts.hosts.iter().any(Host::is_healthy);
    let mut hosts: Vec<&Host> = hosts.hosts.iter().filter(|host| host.is_healthy() || !any_healthy).collect();
    fastrand::shuffle(&mut hosts);
    let mut failure = format!("cluster `{}` has no endpoint", cluster.name());
    for host in hosts {
        let address = &host.endpoint.address;
        let opening = open(address, &host.transport, &host.endpoint.cluster.stats);
        match timeout(cluster.config.connect_timeout, opening).await {
            Ok(Ok(stream)) => {
                let authority = if authority.is_empty() { cluster.name() } else { authority };
                let endpoint = endpoint(authority, host.transport.is_tls());
                return Ok(endpoint.connect_with_connector_lazy(Once(Some(Io::uncounted(stream)))));
            }
            Ok(Err(ConnectError { detail, .. })) => {
                failure = format!("cannot connect to {address}: {detail}")
            }
            Err(_elapsed) => {
                failure = format!("cannot connect to {address} within {:?}", cluster.config.connect_timeout);
            }
        }
    }
    Err(failure.into())
}

fn endpoint(authority: &str, is_tls: bool) -> Endpoint {
    let scheme = if is_tls { "https" } else { "http" };
    // A cluster's name need not be a host.
    let uri = format!("{scheme}://{authority}").parse();
    Endpoint::from(uri.unwrap_or_else(|_| Uri::from_static("http://control-plane")))
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// Gives the connection that was made, once.
struct Once(Option<Io>);

impl tower::Service<Uri> for Once {
    type Response = TokioIo<Io>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().map(TokioIo::new).ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

/// How often a silent connection is asked whether it lives, and how long it may take to say so.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW: u32 = 1 << 20;
/// At least 4 MiB: h2 ends connections that carry many small messages in smaller windows.
const CONNECTION_WINDOW: u32 = 8 << 20;
