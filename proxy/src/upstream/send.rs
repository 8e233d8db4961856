//! One try of one request: choose an endpoint, take a connection, send, hand the response on.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use pillion_model::cluster::{Discovery, UpstreamProtocol};
use pillion_model::retry::{Reset, is_idempotent};
use tokio::time::Instant;

use super::balance::Source;
use super::cluster::Cluster;
use super::failure::{Cause, Failure, classify_h2, classify_http1, passive_status};
use super::host::HostRewritten;
use super::http1::{self, Http1};
use super::http2::{Answer, Answered, StreamTunnel, Unanswered};
use super::lease::{Connection, Lease, RequestGuard, Reuse, UpstreamBody, UpstreamTunnel};
use super::message;
use super::pool::{EndpointPool, Refusal, Stream, Wanted};
use super::state::{EndpointState, Outcome, Priority};
use super::subset::Selection;
use super::worker::{Pools, View};
use crate::body::Body;
use crate::headers::names::Kinds;

/// What one request brings to its tries; kept from one try to the next.
#[derive(Debug)]
pub struct Attempt {
    /// Which limits apply.
    pub priority: Priority,
    /// Consistent hash of the request; `None`: random.
    pub hash: Option<u64>,
    /// What the route asks for, in clusters with subsets.
    pub selection: Selection,
    /// HTTP version of the downstream request, for clusters that follow it.
    pub downstream: Version,
    /// Draws made to avoid endpoints tried before; 0: they are not avoided.
    pub redraws: u32,
    /// Where the connection was going, for clusters that follow the original destination.
    pub destination: Option<SocketAddr>,
    /// The request is told the endpoint's own name as its host.
    pub auto_host: Option<HostRewritten>,
    /// The host that the last try was told instead of the request's own.
    pub told_host: Option<HeaderValue>,
    /// The request's head is wanted again after a try that failed.
    pub keep_head: bool,
    /// The endpoint of the present or last try.
    pub endpoint: Option<Arc<EndpointState>>,
    tried: Tried,
    /// Which endpoints of an aggregate's cluster take the present try.
    pub(super) level: Option<(usize, Source)>,
    /// When the present try began, or had waited for a connection.
    started: Option<Instant>,
}

/// Endpoints tried before, by id; the latest few.
#[derive(Debug, Default)]
pub(super) struct Tried {
    ids: [u64; 8],
    count: usize,
}

/// Response headers have come.
#[derive(Debug)]
pub struct Sent {
    /// The response; its body holds connection and counters until its end. The answer to an upgrade
    /// is in HTTP/1 form (101 with `upgrade`) whatever the upstream speaks.
    pub response: Response<Body>,
    /// Which kinds of headers the response has.
    pub(crate) kinds: Kinds,
    /// Who answered.
    pub endpoint: Arc<EndpointState>,
    /// Of a tunnel (CONNECT, upgrade): the upstream's side.
    pub tunnel: Option<UpstreamTunnel>,
}

impl Default for Attempt {
    fn default() -> Self {
        Self {
            priority: Priority::Default,
            hash: None,
            selection: Selection::default(),
            downstream: Version::HTTP_11,
            redraws: 0,
            destination: None,
            auto_host: None,
            told_host: None,
            keep_head: false,
            endpoint: None,
            tried: Tried::default(),
            level: None,
            started: None,
        }
    }
}

impl Attempt {
    /// Reports that the try was given up for lack of an answer in time. The future of `send` must
    /// have been dropped.
    pub fn timed_out(&mut self) {
        if let (Some(endpoint), Some(started)) = (&self.endpoint, self.started.take()) {
            endpoint.report(Outcome::Timeout, started);
        }
    }

    /// Avoids `endpoint` in further tries, as those tried already.
    pub fn avoid(&mut self, endpoint: &EndpointState) {
        self.tried.note(endpoint.id);
    }

    pub(super) fn is_retry(&self) -> bool {
        self.tried.count > 0
    }

    pub(super) fn has_tried(&self, id: u64) -> bool {
        self.tried.ids.contains(&id)
    }

