//! The application behind the proxies: `GET /<n>` answers with `n` bytes.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Longest body it gives.
const BYTES_MAX: usize = 1 << 20;

/// Serves from a thread of its own, for as long as the process lives.
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
            let answer = service_fn(async |request: Request<Incoming>| Ok::<_, Infallible>(answer(&request)));
            // A client that leaves is no failure.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    static BODY: [u8; BYTES_MAX] = [b'x'; BYTES_MAX];
    let bytes = request.uri().path().get(1..).and_then(|path| path.parse::<usize>().ok());
    match bytes.and_then(|bytes| BODY.get(..bytes)) {
        Some(body) => Response::new(Full::new(Bytes::from_static(body))),
        None => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    }
}
