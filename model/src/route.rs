//! Route configurations (RDS) and the route match.

use std::collections::HashMap;
use std::time::Duration;

use crate::cluster::Destination;
use crate::endpoint::Fraction;
pub use crate::filter::FilterOverrides;
use crate::internal_redirect::InternalRedirect;
use crate::matcher::{HeaderMatcher, QueryMatcher, Regex, RequestView};
use crate::metadata::Fields;
use crate::rate_limit::RateLimitActions;
use crate::retry::RetryPolicy;
use crate::tls::DataSource;

/// Virtual hosts under one name. Envoy: `RouteConfiguration`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteConfiguration {
    /// Its name; see [`crate::name::route_configuration`].
    pub name: String,
    /// The virtual hosts; no domain twice.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Header changes of every route.
    pub headers: HeaderChanges,
    /// Outermost level's header changes are applied last instead of first.
    pub most_specific_header_mutations_wins: bool,
    /// Filter settings for virtual hosts and routes without their own.
    pub filters: FilterOverrides,
}

/// Routes for some domains. Envoy: `VirtualHost`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VirtualHost {
    /// For people and logs.
    pub name: String,
    /// `api.example.com`, `*.example.com`, `api.*` or `*`; compared with `:authority` without
    /// regard to case, port included.
    pub domains: Vec<String>,
    /// In order; the first match decides.
    pub routes: Vec<Route>,
    /// Header changes of every route.
    pub headers: HeaderChanges,
    /// For routes without their own.
    pub retry: Option<RetryPolicy>,
    /// Send `x-envoy-attempt-count` upstream.
    pub include_attempt_count: bool,
    /// Send `x-envoy-attempt-count` back.
    pub include_attempt_count_in_response: bool,
    /// How requests are described to filters that limit them.
    pub rate_limits: Vec<RateLimitActions>,
    /// For routes without their own.
    pub filters: FilterOverrides,
}

/// One route. Envoy: `Route`.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// For people and logs: `<Route name>[<rule index>]`.
    pub name: String,
    /// What it matches.
    pub matches: RouteMatch,
    /// What is done.
    pub action: RouteAction,
    /// Header changes.
    pub headers: HeaderChanges,
    /// Filter settings for this route.
    pub filters: FilterOverrides,
}

/// What a route matches: all of these. Envoy: `RouteMatch`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteMatch {
    /// The path, without query.
    pub path: PathMatch,
    /// Compare paths with regard to case. Default true; no effect on a regex.
    pub case_sensitive: bool,
    /// All of these headers.
    pub headers: Vec<HeaderMatcher>,
    /// All of these query parameters.
    pub query: Vec<QueryMatcher>,
    /// Only requests with content-type `application/grpc` or `application/grpc+…`.
    pub grpc: bool,
    /// Only this share of requests.
    pub share: Option<Fraction>,
}

impl Default for RouteMatch {
    fn default() -> Self {
        Self {
            path: PathMatch::Prefix("/".to_owned()),
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            grpc: false,
            share: None,
        }
    }
}

/// How the path is matched.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// Begins with. Envoy: `prefix`.
    Prefix(String),
    /// Is. Envoy: `path`.
    Exact(String),
    /// Is, or begins with it and `/`. Envoy: `path_separated_prefix`.
    SegmentPrefix(String),
    /// The whole path by regular expression. Envoy: `safe_regex`.
    Regex(Regex),
    /// A CONNECT request. Envoy: `connect_matcher`.
    Connect,
}

/// What is done with a request that matched.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteAction {
    /// Sent upstream. Boxed: it is much larger than the others.
    Forward(Box<Forward>),
    /// Answered with a redirect.
    Redirect(Redirect),
    /// Answered here.
    Respond {
        /// Status code, 200 to 599.
        status: u16,
        /// Body.
        body: Vec<u8>,
    },
    /// Answered here, with a body that stands elsewhere when configuration is read.
    RespondFrom {
        /// Status code, 200 to 599.
        status: u16,
        /// Where the body is.
        body: DataSource,
    },
    /// Accepted without forwarding (gRPC servers). Envoy: `non_forwarding_action`.
    NonForwarding,
}

