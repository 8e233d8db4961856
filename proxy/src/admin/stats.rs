//! Statistics under Envoy's names: made when they are asked for, from counters that are there anyway.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use pillion_model::health::Health;
use regex::Regex;
use serde_json::{Value, json};

use super::View;
use crate::dynamic::StatOf;
use crate::metrics::{Family, Symbol};
use crate::snapshot::{Filter, Hcm, Snapshot, Terminal, Work};
use crate::upstream::{Cluster, Priority};

/// What a statistic is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Server,
    /// By name.
    Cluster(String),
    /// By prefix.
    Http(String),
    /// By address.
    Listener(String),
    /// By prefix.
    RateLimit(String),
}

/// Statistics by what they are about and their names.
type Stats = BTreeMap<(Scope, String), u64>;

/// Which statistics are shown, and how.
#[derive(Default)]
pub(super) struct Wanted {
    filter: Option<Regex>,
    used_only: bool,
    json: bool,
    pub(super) prometheus: bool,
}

impl Wanted {
    /// Reads the query of `/stats`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut wanted = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("usedonly", _) => wanted.used_only = true,
                ("filter", expression) => {
                    let expression = crate::filters::jwt::percent_decoded(expression);
                    wanted.filter =
                        Some(Regex::new(&expression).map_err(|error| format!("filter: {error}"))?);
                }
                ("format", "json") => wanted.json = true,
                ("format", "prometheus") => wanted.prometheus = true,
                ("format", "text") => {}
                ("format", other) => return Err(format!("format {other}: want text, json or prometheus")),
                // Envoy's other ways to show them.
                _ => {}
            }
        }
        Ok(wanted)
    }

    /// Whether JSON is wanted.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    fn shows(&self, name: &str, value: u64) -> bool {
        (!self.used_only || value > 0) && self.filter.as_ref().is_none_or(|filter| filter.is_match(name))
    }
}

/// Everything that is wanted, in the form that is wanted.
pub(super) fn page(view: &View, wanted: &Wanted) -> String {
    let stats = gather(view);
    let named = stats.iter().map(|((scope, name), value)| (scope.text_name(name), *value));
    let mut shown: Vec<(String, u64)> = named.filter(|(name, value)| wanted.shows(name, *value)).collect();
    shown.sort_unstable();
    if wanted.json {
        let all: Vec<Value> =
            shown.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        return json!({ "stats": all }).to_string();
    }
    let mut text = String::new();
    for (name, value) in shown {
        let _ = writeln!(text, "{name}: {value}");
    }
    text
}

/// Prometheus' text form, with Envoy's names and labels.
pub(super) fn prometheus(view: &View, wanted: &Wanted) -> String {
    let mut families: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
    for ((scope, name), value) in gather(view) {
        if wanted.shows(&scope.text_name(&name), value) {
            let (family, labels) = scope.prometheus(&name);
            families.entry(family).or_default().push((labels, value));
        }
    }
    let mut text = String::new();
    for (family, samples) in families {
        let kind = if is_gauge(&family) { "gauge" } else { "counter" };
        let _ = writeln!(text, "# TYPE {family} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{family}{{{labels}}} {value}");
        }
    }
    text
}

/// What goes down as well as up, by the end of its name.
fn is_gauge(family: &str) -> bool {
    ["_active", "_healthy", "_degraded", "_membership_total", "_open", "_live", "_uptime", "_clusters"]
        .iter()
        .any(|end| family.ends_with(end))
}

impl Scope {
    /// `cluster.orders.upstream_rq_total`.
    fn text_name(&self, name: &str) -> String {
        match self {
            Self::Server => name.to_owned(),
            Self::Cluster(of) => format!("cluster.{of}.{name}"),
            Self::Http(of) => format!("http.{of}.{name}"),
            Self::Listener(of) => format!("listener.{of}.{name}"),
            Self::RateLimit(of) => format!("{of}.http_local_rate_limit.{name}"),
        }
    }

