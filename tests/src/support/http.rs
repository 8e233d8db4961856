//! A plain HTTP/1.1 client: one request per connection, the whole answer in memory.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::wait::DEADLINE;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header fields.
    pub headers: http::HeaderMap,
    /// Body as text.
    pub body: String,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// Asks for `path` at `address`, with `host` as Host.
///
/// # Errors
///
/// What went wrong, as text.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Answer, String> {
    let request = http::Request::get(path).header(http::header::HOST, host).body(Bytes::new());
    send(address, request.map_err(|error| error.to_string())?).await
}

/// Sends a request that has its Host, on a connection of its own.
///
/// # Errors
///
/// What went wrong, as text.
pub async fn send(address: SocketAddr, request: http::Request<Bytes>) -> Result<Answer, String> {
    let work = async {
        let stream =
            TcpStream::connect(address).await.map_err(|error| format!("connect {address}: {error}"))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| format!("{error:?}"))?;
        let answer = async {
            let response =
                sender.send_request(request.map(Full::new)).await.map_err(|error| format!("{error:?}"))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            _ended = connection => answer.await,
        }
    };
    tokio::time::timeout(DEADLINE, work)
        .await
        .unwrap_or_else(|_elapsed| Err(format!("no answer in {DEADLINE:?}")))
}
