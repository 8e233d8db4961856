//! Settings of the filter that checks JSON Web Tokens (RFC 7519). Envoy: `JwtAuthentication`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::matcher::StringMatcher;
use crate::route::RouteMatch;
use crate::tls::DataSource;

/// Who issues tokens, and which requests need one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JwtAuthn {
    /// Issuers, by the name that requirements use.
    pub providers: BTreeMap<String, JwtProvider>,
    /// In order; the first that matches decides. A request that none matches needs no token.
    pub rules: Vec<JwtRule>,
    /// Requirements that routes and rules name.
    pub requirements: BTreeMap<String, JwtRequirement>,
    /// CORS preflights need no token.
    pub bypass_cors_preflight: bool,
    /// Refusals do not say why.
    pub strip_failure_response: bool,
    /// Prefix of statistics.
    pub stat_prefix: String,
}

/// One issuer. Envoy: `JwtProvider`.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtProvider {
    /// `iss` of its tokens; empty: any.
    pub issuer: String,
    /// One of these has to be in `aud`; none: any.
    pub audiences: Vec<String>,
    /// Its keys.
    pub keys: JwtKeys,
    /// Headers that hold tokens, and what stands before the token in them.
    pub from_headers: Vec<(String, String)>,
    /// Query parameters that hold tokens.
    pub from_params: Vec<String>,
    /// Cookies that hold tokens.
    pub from_cookies: Vec<String>,
    /// The token is sent on.
    pub forward: bool,
    /// Header for the token's payload, in base64url; empty: none.
    pub payload_header: String,
    /// That base64url is padded.
    pub pad_payload_header: bool,
    /// Headers for claims: name, and the way to the claim.
    pub claim_headers: Vec<(String, String)>,
    /// Which subjects it may speak of; `None`: any.
    pub subjects: Option<StringMatcher>,
    /// Tokens have to say when they end.
    pub require_expiration: bool,
    /// They end in this time at the latest; `None`: whenever.
    pub max_lifetime: Option<Duration>,
    /// The payload becomes metadata under this name; empty: none.
    pub payload_metadata: String,
    /// Claims that are lists there, divided by spaces.
    pub split_claims: Vec<String>,
    /// The token's header becomes metadata under this name; empty: none.
    pub header_metadata: String,
    /// A good token finds the route anew.
    pub clear_route_cache: bool,
    /// By how many seconds clocks may differ. Default 60.
    pub clock_skew_seconds: u32,
}

/// Keys of an issuer (RFC 7517).
#[derive(Clone, Debug, PartialEq)]
pub enum JwtKeys {
    /// Given here.
    Local(DataSource),
    /// Asked of a server.
    Remote(RemoteKeys),
}

/// Where keys are asked for. Envoy: `RemoteJwks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteKeys {
    /// Of the document.
    pub uri: String,
    /// Where the request is sent.
    pub cluster: String,
    /// Time for the answer.
    pub timeout: Duration,
    /// How long an answer is good. Default 10 min.
    pub cache: Duration,
    /// A new answer is asked for before the old one ends, while requests go on with that.
    pub ahead: bool,
}

/// Which requests need which tokens. Envoy: `RequirementRule`.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtRule {
    /// Which requests.
    pub matches: RouteMatch,
    /// What they need; `None`: nothing.
    pub requires: Option<JwtRequirement>,
}

/// What a request needs. Envoy: `JwtRequirement`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtRequirement {
    /// A token of this provider, for one of these audiences if any is given, else of the provider's.
    Provider {
        /// Its name.
        name: String,
        /// Instead of the provider's.
        audiences: Vec<String>,
    },
    /// One of these.
    Any(Vec<Self>),
    /// All of these.
    All(Vec<Self>),
    /// Tokens are checked if there are any.
    AllowMissing,
    /// Tokens are checked, and it does not matter what comes of it.
    AllowMissingOrFailed,
    /// That of this name.
    Named(String),
}

/// What a route says of the filter. Envoy: `PerRouteConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtOverride {
    /// No token is needed.
    Disabled,
    /// The requirement of this name.
    Requirement(String),
}
