//! Route configurations of a service: its Routes in the order of their names, then the whole service.

use std::time::Duration;

use pillion_config::route::{
    Cors, Fault, HeaderEdits, Headers, Match, PathMatch as ConfigPath, Redirect as ConfigRedirect, Rewrite,
    Rule, ValueMatch,
};
use pillion_config::service::{Retry, Timeouts};
use pillion_model::endpoint::Fraction;
use pillion_model::http::{CorsPolicy, FaultPolicy};
use pillion_model::instance::Protocol;
use pillion_model::matcher::{HeaderMatcher, HeaderValueMatch, Pattern, QueryMatcher, Regex, StringMatcher};
use pillion_model::name::{ServiceName, outbound_cluster, route_configuration};
use pillion_model::retry::{RetryOn, RetryPolicy};
use pillion_model::route::{
    Append, ClusterChoice, FilterOverrides, Forward, HeaderChange, HeaderChanges, HostRewrite, Mirror,
    PathMatch, PathRewrite, Redirect, RedirectPath, Route, RouteAction, RouteConfiguration, RouteMatch,
    VirtualHost, WeightedCluster,
};

use super::cluster::hash_policies;
use super::{PortView, ServiceView};

/// Tries after the first, where nothing is said: App Mesh's default.
const RETRIES: u32 = 2;
/// What is retried where nothing is said: App Mesh's default.
const RETRY_ON: [&str; 4] = ["connect-failure", "refused-stream", "unavailable", "503"];
/// Draws made to avoid an instance that was tried before.
const HOST_SELECTION_ATTEMPTS: u32 = 5;
/// Name of the last route, which takes what no rule matched.
pub(super) const DEFAULT_ROUTE: &str = "default";

