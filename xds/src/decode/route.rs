//! Route configurations.

use std::mem::take;
use std::time::Duration;

use pillion_model::route::{
    ClusterChoice, Forward, HashPolicy, HashSource, HeaderChanges, HostRewrite, Mirror, PathMatch,
    PathRewrite, Redirect, RedirectPath, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    WeightedCluster,
};
use pillion_model::tls::DataSource;

use super::Context;
use super::context::ignored;
use super::filters::overrides;
use super::internal_redirect::internal_redirect;
use super::matcher::{flag, header, our_metadata, pattern, query, regex};
use super::metadata::labels;
use super::policy::{changes, retry_policy};
use super::rate_limit::actions;
use crate::encode::RETRY_ONLY_SAFE;
use crate::pb;
use pb::route::redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier};
use pb::route::route_action::{self, ClusterSpecifier, HostRewriteSpecifier};
use pb::route::route_match::PathSpecifier;

/// Envoy's default for the whole answer.
const TIMEOUT: Duration = Duration::from_secs(15);

pub(super) fn configuration(cx: &mut Context, mut m: pb::route::RouteConfiguration) -> RouteConfiguration {
    // A route to a cluster that does not exist answers for itself.
    ignored!(cx, m, metadata, validate_clusters, max_direct_response_body_size_bytes);
    let routes = RouteConfiguration {
        name: take(&mut m.name),
        virtual_hosts: cx.each("virtual_hosts", take(&mut m.virtual_hosts), virtual_host),
        headers: HeaderChanges {
            request: changes(cx, "request", &mut m.request_headers_to_remove, &mut m.request_headers_to_add),
            response: changes(
                cx,
                "response",
                &mut m.response_headers_to_remove,
                &mut m.response_headers_to_add,
            ),
        },
        most_specific_header_mutations_wins: take(&mut m.most_specific_header_mutations_wins),
        filters: overrides(cx, take(&mut m.typed_per_filter_config)),
    };
    if take(&mut m.ignore_port_in_host_matching) {
        cx.refuse_at(
            "ignore_port_in_host_matching",
            "is not supported; use strip_any_host_port of the listener",
        );
    }
    cx.rest(&m);
    routes
}

fn virtual_host(cx: &mut Context, mut m: pb::route::VirtualHost) -> VirtualHost {
    ignored!(cx, m, virtual_clusters);
    let ours = our_metadata(cx, m.metadata.take());
    let mut retry = cx.some("retry_policy", m.retry_policy.take(), retry_policy);
    if let Some(policy) = &mut retry {
        policy.only_safe = flag(&ours, RETRY_ONLY_SAFE);
    }
    let host = VirtualHost {
        name: take(&mut m.name),
        domains: take(&mut m.domains),
        routes: cx.each("routes", take(&mut m.routes), route),
        headers: HeaderChanges {
            request: changes(cx, "request", &mut m.request_headers_to_remove, &mut m.request_headers_to_add),
            response: changes(
                cx,
                "response",
                &mut m.response_headers_to_remove,
                &mut m.response_headers_to_add,
            ),
        },
        retry,
        include_attempt_count: take(&mut m.include_request_attempt_count),
        include_attempt_count_in_response: take(&mut m.include_attempt_count_in_response),
        rate_limits: cx.each("rate_limits", take(&mut m.rate_limits), actions),
        filters: overrides(cx, take(&mut m.typed_per_filter_config)),
    };
    if host.domains.is_empty() {
        cx.missing("domains");
    }
    cx.rest(&m);
    host
}

fn route(cx: &mut Context, mut m: pb::route::Route) -> Route {
    use pb::route::route::Action;
    ignored!(cx, m, decorator, tracing, stat_prefix);
    let ours = our_metadata(cx, m.metadata.take());
    let matches = match m.r#match.take() {
        Some(matches) => cx.at("match", |cx| route_match(cx, matches)),
        None => {
            cx.missing("match");
            RouteMatch::default()
        }
    };
    let action = match m.action.take() {
        Some(Action::Route(action)) => {
            let mut forward = cx.at("route", |cx| forward(cx, action));
            if let Some(policy) = &mut forward.retry {
                policy.only_safe = flag(&ours, RETRY_ONLY_SAFE);
            }
            RouteAction::Forward(Box::new(forward))
        }
        Some(Action::Redirect(action)) => RouteAction::Redirect(cx.at("redirect", |cx| redirect(cx, action))),
        Some(Action::DirectResponse(action)) => cx.at("direct_response", |cx| direct_response(cx, action)),
        Some(Action::NonForwardingAction(_)) => RouteAction::NonForwarding,
        Some(Action::FilterAction(_)) => {
            cx.refuse_at(
                "filter_action",
                "is not supported; supported: route, redirect, direct_response, non_forwarding_action",
            );
            RouteAction::NonForwarding
        }
        None => {
            cx.refuse("does nothing; want route, redirect, direct_response or non_forwarding_action");
            RouteAction::NonForwarding
        }
    };
    let route = Route {
        name: take(&mut m.name),
        matches,
        action,
        headers: HeaderChanges {
            request: changes(cx, "request", &mut m.request_headers_to_remove, &mut m.request_headers_to_add),
            response: changes(
                cx,
                "response",
                &mut m.response_headers_to_remove,
                &mut m.response_headers_to_add,
            ),
        },
        filters: overrides(cx, take(&mut m.typed_per_filter_config)),
    };
    cx.rest(&m);
    route
}

