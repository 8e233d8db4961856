//! HTTP/2 connections, each shared by many requests of one worker.

use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::handshake::LocalExecutor;
use super::io::Io;
use crate::body::Body;

/// One connection.
pub(super) struct Http2 {
    pub(super) send: RefCell<http2::SendRequest<Body>>,
    driver: Rc<Driver>,
    /// Streams open now.
    pub(super) streams: Cell<usize>,
    /// Requests sent so far.
    pub(super) served: Cell<u32>,
    /// Of the transport's TLS configuration it was made with.
    pub(super) generation: u64,
    pub(super) idle_since: Cell<Instant>,
}

type Connection = http2::Connection<TokioIo<Io>, Body, LocalExecutor>;

/// Hyper's side of a connection. Emptied at its end: only then hyper hands back what was not sent.
pub(super) struct Driver(RefCell<Option<Connection>>);

impl Http2 {
    pub(super) fn new(
        send: http2::SendRequest<Body>,
        connection: Connection,
        generation: u64,
        now: Instant,
    ) -> Self {
        Self {
            send: RefCell::new(send),
            driver: Rc::new(Driver(RefCell::new(Some(connection)))),
            streams: Cell::new(0),
            served: Cell::new(0),
            generation,
            idle_since: Cell::new(now),
        }
    }

    pub(super) fn driver(&self) -> Rc<Driver> {
        Rc::clone(&self.driver)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.send.borrow().is_closed()
    }

    /// Streams the peer allows at once.
    pub(super) fn streams_max(&self) -> usize {
        self.driver.with(Connection::current_max_send_streams).unwrap_or(0)
    }

    /// Whether the peer takes extended CONNECT. Its SETTINGS tell, which may still be under way on
    /// a new connection.
    pub(super) async fn wait_extended_connect(&self) -> bool {
        let deadline = Instant::now() + SETTINGS_WAIT_MAX;
        while !self.driver.with(Connection::is_extended_connect_protocol_enabled).unwrap_or(false) {
            if Instant::now() >= deadline || self.is_closed() {
                return false;
            }
            tokio::time::sleep(SETTINGS_POLL).await;
        }
        true
    }
}

impl Driver {
    /// Runs the connection to its end.
    pub(super) async fn run(&self) {
        poll_fn(|cx| {
            let mut connection = self.0.borrow_mut();
            let Some(running) = connection.as_mut() else { return std::task::Poll::Ready(()) };
            let ended = Pin::new(running).poll(cx).map(|_result| ());
            if ended.is_ready() {
                *connection = None;
            }
            ended
        })
        .await;
    }

    /// Ends the connection with whatever is on it.
    pub(super) fn cut(&self) {
        self.0.take();
    }

    fn with<T>(&self, ask: impl FnOnce(&Connection) -> T) -> Option<T> {
        self.0.try_borrow().ok()?.as_ref().map(ask)
    }
}

/// How long SETTINGS may take to arrive; asked for at this pace.
const SETTINGS_WAIT_MAX: Duration = Duration::from_secs(1);
const SETTINGS_POLL: Duration = Duration::from_millis(1);