    /// `envoy_cluster_upstream_rq_total` and `envoy_cluster_name="orders"`.
    fn prometheus(&self, name: &str) -> (String, String) {
        let (prefix, label) = match self {
            Self::Server => ("", None),
            Self::Cluster(of) => ("cluster_", Some(("envoy_cluster_name", of))),
            Self::Http(of) => ("http_", Some(("envoy_http_conn_manager_prefix", of))),
            Self::Listener(of) => ("listener_", Some(("envoy_listener_address", of))),
            Self::RateLimit(of) => {
                ("http_local_rate_limit_", Some(("envoy_local_http_ratelimit_prefix", of)))
            }
        };
        let mut labels = String::new();
        let name = match name.strip_suffix("xx").and_then(|name| name.split_at_checked(name.len() - 1)) {
            Some((start, class)) if start.ends_with("_rq_") && class.as_bytes()[0].is_ascii_digit() => {
                let _ = write!(labels, "envoy_response_code_class=\"{class}\"");
                format!("{start}xx")
            }
            _ => match name.rsplit_once('_') {
                Some((start, code)) if start.ends_with("upstream_rq") && code.parse::<u16>().is_ok() => {
                    let _ = write!(labels, "envoy_response_code=\"{code}\"");
                    start.to_owned()
                }
                _ => name.to_owned(),
            },
        };
        if let Some((key, value)) = label {
            let comma = if labels.is_empty() { "" } else { "," };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(labels, "{comma}{key}=\"{value}\"");
        }
        (format!("envoy_{prefix}{}", name.replace(['.', '-'], "_")), labels)
    }
}

fn gather(view: &View) -> Stats {
    let snapshot = view.snapshot.load();
    let mut stats = Stats::new();
    server(view, &snapshot, &mut stats);
    for (name, cluster) in snapshot.clusters.iter() {
        of_cluster(name, cluster, &mut stats);
    }
    for listener in snapshot.listeners.values() {
        let address =
            listener.address.map_or_else(|| listener.name.to_string(), |address| address.to_string());
        let scope = Scope::Listener(address.replace(':', "_"));
        for (family, name) in
            [(Family::ConnectionsTotal, "downstream_cx_total"), (Family::Connections, "downstream_cx_active")]
        {
            let count = view.scrape.counted(family, |labels| labels[1] == listener.symbol);
            stats.insert((scope.clone(), name.to_owned()), count);
        }
        for chain in listener.all_chains() {
            if let Terminal::Http(hcm) = &chain.terminal {
                of_manager(view, hcm, &mut stats);
            }
        }
    }
    of_requests(view, &snapshot, &mut stats);
    let discovered = view.discovery.iter().flat_map(|discovery| discovery.0.stats());
    for (of, name, value) in discovered {
        let scope = match of {
            StatOf::Server => Scope::Server,
            StatOf::Cluster(name) => Scope::Cluster(name),
            StatOf::Http(prefix) => Scope::Http(prefix),
        };
        stats.insert((scope, name), value);
    }
    stats
}

fn server(view: &View, snapshot: &Snapshot, stats: &mut Stats) {
    for (name, value) in [
        ("server.live", u64::from(!view.shared.health_failed.load(Relaxed))),
        ("server.uptime", view.started.elapsed().as_secs()),
        ("server.concurrency", view.workers.len() as u64),
        ("listener_manager.total_listeners_active", snapshot.listeners.len() as u64),
        ("cluster_manager.active_clusters", snapshot.clusters.len() as u64),
    ] {
        stats.insert((Scope::Server, name.to_owned()), value);
    }
}

