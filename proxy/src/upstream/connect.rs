//! Opens streams to endpoints: TCP or Unix socket, then TLS where the transport says so, all within
//! the cluster's connect timeout.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pillion_model::retry::Reset;
use tokio::net::{TcpStream, UnixStream};

use super::cluster::Cluster;
use super::failure::io_detail;
use super::io::{ConnectionGuard, Io, Stream};
use super::state::{Address, ClusterStats, EndpointState};
use super::tls::Transport;

/// Why a connection could not be opened; shared by all requests that waited for it.
#[derive(Clone, Debug)]
pub(super) struct ConnectError {
    pub(super) reset: Reset,
    pub(super) detail: Cow<'static, str>,
}

impl ConnectError {
    pub(super) fn refused(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reset: Reset::ConnectFailure, detail: detail.into() }
    }
}

/// Opens one stream; `counted` is in force until the stream is dropped.
pub(super) async fn dial(
    cluster: &Cluster,
    endpoint: &Arc<EndpointState>,
    transport: &Transport,
    counted: ConnectionGuard,
) -> Result<Io, ConnectError> {
    let opened = tokio::time::timeout(
        cluster.config.connect_timeout,
        open(&endpoint.address, transport, &endpoint.cluster.stats),
    )
    .await;
    let opened = opened.unwrap_or_else(|_elapsed| {
        endpoint.cluster.stats.upstream_cx_connect_timeout.fetch_add(1, Relaxed);
        Err(ConnectError { reset: Reset::ConnectTimeout, detail: Cow::Borrowed("") })
    });
    if opened.is_err() {
        endpoint.stats.cx_connect_fail.fetch_add(1, Relaxed);
    }
    opened.map(|stream| Io::new(stream, counted))
}

/// Opens one stream that nothing counts, however long it takes.
pub(super) async fn open(
    address: &Address,
    transport: &Transport,
    stats: &ClusterStats,
) -> Result<Stream, ConnectError> {
    let refused = |error: io::Error| ConnectError::refused(io_detail(&error));
    match address {
        Address::Socket(address) => {
            let stream = TcpStream::connect(address).await.map_err(refused)?;
            stream.set_nodelay(true).map_err(refused)?;
            transport.secure(stream, address.ip(), stats).await
        }
        Address::Pipe(path) if transport.is_tls() => {
            Err(ConnectError::refused(format!("TLS over the Unix socket {path} is not supported")))
        }
        Address::Pipe(path) => UnixStream::connect(&**path).await.map(Stream::Unix).map_err(refused),
    }
}