/// The route configuration of one port.
pub(super) fn configuration(view: &ServiceView<'_>, port: &PortView) -> RouteConfiguration {
    let mut routes = Vec::new();
    for route in view.input.resources.routes_to(view.name) {
        if route.port.as_ref().is_some_and(|only| *only != port.name) {
            continue;
        }
        for (index, rule) in route.rules.iter().enumerate() {
            routes.push(Builder { view, port, namespace: &route.namespace, rule }.route(&route.name, index));
        }
    }
    routes.push(default_route(view, port));
    RouteConfiguration {
        name: route_configuration(&port.name, view.name),
        virtual_hosts: vec![VirtualHost {
            name: view.name.to_string(),
            domains: vec!["*".to_owned()],
            routes,
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

fn default_route(view: &ServiceView<'_>, port: &PortView) -> Route {
    let rule = Rule::default();
    let builder = Builder { view, port, namespace: view.name.namespace(), rule: &rule };
    Route { name: DEFAULT_ROUTE.to_owned(), ..builder.route(DEFAULT_ROUTE, 0) }
}

/// Every cluster the routes may use, each once, in the order of their names.
pub(super) fn clusters_of(configuration: &RouteConfiguration) -> Vec<String> {
    let mut names = std::collections::BTreeSet::new();
    for route in configuration.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let RouteAction::Forward(forward) = &route.action else { continue };
        match &forward.to {
            ClusterChoice::Cluster(name) => _ = names.insert(name.clone()),
            ClusterChoice::Weighted(clusters) => names.extend(clusters.iter().map(|one| one.cluster.clone())),
            ClusterChoice::Header(_) => {}
        }
        names.extend(forward.mirrors.iter().map(|mirror| mirror.cluster.clone()));
    }
    names.into_iter().collect()
}

/// One rule on one port while it becomes a route.
struct Builder<'a> {
    view: &'a ServiceView<'a>,
    port: &'a PortView,
    /// The route's namespace, in which bare service names are meant.
    namespace: &'a str,
    rule: &'a Rule,
}

impl Builder<'_> {
    fn route(&self, name: &str, index: usize) -> Route {
        let rule = self.rule;
        Route {
            name: format!("{name}[{index}]"),
            matches: rule.matches.as_ref().map(route_match).unwrap_or_default(),
            action: self.action(),
            headers: rule.headers.as_ref().map(header_changes).unwrap_or_default(),
            filters: FilterOverrides {
                fault: rule.fault.as_ref().map(fault),
                cors: rule.cors.as_ref().map(cors),
                ..FilterOverrides::default()
            },
        }
    }

    fn action(&self) -> RouteAction {
        if let Some(respond) = &self.rule.respond {
            return RouteAction::Respond { status: respond.status, body: respond.body.clone().into_bytes() };
        }
        let path = self.rule.matches.as_ref().and_then(|matches| matches.path.as_ref());
        if let Some(config) = &self.rule.redirect {
            return RouteAction::Redirect(redirect(config, path));
        }
        RouteAction::Forward(Box::new(self.forward(path)))
    }

    fn forward(&self, path: Option<&ConfigPath>) -> Forward {
        let timeout = self.request_timeout();
        let rewrite = self.rule.rewrite.as_ref();
        let external_host = self.view.service.and_then(|service| service.sni.clone());
        Forward {
            to: self.choice(),
            rewrite: rewrite.and_then(|rewrite| path_rewrite(rewrite, path)),
            host_rewrite: rewrite
                .and_then(|rewrite| rewrite.host.clone())
                .or(external_host)
                .map(HostRewrite::Literal),
            timeout,
            idle_timeout: self
                .timeouts(|timeouts| timeouts.idle.map(|text| text.0))
                .or_else(|| self.view.input.resources.mesh().defaults.idle_timeout.map(|text| text.0)),
            // A gRPC call says how long it may take; a limit written down caps that.
            grpc_timeout_max: (self.port.protocol == Protocol::Grpc).then(|| timeout.unwrap_or_default()),
            retry: self.retry(),
            mirrors: self.mirror().into_iter().collect(),
            hash: hash_policies(self.view),
            ..Forward::to(String::new())
        }
    }

    fn choice(&self) -> ClusterChoice {
        let own = || outbound_cluster(&self.port.name, "", self.view.name);
        let clusters = self.rule.split.iter().map(|share| WeightedCluster {
            metadata_match: Default::default(),
            cluster: self.cluster(share.service.as_deref(), share.subset.as_deref()),
            weight: share.weight.unwrap_or(1),
            headers: HeaderChanges::default(),
            filters: FilterOverrides::default(),
        });
        let mut clusters: Vec<_> = clusters.collect();
        match clusters.len() {
            0 => ClusterChoice::Cluster(own()),
            1 => ClusterChoice::Cluster(clusters.remove(0).cluster),
            _ => ClusterChoice::Weighted(clusters),
        }
    }

    /// The cluster of a service (as written; `None`: the route's own) and subset for this port's traffic.
    fn cluster(&self, service: Option<&str>, subset: Option<&str>) -> String {
        let subset = subset.unwrap_or_default();
        let Some(text) = service else {
            return outbound_cluster(&self.port.name, subset, self.view.name);
        };
        let Some(name) = self.service_name(text) else {
            // Not a name, so no cluster: never reached with configuration that was checked.
            return outbound_cluster(&self.port.name, text, self.view.name);
        };
        let port = self.port_at(&name).unwrap_or_else(|| self.port.name.clone());
        outbound_cluster(&port, subset, &name)
    }

    /// Traffic of a port goes to the port of the same name, or to the only one that carries requests.
    fn port_at(&self, name: &ServiceName) -> Option<String> {
        let ports = self.view.input.ports(name);
        let mut http: Vec<_> =
            ports.into_iter().filter(|port| port.protocol.is_http()).map(|port| port.name).collect();
        let same = http.iter().position(|name| *name == self.port.name);
        match (same, http.len()) {
            (Some(at), _) => Some(http.swap_remove(at)),
            (None, 1) => http.pop(),
            (None, _) => None,
        }
    }

    fn service_name(&self, text: &str) -> Option<ServiceName> {
        match text.contains('.') {
            true => text.parse().ok(),
            false => ServiceName::new(self.namespace, text).ok(),
        }
    }

    /// A time of the rule, else of the service.
    fn timeouts<T>(&self, pick: impl Fn(&Timeouts) -> Option<T>) -> Option<T> {
        let service = self.view.service.and_then(|service| service.timeout.as_ref());
        self.rule.timeout.as_ref().and_then(&pick).or_else(|| service.and_then(&pick))
    }

    fn request_timeout(&self) -> Option<Duration> {
        let said = self.timeouts(|timeouts| timeouts.request.map(|text| text.0));
        let timeout = match (said, self.port.protocol) {
            (Some(timeout), _) => timeout,
            // Streams of gRPC last; a call says itself how long it may take.
            (None, Protocol::Grpc) => Duration::ZERO,
            (None, _) => {
                let mesh = self.view.input.resources.mesh().defaults.timeout;
                mesh.map_or(pillion_config::mesh::TIMEOUT_DEFAULT, |text| text.0)
            }
        };
        (!timeout.is_zero()).then_some(timeout)
    }

    /// Each field from the rule, else the service, else the mesh, else the default.
    fn retry(&self) -> Option<RetryPolicy> {
        let mesh = self.view.input.resources.mesh().defaults.retry;
        let service = self.view.service.and_then(|service| service.retry.as_ref());
        let levels: Vec<&Retry> =
            [self.rule.retry.as_ref(), service, mesh.as_ref()].into_iter().flatten().collect();
        let retries = levels.iter().find_map(|retry| retry.attempts).unwrap_or(RETRIES);
        if retries == 0 {
            return None;
        }
        let on = levels.iter().find(|retry| !retry.on.is_empty());
        let on: Vec<&str> = match on {
            Some(retry) => retry.on.iter().map(String::as_str).collect(),
            None => RETRY_ON.to_vec(),
        };
        let (on, status_codes) = retry_conditions(&on);
        let default = RetryPolicy::default();
        let backoff = levels.iter().find_map(|retry| retry.backoff.as_ref());
        let base = backoff.and_then(|backoff| backoff.base).map_or(default.backoff_base, |text| text.0);
        let max = backoff.and_then(|backoff| backoff.max).map_or(base * 10, |text| text.0);
        Some(RetryPolicy {
            on,
            status_codes,
            retries,
            per_try_timeout: self.timeouts(|timeouts| timeouts.per_try.map(|text| text.0)),
            backoff_base: base,
            backoff_max: max.max(base),
            avoid_previous_hosts: true,
            host_selection_attempts: HOST_SELECTION_ATTEMPTS,
            only_safe: !levels.iter().find_map(|retry| retry.non_idempotent).unwrap_or_default(),
            ..default
        })
    }

    fn mirror(&self) -> Option<Mirror> {
        let mirror = self.rule.mirror.as_ref()?;
        Some(Mirror {
            cluster: self.cluster(Some(&mirror.service), mirror.subset.as_deref()),
            share: mirror.percent.map(fraction),
        })
    }
}

fn retry_conditions(words: &[&str]) -> (RetryOn, Vec<u16>) {
    let (mut on, mut codes) = (RetryOn::empty(), Vec::new());
    for word in words {
        match word.parse() {
            Ok(code) => {
                on = on.with(RetryOn::STATUS_CODES);
                codes.push(code);
            }
            Err(_) => on = on.with(RetryOn::parse_token(word).unwrap_or_default()),
        }
    }
    (on, codes)
}

/// A percentage with up to four decimals.
fn fraction(percent: f64) -> Fraction {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "config lets only 0 to 100 through"
    )]
    let numerator = (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32;
    Fraction { numerator, denominator: 1_000_000 }
}

