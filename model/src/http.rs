//! The HTTP connection manager and its filters.

use std::time::Duration;

use crate::authz::ExtAuthz;
use crate::endpoint::Fraction;
use crate::filter::{HeaderMutation, HealthCheckFilter};
use crate::jwt::JwtAuthn;
use crate::log_filter::LogFilter;
use crate::matcher::{Cidr, HeaderMatcher, StringMatcher};
use crate::rate_limit::LocalRateLimit;
use crate::rbac::Rbac;
use crate::route::{HeaderChange, RouteConfiguration};

/// Envoy: `HttpConnectionManager`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConnectionManager {
    /// Prefix of statistics; also shown in logs.
    pub stat_prefix: String,
    /// Which HTTP version is expected.
    pub codec: Codec,
    /// Where routes come from.
    pub routes: RouteSource,
    /// In order; the router is last.
    pub filters: Vec<HttpFilter>,
    /// Upgrades allowed: `websocket`, `CONNECT`.
    pub upgrades: Vec<String>,
    /// Access logs.
    pub access_logs: Vec<AccessLog>,
    /// The peer is the client: its address is appended to `x-forwarded-for`.
    pub use_remote_address: bool,
    /// Trusted proxies in front.
    pub xff_trusted_hops: u32,
    /// Clients in these ranges are internal: their `x-envoy-…` headers are believed. Default none.
    pub internal_addresses: Vec<Cidr>,
    /// Do not append to `x-forwarded-for`.
    pub skip_xff_append: bool,
    /// What happens to `x-forwarded-client-cert`.
    pub client_cert: ForwardClientCert,
    /// Parts of the client's certificate set in `x-forwarded-client-cert`.
    pub client_cert_details: ClientCertDetails,
    /// Value of `server`, and what happens to the upstream's.
    pub server_name: String,
    /// What happens to the upstream's `server` header.
    pub server_header: ServerHeader,
    /// Make a request id where there is none. Default true.
    pub generate_request_id: bool,
    /// Keep a request id that came from outside.
    pub preserve_external_request_id: bool,
    /// Send the request id back.
    pub always_set_request_id_in_response: bool,
    /// Remove `.` and `..` segments and decode what need not be encoded.
    pub normalize_path: bool,
    /// Merge adjacent slashes.
    pub merge_slashes: bool,
    /// `%2F` and `%5C` in paths.
    pub escaped_slashes: EscapedSlashes,
    /// Which ports are cut off from `Host`.
    pub strip_port: StripPort,
    /// No byte in either direction. Default 5 min; `None`: no limit.
    pub stream_idle_timeout: Option<Duration>,
    /// Time to receive the whole request; `None`: no limit.
    pub request_timeout: Option<Duration>,
    /// Time to receive the request's headers; `None`: no limit.
    pub request_headers_timeout: Option<Duration>,
    /// Connections without a request. Default 1 h; `None`: no limit.
    pub idle_timeout: Option<Duration>,
    /// Age at which a connection is drained; `None`: no limit.
    pub max_connection_duration: Option<Duration>,
    /// Between the two GOAWAYs. Default 5 s.
    pub drain_timeout: Duration,
    /// Largest request head in KiB. Default 60.
    pub max_request_headers_kb: u32,
    /// HTTP/2 streams at once. Default 1024.
    pub max_concurrent_streams: u32,
    /// Add `x-pillion-local-reply` to local replies: set on a sidecar's inbound side.
    pub mark_local_replies: bool,
    /// What is made of answers of the proxy's own.
    pub local_replies: Option<LocalReplies>,
}

impl HttpConnectionManager {
    /// With Envoy's defaults and a router.
    pub fn new(stat_prefix: impl Into<String>, routes: RouteSource) -> Self {
        Self {
            stat_prefix: stat_prefix.into(),
            codec: Codec::Auto,
            routes,
            filters: vec![HttpFilter::Router { suppress_envoy_headers: false }],
            upgrades: Vec::new(),
            access_logs: Vec::new(),
            use_remote_address: false,
            xff_trusted_hops: 0,
            internal_addresses: Vec::new(),
            skip_xff_append: false,
            client_cert: ForwardClientCert::Sanitize,
            client_cert_details: ClientCertDetails::default(),
            server_name: "envoy".to_owned(),
            server_header: ServerHeader::Overwrite,
            generate_request_id: true,
            preserve_external_request_id: false,
            always_set_request_id_in_response: false,
            normalize_path: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::Keep,
            strip_port: StripPort::None,
            stream_idle_timeout: Some(Duration::from_secs(300)),
            request_timeout: None,
            request_headers_timeout: None,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            drain_timeout: Duration::from_secs(5),
            max_request_headers_kb: 60,
            max_concurrent_streams: 1024,
            mark_local_replies: false,
            local_replies: None,
        }
    }
}

/// Which HTTP version is expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// By ALPN, else by the preface.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Where routes come from.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one for each connection manager, never moved on the request path"
)]
pub enum RouteSource {
    /// Given here.
    Inline(RouteConfiguration),
    /// Asked of the control plane by name.
    Rds(String),
}