/// Sent upstream. Envoy: `RouteAction`.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// Where to.
    pub to: ClusterChoice,
    /// Labels of the endpoints wanted (subset selection); empty: the cluster's fallback.
    pub metadata_match: Fields,
    /// Answer when the cluster does not exist. Default 503.
    pub cluster_missing_status: u16,
    /// Path rewrite.
    pub rewrite: Option<PathRewrite>,
    /// Authority rewrite.
    pub host_rewrite: Option<HostRewrite>,
    /// The authority that is rewritten is added to `x-forwarded-host`.
    pub append_forwarded_host: bool,
    /// Time for the whole answer; `None`: no limit. Default 15 s.
    pub timeout: Option<Duration>,
    /// Time without a byte in either direction; `None`: the listener's.
    pub idle_timeout: Option<Duration>,
    /// Longest life of a stream; `None`: no limit. For gRPC it caps `grpc-timeout`.
    pub max_stream_duration: Option<Duration>,
    /// `grpc-timeout` is honoured up to this (`grpc_timeout_header_max`); `Some(0)`: without cap.
    pub grpc_timeout_max: Option<Duration>,
    /// Retry policy; `None`: the virtual host's.
    pub retry: Option<RetryPolicy>,
    /// Copies of requests.
    pub mirrors: Vec<Mirror>,
    /// What consistent hashing hashes.
    pub hash: Vec<HashPolicy>,
    /// Upgrades switched on or off for this route: protocol, enabled.
    pub upgrades: Vec<(String, bool)>,
    /// Uses the cluster's limits of high priority.
    pub high_priority: bool,
    /// How requests are described to filters that limit them.
    pub rate_limits: Vec<RateLimitActions>,
    /// They are also described as the virtual host says.
    pub include_host_rate_limits: bool,
    /// Redirects of the upstream that are followed here.
    pub internal_redirect: Option<Box<InternalRedirect>>,
}

impl Forward {
    /// To one cluster, with Envoy's defaults.
    pub fn to(cluster: impl Into<String>) -> Self {
        Self {
            to: ClusterChoice::Cluster(cluster.into()),
            metadata_match: Fields::new(),
            cluster_missing_status: 503,
            rewrite: None,
            host_rewrite: None,
            append_forwarded_host: false,
            timeout: Some(Duration::from_secs(15)),
            idle_timeout: None,
            max_stream_duration: None,
            grpc_timeout_max: None,
            retry: None,
            mirrors: Vec::new(),
            hash: Vec::new(),
            upgrades: Vec::new(),
            high_priority: false,
            rate_limits: Vec::new(),
            include_host_rate_limits: false,
            internal_redirect: None,
        }
    }
}

/// Where a request is sent.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterChoice {
    /// One cluster.
    Cluster(String),
    /// The cluster a request header names.
    Header(String),
    /// One of several, by weight.
    Weighted(Vec<WeightedCluster>),
}

/// One of several clusters. Envoy: `WeightedCluster.ClusterWeight`.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: String,
    /// Its share of the sum of all weights.
    pub weight: u32,
    /// Labels of the endpoints wanted, beside and instead of those of the route.
    pub metadata_match: Fields,
    /// Header changes.
    pub headers: HeaderChanges,
    /// Filter settings of requests that go there.
    pub filters: FilterOverrides,
}

/// Path rewrite.
#[derive(Clone, Debug, PartialEq)]
pub enum PathRewrite {
    /// Replaces what the match's prefix (or exact path) matched.
    Prefix(String),
    /// Replaces every match of the expression; `\1` names a group.
    Regex {
        /// The expression (not anchored).
        pattern: String,
        /// The replacement.
        substitution: String,
    },
}

/// Authority rewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRewrite {
    /// This text.
    Literal(String),
    /// A request header's value.
    Header(String),
    /// The chosen endpoint's host name (DNS clusters).
    Auto,
    /// The path without query, every match of the expression replaced; `\1` names a group.
    PathRegex {
        /// The expression (not anchored).
        pattern: String,
        /// The replacement.
        substitution: String,
    },
}

/// A redirect. Envoy: `RedirectAction`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308. 0 counts as 301.
    pub status: u16,
    /// New scheme; `https_redirect` is `https`.
    pub scheme: Option<String>,
    /// New host.
    pub host: Option<String>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<RedirectPath>,
    /// Drop the query.
    pub strip_query: bool,
}

/// New path of a redirect.
#[derive(Clone, Debug, PartialEq)]
pub enum RedirectPath {
    /// This path (which may hold a query).
    Full(String),
    /// As the route's rewrite.
    Rewrite(PathRewrite),
}

/// Copies requests to another cluster and forgets the answers. Envoy: `RequestMirrorPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// The cluster.
    pub cluster: String,
    /// Share of requests copied; `None`: all.
    pub share: Option<Fraction>,
}