fn route_match(matches: &Match) -> RouteMatch {
    let mut headers: Vec<HeaderMatcher> = method_matcher(&matches.method).into_iter().collect();
    headers.extend(matches.headers.iter().map(|header| HeaderMatcher {
        name: header.name.clone(),
        value: header_value(&header.value, header.ignore_case),
        invert: header.invert,
        treat_missing_as_empty: false,
    }));
    let query = matches
        .query
        .iter()
        .map(|query| QueryMatcher { name: query.name.clone(), value: string_matcher(&query.value, false) });
    let mut path = matches.path.as_ref().map_or_else(|| PathMatch::Prefix("/".to_owned()), path_match);
    if let Some(grpc) = &matches.grpc {
        path = match (&grpc.service, &grpc.method) {
            (Some(service), Some(method)) => PathMatch::Exact(format!("/{service}/{method}")),
            (Some(service), None) => PathMatch::Prefix(format!("/{service}/")),
            (None, _) => PathMatch::Prefix("/".to_owned()),
        };
    }
    RouteMatch {
        path,
        headers,
        query: query.collect(),
        grpc: matches.grpc.is_some(),
        ..RouteMatch::default()
    }
}

fn path_match(path: &ConfigPath) -> PathMatch {
    match path {
        // A prefix that ends with a slash ends at a segment already.
        ConfigPath::Prefix(prefix) if prefix.ends_with('/') => PathMatch::Prefix(prefix.clone()),
        ConfigPath::Prefix(prefix) => PathMatch::SegmentPrefix(prefix.clone()),
        ConfigPath::Exact(path) => PathMatch::Exact(path.clone()),
        ConfigPath::Regex(regex) => PathMatch::Regex(compiled(regex)),
    }
}

