//! What is remembered of a request or connection: becomes a line of the access log and a sample of the
//! metrics when it ends, however it ends.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Version};
use tokio::time::Instant;

use crate::access_log::AccessLogger;
use crate::downstream::Connection;
use crate::flags::Flags;
use crate::headers::format::Context;
use crate::metrics::{Labels, Symbol};
use crate::request::Progress;
use crate::snapshot::{Hcm, Listener, Routed, Target, TcpProxy};

/// What an exchange belongs to: decides which access logs it is written to.
#[derive(Clone)]
pub(crate) enum Owner {
    /// A request.
    Http(Arc<Hcm>),
    /// A connection carried as bytes.
    Tcp(Arc<TcpProxy>),
    /// A connection that found no filter chain.
    Listener(Arc<Listener>),
}

impl Owner {
    fn access_logs(&self) -> &[Arc<AccessLogger>] {
        match self {
            Self::Http(hcm) => &hcm.access_logs,
            Self::Tcp(proxy) => &proxy.access_logs,
            Self::Listener(listener) => &listener.access_logs,
        }
    }
}

/// What is remembered of an exchange until its last byte. Dropping it writes it down.
pub(crate) struct Record {
    pub(crate) connection: Rc<Connection>,
    pub(crate) owner: Owner,
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
    pub(crate) version: Version,
    pub(crate) method: Method,
    /// As far as it was normalised and rewritten.
    pub(crate) path: Option<PathAndQuery>,
    pub(crate) authority: Option<HeaderValue>,
    pub(crate) scheme: &'static str,
    /// The client's address after `x-forwarded-for`.
    pub(crate) remote: SocketAddr,
    /// 0 until a response started.
    pub(crate) status: u16,
    pub(crate) flags: Flags,
    pub(crate) details: Option<Cow<'static, str>>,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) progress: Option<Rc<Progress>>,
    /// Bytes carried from and to the client after a change of protocol.
    pub(crate) tunnel_bytes: Option<(u64, u64)>,
    pub(crate) response_started: Option<Instant>,
    pub(crate) routed: Option<Routed>,
    pub(crate) target: Option<Target>,
    pub(crate) upstream_host: Option<Arc<str>>,
    pub(crate) upstream_failure: Option<Cow<'static, str>>,
    pub(crate) attempts: u32,
    pub(crate) grpc: bool,
    pub(crate) grpc_status: Option<u32>,
    /// Request headers the access logs and response changes want.
    pub(crate) request_headers: HeaderMap,
    /// Response headers and trailers the access logs want.
    pub(crate) response_headers: HeaderMap,
    pub(crate) trailers: HeaderMap,
    /// A filter found a health check.
    pub(crate) health_check: bool,
    /// The text of an answer of our own, while its body is formatted.
    pub(crate) local_reply: Option<Bytes>,
    /// The client left before it could be answered.
    pub(crate) gone: bool,
    /// The response was handed over completely.
    pub(crate) complete: bool,
}

impl Record {
    /// At the arrival of a request or connection.
    pub(crate) fn new(connection: Rc<Connection>, owner: Owner, version: Version, method: Method) -> Self {
        let remote = connection.remote;
        if matches!(owner, Owner::Http(_)) {
            connection.worker.metrics.requests_active(1);
        }
        Self {
            connection,
            owner,
            started: Instant::now(),
            started_at: SystemTime::now(),
            version,
            method,
            path: None,
            authority: None,
            scheme: "http",
            remote,
            status: 0,
            flags: Flags::NONE,
            details: None,
            bytes_received: 0,
            bytes_sent: 0,
            progress: None,
            tunnel_bytes: None,
            response_started: None,
            routed: None,
            target: None,
            upstream_host: None,
            upstream_failure: None,
            attempts: 0,
            grpc: false,
            grpc_status: None,
            request_headers: HeaderMap::new(),
            response_headers: HeaderMap::new(),
            trailers: HeaderMap::new(),
            health_check: false,
            local_reply: None,
            gone: false,
            complete: false,
        }
    }

