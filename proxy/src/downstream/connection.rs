//! One accepted connection: from the first byte to the filter chain that carries it.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Version};
use pillion_model::listener::{ConnectionFacts, Direction, choose};
use pillion_model::rbac::Peer;
use pillion_net::tls::PeerCertificate;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::activity::Activity;
use super::io::{Io, Prefixed, Stream};
use super::tls::Hello;
use super::tunnel::ClientStream;
use super::{detect, tcp, tls};
use crate::flags::Flags;
use crate::metrics::{Family, Symbol};
use crate::overload::Admitted;
use crate::record::{Owner, Record};
use crate::snapshot::{Chain, Hcm, Listener, Snapshot, Terminal};
use crate::trust;
use crate::worker::Worker;

/// What is known of one downstream connection; shared by all its requests.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    /// Unique in the process.
    pub(crate) id: u64,
    pub(crate) listener: Arc<str>,
    pub(crate) direction: Direction,
    /// The socket's other end.
    pub(crate) direct: SocketAddr,
    /// The same, or what the PROXY protocol says.
    pub(crate) remote: SocketAddr,
    /// The address dialled: the original one if it was redirected.
    pub(crate) local: SocketAddr,
    pub(crate) tls: Option<TlsInfo>,
    /// Who calls, for metrics.
    pub(crate) source: Symbol,
    pub(crate) activity: Arc<Activity>,
    /// Says "finish what is there, take nothing new".
    pub(crate) drain: CancellationToken,
    /// Responses close HTTP/1 connections.
    pub(crate) draining: Cell<bool>,
    /// Cancelled when the client keeps resetting streams.
    pub(crate) abuse: CancellationToken,
    pub(crate) abused: Cell<bool>,
    requests: Cell<u32>,
    reset_early: Cell<u32>,
    /// Inside a CONNECT tunnel to an HTTP service: its route configuration.
    pub(crate) tunnelled_to: Option<Arc<str>>,
    chain: RefCell<Arc<Chain>>,
    generation: Cell<u64>,
    /// Made once per connection and configuration of its details.
    client_cert_element: OnceCell<HeaderValue>,
}

/// What TLS told.
pub(crate) struct TlsInfo {
    pub(crate) server_name: Option<String>,
    pub(crate) version: &'static str,
    pub(crate) cipher: &'static str,
    /// Whether ALPN chose HTTP/2; `None`: no ALPN.
    pub(crate) alpn_http2: Option<bool>,
    /// The peer's verified certificate.
    pub(crate) peer: Option<PeerCertificate>,
    /// Its names in the order policies try them.
    pub(crate) names: Option<Vec<String>>,
}

impl Connection {
    /// The peer's verified certificate.
    pub(crate) fn peer_certificate(&self) -> Option<&PeerCertificate> {
        self.tls.as_ref().and_then(|tls| tls.peer.as_ref())
    }

    /// The server name the client asked for.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.tls.as_ref().and_then(|tls| tls.server_name.as_deref())
    }

    /// The filter chain of the moment.
    pub(crate) fn chain(&self) -> Arc<Chain> {
        Arc::clone(&self.chain.borrow())
    }

    /// Lets a newer chain of the same name and TLS take over for new requests, so that policies act
    /// on open connections too. If there is none the connection drains.
    pub(crate) fn refresh_chain(&self, snapshot: &Snapshot) {
        if self.generation.replace(snapshot.generation) != snapshot.generation
            && let Some(listener) = snapshot.listeners.get(&*self.listener)
        {
            let next = listener.successor(&self.chain.borrow()).cloned();
            if let Some(next) = next
                && matches!(next.terminal, Terminal::Http(_))
            {
                self.chain.replace(next);
            }
        }
    }

    /// The connection manager it was accepted for.
    pub(crate) fn hcm(&self) -> Arc<Hcm> {
        match &self.chain.borrow().terminal {
            Terminal::Http(hcm) => Arc::clone(hcm),
            Terminal::Tcp(_) => unreachable!("only HTTP chains carry requests"),
        }
    }

    /// The client's element of `x-forwarded-client-cert`.
    pub(crate) fn client_cert_element(&self, make: impl FnOnce() -> HeaderValue) -> HeaderValue {
        self.client_cert_element.get_or_init(make).clone()
    }

    /// Counts a request.
    pub(crate) fn request_started(&self) {
        self.requests.set(self.requests.get().wrapping_add(1));
        self.activity.request_started();
    }

    /// Counts an end of a request; `early`: the client reset it before an answer. As in Envoy a
    /// client that does this to most of many requests is cut off (CVE-2023-44487).
    pub(crate) fn request_ended(&self, early: bool) {
        self.activity.request_ended();
        if early {
            self.reset_early.set(self.reset_early.get().wrapping_add(1));
            if self.requests.get() >= RESETS_JUDGED_FROM && self.reset_early.get() > self.requests.get() / 2 {
                self.abused.set(true);
                self.abuse.cancel();
            }
        }
    }

    /// What policies are told of the peer; `remote` is the client's address after
    /// `x-forwarded-for`.
    pub(crate) fn peer(&self, remote: SocketAddr) -> Peer<'_> {
        Peer {
            names: self.tls.as_ref().and_then(|tls| tls.names.as_deref()),
            direct_remote: self.direct,
            remote,
            local: self.local,
            server_name: self.server_name(),
        }
    }

    /// Waits until the peer is trusted no more: its certificate has ended, or was revoked.
    pub(crate) async fn distrusted(&self) {
        match self.peer_certificate() {
            Some(peer) => trust::lost(peer, self.worker.shared().clusters.revoked()).await,
            None => std::future::pending().await,
        }
    }
}

