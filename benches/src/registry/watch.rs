//! An open watch: server-sent events over HTTP/1.1 or HTTP/2.

use anyhow::ensure;
use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use super::door::{Door, Io};
use super::http::Client;

/// Over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// What a watcher is told.
pub(super) enum Events {
    Http1(Box<dyn Io>),
    Http2 {
        body: RecvStream,
        /// Keeps the connection.
        _requests: SendRequest<Bytes>,
        /// Ends with the watch.
        _driving: JoinSet<()>,
    },
}

impl Events {
    /// Each watch has a connection of its own, as watchers on many machines have.
    pub(super) async fn open(door: &Door, path: &str, version: Version) -> anyhow::Result<Self> {
        if version == Version::Http1 {
            return Ok(Self::Http1(Client::through(door).await?.stream(path).await?));
        }
        let (requests, connection) = h2::client::handshake(door.connect("h2").await?).await?;
        let mut driving = JoinSet::new();
        // Whoever reads the events sees why it ended.
        driving.spawn(async move { drop(connection.await) });
        let mut requests = requests.ready().await?;
        let mut request = http::Request::get(format!("http://{}{path}", door.address));
        if let Some(authorization) = door.authorization() {
            request = request.header("authorization", authorization);
        }
        let (response, _) = requests.send_request(request.body(())?, true)?;
        let response = response.await?;
        ensure!(response.status() == 200, "GET {path}: {}", response.status());
        Ok(Self::Http2 { body: response.into_body(), _requests: requests, _driving: driving })
    }

    /// Waits for more, and adds it; 0 at the end.
    pub(super) async fn more(&mut self, buffer: &mut Vec<u8>) -> anyhow::Result<usize> {
        match self {
            Self::Http1(stream) => Ok(stream.read_buf(buffer).await?),
            Self::Http2 { body, .. } => {
                let Some(data) = body.data().await.transpose()? else { return Ok(0) };
                body.flow_control().release_capacity(data.len())?;
                buffer.extend_from_slice(&data);
                Ok(data.len())
            }
        }
    }
}