/// What consistent hashing hashes. Envoy: `HashPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct HashPolicy {
    /// The source.
    pub source: HashSource,
    /// Stop here if there is a hash.
    pub terminal: bool,
}

/// Source of a hash.
#[derive(Clone, Debug, PartialEq)]
pub enum HashSource {
    /// A request header.
    Header(String),
    /// A cookie, made with this lifetime and path if missing and a lifetime is given.
    Cookie {
        /// Name.
        name: String,
        /// Lifetime of a generated cookie; `None`: none is generated; zero: a session cookie.
        ttl: Option<Duration>,
        /// Path of a generated cookie.
        path: String,
    },
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(String),
}

/// Headers added and removed on the way up and on the way down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// On requests.
    pub request: Vec<HeaderChange>,
    /// On responses.
    pub response: Vec<HeaderChange>,
}

impl HeaderChanges {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// One change. At each level removals come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderChange {
    /// Removes every value.
    Remove(String),
    /// Sets or adds a value.
    Add {
        /// Lower-case name.
        name: String,
        /// Value; may hold Envoy's format operators such as `%DOWNSTREAM_REMOTE_ADDRESS%`.
        value: String,
        /// What happens to values already there.
        append: Append,
        /// Also add an empty value. Default: an empty value is not added.
        keep_empty: bool,
    },
}

/// What happens to values already there. Envoy: `HeaderAppendAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Append {
    /// Added beside them.
    #[default]
    AppendIfExistsOrAdd,
    /// Only added if there is none.
    AddIfAbsent,
    /// Replaces them.
    OverwriteIfExistsOrAdd,
    /// Replaces them; not added if there is none.
    OverwriteIfExists,
}

/// A route configuration compiled for lookup: virtual hosts by domain.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    configuration: RouteConfiguration,
    exact: HashMap<String, usize>,
    /// Suffixes with their leading `*` removed, longest first.
    suffixes: Vec<(String, usize)>,
    /// Prefixes with their trailing `*` removed, longest first.
    prefixes: Vec<(String, usize)>,
    any: Option<usize>,
}

/// A domain that stands in two virtual hosts, or one that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// Twice.
    #[error(
        "route configuration `{configuration}`: domain `{domain}` is in more than one virtual host; each domain may be in one"
    )]
    Duplicate {
        /// The route configuration.
        configuration: String,
        /// The domain.
        domain: String,
    },
    /// A star in the middle.
    #[error(
        "route configuration `{configuration}`: domain `{domain}` has a `*` that is neither first nor last"
    )]
    Wildcard {
        /// The route configuration.
        configuration: String,
        /// The domain.
        domain: String,
    },
}

impl RouteTable {
    /// Compiles `configuration`.
    ///
    /// # Errors
    ///
    /// [`DomainError`] about the first domain that is there twice or not valid.
    pub fn compile(configuration: RouteConfiguration) -> Result<Self, DomainError> {
        let mut table = Self::default();
        for (at, host) in configuration.virtual_hosts.iter().enumerate() {
            for domain in &host.domains {
                let lower = domain.to_ascii_lowercase();
                let duplicate = || DomainError::Duplicate {
                    configuration: configuration.name.clone(),
                    domain: domain.clone(),
                };
                let wildcard = || DomainError::Wildcard {
                    configuration: configuration.name.clone(),
                    domain: domain.clone(),
                };
                let is_new = if lower == "*" {
                    table.any.replace(at).is_none()
                } else if let Some(suffix) = lower.strip_prefix('*') {
                    if suffix.contains('*') {
                        return Err(wildcard());
                    }
                    push_new(&mut table.suffixes, suffix, at)
                } else if let Some(prefix) = lower.strip_suffix('*') {
                    if prefix.contains('*') {
                        return Err(wildcard());
                    }
                    push_new(&mut table.prefixes, prefix, at)
                } else if lower.contains('*') {
                    return Err(wildcard());
                } else {
                    table.exact.insert(lower, at).is_none()
                };
                if !is_new {
                    return Err(duplicate());
                }
            }
        }
        table.suffixes.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        table.prefixes.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        table.configuration = configuration;
        Ok(table)
    }

    /// The configuration this was compiled from.
    pub fn configuration(&self) -> &RouteConfiguration {
        &self.configuration
    }

