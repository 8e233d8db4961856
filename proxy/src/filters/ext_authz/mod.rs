//! Asks a server whether requests may pass. Whoever cannot be asked has not said yes.

mod grpc;
mod http_service;
mod shown;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use pillion_model::authz::{AuthzOverride, AuthzService, ExtAuthz};
use pillion_xds::authz::{Answer, HeaderChange, How};

use self::shown::Shown;
use crate::body::Body;
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::flags::Flags;
use crate::headers::hop;
use crate::headers::names::AUTH_FAILURE_MODE_ALLOWED;
use crate::local_reply::LocalReply;
use crate::upstream::Attempt;

/// Compiled [`ExtAuthz`].
pub(crate) struct Authz {
    pub(crate) settings: ExtAuthz,
    /// Headers of the question.
    headers: Vec<(HeaderName, HeaderValue)>,
    status_on_error: StatusCode,
    /// What came of requests.
    pub(crate) counts: Counts,
}

/// What came of requests.
#[derive(Default)]
pub(crate) struct Counts {
    /// The server said yes.
    pub(crate) ok: AtomicU64,
    /// The server said no.
    pub(crate) denied: AtomicU64,
    /// The server could not be asked.
    pub(crate) error: AtomicU64,
    /// And the request passed for all that.
    pub(crate) failure_mode_allowed: AtomicU64,
    /// Routes and shares for which nobody is asked.
    pub(crate) disabled: AtomicU64,
}

impl Counts {
    /// By Envoy's names.
    pub(crate) fn read(&self) -> [(&'static str, u64); 5] {
        [
            ("ok", self.ok.load(Relaxed)),
            ("denied", self.denied.load(Relaxed)),
            ("error", self.error.load(Relaxed)),
            ("failure_mode_allowed", self.failure_mode_allowed.load(Relaxed)),
            ("disabled", self.disabled.load(Relaxed)),
        ]
    }
}

/// Why there is no answer.
struct Failed;

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

impl Authz {
    /// Compiles.
    pub(crate) fn compile(settings: &ExtAuthz) -> Result<Self, String> {
        let given = match &settings.service {
            AuthzService::Grpc { metadata, .. } => metadata,
            AuthzService::Http(http) => &http.headers,
        };
        let header = |(name, value): &(String, String)| {
            let bad = || format!("ext_authz: `{name}: {value}` is not a header");
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
            Ok::<_, String>((name, HeaderValue::from_str(value).map_err(|_| bad())?))
        };
        Ok(Self {
            headers: given.iter().map(header).collect::<Result<_, _>>()?,
            status_on_error: StatusCode::from_u16(settings.status_on_error).map_err(|_| {
                format!("ext_authz: status_on_error {} is no status", settings.status_on_error)
            })?,
            settings: settings.clone(),
            counts: Counts::default(),
        })
    }
}

/// Lets through what the server lets through.
pub(super) async fn check(x: &mut Exchange, authz: &Authz) -> Step {
    // As in Envoy: what goes nowhere is not asked about.
    let Some(routed) = x.record.routed.clone() else { return Ok(()) };
    let none = BTreeMap::new();
    let (extensions, body) = match routed.overrides(x.choice).authz() {
        Some(AuthzOverride::Disabled) => {
            authz.counts.disabled.fetch_add(1, Relaxed);
            return Ok(());
        }
        Some(AuthzOverride::Settings { extensions, body }) => {
            (extensions, body.unwrap_or(authz.settings.body))
        }
        None => (&none, authz.settings.body),
    };
    if !authz.settings.enabled.hits(fastrand::u64(..)) {
        authz.counts.disabled.fetch_add(1, Relaxed);
        return Ok(());
    }
    let shown = match body {
        Some(body) => shown::read(x, body).await?,
        None => Shown::default(),
    };
    let (request, timeout) = match &authz.settings.service {
        AuthzService::Grpc { timeout, .. } => (grpc::question(x, authz, &shown, extensions), *timeout),
        AuthzService::Http(http) => {
            let timeout = Some(http.timeout).filter(|timeout| !timeout.is_zero());
            (http_service::question(x, authz, http, &shown), timeout)
        }
    };
    let answered = tokio::select! {
        answered = ask(x, authz, request, timeout) => answered,
        expired = x.timers.expired(None) => return Err(x.timers.cause(expired).into()),
    };
    match answered {
        Ok(answer) => follow(x, authz, answer),
        Err(Failed) => failed(x, authz),
    }
}

async fn ask(
    x: &Exchange,
    authz: &Authz,
    request: Option<Request<Body>>,
    timeout: Option<Duration>,
) -> Result<Answer, Failed> {
    let cluster = match &authz.settings.service {
        AuthzService::Grpc { cluster, .. } => cluster,
        AuthzService::Http(http) => &http.cluster,
    };
    let cluster = x.snapshot.clusters.get(cluster).ok_or(Failed)?;
    let mut request = request.ok_or(Failed)?;
    let exchange = async {
        let mut attempt = Attempt::default();
        let sent = x.connection.worker.pools.send(cluster, &mut attempt, &mut request).await.ok();
        let (head, body) = sent.ok_or(Failed)?.response.into_parts();
        match &authz.settings.service {
            AuthzService::Grpc { .. } => grpc::answer(Response::from_parts(head, body)).await,
            AuthzService::Http(http) => http_service::answer(http, Response::from_parts(head, body)).await,
        }
    };
    match timeout {
        Some(timeout) => tokio::time::timeout(timeout, exchange).await.map_err(|_late| Failed)?,
        None => exchange.await,
    }
}

/// Reads a body to its end, and the trailers.
async fn read(mut body: Body) -> Result<(Bytes, Option<HeaderMap>), Failed> {
    let mut bytes = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.map_err(|_broken| Failed)?.into_data() {
            Ok(data) if bytes.len() + data.len() > ANSWER_BYTES_MAX => return Err(Failed),
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((bytes.freeze(), trailers))
}

fn failed(x: &mut Exchange, authz: &Authz) -> Step {
    authz.counts.error.fetch_add(1, Relaxed);
    if authz.settings.failure_mode_allow {
        authz.counts.failure_mode_allowed.fetch_add(1, Relaxed);
        if authz.settings.failure_mode_header {
            x.head.headers.append(&AUTH_FAILURE_MODE_ALLOWED, HeaderValue::from_static("true"));
        }
        return Ok(());
    }
    Err(unauthorized(authz.status_on_error, Bytes::new(), "ext_authz_error"))
}

fn unauthorized(status: StatusCode, body: Bytes, details: &'static str) -> LocalReply {
    let mut reply = LocalReply::direct(status, body, details);
    reply.flags = Flags::UNAUTHORIZED_EXTERNAL_SERVICE;
    reply
}

/// Does what the server said.
fn follow(x: &mut Exchange, authz: &Authz, answer: Answer) -> Step {
    let bad = |changes: &[HeaderChange]| changes.iter().any(|change| parsed(change).is_none());
    if authz.settings.validate_mutations && (bad(&answer.headers) || bad(&answer.response_headers)) {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return Err(unauthorized(status, Bytes::new(), "ext_authz_invalid"));
    }
    if !answer.allowed {
        authz.counts.denied.fetch_add(1, Relaxed);
        return Err(refusal(answer));
    }
    authz.counts.ok.fetch_add(1, Relaxed);
    for name in &answer.headers_to_remove {
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) if is_changeable(&name) => drop(x.head.headers.remove(name)),
            _ => {}
        }
    }
    for (name, value, how) in answer.headers.iter().filter_map(parsed) {
        if is_changeable(&name) {
            change_request(&mut x.head.headers, &name, value, how);
        }
    }
    x.marks.answer_headers.extend(answer.response_headers.iter().filter_map(parsed));
    Ok(())
}

