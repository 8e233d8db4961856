//! Sends a request upstream: chooses the cluster, prepares the head, tries until an outcome stands.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use pillion_model::retry::{Reset, is_idempotent};
use pillion_model::route::HostRewrite;
use tokio::time::Instant;

use super::hash::{self, Hashed};
use super::retry::{Retries, Verdict};
use super::timeout::Expired;
use super::upgrade::{Tunnel, Upstream};
use super::{internal_redirect, mirror, rewrite};
use crate::body::{Body, ReplayBuffer};
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::flags::Flags;
use crate::headers::{hop, names};
use crate::local_reply::{Cause, LocalReply};
use crate::metrics::{Family, Symbol};
use crate::request::Broken;
use crate::snapshot::{ClusterRef, ForwardTo, Routed, Target};
use crate::upstream::{Attempt, Cause as Failed, Failure, HostRewritten, Priority, Sent};

/// Bytes of a request's body kept for a retry or a mirror.
const REPLAY_BYTES_MAX: usize = 1 << 20;
/// The same for an idempotent request that may meet a connection which its upstream is just closing.
const STALE_BYTES_MAX: usize = 64 << 10;

/// With these a client steers how its request is tried; they go no further.
const STEERING: [&HeaderName; 8] = [
    &names::RETRY_ON,
    &names::RETRY_GRPC_ON,
    &names::MAX_RETRIES,
    &names::RETRIABLE_CODES,
    &names::TIMEOUT_MS,
    &names::PER_TRY_TIMEOUT_MS,
    &names::TIMEOUT_ALT_RESPONSE,
    &names::HEDGE_ON_TIMEOUT,
];

/// What one try ended with.
enum Tried {
    Sent(Box<Sent>),
    Failed(Box<Failure>),
    TimedOut(Expired),
}

impl Tried {
    /// Whether an upstream may have seen the request.
    fn reached_upstream(&self) -> bool {
        match self {
            // Some sidecar's own answer.
            Self::Sent(sent) => {
                !(sent.kinds.pillion && sent.response.headers().contains_key(&names::LOCAL_REPLY))
            }
            Self::Failed(failure) => failure.request_sent,
            Self::TimedOut(_) => true,
        }
    }
}