fn of_cluster(name: &str, cluster: &Cluster, stats: &mut Stats) {
    let scope = Scope::Cluster(name.to_owned());
    let mut add = |name: &str, value: u64| {
        stats.insert((scope.clone(), name.to_owned()), value);
    };
    let hosts = &cluster.hosts().hosts;
    let count =
        |of: &dyn Fn(&crate::upstream::Host) -> bool| hosts.iter().filter(|host| of(host)).count() as u64;
    let sum = |of: &dyn Fn(&crate::upstream::EndpointStats) -> u64| {
        hosts.iter().map(|host| of(&host.endpoint.stats)).sum::<u64>()
    };
    add("membership_total", hosts.len() as u64);
    add("membership_healthy", count(&|host| host.is_healthy() && host.health != Health::Stale));
    add("membership_degraded", count(&|host| host.is_degraded()));
    add("upstream_cx_active", sum(&|stats| stats.cx_active.load(Relaxed).into()));
    add("upstream_cx_total", sum(&|stats| stats.cx_total.load(Relaxed)));
    add("upstream_cx_connect_fail", sum(&|stats| stats.cx_connect_fail.load(Relaxed)));
    add("upstream_rq_total", sum(&|stats| stats.rq_total.load(Relaxed)));
    add("upstream_rq_timeout", sum(&|stats| stats.rq_timeout.load(Relaxed)));
    let state = &cluster.state;
    let own = &state.stats;
    for (name, counter) in [
        ("upstream_cx_overflow", &own.upstream_cx_overflow),
        ("upstream_cx_none_healthy", &own.upstream_cx_none_healthy),
        ("upstream_cx_idle_timeout", &own.upstream_cx_idle_timeout),
        ("upstream_cx_max_requests", &own.upstream_cx_max_requests),
        ("upstream_cx_connect_timeout", &own.upstream_cx_connect_timeout),
        ("upstream_rq_pending_overflow", &own.upstream_rq_pending_overflow),
        ("upstream_rq_active_overflow", &own.upstream_rq_active_overflow),
        ("upstream_rq_pending_failure_eject", &own.upstream_rq_pending_failure_eject),
        ("upstream_rq_retry_overflow", &own.upstream_rq_retry_overflow),
        ("upstream_rq_drop_overload", &own.upstream_rq_drop_overload),
        ("lb_healthy_panic", &own.lb_healthy_panic),
        ("lb_subsets_active", &own.lb_subsets_active),
        ("lb_subsets_created", &own.lb_subsets_created),
        ("lb_subsets_removed", &own.lb_subsets_removed),
        ("lb_subsets_selected", &own.lb_subsets_selected),
        ("lb_subsets_fallback", &own.lb_subsets_fallback),
        ("lb_subsets_fallback_panic", &own.lb_subsets_fallback_panic),
        ("membership_change", &own.membership_change),
        ("ssl.fail_verify_san", &own.ssl_fail_verify_san),
        ("ssl.fail_verify_error", &own.ssl_fail_verify_error),
        ("ssl.connection_error", &own.ssl_connection_error),
        ("ssl.handshake", &own.ssl_handshake),
    ] {
        add(name, counter.load(Relaxed));
    }
    let outlier = state.outlier_stats();
    for (name, counter) in [
        ("ejections_active", &outlier.ejections_active),
        ("ejections_overflow", &outlier.ejections_overflow),
        ("ejections_enforced_total", &outlier.ejections_enforced_total),
        ("ejections_detected_consecutive_5xx", &outlier.ejections_detected_consecutive_5xx),
        ("ejections_enforced_consecutive_5xx", &outlier.ejections_enforced_consecutive_5xx),
        (
            "ejections_detected_consecutive_gateway_failure",
            &outlier.ejections_detected_consecutive_gateway_failure,
        ),
        (
            "ejections_enforced_consecutive_gateway_failure",
            &outlier.ejections_enforced_consecutive_gateway_failure,
        ),
        ("ejections_detected_success_rate", &outlier.ejections_detected_success_rate),
        ("ejections_enforced_success_rate", &outlier.ejections_enforced_success_rate),
        ("ejections_detected_failure_percentage", &outlier.ejections_detected_failure_percentage),
        ("ejections_enforced_failure_percentage", &outlier.ejections_enforced_failure_percentage),
    ] {
        add(&format!("outlier_detection.{name}"), counter.load(Relaxed));
    }
    for (priority, limits, word) in [
        (Priority::Default, &cluster.config.limits, "default"),
        (Priority::High, &cluster.config.limits_high, "high"),
    ] {
        let usage = state.usage(priority);
        let (connections, pending) = (usage.connections.load(Relaxed), usage.pending.load(Relaxed));
        let requests = usage.requests.load(Relaxed);
        add(&format!("circuit_breakers.{word}.cx_open"), u64::from(connections >= limits.connections_max));
        add(&format!("circuit_breakers.{word}.rq_pending_open"), u64::from(pending >= limits.pending_max));
        add(&format!("circuit_breakers.{word}.rq_open"), u64::from(requests >= limits.requests_max));
    }
    let both = [Priority::Default, Priority::High].map(|priority| state.usage(priority));
    add("upstream_rq_active", both.iter().map(|usage| u64::from(usage.requests.load(Relaxed))).sum());
    add("upstream_rq_pending_active", both.iter().map(|usage| u64::from(usage.pending.load(Relaxed))).sum());
}