fn change_request(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue, how: How) {
    if how != How::Append {
        return change(headers, name, value, how);
    }
    let Some(have) = headers.get(name) else { return };
    let joined = [have.as_bytes(), b",", value.as_bytes()].concat();
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(name, joined);
    }
}

/// In answers, what is appended stands beside what is there.
fn change(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue, how: How) {
    if how == How::Set {
        headers.insert(name, value);
    } else {
        headers.append(name, value);
    }
}

fn refusal(answer: Answer) -> LocalReply {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::FORBIDDEN);
    let mut reply = unauthorized(status, Bytes::from(answer.body), "ext_authz_denied");
    let mut headers = HeaderMap::new();
    for (name, value, how) in answer.headers.iter().filter_map(parsed) {
        change(&mut headers, &name, value, how);
    }
    hop::strip_response(&mut headers);
    headers.remove(CONTENT_LENGTH);
    reply.headers.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    reply
}

fn parsed(change: &HeaderChange) -> Option<(HeaderName, HeaderValue, How)> {
    let name = HeaderName::from_bytes(change.name.to_ascii_lowercase().as_bytes()).ok()?;
    Some((name, HeaderValue::from_bytes(&change.value).ok()?, change.how))
}

/// What frames the request or says where it goes is not the server's to change.
fn is_changeable(name: &HeaderName) -> bool {
    *name != HOST && *name != CONTENT_LENGTH && !hop::is_hop_by_hop(name)
}

/// Adds what the server wants the client to have.
pub(super) fn annotate(x: &Exchange, headers: &mut HeaderMap) {
    for (name, value, how) in &x.marks.answer_headers {
        change(headers, name, value.clone(), *how);
    }
}