    pub(super) fn begin(&mut self, endpoint: &Arc<EndpointState>, now: Instant) {
        self.avoid(endpoint);
        self.endpoint = Some(Arc::clone(endpoint));
        self.started = Some(now);
    }

    /// Since when the endpoint had the request.
    pub(super) fn end(&mut self) -> Option<Instant> {
        self.started.take()
    }
}

impl Tried {
    fn note(&mut self, id: u64) {
        self.ids[self.count % self.ids.len()] = id;
        self.count += 1;
    }
}

impl Pools {
    /// Sends `request` to an endpoint of `cluster`: one try. Response, resets and latency are
    /// reported to the endpoint's passive health; a timeout is the caller's to find and report, by
    /// dropping this future and [`Attempt::timed_out`].
    ///
    /// The request is lent, for it is large: a connection takes its body. Its head is left as it is
    /// where [`Attempt::keep_head`] says so, but for what belongs to a connection.
    ///
    /// # Errors
    ///
    /// [`Failure`] tells why there are no response headers.
    pub async fn send(
        &self,
        cluster: &Arc<Cluster>,
        attempt: &mut Attempt,
        request: &mut Request<Body>,
    ) -> Result<Sent, Failure> {
        let now = self.tick();
        attempt.endpoint = None;
        let (asked, member) = (cluster, self.member(cluster, attempt)?);
        let cluster = member.as_ref().unwrap_or(asked);
        let view = self.view(cluster);
        let pool = match self.choose(asked, &view, attempt, now) {
            Ok(at) => {
                if let Some(auto) = attempt.auto_host {
                    let hosts = view.hosts();
                    attempt.told_host = auto.rewrite(request, &hosts.hosts[at].hostname);
                }
                view.pool(&self.worker, at, wanted(cluster, attempt))
            }
            Err(cause) => return Err(Failure::new(cause)),
        };
        attempt.begin(&pool.endpoint, now);
        let sent = try_pool(&pool, attempt, request).await;
        let since = attempt.end().unwrap_or(now);
        match &sent {
            Ok(sent) => {
                let status = passive_status(&sent.response, sent.kinds);
                pool.endpoint.report(Outcome::Response(status), since);
            }
            Err(failure) => match failure.cause.reset() {
                Some(Reset::Overflow) => {}
                Some(Reset::ConnectFailure | Reset::ConnectTimeout) => {
                    pool.endpoint.report(Outcome::Unreachable, since);
                }
                _ => pool.endpoint.report(Outcome::Failure, since),
            },
        }
        sent
    }

    /// The place of an endpoint of `view`, for who has asked for `asked`.
    pub(super) fn choose(
        &self,
        asked: &Cluster,
        view: &View,
        attempt: &Attempt,
        now: Instant,
    ) -> Result<usize, Cause> {
        if let (Discovery::OriginalDst, Some(destination)) =
            (&view.cluster.config.discovery, attempt.destination)
        {
            return view.original_destination(destination).ok_or(Cause::NoHealthyUpstream);
        }
        view.pick(attempt, now).inspect_err(|cause| {
            if *cause == Cause::NoHealthyUpstream {
                asked.state.stats.upstream_cx_none_healthy.fetch_add(1, Relaxed);
            }
        })
    }
}

fn wanted(cluster: &Cluster, attempt: &Attempt) -> Wanted {
    match cluster.config.protocol {
        UpstreamProtocol::Http1 | UpstreamProtocol::Auto => Wanted::Http1,
        UpstreamProtocol::Http2 => Wanted::Http2,
        UpstreamProtocol::Downstream if attempt.downstream == Version::HTTP_2 => Wanted::Http2,
        UpstreamProtocol::Downstream => Wanted::Http1,
    }
}

