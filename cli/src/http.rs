//! A small HTTP/1.1 client for the commands: one request per connection, deadlines on everything.
//!
//! Names are resolved without the C library, which a static binary lacks; only IP addresses are
//! dialled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use pillion_net::resolve::Resolver;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Longest answer read into memory; the largest we expect is a list of all instances.
const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Longest time for name, connection and TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where requests go: the part of a URL before the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Whether the connection is TLS.
    pub(crate) tls: bool,
    /// Host name or IP address, without brackets.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
}

impl Origin {
    /// Reads `http://host[:port]`, `https://host[:port]` or `host[:port]` (which means http).
    pub(crate) fn parse(text: &str, default_port: u16) -> anyhow::Result<Self> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => {
                anyhow::bail!("{text}: scheme `{scheme}` is not supported; want http or https")
            }
            None => (false, text),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let authority: http::uri::Authority =
            authority.parse().with_context(|| format!("{text}: want http://host:port without a path"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        anyhow::ensure!(!host.is_empty(), "{text}: no host; want http://host:port");
        Ok(Self { tls, host, port: authority.port_u16().unwrap_or(default_port) })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Status code.
    pub(crate) status: http::StatusCode,
    /// The whole body.
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body as text, whatever it holds.
    pub(crate) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// Sends one request and reads the whole answer within `timeout`.
///
/// `tls` is needed for an https origin. The `host` header is set unless the request has one.
pub(crate) async fn send(
    origin: &Origin,
    tls: Option<Arc<rustls::ClientConfig>>,
    request: http::Request<Bytes>,
    timeout: Duration,
) -> anyhow::Result<Answer> {
    let stream = connect(origin, tls).await.with_context(|| format!("cannot reach {origin}"))?;
    tokio::time::timeout(timeout, exchange(origin, stream, request))
        .await
        .with_context(|| format!("no answer from {origin} within {timeout:?}"))?
}

async fn exchange(
    origin: &Origin,
    stream: Box<dyn Stream>,
    mut request: http::Request<Bytes>,
) -> anyhow::Result<Answer> {
    if !request.headers().contains_key(http::header::HOST) {
        let host = http::HeaderValue::from_str(&origin.authority()).context("host header")?;
        request.headers_mut().insert(http::header::HOST, host);
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .with_context(|| format!("begin HTTP with {origin}"))?;
    let answer = async {
        let response = sender.send_request(request.map(Full::new)).await;
        let response = response.map_err(|error| match error.is_parse() && !origin.tls {
            true => {
                anyhow::Error::from(error).context(format!("no HTTP; try https://{}", origin.authority()))
            }
            false => error.into(),
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("read the answer: {error}"))?.to_bytes();
        Ok::<_, anyhow::Error>(Answer { status: head.status, body })
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end right after the last byte of the answer: that is no failure.
        _ended = connection => answer.await,
    }
    .with_context(|| format!("ask {origin}"))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(origin: &Origin, tls: Option<Arc<rustls::ClientConfig>>) -> anyhow::Result<Box<dyn Stream>> {
    let work = async {
        let stream = dial(origin).await?;
        if !origin.tls {
            return Ok(Box::new(stream) as Box<dyn Stream>);
        }
        let config = tls.context("https needs the registry's root certificate: --cacert FILE")?;
        let name = ServerName::try_from(origin.host.clone()).context("host name for TLS")?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
        let stream = stream.map_err(|error| explained(error, origin))?;
        Ok(Box::new(stream) as Box<dyn Stream>)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, work)
        .await
        .with_context(|| format!("no connection within {CONNECT_TIMEOUT:?}"))?
}

/// What a failed handshake tells about how the registry was called.
fn explained(error: std::io::Error, origin: &Origin) -> anyhow::Error {
    let why = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            "its certificate is not one of the mesh whose root was given (--cacert, or roots.pem in --data-dir)"
                .to_owned()
        }
        Some(rustls::Error::InvalidMessage(_)) => format!("no TLS; try http://{}", origin.authority()),
        _ => return error.into(),
    };
    anyhow::Error::from(error).context(why)
}

/// Connects to the first address of the host that answers.
pub(crate) async fn dial(origin: &Origin) -> anyhow::Result<TcpStream> {
    let mut last = None;
    for address in Resolver::system().addresses(&origin.host).await? {
        match TcpStream::connect(SocketAddr::new(address, origin.port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(anyhow::Error::new(error).context(format!("connect to {address}"))),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("the name has no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_and_printed_and_bad_ones_say_why() {
        for (text, want) in [
            ("http://127.0.0.1:7070", "http://127.0.0.1:7070"),
            ("https://registry.example/", "https://registry.example:7070"),
            ("127.0.0.1:15020", "http://127.0.0.1:15020"),
            ("http://[::1]:1", "http://[::1]:1"),
            ("localhost", "http://localhost:7070"),
        ] {
            assert_eq!(Origin::parse(text, 7070).expect(text).to_string(), want);
        }
        for (text, want) in
            [("ftp://x", "scheme `ftp`"), ("http://x/path", "without a path"), ("", "want http://host:port")]
        {
            let error = format!("{:#}", Origin::parse(text, 7070).expect_err(text));
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
