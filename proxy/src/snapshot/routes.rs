//! Compiled route configurations: the model's table for the match, and beside it, by the same
//! indices, what is done.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use pillion_model::endpoint::Fraction;
use pillion_model::internal_redirect::InternalRedirect;
use pillion_model::matcher::RequestView;
use pillion_model::metadata::Fields;
use pillion_model::route::{
    self as model, ClusterChoice, Forward, HashPolicy, HostRewrite, PathMatch, PathRewrite, Redirect,
    RouteAction, RouteConfiguration, RouteTable,
};
use pillion_model::tls::DataSource;

use super::Compiler;
use super::filters::{Overrides, RouteFilters, Switches};
use crate::filters::local_rate_limit::Limit;
use crate::headers::changes::Changes;
use crate::metrics::Symbol;
use crate::router::rewrite::PathRewriter;
use crate::upstream::{Cluster, ClusterMap, Selection};

/// A compiled route configuration.
pub(crate) struct RouteConfig {
    table: RouteTable,
    changes: Changes,
    most_specific_wins: bool,
    filters: Option<Box<RouteFilters>>,
    hosts: Vec<VirtualHost>,
    /// Request headers that response header changes read.
    pub(crate) read_by_responses: Vec<HeaderName>,
    /// Whether it answers requests to every host itself.
    pub(crate) answers_everything: bool,
    /// Every cluster handle used, to see whether compiling again gives the same.
    used: Vec<(String, Option<Arc<Cluster>>)>,
}

struct VirtualHost {
    changes: Changes,
    filters: Option<Box<RouteFilters>>,
    routes: Vec<Route>,
}

/// A compiled route.
pub(crate) struct Route {
    pub(crate) name: String,
    pub(crate) symbol: Symbol,
    pub(crate) action: Action,
    changes: Changes,
    filters: Option<Box<RouteFilters>>,
    /// Filters that the route, its virtual host and its configuration switch on and off.
    switches: Switches,
}

/// What is done.
pub(crate) enum Action {
    Forward(Box<ForwardTo>),
    Redirect { redirect: Redirect, rewrite: Option<PathRewriter> },
    Respond { status: StatusCode, body: bytes::Bytes },
    NonForwarding,
}

/// Compiled [`Forward`].
pub(crate) struct ForwardTo {
    pub(crate) to: ClusterRef,
    pub(crate) cluster_missing_status: StatusCode,
    pub(crate) rewrite: Option<PathRewriter>,
    pub(crate) host_rewrite: Option<HostRewrite>,
    /// Of a host that is made from the path.
    pub(crate) host_by_path: Option<PathRewriter>,
    pub(crate) append_forwarded_host: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_stream_duration: Option<Duration>,
    pub(crate) grpc_timeout_max: Option<Duration>,
    pub(crate) retry: Option<Arc<pillion_model::retry::RetryPolicy>>,
    pub(crate) mirrors: Vec<Mirror>,
    pub(crate) hash: Vec<HashPolicy>,
    pub(crate) upgrades: Vec<(String, bool)>,
    pub(crate) high_priority: bool,
    pub(crate) internal_redirect: Option<Box<InternalRedirect>>,
    pub(crate) include_attempt_count: bool,
    pub(crate) include_attempt_count_in_response: bool,
}

/// A compiled mirror.
pub(crate) struct Mirror {
    pub(crate) to: ClusterRef,
    pub(crate) share: Option<Fraction>,
}

/// Where a request goes, decided as far as configuration can.
pub(crate) enum ClusterRef {
    /// A cluster that exists.
    Ready(Target),
    /// One that does not.
    Missing(String),
    /// Named by a request header, with the labels that its endpoints should have.
    FromHeader(HeaderName, Fields),
    /// One of several.
    Weighted { total: u64, choices: Vec<Choice> },
}

/// One of several clusters.
pub(crate) struct Choice {
    pub(crate) to: ClusterRef,
    pub(crate) weight: u64,
    pub(crate) changes: Changes,
    filters: Option<Box<RouteFilters>>,
}

/// A cluster and what it is called in metrics.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) service: Symbol,
    pub(crate) subset: Symbol,
    /// Which of its endpoints are asked for.
    pub(crate) selection: Selection,
}