/// Requests of a connection before its resets are judged.
const RESETS_JUDGED_FROM: u32 = 500;

/// What a new connection is made from.
struct Facts<'a> {
    listener: &'a Listener,
    ends: Ends,
    tls: Option<TlsInfo>,
    drain: CancellationToken,
}

impl Connection {
    /// A connection inside a tunnel of this one.
    fn tunnelled(&self, routes: Arc<str>) -> Rc<Self> {
        Rc::new(Self {
            id: self.worker.next_connection_id(),
            source: self.source,
            listener: Arc::clone(&self.listener),
            direction: self.direction,
            direct: self.direct,
            remote: self.remote,
            local: self.local,
            tls: None,
            activity: Arc::new(Activity::new()),
            draining: Cell::new(false),
            abuse: CancellationToken::new(),
            abused: Cell::new(false),
            requests: Cell::new(0),
            reset_early: Cell::new(0),
            generation: Cell::new(self.generation.get()),
            tunnelled_to: Some(routes),
            chain: RefCell::new(self.chain()),
            client_cert_element: OnceCell::new(),
            worker: Rc::clone(&self.worker),
            drain: self.drain.clone(),
        })
    }

    fn new(worker: &Rc<Worker>, chain: &Arc<Chain>, facts: Facts<'_>) -> Rc<Self> {
        let Facts { listener, ends, tls, drain } = facts;
        Rc::new(Self {
            id: worker.next_connection_id(),
            source: source(worker, listener, tls.as_ref()),
            listener: Arc::clone(&listener.name),
            direction: listener.direction,
            direct: ends.direct,
            remote: ends.remote,
            local: ends.local,
            tls,
            activity: Arc::new(Activity::new()),
            draining: Cell::new(false),
            abuse: CancellationToken::new(),
            abused: Cell::new(false),
            requests: Cell::new(0),
            reset_early: Cell::new(0),
            generation: Cell::new(worker.snapshot().generation),
            tunnelled_to: None,
            chain: RefCell::new(Arc::clone(chain)),
            client_cert_element: OnceCell::new(),
            worker: Rc::clone(worker),
            drain,
        })
    }
}

/// Where a connection comes from and goes to.
#[derive(Clone, Copy)]
struct Ends {
    /// The socket's other end.
    direct: SocketAddr,
    remote: SocketAddr,
    local: SocketAddr,
}

/// Why a connection carried nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    NoFilterChain,
    ProxyProtocol,
    Tls,
    Rbac,
    Timeout,
}

impl Refused {
    fn symbol(self) -> Symbol {
        match self {
            Self::NoFilterChain => Symbol::NO_FILTER_CHAIN,
            Self::ProxyProtocol => Symbol::PROXY_PROTOCOL,
            Self::Tls => Symbol::TLS,
            Self::Rbac => Symbol::RBAC,
            Self::Timeout => Symbol::TIMEOUT,
        }
    }
}

/// A connection as it was accepted.
pub(crate) struct Accepted {
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    stream: TcpStream,
    remote: SocketAddr,
    drain: CancellationToken,
    open: Open,
}

