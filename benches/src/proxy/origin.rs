//! The application behind the proxies: `GET /<n>` answers with `n` bytes, a call with a message.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

/// Longest body it gives.
const BYTES_MAX: usize = 1 << 20;

/// Serves HTTP/1.1 and HTTP/2 from a thread of its own, for as long as the process lives.
///
/// # Errors
///
/// If no port is free.
pub fn start() -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("listen")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("origin".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(serve(listener)),
            Err(error) => eprintln!("the origin cannot run: {error}"),
        }
    })?;
    Ok(address)
}

async fn serve(listener: std::net::TcpListener) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let answer = service_fn(async |request: Request<Incoming>| {
                Ok::<_, Infallible>(match *request.method() {
                    Method::POST => call(request).await,
                    _ => bytes(request.uri().path()),
                })
            });
            // A client that leaves is no failure.
            let _ =
                auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn bytes(path: &str) -> Answer {
    static BODY: [u8; BYTES_MAX] = [b'x'; BYTES_MAX];
    let bytes = path.get(1..).and_then(|path| path.parse::<usize>().ok());
    match bytes.and_then(|bytes| BODY.get(..bytes)) {
        Some(body) => Response::new(Full::new(Bytes::from_static(body)).boxed()),
        None => {
            let mut response = Response::new(Full::default().boxed());
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    }
}

/// Gives the message back, as gRPC has it.
async fn call(request: Request<Incoming>) -> Answer {
    let message = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let status =
        HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(status))));
    let mut response = Response::new(body.boxed());
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}