/// Forwards by `forward` of the route `routed`.
pub(super) async fn run(x: &mut Exchange, routed: &Routed, forward: &ForwardTo) -> Step<Response<Body>> {
    let target = match x.record.target.clone() {
        Some(target) => target,
        None => choose(x, &forward.to, forward.cluster_missing_status)?,
    };
    x.record.target = Some(target.clone());
    let steered = names::Kinds::of(&x.head.headers).envoy;
    let none = HeaderMap::new();
    let steering = if steered { &x.head.headers } else { &none };
    x.timers.follow(forward, &x.head, steering);
    let mut retries = Retries::new(forward.retry.as_deref(), steering, x.head.method.as_str());
    let hashed = hash::of(x, &forward.hash);
    prepare_head(x, routed, forward, steered)?;
    let redirected = forward.internal_redirect.as_deref().filter(|_| x.head.upgrade.is_none());
    let kept = redirected.map(|policy| Box::new((policy, x.head.headers.clone())));
    let mirrors = if x.head.upgrade.is_some() { Vec::new() } else { mirror::chosen(forward) };
    let mut attempt = Attempt::default();
    attempt.priority = if forward.high_priority { Priority::High } else { Priority::Default };
    attempt.hash = hashed.hash;
    attempt.selection = target.selection;
    attempt.downstream = x.version;
    attempt.redraws = retries.redraws();
    attempt.auto_host = matches!(forward.host_rewrite, Some(HostRewrite::Auto)).then_some(HostRewritten {
        append: forward.append_forwarded_host,
        keep: !x.hcm.suppress_envoy_headers,
    });
    let mut requests = Requests::new(x, retries.possible() || kept.is_some(), !mirrors.is_empty());
    mirror::send(x, &mirrors, requests.buffer.as_ref(), forward.timeout);
    let mut permit = None;
    let sent = loop {
        attempt.keep_head = retries.possible();
        requests.prepare(x, forward, retries.made(), &attempt);
        x.record.attempts += 1;
        let started = Instant::now();
        let tried = try_once(x, &target, &mut attempt, &mut requests.request, started).await;
        x.asked |= tried.reached_upstream();
        drop(permit.take());
        let unasked = matches!(&tried, Tried::Failed(failure) if failure.endpoint.is_none());
        let asked = attempt.endpoint.as_ref().filter(|_| !unasked);
        x.record.upstream_host = asked.map(|endpoint| Arc::clone(&endpoint.label));
        if let Some(host) = attempt.told_host.take() {
            x.record.authority = Some(host);
        }
        let verdict = judge(x, &retries, &tried, &requests);
        let allowed = verdict == Verdict::Retry;
        if allowed {
            permit = target.cluster.retry_permit(attempt.priority, tried.reached_upstream());
        }
        if allowed && permit.is_some() {
            drop(tried);
            count(x, &target, Symbol::RETRY);
            let wait = retries.next();
            if !wait.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    expired = x.timers.expired(None) => return Err(x.timers.cause(expired).into()),
                }
            }
            continue;
        }
        if verdict == Verdict::LimitReached {
            x.record.flags.add(Flags::RETRY_LIMIT);
            count(x, &target, Symbol::LIMIT);
        } else if allowed {
            x.record.flags.add(Flags::UPSTREAM_OVERFLOW);
            count(x, &target, Symbol::OVERFLOW);
        } else if retries.made() > 0 {
            count(x, &target, Symbol::SUCCESS);
        }
        match tried {
            Tried::Sent(sent) => break *sent,
            Tried::Failed(failure) => return Err(failed(x, *failure, retries.made())),
            Tried::TimedOut(expired) => return Err(x.timers.cause(expired).into()),
        }
    };
    if let Some(kept) = kept {
        let ((policy, mut headers), body) = (*kept, requests.buffer.as_ref());
        if forward.include_attempt_count {
            headers.insert(&names::ATTEMPT_COUNT, x.record.attempts.into());
        }
        let asked = internal_redirect::Asked { routed, target: &target, policy, headers, body };
        if internal_redirect::follow(x, asked, &sent.response) {
            return Ok(sent.response);
        }
    }
    Ok(answer(x, forward, sent, hashed, retries.made()))
}

/// The cluster, as far as it exists.
pub(super) fn choose(x: &mut Exchange, to: &ClusterRef, missing: StatusCode) -> Step<Target> {
    match to {
        ClusterRef::Ready(target) => Ok(target.clone()),
        ClusterRef::Missing(_) => Err(Cause::NoCluster(missing).into()),
        ClusterRef::FromHeader(name, labels) => {
            let named = x.head.headers.get(name).and_then(|value| value.to_str().ok());
            let cluster =
                named.and_then(|name| x.snapshot.clusters.get(name)).ok_or(Cause::NoCluster(missing))?;
            let worker = &x.connection.worker;
            let selection = cluster.selection(labels);
            let target = Target::with_symbols(&worker.metrics.symbols, &worker.own_service_name, cluster);
            Ok(Target { selection, ..target })
        }
        ClusterRef::Weighted { total, choices } => {
            let mut rest = x.draw % total;
            let at = choices
                .iter()
                .position(|choice| {
                    let hit = rest < choice.weight;
                    rest = rest.wrapping_sub(choice.weight);
                    hit
                })
                .ok_or(Cause::NoCluster(missing))?;
            x.choice = Some(at);
            choose(x, &choices[at].to, missing)
        }
    }
}