/// One HTTP filter.
#[derive(Clone, Debug, PartialEq)]
pub enum HttpFilter {
    /// Sends the request on. Always last.
    Router {
        /// Do not send `x-envoy-…` headers.
        suppress_envoy_headers: bool,
    },
    /// Authorization.
    Rbac {
        /// Enforced; `None`: nothing is.
        rules: Option<Rbac>,
        /// Only counted and logged.
        shadow_rules: Option<Rbac>,
    },
    /// Faults on purpose.
    Fault(FaultPolicy),
    /// Cross-origin requests; policies stand at routes.
    Cors,
    /// Header changes.
    HeaderMutation(HeaderMutation),
    /// Requests are sent on once they are whole.
    Buffer {
        /// Longest body; what is longer is answered with 413.
        bytes_max: u32,
    },
    /// Answers to health checks.
    HealthCheck(HealthCheckFilter),
    /// Limits of this proxy.
    LocalRateLimit(Box<LocalRateLimit>),
    /// JSON Web Tokens.
    JwtAuthn(Box<JwtAuthn>),
    /// A server that says whether requests may pass.
    ExtAuthz(Box<ExtAuthz>),
    /// A filter that runs only where a route switches it on. Envoy: `disabled`.
    OffByDefault(Box<Self>),
}

/// Faults on purpose. Envoy: `HTTPFault`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultPolicy {
    /// Wait this long for this share of requests.
    pub delay: Option<(Duration, Fraction)>,
    /// Answer with this status for this share of requests.
    pub abort: Option<(u16, Fraction)>,
    /// Answer with this status of gRPC for this share of requests.
    pub grpc_abort: Option<(u32, Fraction)>,
    /// Clients say how long to wait (`x-envoy-fault-delay-request`), for this share of requests at most.
    pub header_delay: Option<Fraction>,
    /// Clients say what to answer (`x-envoy-fault-abort-request`), for this share of requests at most.
    pub header_abort: Option<Fraction>,
    /// Only requests with all of these headers.
    pub headers: Vec<HeaderMatcher>,
}

/// Cross-origin policy. Envoy: `CorsPolicy`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CorsPolicy {
    /// Allowed origins.
    pub allow_origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`.
    pub allow_methods: String,
    /// `access-control-allow-headers`.
    pub allow_headers: String,
    /// `access-control-expose-headers`.
    pub expose_headers: String,
    /// `access-control-max-age`.
    pub max_age: String,
    /// `access-control-allow-credentials`.
    pub allow_credentials: Option<bool>,
}

/// An access log.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    /// Where lines go: a path; `/dev/stdout` and `/dev/stderr` are the process's own.
    pub path: String,
    /// How lines look.
    pub format: LogFormat,
    /// What has a line; `None`: everything.
    pub filter: Option<LogFilter>,
}

/// What is made of answers of the proxy's own. Envoy: `LocalReplyConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalReplies {
    /// The first one that takes an answer changes it.
    pub mappers: Vec<ReplyMapper>,
    /// What bodies look like where the mapper does not say it; `None`: the text alone.
    pub format: Option<ReplyFormat>,
}

/// Changes some answers of the proxy's own. Envoy: `ResponseMapper`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplyMapper {
    /// Which.
    pub filter: LogFilter,
    /// Another status.
    pub status: Option<u16>,
    /// Another text.
    pub body: Option<Vec<u8>>,
    /// What the body looks like.
    pub format: Option<ReplyFormat>,
    /// Headers that are added.
    pub headers: Vec<HeaderChange>,
}

/// What a body looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyFormat {
    /// A text or a JSON object.
    pub format: LogFormat,
    /// Empty: `text/plain` or `application/json`.
    pub content_type: String,
}

/// Which ports are cut off from `Host`, before anything else looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StripPort {
    /// None.
    #[default]
    None,
    /// The one that the connection came to.
    Matching,
    /// Any.
    Any,
}

/// How lines look; both hold Envoy's `%OPERATORS%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A text; `None` is Envoy's default line.
    Text(Option<String>),
    /// A JSON object: keys and formats in order.
    Json(Vec<(String, String)>),
}

/// What happens to `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ForwardClientCert {
    /// Removed.
    #[default]
    Sanitize,
    /// Passed on if the connection is mutual TLS.
    ForwardOnly,
    /// The client's certificate is added if the connection is mutual TLS.
    AppendForward,
    /// Replaced by the client's certificate if the connection is mutual TLS.
    SanitizeSet,
    /// Passed on whatever the connection is.
    AlwaysForwardOnly,
}

/// Parts of the client's certificate in `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientCertDetails {
    /// `Subject`.
    pub subject: bool,
    /// `Cert`: the PEM, URL encoded.
    pub cert: bool,
    /// `Chain`.
    pub chain: bool,
    /// `DNS`.
    pub dns: bool,
    /// `URI`.
    pub uri: bool,
}

/// What happens to the upstream's `server` header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ServerHeader {
    /// Replaced.
    #[default]
    Overwrite,
    /// Kept; set if missing.
    AppendIfAbsent,
    /// Kept; not set.
    PassThrough,
}

/// `%2F` and `%5C` in paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EscapedSlashes {
    /// Left as they are.
    #[default]
    Keep,
    /// Answered with 400.
    Reject,
    /// Decoded, answered with 307.
    UnescapeAndRedirect,
    /// Decoded.
    UnescapeAndForward,
}
