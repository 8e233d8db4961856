//! One request on its way through the chain: its head in the one form every step reads, and what the
//! steps leave for one another.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_TYPE, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use hyper::ext::Protocol;
use pillion_model::matcher::RequestView;
use pillion_model::metadata::{Fields, Metadata};
use tokio::time::Instant;

use crate::body::Body;
use crate::downstream::{ClientTunnel, Connection};
use crate::filters::Marks;
use crate::headers::changes::Changes;
use crate::headers::{hop, websocket};
use crate::record::{Owner, Record};
use crate::request::{Arriving, Progress, RequestBody};
use crate::response::ResponseBody;
use crate::router::internal_redirect::{Next, Redirects};
use crate::router::timeout::Timers;
use crate::router::upgrade::Tunnel;
use crate::snapshot::{Action, Hcm, RouteConfig, Routed, Snapshot};

/// A request's head in the one form that is routed, authorised, logged and forwarded.
pub(crate) struct Head {
    /// The method; an extended CONNECT has become GET with `upgrade`.
    pub(crate) method: Method,
    /// The normalised path, and the authority unless `Host` holds it.
    pub(crate) uri: Uri,
    /// `http` or `https`.
    pub(crate) scheme: &'static str,
    /// All headers.
    pub(crate) headers: HeaderMap,
    /// The protocol the client wants to change to, lower case; `connect` for CONNECT.
    pub(crate) upgrade: Option<Arc<str>>,
    /// Whether this is gRPC by content type.
    pub(crate) grpc: bool,
    /// What filters have found out.
    pub(crate) metadata: Option<Box<Metadata>>,
}

impl Head {
    /// Replaces the path and query.
    ///
    /// # Errors
    ///
    /// The new path cannot stand in a request.
    pub(crate) fn set_path(&mut self, path: &str) -> Result<(), http::Error> {
        let mut parts = std::mem::take(&mut self.uri).into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(path)?);
        self.uri = Uri::from_parts(parts)?;
        Ok(())
    }

    /// Replaces the authority.
    pub(crate) fn set_authority(&mut self, authority: HeaderValue) {
        if self.uri.authority().is_some() {
            let path = self.uri.path_and_query().cloned();
            self.uri = path.map_or_else(Uri::default, Uri::from);
        }
        self.headers.insert(HOST, authority);
    }
}

impl RequestView for Head {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn path(&self) -> &str {
        // Of a CONNECT request there is none.
        self.uri.path_and_query().map_or("", PathAndQuery::path)
    }

    fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    fn authority(&self) -> &str {
        match self.uri.authority() {
            Some(authority) => authority.as_str(),
            None => self.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
        }
    }

    fn scheme(&self) -> &str {
        self.scheme
    }

    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        for value in self.headers.get_all(name) {
            each(value.as_bytes());
        }
    }

    fn metadata(&self, filter: &str) -> Option<&Fields> {
        self.metadata.as_ref()?.get(filter)
    }
}

/// One request on its way through the chain.
pub(crate) struct Exchange {
    pub(crate) connection: Rc<Connection>,
    /// One generation for the whole request.
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) hcm: Arc<Hcm>,
    pub(crate) head: Head,
    pub(crate) version: Version,
    /// Taken by the router.
    pub(crate) body: Body,
    pub(crate) progress: Rc<Progress>,
    pub(crate) timers: Timers,
    /// The promise of the client's stream, if it may become a tunnel.
    client: Option<ClientTunnel>,
    /// The key of an HTTP/1.1 client that wants a WebSocket, which the answer must prove to know.
    websocket_key: Option<HeaderValue>,
    /// Set by the router once both sides agreed to change protocol.
    pub(crate) tunnel: Option<Tunnel>,
    pub(crate) record: Box<Record>,
    /// Whether an upstream may have seen the request.
    pub(crate) asked: bool,
    /// One random number for all choices of this request.
    pub(crate) draw: u64,
    pub(crate) request_id: Option<HeaderValue>,
    /// Index of the weighted cluster chosen.
    pub(crate) choice: Option<usize>,
    /// What filters remember until there is an answer.
    pub(crate) marks: Marks,
    /// The origin to be allowed by CORS headers on the response.
    pub(crate) cors_origin: Option<HeaderValue>,
    /// Routes of a destination found by name rather than through the connection manager.
    pub(crate) routes: Option<Arc<RouteConfig>>,
    /// Redirects that were followed here.
    pub(crate) redirects: Option<Box<Redirects>>,
}