/// Brings the head into the form the upstream gets, but for what differs from try to try.
fn prepare_head(x: &mut Exchange, routed: &Routed, forward: &ForwardTo, steered: bool) -> Step {
    let suppress = x.hcm.suppress_envoy_headers;
    if steered {
        for name in STEERING {
            x.head.headers.remove(name);
        }
    }
    if !suppress && let Some(millis) = x.timers.expected_ms() {
        x.head.headers.insert(&names::EXPECTED_TIMEOUT_MS, millis.into());
    }
    for changes in routed.changes(x.weighted_changes(routed)) {
        changes.request(&mut x.head.headers, &x.record);
    }
    rewrite::apply(&mut x.head, forward, suppress)?;
    x.keep_head();
    Ok(())
}

/// The request of all tries.
struct Requests {
    request: Request<Body>,
    buffer: Option<ReplayBuffer>,
    /// The head as it was before the first try, where a try changes it.
    original: Option<Box<HeaderMap>>,
}

impl Requests {
    fn new(x: &mut Exchange, retries: bool, mirrors: bool) -> Self {
        let body = std::mem::take(&mut x.body);
        let kept_max = if retries || mirrors {
            REPLAY_BYTES_MAX
        } else if is_idempotent(x.head.method.as_str()) && x.head.upgrade.is_none() {
            STALE_BYTES_MAX
        } else {
            0
        };
        if matches!(body, Body::Empty) || kept_max == 0 {
            return Self { request: Request::new(body), buffer: None, original: None };
        }
        let buffer = Some(ReplayBuffer::new(body, kept_max));
        Self { request: Request::new(Body::Empty), buffer, original: None }
    }

    /// Whether the request can be made once more.
    fn can_repeat(&self) -> bool {
        match &self.buffer {
            None => true,
            Some(buffer) => !buffer.is_let_go(),
        }
    }

    /// Makes the request of the next try, after `made` retries.
    fn prepare(&mut self, x: &mut Exchange, forward: &ForwardTo, made: u32, attempt: &Attempt) {
        if let Some(buffer) = &self.buffer {
            // One reader at a time.
            *self.request.body_mut() = Body::Empty;
            *self.request.body_mut() = buffer.reader().map_or(Body::Empty, Body::Replay);
        }
        let request = &mut self.request;
        if made == 0 {
            *request.method_mut() = x.head.method.clone();
            *request.uri_mut() = x.head.uri.clone();
            *request.headers_mut() = std::mem::take(&mut x.head.headers);
        }
        if attempt.auto_host.is_some() {
            // Each try is told another host.
            *request.uri_mut() = x.head.uri.clone();
            match &self.original {
                Some(original) => *request.headers_mut() = HeaderMap::clone(original),
                None if attempt.keep_head => self.original = Some(Box::new(request.headers().clone())),
                None => {}
            }
        }
        let headers = request.headers_mut();
        if made > 0
            && !x.hcm.suppress_envoy_headers
            && let Some(millis) = x.timers.expected_ms()
        {
            headers.insert(&names::EXPECTED_TIMEOUT_MS, millis.into());
        }
        if forward.include_attempt_count {
            headers.insert(&names::ATTEMPT_COUNT, (made + 1).into());
        }
        if let Some(protocol) = &x.head.upgrade
            && x.head.method != Method::CONNECT
            && let Ok(protocol) = HeaderValue::from_str(protocol)
        {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol);
        }
        debug_assert!(request.uri().authority().is_some() || request.headers().contains_key(HOST));
    }
}

async fn try_once(
    x: &Exchange,
    target: &Target,
    attempt: &mut Attempt,
    request: &mut Request<Body>,
    started: Instant,
) -> Tried {
    let expired = {
        let mut send = pin!(x.connection.worker.pools.send(&target.cluster, attempt, request));
        let mut expired = pin!(x.timers.expired(Some(started)));
        let first = poll_fn(|cx| match send.as_mut().poll(cx) {
            Poll::Ready(sent) => Poll::Ready(Ok(sent)),
            Poll::Pending => expired.as_mut().poll(cx).map(Err),
        });
        match first.await {
            Ok(Ok(sent)) => return Tried::Sent(Box::new(sent)),
            Ok(Err(failure)) => return Tried::Failed(Box::new(failure)),
            Err(expired) => expired,
        }
    };
    attempt.timed_out();
    Tried::TimedOut(expired)
}

