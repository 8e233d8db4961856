//! Opens connections for pools and starts them.

use std::rc::Rc;

use super::connect::{ConnectError, dial};
use super::http1::Http1;
use super::http2::Http2;
use super::io::ConnectionGuard;
use super::pool::{EndpointPool, Wanted};
use crate::downstream::Rarely;

/// A connection that has just been opened.
pub(super) enum Opened {
    Http1(Http1),
    Http2(Rc<Http2>),
}

/// Opens a connection and gives it to its pool.
pub(super) async fn connect(pool: Rc<EndpointPool>, counted: ConnectionGuard) {
    let opened = open(&pool, counted).await;
    pool.opened(opened);
}

/// Opens a connection, and starts it.
pub(super) async fn open(pool: &Rc<EndpointPool>, counted: ConnectionGuard) -> Result<Opened, ConnectError> {
    let generation = pool.transport.generation();
    let io = dial(&pool.cluster, &pool.endpoint, &pool.transport, counted).await?;
    let broken = |error: h2::Error| ConnectError::refused(error.to_string());
    let protocol = match io.tls().and_then(|session| session.alpn_protocol()) {
        Some(b"h2") => Wanted::Http2,
        Some(b"http/1.1") => Wanted::Http1,
        _ => pool.wanted,
    };
    if protocol == Wanted::Http1 {
        return Ok(Opened::Http1(Http1::new(io, generation, pool)));
    }
    let ended = Rc::clone(pool);
    let distrusted = Rarely::new(pool.worker.distrusted(&io));
    let (connection, driver) = Http2::open(io, generation, pool.worker.now()).await.map_err(broken)?;
    pool.worker.spawn(async move {
        tokio::select! {
            biased;
            () = distrusted => {}
            () = driver.run() => {}
        }
        ended.closed();
    });
    Ok(Opened::Http2(Rc::new(connection)))
}