/// Counts of filters; those of one name are one.
fn of_manager(view: &View, hcm: &Hcm, stats: &mut Stats) {
    let prefix = &hcm.config.stat_prefix;
    let http = Scope::Http(prefix.clone());
    let mut add = |scope: &Scope, name: String, value: u64| {
        *stats.entry((scope.clone(), name)).or_default() += value;
    };
    for Filter { work, .. } in &hcm.filters {
        match work {
            Work::LocalRateLimit(limit) => {
                let scope = Scope::RateLimit(limit.settings.stat_prefix.clone());
                for (name, value) in limit.counts.read() {
                    add(&scope, name.to_owned(), value);
                }
            }
            Work::Rbac { counts, .. } => {
                counts.read().into_iter().for_each(|(name, value)| add(&http, format!("rbac.{name}"), value));
            }
            Work::Fault { counts, .. } => {
                counts
                    .read()
                    .into_iter()
                    .for_each(|(name, value)| add(&http, format!("fault.{name}"), value));
            }
            Work::Jwt(jwt) => {
                let own = &jwt.settings.stat_prefix;
                for (name, value) in jwt.counts.read() {
                    add(&http, format!("jwt_authn.{own}{name}"), value);
                }
            }
            Work::ExtAuthz(authz) => {
                let own = match authz.settings.stat_prefix.as_str() {
                    "" => String::new(),
                    own => format!("{own}."),
                };
                for (name, value) in authz.counts.read() {
                    add(&http, format!("ext_authz.{own}{name}"), value);
                }
            }
            _ => {}
        }
    }
    if let Some(routes) = hcm.route_config(&view.snapshot.load()) {
        for limit in routes.limits() {
            let scope = Scope::RateLimit(limit.settings.stat_prefix.clone());
            for (name, value) in limit.counts.read() {
                add(&scope, name.to_owned(), value);
            }
        }
    }
    for (outcome, name) in [
        (Symbol::BAD_LOCATION, "bad_location"),
        (Symbol::UNSAFE_SCHEME, "unsafe_scheme"),
        (Symbol::TOO_MANY_REDIRECTS, "too_many_redirects"),
        (Symbol::NO_ROUTE, "no_route"),
        (Symbol::PREDICATE, "predicate"),
    ] {
        let kept = |labels: &[Symbol; 3]| labels[0] == hcm.symbol && labels[2] == outcome;
        let count = view.scrape.counted(Family::Redirects, kept);
        stats.insert((http.clone(), format!("passthrough_internal_redirect_{name}")), count);
    }
    // There is one, however many requests it has had.
    for name in ["downstream_rq_total", "downstream_rq_1xx", "downstream_rq_2xx", "downstream_rq_3xx"]
        .into_iter()
        .chain(["downstream_rq_4xx", "downstream_rq_5xx"])
    {
        stats.entry((http.clone(), name.to_owned())).or_default();
    }
}