/// Whether what came of a try stands.
fn judge(x: &Exchange, retries: &Retries<'_>, tried: &Tried, requests: &Requests) -> Verdict {
    let verdict = match tried {
        Tried::Sent(sent) => retries.response(&sent.response, sent.kinds),
        Tried::Failed(failure) => match failure.cause {
            Failed::Reset(reset) => retries.reset(reset, failure.request_sent),
            Failed::NoHealthyUpstream | Failed::Dropped => Verdict::Keep,
        },
        Tried::TimedOut(Expired::PerTry) => retries.reset(Reset::PerTryTimeout, true),
        Tried::TimedOut(_) => Verdict::Keep,
    };
    // A tunnel's client may have been told to go on already.
    if verdict == Verdict::Retry && !(requests.can_repeat() && x.tunnel.is_none()) {
        return Verdict::Keep;
    }
    verdict
}

fn count(x: &Exchange, target: &Target, outcome: Symbol) {
    x.connection.worker.metrics.add(Family::Retries, [target.service, target.subset, outcome], 1);
}

fn failed(x: &mut Exchange, failure: Failure, retries: u32) -> LocalReply {
    if let Some(reply) = broken_request(x) {
        return reply;
    }
    if !failure.detail.is_empty() {
        x.record.upstream_failure = Some(failure.detail.clone());
    }
    match failure.cause {
        Failed::NoHealthyUpstream => Cause::NoHealthyUpstream,
        Failed::Dropped => Cause::DropOverload,
        Failed::Reset(reset) => {
            // Envoy shows the reason of failed connects only.
            let detail = match reset {
                Reset::ConnectFailure | Reset::ConnectTimeout => failure.detail,
                _ => "".into(),
            };
            Cause::UpstreamReset { reset, detail, retried: retries > 0 }
        }
    }
    .into()
}

/// The answer to a request whose body broke off.
pub(crate) fn broken_request(x: &mut Exchange) -> Option<LocalReply> {
    match x.progress.broken()? {
        Broken::Malformed => Some(Cause::BadRequest("http1.codec_error").into()),
        Broken::Gone => {
            // Nobody will read the answer.
            x.record.gone = true;
            Some(LocalReply::direct(StatusCode::BAD_REQUEST, Bytes::new(), "downstream_remote_disconnect"))
        }
    }
}

/// The upstream's response on its way back.
fn answer(x: &mut Exchange, forward: &ForwardTo, sent: Sent, hashed: Hashed, retries: u32) -> Response<Body> {
    let Sent { mut response, kinds, endpoint: _, tunnel } = sent;
    x.record.details = Some("via_upstream".into());
    if let Some(upstream) = tunnel.filter(|_| x.head.upgrade.is_some()) {
        x.tunnel = Some(Tunnel { upstream: Upstream::Upgraded(upstream), idle: forward.idle_timeout });
    }
    let upgrade = x.tunnel.as_ref().and_then(|_| response.headers().get(UPGRADE).cloned());
    hop::strip_response(response.headers_mut());
    let headers: &mut HeaderMap = response.headers_mut();
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
    // Between sidecars only: an application neither sees it nor may say it.
    if kinds.pillion {
        headers.remove(&names::LOCAL_REPLY);
    }
    // HTTP/1.0 is the upstream's own affair.
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    if !x.hcm.suppress_envoy_headers
        && x.head.upgrade.is_none()
        && let Some(since) = x.progress.complete()
    {
        let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        headers.insert(&names::UPSTREAM_SERVICE_TIME, millis.into());
    }
    if forward.include_attempt_count_in_response {
        headers.insert(&names::ATTEMPT_COUNT, (retries + 1).into());
    }
    hashed.annotate(&mut response);
    response
}