pub(super) fn route_match(cx: &mut Context, mut m: pb::route::RouteMatch) -> RouteMatch {
    let path = match m.path_specifier.take() {
        Some(PathSpecifier::Prefix(path)) => PathMatch::Prefix(path),
        Some(PathSpecifier::Path(path)) => PathMatch::Exact(path),
        Some(PathSpecifier::PathSeparatedPrefix(path)) => PathMatch::SegmentPrefix(path),
        Some(PathSpecifier::SafeRegex(expression)) => {
            PathMatch::Regex(cx.at("safe_regex", |cx| regex(cx, expression)))
        }
        Some(PathSpecifier::ConnectMatcher(_)) => PathMatch::Connect,
        other => {
            const WANT: &str = "want one of prefix, path, path_separated_prefix, safe_regex, connect_matcher";
            match other {
                Some(_) => cx.refuse_at("path_match_policy", format!("is not supported; {WANT}")),
                None => cx.refuse(format!("has no path; {WANT}")),
            }
            PathMatch::Connect
        }
    };
    let matches = RouteMatch {
        path,
        case_sensitive: m.case_sensitive.take().is_none_or(|on| on.value),
        headers: cx.each("headers", take(&mut m.headers), header),
        query: cx.each("query_parameters", take(&mut m.query_parameters), query),
        grpc: m.grpc.take().is_some(),
        share: cx.some("runtime_fraction", m.runtime_fraction.take(), Context::runtime_fraction),
    };
    cx.rest(&m);
    matches
}

fn forward(cx: &mut Context, mut m: pb::route::RouteAction) -> Forward {
    use route_action::ClusterNotFoundResponseCode as Missing;
    ignored!(cx, m, early_data_policy);
    let to = cluster_choice(cx, m.cluster_specifier.take());
    let missing = take(&mut m.cluster_not_found_response_code);
    let cluster_missing_status = match Missing::try_from(missing) {
        Ok(Missing::ServiceUnavailable) => 503,
        Ok(Missing::NotFound) => 404,
        Ok(Missing::InternalServerError) => 500,
        Err(_) => {
            cx.refuse_at("cluster_not_found_response_code", format!("got {missing}, want a known value"));
            503
        }
    };
    let rewrite = rewrite(cx, take(&mut m.prefix_rewrite), m.regex_rewrite.take());
    let host_rewrite = host_rewrite(cx, m.host_rewrite_specifier.take());
    let mut stream = m.max_stream_duration.take().unwrap_or_default();
    let (max_stream_duration, grpc_timeout_max) = cx.at("max_stream_duration", |cx| {
        let longest = cx.limit("max_stream_duration", stream.max_stream_duration.take(), None);
        let grpc = cx.duration("grpc_timeout_header_max", stream.grpc_timeout_header_max.take());
        cx.rest(&stream);
        (longest, grpc)
    });
    let forward = Forward {
        to,
        metadata_match: cx.some("metadata_match", m.metadata_match.take(), labels).unwrap_or_default(),
        cluster_missing_status,
        rewrite,
        host_rewrite,
        append_forwarded_host: take(&mut m.append_x_forwarded_host),
        timeout: cx.limit("timeout", m.timeout.take(), Some(TIMEOUT)),
        idle_timeout: cx.duration("idle_timeout", m.idle_timeout.take()),
        max_stream_duration,
        grpc_timeout_max,
        retry: cx.some("retry_policy", m.retry_policy.take(), retry_policy),
        mirrors: cx.each("request_mirror_policies", take(&mut m.request_mirror_policies), mirror),
        hash: cx.each("hash_policy", take(&mut m.hash_policy), hash_policy),
        upgrades: cx.each("upgrade_configs", take(&mut m.upgrade_configs), upgrade),
        high_priority: take(&mut m.priority) == i32::from(pb::core::RoutingPriority::High),
        rate_limits: cx.each("rate_limits", take(&mut m.rate_limits), actions),
        internal_redirect: cx.some("internal_redirect_policy", m.internal_redirect_policy.take(), |cx, m| {
            Box::new(internal_redirect(cx, m))
        }),
        include_host_rate_limits: m.include_vh_rate_limits.take().is_some_and(|on| on.value),
    };
    cx.rest(&m);
    forward
}

