//! Clients that keep their connections: some over HTTP/1.1, one over HTTP/2.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Request, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

type Body = BoxBody<Bytes, std::convert::Infallible>;
/// A body goes in pieces of this size, so that it is not all there when its head is sent.
const PIECE: usize = 8192;

/// An answer with its whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

/// All clients of one proxy.
#[derive(Clone)]
pub(crate) struct Clients {
    proxy: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    idle: Vec<http1::SendRequest<Body>>,
    shared: Option<http2::SendRequest<Body>>,
    drivers: JoinSet<()>,
}

impl Clients {
    pub(crate) fn new(proxy: SocketAddr) -> Self {
        Self { proxy, kept: Arc::default() }
    }

    /// Asks over a kept connection, if there is one. What a connection has not sent is sent over
    /// another one, as every client does.
    pub(crate) async fn ask(
        &self,
        version: Version,
        chunked: bool,
        request: Request<Bytes>,
    ) -> Result<Answer, String> {
        let (head, bytes) = request.into_parts();
        let mut request = Request::from_parts(head, body(bytes, chunked));
        if version == Version::HTTP_11 {
            let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
            let path = request.uri().path_and_query().cloned().map(Uri::from).unwrap_or_default();
            *request.uri_mut() = path;
            let host = host.parse().map_err(|_bad| format!("no host: {host}"))?;
            request.headers_mut().insert("host", host);
        }
        loop {
            let sent = if version == Version::HTTP_2 {
                self.by_http2(request).await
            } else {
                self.by_http1(request).await
            };
            request = match sent {
                Ok(answer) => return Ok(answer),
                Err((Some(unsent), _why)) => unsent,
                Err((None, why)) => return Err(why),
            };
        }
    }

    async fn by_http1(&self, request: Request<Body>) -> Result<Answer, (Option<Request<Body>>, String)> {
        let kept = {
            let mut kept = self.lock();
            kept.idle.retain(|sender| !sender.is_closed());
            let ready = kept.idle.iter().rposition(http1::SendRequest::is_ready);
            ready.map(|at| kept.idle.swap_remove(at))
        };
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect_http1().await.map_err(|why| (None, why))?,
        };
        match sender.try_send_request(request).await {
            Ok(response) => {
                let answer = whole(response).await.map_err(|why| (None, why))?;
                self.lock().idle.push(sender);
                Ok(answer)
            }
            Err(mut error) => Err((error.take_message(), format!("{:?}", error.into_error()))),
        }
    }

    async fn by_http2(&self, request: Request<Body>) -> Result<Answer, (Option<Request<Body>>, String)> {
        let shared = self.lock().shared.clone().filter(|sender| !sender.is_closed());
        let mut sender = match shared {
            Some(sender) => sender,
            None => self.connect_http2().await.map_err(|why| (None, why))?,
        };
        match sender.try_send_request(request).await {
            Ok(response) => whole(response).await.map_err(|why| (None, why)),
            Err(mut error) => Err((error.take_message(), format!("{:?}", error.into_error()))),
        }
    }

    async fn connect_http1(&self) -> Result<http1::SendRequest<Body>, String> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.connect().await?))
            .await
            .map_err(|error| format!("handshake: {error}"))?;
        self.lock().drivers.spawn(async move {
            let _ended = connection.await; // requests on it tell how
        });
        Ok(sender)
    }

    async fn connect_http2(&self) -> Result<http2::SendRequest<Body>, String> {
        let io = TokioIo::new(self.connect().await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(|error| format!("handshake: {error}"))?;
        let mut kept = self.lock();
        kept.shared = Some(sender.clone());
        kept.drivers.spawn(async move {
            let _ended = connection.await;
        });
        Ok(sender)
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        let stream = TcpStream::connect(self.proxy).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(stream)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In one piece with its length, or in several without.
fn body(bytes: Bytes, chunked: bool) -> Body {
    if bytes.is_empty() {
        return Empty::new().boxed();
    }
    if !chunked {
        return Full::new(bytes).boxed();
    }
    let pieces: Vec<_> = bytes.chunks(PIECE).map(|piece| Ok(Frame::data(bytes.slice_ref(piece)))).collect();
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(pieces)))
}

async fn whole(response: http::Response<Incoming>) -> Result<Answer, String> {
    let (head, body) = response.into_parts();
    let collected = body.collect().await.map_err(|error| format!("the answer breaks off: {error:?}"))?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let (status, headers) = (head.status.as_u16(), head.headers);
    Ok(Answer { status, headers, body: collected.to_bytes(), trailers })
}