impl Accepted {
    /// Counted from here on; `drain` says "finish what is there".
    pub(crate) fn new(
        worker: &Rc<Worker>,
        listener: Arc<Listener>,
        (stream, remote): (TcpStream, SocketAddr),
        drain: CancellationToken,
        admitted: Admitted,
    ) -> Self {
        let open = Open::new(Rc::clone(worker), &listener, admitted);
        Self { worker: Rc::clone(worker), listener, stream, remote, drain, open }
    }
}

/// Carries one accepted connection to its end.
pub(crate) async fn serve(accepted: Accepted) {
    let Accepted { worker, listener, stream, remote, drain, open: _counted } = accepted;
    let (metrics, direction) = (Rc::clone(&worker), Symbol::from(listener.direction));
    if let Err(refused) = carry(worker, listener, stream, remote, drain).await {
        let labels = [direction, refused.symbol(), Symbol::EMPTY];
        metrics.metrics.add(Family::ConnectionFailures, labels, 1);
    }
}

/// Carries the requests that come through a tunnel of `outer` to an HTTP service.
pub(crate) async fn serve_tunnelled(outer: &Connection, client: ClientStream, routes: Arc<str>) {
    let connection = outer.tunnelled(routes);
    let io = Io::new(Stream::Tunnel(Box::new(client)), Arc::clone(&connection.activity));
    let hcm = connection.hcm();
    super::serve_http(connection, hcm, io).await;
}

/// Counts a connection while it is open, however it ends.
struct Open {
    worker: Rc<Worker>,
    direction: Direction,
    labels: [Symbol; 3],
    _admitted: Admitted,
}

impl Open {
    fn new(worker: Rc<Worker>, listener: &Listener, admitted: Admitted) -> Self {
        let direction = listener.direction;
        let labels = [direction.into(), listener.symbol, Symbol::EMPTY];
        worker.metrics.add(Family::ConnectionsTotal, labels, 1);
        worker.metrics.add(Family::Connections, labels, 1);
        worker.connection_opened(direction, 1);
        Self { worker, direction, labels, _admitted: admitted }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.metrics.add(Family::Connections, self.labels, -1);
        self.worker.connection_opened(self.direction, -1);
    }
}

async fn carry(
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    stream: TcpStream,
    remote: SocketAddr,
    drain: CancellationToken,
) -> Result<(), Refused> {
    // Boxed: a handshake is large and soon over, a connection is small and stays.
    let opening = Box::pin(open(worker, listener, stream, remote, drain));
    let Some((connection, chain, io)) = opening.await? else { return Ok(()) };
    match &chain.terminal {
        Terminal::Http(hcm) => super::serve_http(connection, Arc::clone(hcm), io).await,
        Terminal::Tcp(proxy) => tcp::serve_tcp(connection, Arc::clone(proxy), io).await,
    }
    Ok(())
}

/// Up to the first byte for the filter chain; `None`: the client is gone.
async fn open(
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    stream: TcpStream,
    remote: SocketAddr,
    drain: CancellationToken,
) -> Result<Option<(Rc<Connection>, Arc<Chain>, Io)>, Refused> {
    // Both fail only on a socket that is gone already.
    let _ = stream.set_nodelay(true);
    let Ok(mut local) = stream.local_addr() else { return Ok(None) };
    if listener.original_dst
        && let Some(original) = original_destination(&stream)
    {
        local = original;
    }
    let mut ends = Ends { direct: remote, remote, local };
    let inspected = timeout(listener.filters_timeout, inspect(&listener, stream, &mut ends)).await;
    let first = inspected.map_err(|_elapsed| Refused::Timeout)??;
    let Some(chain) = first.choose(&listener, ends.local, ends.remote) else {
        refuse_no_chain(&worker, &listener, first, ends).await;
        return Err(Refused::NoFilterChain);
    };
    let chain = Arc::clone(chain);
    let (stream, tls) = first.secure(&chain).await?;
    let connection = Connection::new(&worker, &chain, Facts { listener: &listener, ends, tls, drain });
    let peer = connection.peer(ends.remote);
    if !chain.rbac.iter().all(|rules| rules.authorize(&peer, None).allowed) {
        return Err(Refused::Rbac);
    }
    let io = Io::new(stream, Arc::clone(&connection.activity));
    Ok(Some((connection, chain, io)))
}

/// A connection after its first bytes.
enum First {
    Plain(Prefixed),
    Tls(Box<Hello>),
}