fn cluster_choice(cx: &mut Context, specifier: Option<ClusterSpecifier>) -> ClusterChoice {
    match specifier {
        Some(ClusterSpecifier::Cluster(name)) => ClusterChoice::Cluster(name),
        Some(ClusterSpecifier::ClusterHeader(name)) => ClusterChoice::Header(name.to_ascii_lowercase()),
        Some(ClusterSpecifier::WeightedClusters(several)) => {
            ClusterChoice::Weighted(cx.at("weighted_clusters", |cx| weighted_clusters(cx, several)))
        }
        other => {
            let field = match other {
                Some(ClusterSpecifier::ClusterSpecifierPlugin(_)) => "cluster_specifier_plugin",
                Some(_) => "inline_cluster_specifier_plugin",
                None => "cluster",
            };
            cx.refuse_at(
                field,
                "is not supported or missing; want cluster, cluster_header or weighted_clusters",
            );
            ClusterChoice::Cluster(String::new())
        }
    }
}

fn weighted_clusters(cx: &mut Context, mut several: pb::route::WeightedCluster) -> Vec<WeightedCluster> {
    ignored!(cx, several, runtime_key_prefix);
    let clusters = cx.each("clusters", take(&mut several.clusters), weighted);
    let sum: u64 = clusters.iter().map(|one| u64::from(one.weight)).sum();
    if sum == 0 || sum > u32::MAX.into() {
        cx.refuse_at("clusters", format!("weights sum up to {sum}, want 1 to {}", u32::MAX));
    }
    if let Some(total) = several.total_weight.take()
        && u64::from(total.value) != sum
    {
        cx.refuse_at("total_weight", format!("got {}, want {sum}, the sum of all weights", total.value));
    }
    cx.rest(&several);
    clusters
}

fn weighted(cx: &mut Context, mut m: pb::route::weighted_cluster::ClusterWeight) -> WeightedCluster {
    let weight = m.weight.take().map_or(0, |weight| weight.value);
    let cluster = WeightedCluster {
        cluster: take(&mut m.name),
        weight,
        metadata_match: cx.some("metadata_match", m.metadata_match.take(), labels).unwrap_or_default(),
        headers: HeaderChanges {
            request: changes(cx, "request", &mut m.request_headers_to_remove, &mut m.request_headers_to_add),
            response: changes(
                cx,
                "response",
                &mut m.response_headers_to_remove,
                &mut m.response_headers_to_add,
            ),
        },
        filters: overrides(cx, take(&mut m.typed_per_filter_config)),
    };
    if cluster.cluster.is_empty() {
        cx.missing("name");
    }
    cx.rest(&m);
    cluster
}

fn rewrite(
    cx: &mut Context,
    prefix: String,
    regex: Option<pb::matcher::RegexMatchAndSubstitute>,
) -> Option<PathRewrite> {
    match (prefix.is_empty(), regex) {
        (true, None) => None,
        (false, None) => Some(PathRewrite::Prefix(prefix)),
        (true, Some(regex)) => Some(cx.at("regex_rewrite", |cx| substitution(cx, regex))),
        (false, Some(_)) => {
            cx.refuse_at("regex_rewrite", "cannot stand beside prefix_rewrite");
            None
        }
    }
}

fn substitution(cx: &mut Context, rewrite: pb::matcher::RegexMatchAndSubstitute) -> PathRewrite {
    let expression = rewrite.pattern.unwrap_or_default();
    let expression = cx.at("pattern", |cx| {
        let source = pattern(cx, expression);
        if let Err(error) = pillion_model::matcher::Regex::new(&source) {
            cx.refuse_at("regex", error);
        }
        source
    });
    PathRewrite::Regex { pattern: expression, substitution: rewrite.substitution }
}

fn host_rewrite(cx: &mut Context, specifier: Option<HostRewriteSpecifier>) -> Option<HostRewrite> {
    match specifier? {
        HostRewriteSpecifier::HostRewriteLiteral(text) => Some(HostRewrite::Literal(text)),
        HostRewriteSpecifier::HostRewriteHeader(name) => Some(HostRewrite::Header(name.to_ascii_lowercase())),
        HostRewriteSpecifier::AutoHostRewrite(on) => on.value.then_some(HostRewrite::Auto),
        HostRewriteSpecifier::HostRewritePathRegex(regex) => {
            let rewrite = cx.at("host_rewrite_path_regex", |cx| substitution(cx, regex));
            match rewrite {
                PathRewrite::Regex { pattern, substitution } => {
                    Some(HostRewrite::PathRegex { pattern, substitution })
                }
                PathRewrite::Prefix(_) => None,
            }
        }
        _ => {
            cx.refuse("is not supported; supported: host_rewrite_literal, host_rewrite_header, auto_host_rewrite, host_rewrite_path_regex");
            None
        }
    }
}

