//! HTTP/2 connections, each shared by many requests of one worker.
//!
//! A request opens its stream itself and waits for its answer; one task for each connection moves the
//! bytes of all of them.

mod driver;
mod exchange;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use tokio::time::Instant;

pub(super) use self::driver::Driver;
pub(super) use self::exchange::{Answer, Answered, Unanswered};
pub(super) use self::tunnel::StreamTunnel;
use super::io::Io;

/// One connection. Ends when it is dropped and its last stream has ended.
pub(super) struct Http2 {
    send: RefCell<SendRequest<Bytes>>,
    traffic: Rc<Traffic>,
    /// Requests sent so far.
    pub(super) served: Cell<u32>,
    /// Of the transport's TLS configuration it was made with.
    pub(super) generation: u64,
    pub(super) idle_since: Cell<Instant>,
}

/// What happens on a connection, as far as its keeping alive is concerned.
#[derive(Default)]
pub(super) struct Traffic {
    /// Streams open now.
    streams: Cell<usize>,
    /// Something came since this was last looked at.
    heard: Cell<bool>,
}

impl Http2 {
    /// Over a stream that was just opened.
    pub(super) async fn open(io: Io, generation: u64, now: Instant) -> Result<(Self, Driver), h2::Error> {
        let (send, connection) = builder().handshake(io).await?;
        let traffic = Rc::<Traffic>::default();
        let driver = Driver::new(connection, Rc::clone(&traffic));
        let opened = Self {
            send: RefCell::new(send),
            traffic,
            served: Cell::new(0),
            generation,
            idle_since: Cell::new(now),
        };
        Ok((opened, driver))
    }

    /// Streams open now.
    pub(super) fn streams(&self) -> usize {
        self.traffic.streams.get()
    }

    /// A stream is taken.
    pub(super) fn take_stream(&self) {
        self.traffic.streams.set(self.streams() + 1);
        // Here, for several requests may be waiting that are served one after the other.
        self.served.set(self.served.get() + 1);
    }

    /// A stream was given back at `now`.
    pub(super) fn give_stream_back(&self, now: Instant) {
        self.traffic.streams.set(self.streams() - 1);
        if self.streams() == 0 {
            self.idle_since.set(now);
        }
    }

    /// Whether it takes no requests any more: it has ended, or the peer said that it will.
    pub(super) fn is_closed(&self) -> bool {
        self.check().is_err()
    }

    /// Whether it takes requests, as far as it is known.
    fn check(&self) -> Result<(), h2::Error> {
        match self.send.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ready) => ready,
            Poll::Pending => Ok(()),
        }
    }

    /// Streams the peer allows at once.
    pub(super) fn streams_max(&self) -> usize {
        self.send.borrow().current_max_send_streams()
    }

    /// Whether the peer takes extended CONNECT. Its SETTINGS tell, which may still be under way on
    /// a new connection.
    pub(super) async fn wait_extended_connect(&self) -> bool {
        let deadline = Instant::now() + SETTINGS_WAIT_MAX;
        while !self.send.borrow().is_extended_connect_protocol_enabled() {
            if Instant::now() >= deadline || self.is_closed() {
                return false;
            }
            tokio::time::sleep(SETTINGS_POLL).await;
        }
        true
    }
}

/// Envoy's limits where the library's differ.
fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX));
    builder
}

/// How long SETTINGS may take to arrive; asked for at this pace.
const SETTINGS_WAIT_MAX: Duration = Duration::from_secs(1);
const SETTINGS_POLL: Duration = Duration::from_millis(1);
/// Streams at once before the peer has said how many it takes (RFC 9113 section 6.5.2).
const STREAMS_BEFORE_SETTINGS: usize = 100;
/// Header list of a response.
const HEADER_LIST_MAX: u32 = 60 * 1024;
/// Envoy's: 16 MiB per stream, 24 MiB per connection.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 24 << 20;
/// Bytes of one stream buffered for sending.
const SEND_BUFFER_MAX: usize = 256 * 1024;
/// Streams that a misbehaving peer may make us reset before the connection ends.
const LOCAL_RESETS_MAX: usize = 1024;
