//! Connections of one worker to one endpoint.
//!
//! HTTP/1 connections are kept last in, first out; HTTP/2 connections are shared, further ones are
//! opened under stream pressure. A request that finds neither waits in a queue; whichever
//! connection is ready first serves the queue's head.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pillion_model::retry::Reset;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::connect::ConnectError;
use super::hosts::Host;
use super::http1::Http1;
use super::http2::Http2;
use super::io::ConnectionGuard;
use super::lease::{Connection, Pending, Reuse};
use super::open::{Opened, connect, open};
use super::state::{EndpointState, Priority};
use super::tls::Transport;
use super::worker::Worker;

/// One worker's connections to one endpoint over one transport.
pub(super) struct EndpointPool {
    pub(super) cluster: Arc<Cluster>,
    pub(super) endpoint: Arc<EndpointState>,
    pub(super) transport: Arc<Transport>,
    pub(super) wanted: Wanted,
    pub(super) worker: Rc<Worker>,
    /// Most recently used last.
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Http2>>>,
    waiting: RefCell<VecDeque<Waiter>>,
    connecting: Cell<usize>,
    /// What the last connection spoke; before that, what the next one most likely will.
    spoken: Cell<Wanted>,
    /// Connections of this pool, in use or not.
    open: Cell<usize>,
    /// No connection is kept any more.
    draining: Cell<bool>,
}

struct Idle {
    connection: Http1,
    since: Instant,
}

/// One stream's place on a shared connection, until dropped.
pub(super) struct Stream {
    pool: Rc<EndpointPool>,
    pub(super) connection: Rc<Http2>,
}

type Waiter = oneshot::Sender<Result<Connection, ConnectError>>;

/// Which protocol a pool's connections speak, unless ALPN says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Http1,
    Http2,
}

/// Why no connection was given.
pub(super) enum Refusal {
    /// A limit of ours.
    Overflow,
    Connect(ConnectError),
}