fn redirect(cx: &mut Context, mut m: pb::route::RedirectAction) -> Redirect {
    use pb::route::redirect_action::RedirectResponseCode as Code;
    let text = |text: String| (!text.is_empty()).then_some(text);
    let code = take(&mut m.response_code);
    let status = match Code::try_from(code) {
        Ok(Code::MovedPermanently) => 301,
        Ok(Code::Found) => 302,
        Ok(Code::SeeOther) => 303,
        Ok(Code::TemporaryRedirect) => 307,
        Ok(Code::PermanentRedirect) => 308,
        Err(_) => {
            cx.refuse_at("response_code", format!("got {code}, want a known value"));
            301
        }
    };
    let path = m.path_rewrite_specifier.take().and_then(|path| match path {
        PathRewriteSpecifier::PathRedirect(path) => Some(RedirectPath::Full(path)),
        PathRewriteSpecifier::PrefixRewrite(prefix) => {
            Some(RedirectPath::Rewrite(PathRewrite::Prefix(prefix)))
        }
        PathRewriteSpecifier::RegexRewrite(regex) => {
            Some(RedirectPath::Rewrite(cx.at("regex_rewrite", |cx| substitution(cx, regex))))
        }
        PathRewriteSpecifier::PathRewrite(_) => {
            cx.refuse_at(
                "path_rewrite",
                "is not supported; supported: path_redirect, prefix_rewrite, regex_rewrite",
            );
            None
        }
    });
    let port = cx.port("port_redirect", take(&mut m.port_redirect));
    let redirect = Redirect {
        status,
        scheme: m.scheme_rewrite_specifier.take().and_then(|scheme| match scheme {
            SchemeRewriteSpecifier::HttpsRedirect(on) => on.then(|| "https".to_owned()),
            SchemeRewriteSpecifier::SchemeRedirect(scheme) => text(scheme),
        }),
        host: text(take(&mut m.host_redirect)),
        port: (port != 0).then_some(port),
        path,
        strip_query: take(&mut m.strip_query),
    };
    cx.rest(&m);
    redirect
}

fn direct_response(cx: &mut Context, mut m: pb::route::DirectResponseAction) -> RouteAction {
    let status = take(&mut m.status);
    if !(200..600).contains(&status) {
        cx.refuse_at("status", format!("got {status}, want 200 to 599"));
    }
    let body = cx.some("body", m.body.take(), super::tls::data_source);
    cx.rest(&m);
    let status = u16::try_from(status).unwrap_or(500);
    match body {
        None => RouteAction::Respond { status, body: Vec::new() },
        Some(DataSource::Inline(body)) => RouteAction::Respond { status, body },
        Some(body) => RouteAction::RespondFrom { status, body },
    }
}

fn mirror(cx: &mut Context, mut m: route_action::RequestMirrorPolicy) -> Mirror {
    ignored!(cx, m, trace_sampled);
    let mirror = Mirror {
        cluster: take(&mut m.cluster),
        share: cx.some("runtime_fraction", m.runtime_fraction.take(), Context::runtime_fraction),
    };
    if mirror.cluster.is_empty() {
        cx.missing("cluster");
    }
    cx.rest(&m);
    mirror
}

fn hash_policy(cx: &mut Context, policy: route_action::HashPolicy) -> HashPolicy {
    use route_action::hash_policy::PolicySpecifier as P;
    let source = match policy.policy_specifier {
        Some(P::Header(mut by)) => cx.at("header", |cx| {
            let name = take(&mut by.header_name).to_ascii_lowercase();
            cx.rest(&by);
            HashSource::Header(name)
        }),
        Some(P::Cookie(mut by)) => cx.at("cookie", |cx| {
            let ttl = cx.duration("ttl", by.ttl.take());
            let source = HashSource::Cookie { name: take(&mut by.name), ttl, path: take(&mut by.path) };
            cx.rest(&by);
            source
        }),
        Some(P::ConnectionProperties(by)) if by.source_ip => HashSource::SourceIp,
        Some(P::QueryParameter(by)) => HashSource::Query(by.name),
        _ => {
            cx.refuse(
                "is not supported; supported: header, cookie, connection_properties.source_ip, query_parameter",
            );
            HashSource::SourceIp
        }
    };
    HashPolicy { source, terminal: policy.terminal }
}

fn upgrade(cx: &mut Context, mut m: route_action::UpgradeConfig) -> (String, bool) {
    let enabled = m.enabled.take().is_none_or(|on| on.value);
    let protocol = take(&mut m.upgrade_type);
    cx.rest(&m);
    (protocol, enabled)
}