    /// Keeps the request headers that logs and response changes read.
    pub(crate) fn keep_request_headers(&mut self, headers: &HeaderMap) {
        if let Owner::Http(hcm) = &self.owner {
            keep(&mut self.request_headers, headers, &hcm.kept_request_headers);
        }
        if let Some(routed) = &self.routed {
            keep(&mut self.request_headers, headers, &routed.config().read_by_responses);
        }
    }

    /// Keeps the response headers that logs read.
    pub(crate) fn keep_response_headers(&mut self, headers: &HeaderMap) {
        if let Owner::Http(hcm) = &self.owner {
            keep(&mut self.response_headers, headers, &hcm.logged_response_headers);
        }
    }

    /// `HTTP/1.1` and so on.
    pub(crate) fn protocol(&self) -> Option<&'static str> {
        Some(match self.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_11 => "HTTP/1.1",
            Version::HTTP_2 => "HTTP/2",
            _ => return None,
        })
    }

    /// The route's name.
    pub(crate) fn route_name(&self) -> Option<&str> {
        self.routed.as_ref().map(|routed| routed.route().name.as_str())
    }

    /// The cluster's name.
    pub(crate) fn upstream_cluster(&self) -> Option<&str> {
        self.target.as_ref().map(|target| target.cluster.name())
    }

    /// When the request had come in whole.
    pub(crate) fn request_complete(&self) -> Option<Instant> {
        self.progress.as_ref().and_then(|progress| progress.complete())
    }

    /// Whether something will be written down about the head.
    pub(crate) fn wants_head(&self) -> bool {
        !self.owner.access_logs().is_empty()
    }

    /// Whether a log line shows trailers.
    pub(crate) fn wants_trailers(&self) -> bool {
        !self.owner.access_logs().is_empty()
    }

    fn labels(&self) -> Labels {
        let connection = &self.connection;
        let (service, subset) = match &self.target {
            Some(target) => (target.service, target.subset),
            None => (Symbol::UNKNOWN, Symbol::EMPTY),
        };
        Labels {
            direction: connection.direction,
            manager: match &self.owner {
                Owner::Http(hcm) => hcm.symbol,
                Owner::Tcp(_) | Owner::Listener(_) => Symbol::EMPTY,
            },
            source: connection.source,
            service,
            subset,
            route: self.routed.as_ref().map_or(Symbol::EMPTY, |routed| routed.route().symbol),
            status: self.status,
            flags: self.flags,
        }
    }
}

fn keep(into: &mut HeaderMap, from: &HeaderMap, names: &[http::HeaderName]) {
    for name in names {
        match from.get(name) {
            Some(value) => drop(into.insert(name, value.clone())),
            None => drop(into.remove(name)),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.gone {
            self.status = 0;
            self.flags.add(Flags::DOWNSTREAM_TERMINATION);
        } else if !self.complete {
            if self.flags == Flags::NONE {
                self.flags.add(Flags::DOWNSTREAM_TERMINATION);
            }
            if self.details.is_none() || self.status != 0 {
                self.details = Some("downstream_remote_disconnect".into());
            }
        }
        if let Some(progress) = &self.progress {
            self.bytes_received = progress.bytes();
        }
        if let Some((received, sent)) = self.tunnel_bytes {
            self.bytes_received += received;
            self.bytes_sent += sent;
        }
        let metrics = &self.connection.worker.metrics;
        match self.owner {
            Owner::Http(_) => {
                self.connection.request_ended(!self.complete && self.status == 0);
                metrics.requests_active(-1);
                metrics.request(self.labels(), self.started.elapsed(), self.bytes_received, self.bytes_sent);
            }
            Owner::Tcp(_) => metrics.tcp(self.labels(), self.bytes_received, self.bytes_sent),
            Owner::Listener(_) => {}
        }
        let context = Context {
            record: self,
            request: &self.request_headers,
            response: Some(&self.response_headers),
            trailers: Some(&self.trailers),
        };
        for log in self.owner.access_logs() {
            log.write(&context);
        }
    }
}