impl EndpointPool {
    pub(super) fn new(worker: &Rc<Worker>, cluster: &Arc<Cluster>, host: &Host, wanted: Wanted) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            endpoint: Arc::clone(&host.endpoint),
            transport: Arc::clone(&host.transport),
            wanted,
            worker: Rc::clone(worker),
            idle: RefCell::default(),
            shared: RefCell::default(),
            waiting: RefCell::default(),
            connecting: Cell::new(0),
            spoken: Cell::new(if host.transport.offers_http2() { Wanted::Http2 } else { wanted }),
            open: Cell::new(0),
            draining: Cell::new(false),
        }
    }

    /// Waits for a connection ready to send on, opening one if need be.
    pub(super) async fn wait(self: &Rc<Self>, priority: Priority) -> Result<Connection, Refusal> {
        let _pending = Pending::acquire(self, priority).ok_or(Refusal::Overflow)?;
        let (waiter, answer) = oneshot::channel();
        self.waiting.borrow_mut().push_back(waiter);
        self.open_for_waiting(priority);
        match answer.await {
            Ok(answer) => answer.map_err(Refusal::Connect),
            Err(_closed) => Err(Refusal::Connect(ConnectError {
                reset: Reset::LocalReset,
                detail: "the worker is shutting down".into(),
            })),
        }
    }

    /// A connection that can take a request at once.
    pub(super) fn ready(self: &Rc<Self>, reuse: Reuse) -> Option<Connection> {
        if let Some(connection) = self.ready_http1(reuse) {
            return Some(Connection::Http1(connection));
        }
        self.ready_http2().map(Connection::Http2)
    }

    fn ready_http1(&self, reuse: Reuse) -> Option<Http1> {
        let mut idle = self.idle.borrow_mut();
        if reuse == Reuse::Recent
            && let Some(last) = idle.last()
            && self.worker.now().saturating_duration_since(last.since) > RECENT
        {
            // The others are older still. A new one takes the place of the oldest.
            idle.remove(0);
            return None;
        }
        while let Some(Idle { connection, .. }) = idle.pop() {
            if connection.generation == self.transport.generation() && connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    /// The shared connection with the fewest streams. Under pressure another one is opened beside.
    fn ready_http2(self: &Rc<Self>) -> Option<Stream> {
        let shared = self.shared.borrow();
        let least = shared.iter().filter(|it| self.takes_streams(it)).min_by_key(|it| it.streams())?;
        let connection = Rc::clone(least);
        let connections = shared.len() + self.connecting.get();
        drop(shared);
        if connection.streams() >= STREAMS_PRESSURE && connections < HTTP2_CONNECTIONS_MAX {
            self.open_one(Priority::Default);
        }
        connection.take_stream();
        Some(Stream { pool: Rc::clone(self), connection })
    }

    fn takes_streams(&self, connection: &Http2) -> bool {
        let max = self.cluster.config.requests_per_connection_max;
        !connection.is_closed()
            && connection.generation == self.transport.generation()
            && (max == 0 || connection.served.get() < max)
            && connection.streams() < connection.streams_max()
    }

    /// Opens a connection if more requests wait than connections are being opened.
    fn open_for_waiting(self: &Rc<Self>, priority: Priority) {
        let waiting = self.waiting.borrow().len();
        let connecting = self.connecting.get();
        let most = match self.cluster.config.requests_per_connection_max {
            0 => STREAMS_PRESSURE,
            most => STREAMS_PRESSURE.min(most as usize),
        };
        let each = if self.speaks_http2() { most } else { 1 };
        if connecting * each < waiting {
            self.open_one(priority);
        }
    }

    fn speaks_http2(&self) -> bool {
        self.spoken.get() == Wanted::Http2
    }

    fn open_one(self: &Rc<Self>, priority: Priority) {
        let max = self.cluster.limits(priority).connections_max;
        let first = self.open.get() + self.connecting.get() == 0;
        let Some(counted) = ConnectionGuard::acquire(&self.endpoint, priority, max, first) else { return };
        self.connecting.set(self.connecting.get() + 1);
        self.worker.spawn(connect(Rc::clone(self), counted));
    }

    /// Hands ready connections to waiting requests, first come first served.
    fn serve_waiting(self: &Rc<Self>) {
        loop {
            self.forget_gone();
            if self.waiting.borrow().is_empty() {
                return;
            }
            let Some(connection) = self.ready(Reuse::Recent) else { return };
            self.hand_over(connection);
        }
    }

    /// Gives a connection to the first request that still waits, else keeps it.
    fn hand_over(self: &Rc<Self>, connection: Connection) {
        let mut connection = Ok(connection);
        loop {
            let Some(waiter) = self.waiting.borrow_mut().pop_front() else { break };
            match waiter.send(connection) {
                Ok(()) => return,
                Err(back) => connection = back,
            }
        }
        if let Ok(Connection::Http1(connection)) = connection
            && !self.is_draining()
        {
            self.idle.borrow_mut().push(Idle { connection, since: self.worker.now() });
        }
    }

    /// Requests that gave up waiting.
    fn forget_gone(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while waiting.front().is_some_and(oneshot::Sender::is_closed) {
            waiting.pop_front();
        }
    }

    fn fail_waiting(&self, error: &ConnectError) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        if !waiting.is_empty() {
            let eject = &self.endpoint.cluster.stats.upstream_rq_pending_failure_eject;
            eject.fetch_add(waiting.len() as u64, Relaxed);
        }
        for waiter in waiting {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    /// A request is done with its connection.
    pub(super) fn give_back(self: &Rc<Self>, mut connection: Http1) {
        connection.served += 1;
        if connection.recycle() && self.keeps(&connection) {
            self.hand_over(Connection::Http1(connection));
        }
    }

    /// An unused connection goes back as it is.
    pub(super) fn put_back(self: &Rc<Self>, connection: Http1) {
        if self.keeps(&connection) {
            self.hand_over(Connection::Http1(connection));
        }
    }

    /// Closes the idle HTTP/1 connections: one of their age turned out to be dead.
    pub(super) fn forget_idle(&self) {
        drop(self.idle.take());
    }

    fn keeps(&self, connection: &Http1) -> bool {
        let max = self.cluster.config.requests_per_connection_max;
        if max != 0 && connection.served >= max {
            self.endpoint.cluster.stats.upstream_cx_max_requests.fetch_add(1, Relaxed);
            return false;
        }
        !self.is_draining() && connection.generation == self.transport.generation()
    }

    fn is_draining(&self) -> bool {
        self.draining.get() || self.endpoint.is_removed() || self.cluster.is_retired()
    }

    /// Closes what is idle; what is in use ends with its request.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        drop(self.idle.take());
        self.shared.borrow_mut().clear();
    }

    /// Closes connections that idled too long, belong to an older identity or were closed by the
    /// peer. Whether nothing is left is told.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let timeout = self.cluster.config.idle_timeout;
        let expired =
            |since: Instant| timeout.is_some_and(|timeout| now.saturating_duration_since(since) >= timeout);
        let generation = self.transport.generation();
        let timed_out = Cell::new(0);
        self.idle.borrow_mut().retain(|idle| {
            let late = expired(idle.since);
            timed_out.set(timed_out.get() + u64::from(late));
            !late && idle.connection.generation == generation && idle.connection.is_usable()
        });
        self.shared.borrow_mut().retain(|connection| {
            let late = connection.streams() == 0 && expired(connection.idle_since.get());
            timed_out.set(timed_out.get() + u64::from(late));
            !late && !connection.is_closed() && connection.generation == generation
        });
        if timed_out.get() > 0 {
            self.endpoint.cluster.stats.upstream_cx_idle_timeout.fetch_add(timed_out.get(), Relaxed);
        }
        self.open.get() == 0 && self.connecting.get() == 0
    }

    /// A connection that nobody has used yet.
    pub(super) async fn fresh(self: &Rc<Self>, priority: Priority) -> Result<Connection, Refusal> {
        let max = self.cluster.limits(priority).connections_max;
        let first = self.open.get() + self.connecting.get() == 0;
        if let Some(counted) = ConnectionGuard::acquire(&self.endpoint, priority, max, first) {
            match open(self, counted).await.map_err(Refusal::Connect)? {
                Opened::Http1(connection) => {
                    self.open.set(self.open.get() + 1);
                    return Ok(Connection::Http1(connection));
                }
                Opened::Http2(connection) => {
                    self.open.set(self.open.get() + 1);
                    self.shared.borrow_mut().push(connection);
                }
            }
        }
        match self.ready_http2() {
            Some(stream) => Ok(Connection::Http2(stream)),
            None => self.wait(priority).await,
        }
    }

    /// A connection was opened, or could not be.
    pub(super) fn opened(self: &Rc<Self>, opened: Result<Opened, ConnectError>) {
        self.connecting.set(self.connecting.get() - 1);
        match opened {
            Err(error) => return self.fail_waiting(&error),
            Ok(Opened::Http1(connection)) => {
                self.open.set(self.open.get() + 1);
                self.spoken.set(Wanted::Http1);
                self.hand_over(Connection::Http1(connection));
            }
            Ok(Opened::Http2(connection)) => {
                self.open.set(self.open.get() + 1);
                self.spoken.set(Wanted::Http2);
                self.shared.borrow_mut().push(connection);
                self.serve_waiting();
            }
        }
        if !self.waiting.borrow().is_empty() {
            self.open_for_waiting(Priority::Default);
        }
        if self.is_draining() {
            // Those that waited have been served; nothing is kept.
            self.drain();
        }
    }

    /// A connection has ended, for whatever reason.
    pub(super) fn closed(self: &Rc<Self>) {
        self.open.set(self.open.get() - 1);
        // Whoever lets go of a connection may be at work on the pool.
        let unused = self.waiting.try_borrow().is_ok_and(|waiting| waiting.is_empty());
        if !unused {
            let pool = Rc::clone(self);
            self.worker.spawn(async move { pool.make_up() });
        }
    }

    /// After a connection has ended that others may have waited for.
    fn make_up(self: &Rc<Self>) {
        self.shared.borrow_mut().retain(|connection| !connection.is_closed());
        self.serve_waiting();
        if !self.waiting.borrow().is_empty() {
            self.open_for_waiting(Priority::Default);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.give_stream_back(self.pool.worker.now());
        if !self.pool.waiting.borrow().is_empty() {
            self.pool.serve_waiting();
        }
    }
}

/// How long after its last use nobody closes a connection for idleness: servers wait a second or more.
const RECENT: Duration = Duration::from_millis(500);
/// Streams on the least used connection from which on another connection is opened beside it.
const STREAMS_PRESSURE: usize = 64;
/// Shared connections of one worker to one endpoint opened for pressure alone.
const HTTP2_CONNECTIONS_MAX: usize = 4;