/// An expression that config has compiled before. Should it not compile, it matches nothing.
fn compiled(source: &str) -> Regex {
    Regex::new(source).unwrap_or_else(|_| Regex::new("[^\\s\\S]").expect("an empty class compiles"))
}

fn method_matcher(methods: &[String]) -> Option<HeaderMatcher> {
    let pattern = match methods {
        [] => return None,
        [one] => Pattern::Exact(one.clone()),
        several => {
            let escaped: Vec<String> = several.iter().map(|method| literal(method)).collect();
            Pattern::Regex(compiled(&escaped.join("|")))
        }
    };
    Some(HeaderMatcher {
        name: ":method".to_owned(),
        value: HeaderValueMatch::Text(StringMatcher { pattern, ignore_case: false }),
        invert: false,
        treat_missing_as_empty: false,
    })
}

fn header_value(value: &ValueMatch, ignore_case: bool) -> HeaderValueMatch {
    match value {
        ValueMatch::Present(present) => HeaderValueMatch::Present(*present),
        ValueMatch::Range(range) => HeaderValueMatch::Range { start: range.start, end: range.end },
        other => match string_matcher(other, ignore_case) {
            Some(matcher) => HeaderValueMatch::Text(matcher),
            None => HeaderValueMatch::Present(true),
        },
    }
}

/// `None`: any value.
fn string_matcher(value: &ValueMatch, ignore_case: bool) -> Option<StringMatcher> {
    let pattern = match value {
        ValueMatch::Exact(text) => Pattern::Exact(text.clone()),
        ValueMatch::Prefix(text) => Pattern::Prefix(text.clone()),
        ValueMatch::Suffix(text) => Pattern::Suffix(text.clone()),
        ValueMatch::Contains(text) => Pattern::Contains(text.clone()),
        ValueMatch::Regex(text) => Pattern::Regex(compiled(text)),
        ValueMatch::Present(_) | ValueMatch::Range(_) => return None,
    };
    Some(StringMatcher { pattern, ignore_case })
}