/// The virtual host and route a request matched; keeps the configuration alive.
#[derive(Clone)]
pub(crate) struct Routed {
    config: Arc<RouteConfig>,
    at: (usize, usize),
}

impl RouteConfig {
    /// Compiles; gives `old` back if nothing changed.
    pub(super) fn compile(
        compiler: &Compiler<'_>,
        configuration: &RouteConfiguration,
        clusters: &ClusterMap,
        old: Option<&Arc<Self>>,
    ) -> Result<Arc<Self>, String> {
        if let Some(old) = old
            && old.table.configuration() == configuration
            && old.used.iter().all(|(name, had)| same(had.as_ref(), clusters.get(name)))
        {
            return Ok(Arc::clone(old));
        }
        let mut used = Vec::new();
        let filters =
            RouteFilters::compile(&configuration.filters, old.and_then(|old| old.filters.as_deref()))?;
        let outer = Outer { compiler, clusters, switches: switches(&filters) };
        let hosts = configuration
            .virtual_hosts
            .iter()
            .enumerate()
            .map(|(at, host)| {
                VirtualHost::compile(outer, host, old.and_then(|old| old.hosts.get(at)), &mut used)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut config = Self {
            filters,
            table: RouteTable::compile(configuration.clone()).map_err(|error| error.to_string())?,
            changes: Changes::compile(&configuration.headers)?,
            most_specific_wins: configuration.most_specific_header_mutations_wins,
            hosts,
            read_by_responses: Vec::new(),
            answers_everything: answers_everything(configuration),
            used,
        };
        let by_changes = config.all_changes().flat_map(Changes::request_headers);
        let by_filters = config.all_filters().flat_map(RouteFilters::read_by_answers);
        config.read_by_responses = by_changes.chain(by_filters).cloned().collect();
        Ok(Arc::new(config))
    }

    /// The route of a request; `draw` is the stream's random number.
    pub(crate) fn find(self: &Arc<Self>, request: &dyn RequestView, draw: u64) -> Option<Routed> {
        let at = self.table.find(request, draw)?;
        Some(Routed { config: Arc::clone(self), at })
    }

    /// Every limit that stands at a route or around it.
    pub(crate) fn limits(&self) -> impl Iterator<Item = &Arc<Limit>> {
        self.all_filters().filter_map(RouteFilters::limit)
    }

    fn all_filters(&self) -> impl Iterator<Item = &RouteFilters> {
        self.filters.as_deref().into_iter().chain(self.hosts.iter().flat_map(|host| {
            host.filters.as_deref().into_iter().chain(host.routes.iter().flat_map(Route::all_filters))
        }))
    }

    fn all_changes(&self) -> impl Iterator<Item = &Changes> {
        std::iter::once(&self.changes).chain(self.hosts.iter().flat_map(|host| {
            std::iter::once(&host.changes).chain(host.routes.iter().flat_map(Route::all_changes))
        }))
    }
}

/// What is known around a virtual host or route when it is compiled.
#[derive(Clone, Copy)]
struct Outer<'a> {
    compiler: &'a Compiler<'a>,
    clusters: &'a ClusterMap,
    switches: Switches,
}

fn switches(filters: &Option<Box<RouteFilters>>) -> Switches {
    filters.as_ref().map(|filters| filters.switches).unwrap_or_default()
}

fn answers_everything(configuration: &RouteConfiguration) -> bool {
    let everything = |host: &&model::VirtualHost| host.domains.iter().any(|domain| domain == "*");
    let host = configuration.virtual_hosts.iter().find(everything);
    let first = host.and_then(|host| host.routes.first());
    first.is_some_and(|route| matches!(route.action, RouteAction::Respond { .. }))
}

fn same(a: Option<&Arc<Cluster>>, b: Option<&Arc<Cluster>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

impl VirtualHost {
    fn compile(
        outer: Outer<'_>,
        host: &model::VirtualHost,
        old: Option<&Self>,
        used: &mut Vec<(String, Option<Arc<Cluster>>)>,
    ) -> Result<Self, String> {
        let at = |reason: String| format!("virtual host `{}`: {reason}", host.name);
        let filters =
            RouteFilters::compile(&host.filters, old.and_then(|old| old.filters.as_deref())).map_err(at)?;
        let outer = Outer { switches: outer.switches.under(switches(&filters)), ..outer };
        let routes = host
            .routes
            .iter()
            .enumerate()
            .map(|(index, route)| {
                Route::compile(outer, host, route, old.and_then(|old| old.routes.get(index)), used)
                    .map_err(|reason| at(format!("route `{}`: {reason}", route.name)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { changes: Changes::compile(&host.headers).map_err(at)?, filters, routes })
    }
}

impl Route {
    fn compile(
        outer: Outer<'_>,
        host: &model::VirtualHost,
        route: &model::Route,
        old: Option<&Self>,
        used: &mut Vec<(String, Option<Arc<Cluster>>)>,
    ) -> Result<Self, String> {
        let Outer { compiler, clusters, switches: around } = outer;
        let action = match &route.action {
            RouteAction::Forward(forward) => {
                let old = old.map(|old| &old.action);
                Action::Forward(Box::new(ForwardTo::compile(
                    compiler, host, route, forward, clusters, old, used,
                )?))
            }
            RouteAction::Redirect(redirect) => Action::Redirect {
                rewrite: match &redirect.path {
                    Some(model::RedirectPath::Rewrite(rewrite)) => {
                        Some(PathRewriter::compile(rewrite, &route.matches)?)
                    }
                    _ => None,
                },
                redirect: redirect.clone(),
            },
            RouteAction::Respond { status, body } => {
                Action::Respond { status: status_code(*status)?, body: bytes::Bytes::copy_from_slice(body) }
            }
            RouteAction::RespondFrom { status, body } => {
                Action::Respond { status: status_code(*status)?, body: read_body(body)?.into() }
            }
            RouteAction::NonForwarding => Action::NonForwarding,
        };
        let filters = RouteFilters::compile(&route.filters, old.and_then(|old| old.filters.as_deref()))?;
        Ok(Self {
            name: route.name.clone(),
            symbol: compiler.symbols.intern(&route.name),
            action,
            changes: Changes::compile(&route.headers)?,
            switches: around.under(switches(&filters)),
            filters,
        })
    }

    fn choices(&self) -> &[Choice] {
        match &self.action {
            Action::Forward(forward) => forward.to.choices(),
            _ => &[],
        }
    }

    fn all_filters(&self) -> impl Iterator<Item = &RouteFilters> {
        let choices = self.choices().iter().filter_map(|choice| choice.filters.as_deref());
        self.filters.as_deref().into_iter().chain(choices)
    }

    fn all_changes(&self) -> impl Iterator<Item = &Changes> {
        std::iter::once(&self.changes).chain(self.choices().iter().map(|choice| &choice.changes))
    }
}

/// A body that is answered with.
fn read_body(source: &DataSource) -> Result<Vec<u8>, String> {
    let (name, body) = match source {
        DataSource::Inline(body) => ("inline", Ok(body.clone())),
        DataSource::File(path) => (path.as_str(), std::fs::read(path).map_err(|error| error.to_string())),
        DataSource::Environment(name) => {
            let value = std::env::var(name).map(String::into_bytes);
            (name.as_str(), value.map_err(|error| error.to_string()))
        }
    };
    let body = body.map_err(|error| format!("direct_response body `{name}`: {error}"))?;
    if body.len() > BODY_BYTES_MAX {
        let length = body.len();
        return Err(format!(
            "direct_response body `{name}`: has {length} bytes, want {BODY_BYTES_MAX} or fewer"
        ));
    }
    Ok(body)
}

/// The longest body that is read from elsewhere.
const BODY_BYTES_MAX: usize = 1 << 20;

fn status_code(status: u16) -> Result<StatusCode, String> {
    StatusCode::from_u16(status)
        .ok()
        .filter(|status| status.as_u16() >= 200)
        .ok_or_else(|| format!("status {status}: want 200 to 599"))
}

impl ForwardTo {
    fn compile(
        compiler: &Compiler<'_>,
        host: &model::VirtualHost,
        route: &model::Route,
        forward: &Forward,
        clusters: &ClusterMap,
        old: Option<&Action>,
        used: &mut Vec<(String, Option<Arc<Cluster>>)>,
    ) -> Result<Self, String> {
        let old = match old {
            Some(Action::Forward(old)) => old.to.choices(),
            _ => &[],
        };
        let to = ClusterRef::compile(compiler, forward, clusters, old)?;
        to.note_used(used, clusters);
        let mirrors: Vec<Mirror> = forward
            .mirrors
            .iter()
            .map(|mirror| Mirror {
                to: ClusterRef::find(compiler, &mirror.cluster, clusters),
                share: mirror.share,
            })
            .collect();
        for mirror in &mirrors {
            mirror.to.note_used(used, clusters);
        }
        if let Some(HostRewrite::Literal(text)) = &forward.host_rewrite {
            HeaderValue::from_str(text).map_err(|_| format!("host rewrite `{text}` is not a host"))?;
        }
        let rewrite: Option<&PathRewrite> = forward.rewrite.as_ref();
        if matches!(route.matches.path, PathMatch::Connect) && rewrite.is_some() {
            return Err("a CONNECT route has no path to rewrite".to_owned());
        }
        Ok(Self {
            to,
            cluster_missing_status: status_code(forward.cluster_missing_status)?,
            rewrite: rewrite.map(|rewrite| PathRewriter::compile(rewrite, &route.matches)).transpose()?,
            host_by_path: match &forward.host_rewrite {
                Some(HostRewrite::PathRegex { pattern, substitution }) => {
                    let (pattern, substitution) = (pattern.clone(), substitution.clone());
                    let rewrite = PathRewrite::Regex { pattern, substitution };
                    Some(PathRewriter::compile(&rewrite, &route.matches)?)
                }
                _ => None,
            },
            host_rewrite: forward.host_rewrite.clone(),
            append_forwarded_host: forward.append_forwarded_host,
            timeout: forward.timeout.filter(|timeout| !timeout.is_zero()),
            idle_timeout: forward.idle_timeout,
            max_stream_duration: forward.max_stream_duration.filter(|limit| !limit.is_zero()),
            grpc_timeout_max: forward.grpc_timeout_max,
            retry: forward.retry.as_ref().or(host.retry.as_ref()).cloned().map(Arc::new),
            mirrors,
            hash: forward.hash.clone(),
            upgrades: forward.upgrades.clone(),
            high_priority: forward.high_priority,
            internal_redirect: forward.internal_redirect.clone(),
            include_attempt_count: host.include_attempt_count,
            include_attempt_count_in_response: host.include_attempt_count_in_response,
        })
    }
}

impl ClusterRef {
    fn compile(
        compiler: &Compiler<'_>,
        forward: &Forward,
        clusters: &ClusterMap,
        old: &[Choice],
    ) -> Result<Self, String> {
        let labels = &forward.metadata_match;
        Ok(match &forward.to {
            ClusterChoice::Cluster(name) => Self::find(compiler, name, clusters).asking(labels)?,
            ClusterChoice::Header(name) => {
                // Any of them may be named.
                for cluster in clusters.values() {
                    cluster.select(labels);
                }
                let name = HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| format!("`{name}` is not a header name"))?;
                Self::FromHeader(name, labels.clone())
            }
            ClusterChoice::Weighted(list) => {
                let choices = list
                    .iter()
                    .enumerate()
                    .map(|(at, entry)| {
                        let old = old.get(at).and_then(|old| old.filters.as_deref());
                        let mut labels = labels.clone();
                        labels.extend(entry.metadata_match.clone());
                        Ok(Choice {
                            to: Self::find(compiler, &entry.cluster, clusters).asking(&labels)?,
                            weight: u64::from(entry.weight),
                            changes: Changes::compile(&entry.headers)?,
                            filters: RouteFilters::compile(&entry.filters, old)?,
                        })
                    })
                    .collect::<Result<Vec<_>, String>>()?;
                let total: u64 = choices.iter().map(|choice| choice.weight).sum();
                if total == 0 {
                    return Err("weighted clusters: the sum of all weights is 0, want 1 or more".to_owned());
                }
                Self::Weighted { total, choices }
            }
        })
    }

    /// The cluster of that name.
    pub(crate) fn find(compiler: &Compiler<'_>, name: &str, clusters: &ClusterMap) -> Self {
        match clusters.get(name) {
            Some(cluster) => Self::Ready(Target::new(compiler, cluster)),
            None => Self::Missing(name.to_owned()),
        }
    }

    /// The same, for endpoints with these labels.
    fn asking(mut self, labels: &Fields) -> Result<Self, String> {
        if let Self::Ready(target) = &mut self {
            if !labels.is_empty() && target.cluster.is_aggregate() {
                let name = target.cluster.name();
                return Err(format!("metadata_match: is not supported for `{name}`, an aggregate cluster"));
            }
            target.selection = target.cluster.select(labels);
        }
        Ok(self)
    }

    /// Header changes of one of several clusters.
    pub(crate) fn changes_of(&self, choice: usize) -> Option<&Changes> {
        self.choices().get(choice).map(|choice| &choice.changes)
    }

    /// The several clusters.
    fn choices(&self) -> &[Choice] {
        match self {
            Self::Weighted { choices, .. } => choices,
            _ => &[],
        }
    }

    fn note_used(&self, used: &mut Vec<(String, Option<Arc<Cluster>>)>, clusters: &ClusterMap) {
        match self {
            Self::Ready(target) => {
                used.push((target.cluster.name().to_owned(), Some(Arc::clone(&target.cluster))));
            }
            Self::Missing(name) => used.push((name.clone(), clusters.get(name).cloned())),
            Self::FromHeader(..) => {}
            Self::Weighted { choices, .. } => {
                for choice in choices {
                    choice.to.note_used(used, clusters);
                }
            }
        }
    }
}

impl Target {
    fn new(compiler: &Compiler<'_>, cluster: &Arc<Cluster>) -> Self {
        Self::with_symbols(compiler.symbols, compiler.own_service, cluster)
    }

    /// A cluster under the names that metrics use.
    pub(crate) fn with_symbols(
        symbols: &crate::metrics::Symbols,
        own_service: &str,
        cluster: &Arc<Cluster>,
    ) -> Self {
        let (service, subset) = match &cluster.config.destination {
            Some(destination) => (symbols.intern(&destination.service), symbols.intern(&destination.subset)),
            None if cluster.name().starts_with("inbound|") => (symbols.intern(own_service), Symbol::EMPTY),
            None => (symbols.intern(cluster.name()), Symbol::EMPTY),
        };
        Self { cluster: Arc::clone(cluster), service, subset, selection: Selection::default() }
    }
}

impl Routed {
    /// The configuration it is from.
    pub(crate) fn config(&self) -> &RouteConfig {
        &self.config
    }

    /// The route.
    pub(crate) fn route(&self) -> &Route {
        &self.config.hosts[self.at.0].routes[self.at.1]
    }

    /// The virtual host and the route as they are written.
    pub(crate) fn model(&self) -> (&model::VirtualHost, &model::Route) {
        self.config.table.at(self.at)
    }

    /// Filter settings, given the weighted cluster chosen.
    pub(crate) fn overrides(&self, choice: Option<usize>) -> Overrides<'_> {
        let (host, route) = (&self.config.hosts[self.at.0], self.route());
        let choice = choice.and_then(|choice| route.choices().get(choice));
        Overrides([
            choice.and_then(|choice| choice.filters.as_deref()),
            route.filters.as_deref(),
            host.filters.as_deref(),
            self.config.filters.as_deref(),
        ])
    }

    /// Filters switched on and off, given the weighted cluster chosen.
    pub(crate) fn switches(&self, choice: Option<usize>) -> Switches {
        let route = self.route();
        let choice = choice.and_then(|choice| route.choices().get(choice)?.filters.as_deref());
        choice.map_or(route.switches, |choice| route.switches.under(choice.switches))
    }

    /// Header changes in the order in which they are applied.
    pub(crate) fn changes<'a>(&'a self, choice: Option<&'a Changes>) -> impl Iterator<Item = &'a Changes> {
        let host = &self.config.hosts[self.at.0];
        let mut order =
            [choice, Some(&host.routes[self.at.1].changes), Some(&host.changes), Some(&self.config.changes)];
        if self.config.most_specific_wins {
            order.reverse();
        }
        order.into_iter().flatten()
    }
}