/// Reads as much as choosing a filter chain needs.
async fn inspect(listener: &Listener, stream: TcpStream, ends: &mut Ends) -> Result<First, Refused> {
    let mut stream = Prefixed::new(Bytes::new(), stream);
    if let Some(protocol) = listener.proxy_protocol {
        let said = detect::proxy_protocol(&mut stream, protocol).await;
        match said {
            Ok(Some(said)) => (ends.remote, ends.local) = (said.source, said.destination),
            Ok(None) => {}
            Err(_wrong) => {
                stream.reset();
                return Err(Refused::ProxyProtocol);
            }
        }
    }
    let any_tls = listener.all_chains().any(|chain| chain.tls.is_some());
    if !listener.tls_inspector && !any_tls {
        return Ok(First::Plain(stream));
    }
    let (is_tls, read) = detect::tls(&mut stream).await.map_err(|_error| Refused::Tls)?;
    stream.unread(read);
    if is_tls {
        let hello = tls::hello(stream).await.map_err(|_error| Refused::Tls)?;
        Ok(First::Tls(Box::new(hello)))
    } else {
        Ok(First::Plain(stream))
    }
}

impl First {
    fn choose<'a>(
        &self,
        listener: &'a Listener,
        destination: SocketAddr,
        source: SocketAddr,
    ) -> Option<&'a Arc<Chain>> {
        let alpn: Vec<&str> = match self {
            Self::Tls(hello) => hello.alpn.iter().map(String::as_str).collect(),
            Self::Plain(_) => Vec::new(),
        };
        let facts = ConnectionFacts {
            destination,
            source,
            server_name: match self {
                Self::Tls(hello) => hello.server_name.as_deref(),
                Self::Plain(_) => None,
            },
            is_tls: matches!(self, Self::Tls(_)),
            alpn: &alpn,
        };
        choose(&listener.chains, |chain| &chain.matches, &facts).or(listener.default_chain.as_ref())
    }

    /// Completes TLS if the chain wants it. Plaintext on such a chain is refused; TLS on a plaintext
    /// chain is carried as it is by a TCP proxy, and is no HTTP.
    async fn secure(self, chain: &Chain) -> Result<(Stream, Option<TlsInfo>), Refused> {
        match (self, &chain.tls) {
            (Self::Tls(hello), Some(tls)) => {
                let (stream, info) = hello.accept(&tls.config).await.map_err(|_error| Refused::Tls)?;
                Ok((Stream::Tls(stream), Some(info)))
            }
            (Self::Plain(stream), None) => Ok((Stream::Plain(stream), None)),
            (Self::Plain(_), Some(_)) => Err(Refused::Tls),
            (Self::Tls(hello), None) => Ok((Stream::Plain(hello.into_plain()), None)),
        }
    }
}

async fn refuse_no_chain(worker: &Rc<Worker>, listener: &Arc<Listener>, first: First, ends: Ends) {
    if let First::Tls(hello) = first {
        hello.refuse().await;
    }
    // Only for the log line: there is no chain, so any of the listener's stands in.
    let Some(chain) = listener.all_chains().next().filter(|_| !listener.access_logs.is_empty()) else {
        return;
    };
    let facts = Facts { listener, ends, tls: None, drain: CancellationToken::new() };
    let connection = Connection::new(worker, chain, facts);
    let owner = Owner::Listener(Arc::clone(listener));
    let mut record = Record::new(connection, owner, Version::HTTP_09, Method::default());
    record.flags.add(Flags::NO_ROUTE);
    record.details = Some("filter_chain_not_found".into());
    record.complete = true;
}

/// Who calls: outbound it is the proxy's own service, inbound what the certificate says.
fn source(worker: &Worker, listener: &Listener, tls: Option<&TlsInfo>) -> Symbol {
    if listener.direction == Direction::Outbound {
        return worker.own_service;
    }
    let id = tls.and_then(|tls| tls.peer.as_ref()).and_then(PeerCertificate::spiffe_id);
    let service = id.as_ref().and_then(|id| Some((id.service_name()?, id.trust_domain())));
    match service {
        // Of another mesh no more than which: it could make up services without end.
        Some((_, domain)) if worker.shared().clusters.revoked().borrow().is_elsewhere(domain) => {
            worker.metrics.symbols.intern(&format!("spiffe://{domain}"))
        }
        Some((service, _)) => worker.metrics.symbols.intern(&service.to_string()),
        None => Symbol::UNKNOWN,
    }
}

fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = socket2::SockRef::from(stream);
    let address = socket.original_dst_v4().or_else(|_| socket.original_dst_v6()).ok()?;
    address.as_socket()
}