    /// The index of the virtual host for `authority`: exact, longest suffix, longest prefix, `*`.
    /// A wildcard never stands for nothing.
    pub fn virtual_host(&self, authority: &str) -> Option<usize> {
        let lower;
        let authority = if authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lower = authority.to_ascii_lowercase();
            &lower
        } else {
            authority
        };
        let longer = |text: &str| authority.len() > text.len();
        self.exact
            .get(authority)
            .copied()
            .or_else(|| find(&self.suffixes, |text| longer(text) && authority.ends_with(text)))
            .or_else(|| find(&self.prefixes, |text| longer(text) && authority.starts_with(text)))
            .or(self.any)
    }

    /// The virtual host and the first of its routes that matches, as indices into the
    /// configuration. `draw` is uniform over all `u64`.
    pub fn find(&self, request: &dyn RequestView, draw: u64) -> Option<(usize, usize)> {
        let host = self.virtual_host(request.authority())?;
        let routes = &self.configuration.virtual_hosts[host].routes;
        let route = routes.iter().position(|route| route.matches.is_match(request, draw))?;
        Some((host, route))
    }

    /// The virtual host and route at the indices [`RouteTable::find`] gave.
    pub fn at(&self, (host, route): (usize, usize)) -> (&VirtualHost, &Route) {
        let host = &self.configuration.virtual_hosts[host];
        (host, &host.routes[route])
    }
}

fn push_new(list: &mut Vec<(String, usize)>, text: &str, at: usize) -> bool {
    if list.iter().any(|(have, _)| have == text) {
        return false;
    }
    list.push((text.to_owned(), at));
    true
}

fn find(list: &[(String, usize)], matches: impl Fn(&str) -> bool) -> Option<usize> {
    list.iter().find(|(text, _)| matches(text)).map(|&(_, at)| at)
}

impl RouteMatch {
    /// Whether `request` matches.
    pub fn is_match(&self, request: &dyn RequestView, draw: u64) -> bool {
        self.path.is_match(request, self.case_sensitive)
            && (!self.grpc || is_grpc(request))
            && self.headers.iter().all(|matcher| matcher.is_match(request))
            && self.query.iter().all(|matcher| matcher.is_match(request.query()))
            && self.share.is_none_or(|share| share.hits(draw))
    }
}

impl PathMatch {
    /// Whether the request's path matches.
    pub fn is_match(&self, request: &dyn RequestView, case_sensitive: bool) -> bool {
        let path = request.path();
        if matches!(self, Self::Connect) {
            return request.method() == "CONNECT";
        }
        let same = |a: &str, b: &str| if case_sensitive { a == b } else { a.eq_ignore_ascii_case(b) };
        let starts = |prefix: &str| {
            path.is_char_boundary(prefix.len())
                && path.len() >= prefix.len()
                && same(&path[..prefix.len()], prefix)
        };
        match self {
            Self::Prefix(prefix) => starts(prefix),
            Self::Exact(exact) => same(path, exact),
            Self::SegmentPrefix(prefix) => {
                starts(prefix) && (path.len() == prefix.len() || path.as_bytes()[prefix.len()] == b'/')
            }
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
            Self::Connect => false,
        }
    }
}

impl ClusterChoice {
    /// The weighted cluster that `draw` (uniform over all `u64`) falls on; `None` if all weights
    /// are 0 or this is not a weighted choice.
    pub fn weighted(&self, draw: u64) -> Option<&WeightedCluster> {
        let Self::Weighted(clusters) = self else { return None };
        let total: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
        let mut rest = draw.checked_rem(total)?;
        clusters.iter().find(|cluster| {
            let weight = u64::from(cluster.weight);
            let hit = rest < weight;
            rest = rest.wrapping_sub(weight);
            hit
        })
    }
}

/// Whether a request is gRPC by its content type.
pub fn is_grpc(request: &dyn RequestView) -> bool {
    let mut grpc = false;
    request.header("content-type", &mut |value| grpc |= is_grpc_content_type(value));
    grpc
}

/// Whether a content type is gRPC's: `application/grpc` or `application/grpc+…`.
pub fn is_grpc_content_type(value: &[u8]) -> bool {
    value
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
}

/// The service, subset and port a cluster name stands for, if it is one of the mesh's own.
pub fn destination_of(cluster: &str) -> Option<Destination> {
    let (port, subset, service) = crate::name::parse_outbound_cluster(cluster)?;
    Some(Destination { service: service.to_string(), subset: subset.to_owned(), port: port.to_owned() })
}