impl Exchange {
    /// At the arrival of `request`.
    pub(crate) fn new(
        connection: Rc<Connection>,
        request: Request<Arriving>,
        client: Option<ClientTunnel>,
    ) -> Self {
        connection.request_started();
        let snapshot = connection.worker.snapshot();
        connection.refresh_chain(&snapshot);
        let hcm = connection.hcm();
        let (mut parts, arriving) = request.into_parts();
        let scheme = if connection.tls.is_some() { "https" } else { "http" };
        let owner = Owner::Http(Arc::clone(&hcm));
        let mut record =
            Box::new(Record::new(Rc::clone(&connection), owner, parts.version, parts.method.clone()));
        record.path = parts.uri.path_and_query().cloned();
        record.scheme = scheme;
        let empty = arriving.is_end_stream();
        let progress = Progress::new(record.started, empty);
        let body =
            if empty { Body::Empty } else { Body::Request(RequestBody::new(arriving, Rc::clone(&progress))) };
        let upgrade = upgrade_of(&mut parts);
        let websocket = upgrade.as_deref() == Some("websocket");
        let websocket_key = websocket.then(|| parts.headers.get(SEC_WEBSOCKET_KEY).cloned()).flatten();
        let grpc = parts
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|value| pillion_model::route::is_grpc_content_type(value.as_bytes()));
        record.grpc = grpc;
        Self {
            timers: Timers::new(Rc::clone(&progress), record.started, &hcm.config),
            client,
            websocket_key,
            version: parts.version,
            head: Head {
                method: parts.method,
                uri: parts.uri,
                scheme,
                headers: parts.headers,
                upgrade,
                grpc,
                metadata: None,
            },
            connection,
            snapshot,
            hcm,
            body,
            progress,
            tunnel: None,
            record,
            asked: false,
            draw: fastrand::u64(..),
            request_id: None,
            choice: None,
            marks: Marks::default(),
            cors_origin: None,
            routes: None,
            redirects: None,
        }
    }

    /// The request that a redirect asks for, if there is one to be made now.
    pub(crate) fn redirected(&mut self) -> Option<Next> {
        self.redirects.as_mut()?.next.take()
    }

    /// Goes on with `next` in the place of the request that `answer` redirects, which is written down.
    pub(crate) fn follow(&mut self, next: Next, answer: Option<&Response<Body>>) {
        let Next { head, body, draw } = next;
        // Before the one before ends: the connection is not idle in between.
        self.connection.request_started();
        let connection = Rc::clone(&self.connection);
        let owner = Owner::Http(Arc::clone(&self.hcm));
        let mut record = Box::new(Record::new(connection, owner, self.version, head.method.clone()));
        (record.scheme, record.remote, record.grpc) = (head.scheme, self.record.remote, head.grpc);
        // As in Envoy what has come in before counts once more, and the body that is sent again.
        let came = self.progress.bytes();
        let bytes = if matches!(body, Body::Empty) { came } else { came + came };
        let progress = std::mem::replace(&mut self.progress, Progress::again(record.started, bytes));
        self.timers = Timers::new(Rc::clone(&self.progress), record.started, &self.hcm.config);
        let mut before = std::mem::replace(&mut self.record, record);
        if let Some(answer) = answer {
            before.status = answer.status().as_u16();
            before.keep_response_headers(answer.headers());
        }
        before.progress = Some(progress);
        before.response_started = Some(Instant::now());
        before.details = Some("internal_redirect".into());
        before.finish();
        (self.head, self.body, self.draw) = (head, body, draw);
        (self.choice, self.cors_origin, self.marks) = (None, None, Marks::default());
        self.keep_head();
    }

    /// Remembers the head as it is now: what logs and responses read is what is sent on.
    pub(crate) fn keep_head(&mut self) {
        self.record.path = self.head.uri.path_and_query().cloned();
        if self.record.wants_head() {
            self.record.authority = HeaderValue::from_str(self.head.authority()).ok();
        }
        self.record.keep_request_headers(&self.head.headers);
    }

    /// Header changes of the weighted cluster chosen.
    pub(crate) fn weighted_changes<'a>(&self, routed: &'a Routed) -> Option<&'a Changes> {
        match (&routed.route().action, self.choice) {
            (Action::Forward(forward), Some(choice)) => forward.to.changes_of(choice),
            _ => None,
        }
    }

    /// Hands the response over; the record goes with its body, or with the tunnel.
    pub(crate) fn respond(self, response: Response<Body>) -> Response<ResponseBody> {
        let Self { mut record, timers, tunnel, client, websocket_key, progress, connection, version, .. } =
            self;
        record.status = response.status().as_u16();
        record.response_started = Some(Instant::now());
        record.keep_response_headers(response.headers());
        if record.grpc {
            record.grpc_status = crate::response::parse_grpc_status(response.headers());
        }
        record.progress = Some(progress);
        let bodiless = record.method == Method::HEAD;
        if let (Some(tunnel), Some(client)) = (tunnel, client) {
            tunnel.start(&connection, client, record);
            let mut response = response.map(|_empty| ResponseBody::none());
            if version == Version::HTTP_2 {
                tunnel_to_http2(&mut response);
            } else if let Some(key) = websocket_key {
                // HTTP/2, which may lie between us and the application, does not carry the proof.
                response.headers_mut().entry(SEC_WEBSOCKET_ACCEPT).or_insert_with(|| websocket::accept(&key));
            }
            return response;
        }
        response.map(|body| ResponseBody::new(body, record, timers, bodiless))
    }
}

/// What the client wants to change to: extended CONNECT (RFC 8441) becomes a GET with a protocol, as
/// HTTP/1 has it.
fn upgrade_of(parts: &mut http::request::Parts) -> Option<Arc<str>> {
    if parts.method == Method::CONNECT {
        let Some(protocol) = parts.extensions.remove::<Protocol>() else { return Some("connect".into()) };
        parts.method = Method::GET;
        return Some(protocol.as_str().to_ascii_lowercase().into());
    }
    if parts.version != Version::HTTP_11 || !hop::mentions(&parts.headers, &CONNECTION, "upgrade") {
        return None;
    }
    let protocol = parts.headers.get(UPGRADE)?.to_str().ok()?.to_ascii_lowercase();
    // HTTP/2 by upgrade is not offered: the request is served as HTTP/1.1 (RFC 9113 section 3.1).
    (protocol != "h2c").then(|| protocol.into())
}

/// To an extended CONNECT the answer is 200 without HTTP/1's headers.
fn tunnel_to_http2(response: &mut Response<ResponseBody>) {
    *response.status_mut() = http::StatusCode::OK;
    response.headers_mut().remove(UPGRADE);
    response.headers_mut().remove(CONNECTION);
    response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
}