/// Sends on one endpoint; a request that a dying connection has certainly or safely not processed
/// is sent once more.
async fn try_pool(
    pool: &Rc<EndpointPool>,
    attempt: &mut Attempt,
    request: &mut Request<Body>,
) -> Result<Sent, Failure> {
    let mut repeats = REPEATS_MAX;
    // With TLS a new connection costs round trips, and is kept for longer.
    let any = is_idempotent(request.method().as_str()) || pool.transport.is_tls();
    let reuse = if any { Reuse::Any } else { Reuse::Recent };
    let mut last = false;
    loop {
        let ready = if last { None } else { pool.ready(reuse) };
        let connection = match ready {
            Some(connection) => connection,
            None => {
                // Boxed: hardly any request opens a connection, and all would carry the size of it.
                let opened = if last {
                    Box::pin(pool.fresh(attempt.priority)).await
                } else {
                    Box::pin(pool.wait(attempt.priority)).await
                };
                match opened {
                    Ok(connection) => {
                        // Opening it is not the endpoint's latency: whoever is met first would look slow.
                        attempt.started = Some(Instant::now());
                        connection
                    }
                    Err(refusal) => return Err(refused(refusal, pool)),
                }
            }
        };
        let Some(guard) = RequestGuard::acquire(pool, attempt.priority) else {
            pool.endpoint.cluster.stats.upstream_rq_active_overflow.fetch_add(1, Relaxed);
            if let Connection::Http1(connection) = connection {
                pool.put_back(connection);
            }
            return Err(Failure::reset(Reset::Overflow).at(&pool.endpoint));
        };
        let failed = match connection {
            Connection::Http1(connection) => send_http1(connection, guard, attempt, request).await,
            Connection::Http2(stream) => send_http2(stream, guard, attempt, request).await,
        };
        let (failure, again) = match failed {
            Ok(sent) => return Ok(sent),
            Err(failed) => failed,
        };
        if !again || last {
            return Err(failure.at(&pool.endpoint));
        }
        // What was never sent may go on some more kept connections. What the peer may have seen is sent
        // only once more, and on a new one.
        last = failure.request_sent || repeats == 0;
        repeats = repeats.saturating_sub(1);
        if failure.stale_connection {
            pool.forget_idle();
        }
        pool.endpoint.cluster.stats.upstream_rq_stale_replay.fetch_add(1, Relaxed);
    }
}

fn refused(refusal: Refusal, pool: &EndpointPool) -> Failure {
    match refusal {
        // Nobody was asked.
        Refusal::Overflow => Failure::reset(Reset::Overflow),
        Refusal::Connect(error) => Failure::reset(error.reset).detail(error.detail).at(&pool.endpoint),
    }
}

/// What failed, and whether the request is whole and may be sent once more.
type Failed = (Failure, bool);

async fn send_http1(
    mut connection: Http1,
    guard: RequestGuard,
    attempt: &Attempt,
    request: &mut Request<Body>,
) -> Result<Sent, Failed> {
    message::to_http1(request, attempt.downstream);
    let reused = connection.served > 0;
    let tunnel = message::is_tunnel(request);
    let safe = reused && is_idempotent(request.method().as_str());
    let copy = if safe { request.body().try_clone() } else { None };
    match connection.send(request).await {
        Ok(head) => {
            let worker = Rc::clone(&guard.pool.worker);
            connection.send_rest(|rest| worker.spawn(rest));
            Ok(answered_http1(head, connection, guard, tunnel))
        }
        Err(http1::Unanswered { error, unsent: true }) => {
            Err((Failure::reset(Reset::ConnectionTermination).detail(error.to_string()), true))
        }
        Err(http1::Unanswered { error, unsent: false }) => {
            let reset = classify_http1(&error);
            let stale = reused && reset == Reset::ConnectionTermination;
            let mut failure = Failure::reset(reset).detail(error.to_string());
            failure.request_sent = true;
            failure.stale_connection = stale;
            // Meanwhile the body may have become larger than what is kept of it.
            let copy = copy.filter(|copy| stale && copy.try_clone().is_some());
            let again = copy.is_some();
            *request.body_mut() = copy.unwrap_or_default();
            Err((failure, again))
        }
    }
}