/// Requests by connection manager, and by cluster.
fn of_requests(view: &View, snapshot: &Snapshot, stats: &mut Stats) {
    let symbols = &view.shared.symbols;
    for (labels, count) in view.scrape.requests() {
        let class = labels.status / 100;
        let http = Scope::Http(symbols.text(labels.manager));
        *stats.entry((http.clone(), "downstream_rq_total".to_owned())).or_default() += count;
        if class > 0 {
            *stats.entry((http, format!("downstream_rq_{class}xx"))).or_default() += count;
        }
        let cluster = symbols.text(labels.service);
        if class > 0 && snapshot.clusters.contains_key(&cluster) {
            let scope = Scope::Cluster(cluster);
            *stats.entry((scope.clone(), "upstream_rq_completed".to_owned())).or_default() += count;
            *stats.entry((scope.clone(), format!("upstream_rq_{class}xx"))).or_default() += count;
            *stats.entry((scope, format!("upstream_rq_{}", labels.status))).or_default() += count;
        }
    }
    // What the proxy followed itself nobody was answered with.
    let is_3xx = |(scope, name): &(Scope, String)| match scope {
        Scope::Http(prefix) if name == "downstream_rq_3xx" => Some(prefix.clone()),
        _ => None,
    };
    let prefixes: Vec<String> = stats.keys().filter_map(is_3xx).collect();
    for prefix in prefixes {
        let Some(symbol) = symbols.known(&prefix) else { continue };
        let followed = |labels: &[Symbol; 3]| labels[0] == symbol && labels[2] == Symbol::FOLLOWED;
        let followed = view.scrape.counted(Family::Redirects, followed);
        let stat = stats.entry((Scope::Http(prefix), "downstream_rq_3xx".to_owned()));
        stat.and_modify(|count| *count = count.saturating_sub(followed));
    }
    for name in snapshot.clusters.keys() {
        let Some(symbol) = symbols.known(name) else { continue };
        let followed = |labels: &[Symbol; 3]| labels[1] == symbol && labels[2] == Symbol::FOLLOWED;
        let followed = view.scrape.counted(Family::Redirects, followed);
        for stat in ["upstream_rq_completed", "upstream_rq_3xx"] {
            let stat = stats.entry((Scope::Cluster(name.clone()), stat.to_owned()));
            stat.and_modify(|count| *count = count.saturating_sub(followed));
        }
        for (outcome, stat) in [
            (Symbol::RETRY, "upstream_rq_retry"),
            (Symbol::SUCCESS, "upstream_rq_retry_success"),
            (Symbol::LIMIT, "upstream_rq_retry_limit_exceeded"),
        ] {
            let counted = |labels: &[Symbol; 3]| labels[0] == symbol && labels[2] == outcome;
            let count = view.scrape.counted(Family::Retries, counted);
            stats.insert((Scope::Cluster(name.clone()), stat.to_owned()), count);
        }
        for (followed, stat) in [(true, "succeeded_total"), (false, "failed_total")] {
            let wanted =
                |labels: &[Symbol; 3]| labels[1] == symbol && (labels[2] == Symbol::FOLLOWED) == followed;
            let count = view.scrape.counted(Family::Redirects, wanted);
            stats.insert((Scope::Cluster(name.clone()), format!("upstream_internal_redirect_{stat}")), count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_envoys() {
        for (scope, name, text, family, labels) in [
            (
                Scope::Cluster("a".to_owned()),
                "upstream_rq_2xx",
                "cluster.a.upstream_rq_2xx",
                "envoy_cluster_upstream_rq_xx",
                "envoy_response_code_class=\"2\",envoy_cluster_name=\"a\"",
            ),
            (
                Scope::Cluster("a".to_owned()),
                "upstream_rq_503",
                "cluster.a.upstream_rq_503",
                "envoy_cluster_upstream_rq",
                "envoy_response_code=\"503\",envoy_cluster_name=\"a\"",
            ),
            (
                Scope::Http("in".to_owned()),
                "jwt_authn.allowed",
                "http.in.jwt_authn.allowed",
                "envoy_http_jwt_authn_allowed",
                "envoy_http_conn_manager_prefix=\"in\"",
            ),
            (
                Scope::RateLimit("x".to_owned()),
                "ok",
                "x.http_local_rate_limit.ok",
                "envoy_http_local_rate_limit_ok",
                "envoy_local_http_ratelimit_prefix=\"x\"",
            ),
            (
                Scope::Cluster("a".to_owned()),
                "outlier_detection.ejections_detected_consecutive_5xx",
                "cluster.a.outlier_detection.ejections_detected_consecutive_5xx",
                "envoy_cluster_outlier_detection_ejections_detected_consecutive_5xx",
                "envoy_cluster_name=\"a\"",
            ),
            (Scope::Server, "server.live", "server.live", "envoy_server_live", ""),
        ] {
            assert_eq!(scope.text_name(name), text);
            assert_eq!(scope.prometheus(name), (family.to_owned(), labels.to_owned()));
        }
    }

    #[test]
    fn queries_say_what_is_wanted() {
        let wanted = Wanted::parse("usedonly&filter=rq_%5B25%5Dxx&format=json").expect("a good query");
        assert!(wanted.json && wanted.shows("a.rq_2xx", 1));
        assert!(!wanted.shows("a.rq_2xx", 0) && !wanted.shows("a.rq_3xx", 1));
        assert!(Wanted::parse("filter=(").is_err());
        assert!(Wanted::parse("format=html").is_err());
    }
}
