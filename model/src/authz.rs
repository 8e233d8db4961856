//! Settings of the filter that asks a server whether requests may pass. Envoy: `ExtAuthz`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::endpoint::Fraction;
use crate::matcher::StringMatcher;

/// Asks a server whether requests may pass.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtAuthz {
    /// Who is asked.
    pub service: AuthzService,
    /// What cannot be asked passes.
    pub failure_mode_allow: bool,
    /// What passes so is told to the upstream (`x-envoy-auth-failure-mode-allowed`).
    pub failure_mode_header: bool,
    /// Answer where nobody can be asked. Default 403.
    pub status_on_error: u16,
    /// The body is shown.
    pub body: Option<AuthzBody>,
    /// An answer with a header that cannot be one is answered with 500.
    pub validate_mutations: bool,
    /// Headers that are shown; none: of a gRPC service all.
    pub allowed_headers: Vec<StringMatcher>,
    /// Headers that are not shown.
    pub disallowed_headers: Vec<StringMatcher>,
    /// Share of requests that are asked about. Default all.
    pub enabled: Fraction,
    /// The server name of TLS is shown.
    pub tls_session: bool,
    /// Prefix of statistics.
    pub stat_prefix: String,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthzService {
    /// `envoy.service.auth.v3.Authorization`.
    Grpc {
        /// Where it is.
        cluster: String,
        /// `:authority`; empty: the cluster's name.
        authority: String,
        /// Time for the answer; `None`: no limit.
        timeout: Option<Duration>,
        /// Headers of the question.
        metadata: Vec<(String, String)>,
    },
    /// A server that gets the request's head and answers with a status.
    Http(AuthzHttp),
}

/// A server that gets the request's head and answers with a status. Envoy: `HttpService`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthzHttp {
    /// Its URI, for people.
    pub uri: String,
    /// Where it is.
    pub cluster: String,
    /// Time for the answer; zero: no limit.
    pub timeout: Duration,
    /// What stands before the request's path.
    pub path_prefix: String,
    /// Headers of the question.
    pub headers: Vec<(String, String)>,
    /// Headers of a good answer that replace the request's.
    pub upstream_headers: Vec<StringMatcher>,
    /// Headers of a good answer that are added to the request's.
    pub upstream_headers_append: Vec<StringMatcher>,
    /// Headers of a refusal that the client gets; none: all.
    pub client_headers: Vec<StringMatcher>,
    /// Headers of a good answer that the client gets with its response.
    pub client_headers_on_success: Vec<StringMatcher>,
}

/// How the body is shown. Envoy: `BufferSettings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthzBody {
    /// As much of it.
    pub bytes_max: u32,
    /// What is longer is shown in part; else it is answered with 413.
    pub partial: bool,
    /// As bytes rather than as text.
    pub as_bytes: bool,
}

/// What a route says of the filter. Envoy: `ExtAuthzPerRoute`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthzOverride {
    /// Nobody is asked.
    Disabled,
    /// How it is asked.
    Settings {
        /// Told to the server.
        extensions: BTreeMap<String, String>,
        /// Replaces how the body is shown; `Some(None)`: not at all.
        body: Option<Option<AuthzBody>>,
    },
}