fn answered_http1(head: Response<()>, connection: Http1, guard: RequestGuard, tunnel: bool) -> Sent {
    let kinds = Kinds::of(head.headers());
    let endpoint = Arc::clone(&guard.pool.endpoint);
    let opened = tunnel && connection.is_tunnel();
    let whole = if connection.is_answered() { Some(Bytes::new()) } else { connection.whole_body() };
    if opened {
        let response = head.map(|()| Body::Empty);
        let tunnel = Some(UpstreamTunnel::http1(connection, guard));
        return Sent { response, kinds, endpoint, tunnel };
    }
    let lease = Lease::new(Connection::Http1(connection), guard);
    let body = match whole {
        Some(bytes) => {
            lease.end();
            Body::full(bytes)
        }
        None => Body::Upstream(UpstreamBody::http1(lease)),
    };
    Sent { response: head.map(|()| body), kinds, endpoint, tunnel: None }
}

async fn send_http2(
    stream: Stream,
    guard: RequestGuard,
    attempt: &Attempt,
    request: &mut Request<Body>,
) -> Result<Sent, Failed> {
    let protocol = request.headers().get(UPGRADE).cloned();
    let extended = message::to_http2(request);
    let tunnel = message::is_tunnel(request);
    let protocol = extended.then(|| {
        let of_connect = request.extensions().get::<hyper::ext::Protocol>();
        protocol.or_else(|| of_connect.and_then(|it| HeaderValue::from_str(it.as_str()).ok()))
    });
    if extended && !Box::pin(stream.connection.wait_extended_connect()).await {
        let failure = Failure::reset(Reset::RefusedStream)
            .detail("the upstream does not take extended CONNECT (RFC 8441)");
        return Err((failure, false));
    }
    let exchange = match stream.connection.exchange() {
        Ok(exchange) => exchange,
        Err(error) => {
            return Err((Failure::reset(Reset::ConnectionTermination).detail(error.to_string()), true));
        }
    };
    let kept = if attempt.keep_head { Some(head_of(request)) } else { None };
    let going = std::mem::replace(request, kept.unwrap_or_default());
    let worker = Rc::clone(&guard.pool.worker);
    match exchange.send(going, tunnel, |rest| worker.spawn(rest)).await {
        Ok(Answered::Response(response)) if has_two_lengths(response.headers()) => {
            let mut failure = Failure::reset(Reset::ProtocolError).detail("two lengths");
            failure.request_sent = true;
            Err((failure, false))
        }
        Ok(Answered::Response(response)) => Ok(answered_http2(response, stream, guard)),
        Ok(Answered::Tunnel(response)) => {
            Ok(tunnelled_http2(response, stream, guard, protocol.flatten().as_ref()))
        }
        Err(Unanswered { error, unsent }) => {
            let reset = if unsent { Reset::RefusedStream } else { classify_h2(&error) };
            let mut failure = Failure::reset(reset).detail(error.to_string());
            failure.request_sent = reset != Reset::RefusedStream;
            Err((failure, false))
        }
    }
}

fn has_two_lengths(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some()
}

fn answered_http2(response: Response<Answer>, stream: Stream, guard: RequestGuard) -> Sent {
    let kinds = Kinds::of(response.headers());
    let endpoint = Arc::clone(&guard.pool.endpoint);
    let lease = Lease::new(Connection::Http2(stream), guard);
    let response = response.map(|answer| {
        if answer.is_end_stream() {
            lease.end();
            Body::Empty
        } else {
            Body::Upstream(UpstreamBody::http2(answer, lease))
        }
    });
    Sent { response, kinds, endpoint, tunnel: None }
}

fn tunnelled_http2(
    response: Response<StreamTunnel>,
    stream: Stream,
    guard: RequestGuard,
    protocol: Option<&HeaderValue>,
) -> Sent {
    let kinds = Kinds::of(response.headers());
    let endpoint = Arc::clone(&guard.pool.endpoint);
    let (head, bytes) = response.into_parts();
    let mut response = Response::from_parts(head, Body::Empty);
    if let Some(protocol) = protocol {
        message::tunnel_response(&mut response, protocol);
    }
    Sent { response, kinds, endpoint, tunnel: Some(UpstreamTunnel::http2(bytes, stream, guard)) }
}

/// A second request like this one, without its body.
fn head_of(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

/// A pool that hands out dying connections one after the other is left after this many.
const REPEATS_MAX: u32 = 3;