fn path_rewrite(rewrite: &Rewrite, path: Option<&ConfigPath>) -> Option<PathRewrite> {
    if let Some(regex) = &rewrite.regex {
        let (pattern, substitution) = (regex.pattern.clone(), regex.substitution.clone());
        return Some(PathRewrite::Regex { pattern, substitution });
    }
    rewrite.prefix.as_ref().map(|to| prefix_rewrite(to, path))
}

/// Replaces a matched prefix so that exactly one slash stands where both meet.
fn prefix_rewrite(to: &str, path: Option<&ConfigPath>) -> PathRewrite {
    match path {
        None => PathRewrite::Prefix(format!("{}/", to.trim_end_matches('/'))),
        Some(ConfigPath::Prefix(from)) if from.ends_with('/') => {
            PathRewrite::Prefix(format!("{}/", to.trim_end_matches('/')))
        }
        // `/v2` to `/`: `/v2/x` has to become `/x`, not `//x`.
        Some(ConfigPath::Prefix(from)) if to.ends_with('/') => PathRewrite::Regex {
            pattern: format!("^{}/?", literal(from)),
            substitution: to.replace('\\', "\\\\"),
        },
        Some(_) => PathRewrite::Prefix(to.to_owned()),
    }
}

/// `text` as a regular expression that matches just it.
pub(super) fn literal(text: &str) -> String {
    let special = |c: char| "\\.+*?()|[]{}^$#&-~".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

fn redirect(config: &ConfigRedirect, path: Option<&ConfigPath>) -> Redirect {
    let by_path = config.path.clone().map(RedirectPath::Full);
    let by_prefix = || config.prefix.as_ref().map(|to| RedirectPath::Rewrite(prefix_rewrite(to, path)));
    Redirect {
        status: config.status.unwrap_or(301),
        scheme: config.scheme.clone(),
        host: config.host.clone(),
        port: config.port,
        path: by_path.or_else(by_prefix),
        strip_query: config.strip_query,
    }
}

fn fault(config: &Fault) -> FaultPolicy {
    let share = |percent: Option<f64>| fraction(percent.unwrap_or(100.0));
    FaultPolicy {
        delay: config.delay.as_ref().map(|delay| (delay.fixed.0, share(delay.percent))),
        abort: config.abort.as_ref().map(|abort| (abort.status, share(abort.percent))),
        ..FaultPolicy::default()
    }
}

fn cors(config: &Cors) -> CorsPolicy {
    let origin = |text: &String| match text.strip_suffix('*') {
        Some("") => StringMatcher { pattern: Pattern::Regex(compiled(".*")), ignore_case: false },
        Some(prefix) => StringMatcher::prefix(prefix),
        None => StringMatcher::exact(text.as_str()),
    };
    CorsPolicy {
        allow_origins: config.allow_origins.iter().map(origin).collect(),
        allow_methods: config.allow_methods.join(","),
        allow_headers: config.allow_headers.join(","),
        expose_headers: config.expose_headers.join(","),
        max_age: config.max_age.map_or_else(String::new, |age| age.0.as_secs().to_string()),
        allow_credentials: config.allow_credentials.then_some(true),
    }
}

fn header_changes(headers: &Headers) -> HeaderChanges {
    let edits = |edits: &Option<HeaderEdits>| edits.as_ref().map(edit_list).unwrap_or_default();
    HeaderChanges { request: edits(&headers.request), response: edits(&headers.response) }
}

fn edit_list(edits: &HeaderEdits) -> Vec<HeaderChange> {
    let add = |append: Append| {
        move |(name, value): (&String, &String)| HeaderChange::Add {
            name: name.clone(),
            // A `%` begins one of Envoy's operators; here values are taken as they are.
            value: value.replace('%', "%%"),
            append,
            keep_empty: true,
        }
    };
    let removed = edits.remove.iter().cloned().map(HeaderChange::Remove);
    let set = edits.set.iter().map(add(Append::OverwriteIfExistsOrAdd));
    let added = edits.add.iter().map(add(Append::AppendIfExistsOrAdd));
    removed.chain(set).chain(added).collect()
}
