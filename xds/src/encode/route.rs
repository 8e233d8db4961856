//! Route configurations.

use pillion_model::retry::RetryPolicy;
use pillion_model::route::{
    Append, ClusterChoice, Forward, HashPolicy, HashSource, HeaderChange, HeaderChanges, HostRewrite, Mirror,
    PathMatch, PathRewrite, Redirect, RedirectPath, Route, RouteAction, RouteConfiguration, RouteMatch,
    VirtualHost, WeightedCluster,
};

use super::filters::overrides;
use super::internal_redirect::internal_redirect;
use super::matcher::{header, pattern, query, regex};
use super::metadata::labels;
use super::rate_limit::actions;
use super::{Dialect, any, boolean, duration, flag, limit, number, runtime_fraction};
use crate::pb;
use pb::route::redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier};
use pb::route::route_action::{self, ClusterSpecifier, HostRewriteSpecifier};
use pb::route::route_match::PathSpecifier;

/// Key of our metadata at a route or virtual host: the retry policy there is `only_safe`.
pub(crate) const RETRY_ONLY_SAFE: &str = "retryOnlySafe";

pub(super) fn configuration(
    routes: &RouteConfiguration,
    dialect: Dialect<'_>,
) -> pb::route::RouteConfiguration {
    let changes = Changes::of(&routes.headers);
    pb::route::RouteConfiguration {
        name: routes.name.clone(),
        virtual_hosts: routes.virtual_hosts.iter().map(|host| virtual_host(host, dialect)).collect(),
        request_headers_to_add: changes.request_add,
        request_headers_to_remove: changes.request_remove,
        response_headers_to_add: changes.response_add,
        response_headers_to_remove: changes.response_remove,
        most_specific_header_mutations_wins: routes.most_specific_header_mutations_wins,
        typed_per_filter_config: overrides(&routes.filters, dialect),
        ..Default::default()
    }
}

fn virtual_host(host: &VirtualHost, dialect: Dialect<'_>) -> pb::route::VirtualHost {
    let changes = Changes::of(&host.headers);
    pb::route::VirtualHost {
        name: host.name.clone(),
        domains: host.domains.clone(),
        routes: host.routes.iter().map(|one| route(one, dialect)).collect(),
        request_headers_to_add: changes.request_add,
        request_headers_to_remove: changes.request_remove,
        response_headers_to_add: changes.response_add,
        response_headers_to_remove: changes.response_remove,
        typed_per_filter_config: overrides(&host.filters, dialect),
        include_request_attempt_count: host.include_attempt_count,
        include_attempt_count_in_response: host.include_attempt_count_in_response,
        retry_policy: host.retry.as_ref().and_then(|policy| retry(policy, dialect)),
        metadata: only_safe(host.retry.as_ref(), dialect),
        rate_limits: host.rate_limits.iter().map(actions).collect(),
        ..Default::default()
    }
}

fn route(route: &Route, dialect: Dialect<'_>) -> pb::route::Route {
    use pb::route::route::Action;
    let changes = Changes::of(&route.headers);
    let policy = match &route.action {
        RouteAction::Forward(forward) => forward.retry.as_ref(),
        _ => None,
    };
    pb::route::Route {
        name: route.name.clone(),
        r#match: Some(matches(&route.matches)),
        metadata: only_safe(policy, dialect),
        typed_per_filter_config: overrides(&route.filters, dialect),
        request_headers_to_add: changes.request_add,
        request_headers_to_remove: changes.request_remove,
        response_headers_to_add: changes.response_add,
        response_headers_to_remove: changes.response_remove,
        action: Some(match &route.action {
            RouteAction::Forward(to) => Action::Route(forward(to, dialect)),
            RouteAction::Redirect(to) => Action::Redirect(redirect(to)),
            RouteAction::Respond { status, body } => {
                Action::DirectResponse(pb::route::DirectResponseAction {
                    status: (*status).into(),
                    body: (!body.is_empty()).then(|| {
                        super::tls::data_source(&pillion_model::tls::DataSource::Inline(body.clone()))
                    }),
                    body_format: None,
                })
            }
            RouteAction::RespondFrom { status, body } => {
                Action::DirectResponse(pb::route::DirectResponseAction {
                    status: (*status).into(),
                    body: Some(super::tls::data_source(body)),
                    body_format: None,
                })
            }
            RouteAction::NonForwarding => Action::NonForwardingAction(pb::route::NonForwardingAction {}),
        }),
        ..Default::default()
    }
}

fn only_safe(retry: Option<&RetryPolicy>, dialect: Dialect<'_>) -> Option<pb::core::Metadata> {
    flag(RETRY_ONLY_SAFE, matches!(dialect, Dialect::Pillion) && retry.is_some_and(|policy| policy.only_safe))
}

pub(super) fn matches(matches: &RouteMatch) -> pb::route::RouteMatch {
    pb::route::RouteMatch {
        path_specifier: Some(match &matches.path {
            PathMatch::Prefix(path) => PathSpecifier::Prefix(path.clone()),
            PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
            PathMatch::SegmentPrefix(path) => PathSpecifier::PathSeparatedPrefix(path.clone()),
            PathMatch::Regex(path) => PathSpecifier::SafeRegex(regex(path)),
            PathMatch::Connect => PathSpecifier::ConnectMatcher(pb::route::route_match::ConnectMatcher {}),
        }),
        case_sensitive: (!matches.case_sensitive).then(|| boolean(false)),
        headers: matches.headers.iter().map(header).collect(),
        query_parameters: matches.query.iter().map(query).collect(),
        grpc: matches.grpc.then_some(pb::route::route_match::GrpcRouteMatchOptions {}),
        runtime_fraction: matches.share.map(runtime_fraction),
        ..Default::default()
    }
}

#[expect(deprecated, reason = "no other field says it of all filters")]
fn forward(forward: &Forward, dialect: Dialect<'_>) -> pb::route::RouteAction {
    use route_action::ClusterNotFoundResponseCode as Missing;
    let missing = match forward.cluster_missing_status {
        404 => Missing::NotFound,
        500 => Missing::InternalServerError,
        _ => Missing::ServiceUnavailable,
    };
    let (prefix_rewrite, regex_rewrite) = match &forward.rewrite {
        None => (String::new(), None),
        Some(PathRewrite::Prefix(prefix)) => (prefix.clone(), None),
        Some(PathRewrite::Regex { pattern, substitution }) => {
            (String::new(), Some(substitute(pattern, substitution)))
        }
    };
    // gRPC keeps no other time than this.
    let whole = forward.timeout.filter(|_| matches!(dialect, Dialect::Grpc));
    let longest = forward.max_stream_duration.or(whole);
    let stream =
        (longest.is_some() || forward.grpc_timeout_max.is_some()).then(|| route_action::MaxStreamDuration {
            max_stream_duration: longest.map(duration),
            grpc_timeout_header_max: forward.grpc_timeout_max.map(duration),
            grpc_timeout_header_offset: None,
        });
    let priority = if forward.high_priority {
        pb::core::RoutingPriority::High
    } else {
        pb::core::RoutingPriority::Default
    };
    pb::route::RouteAction {
        cluster_specifier: Some(match &forward.to {
            ClusterChoice::Cluster(name) => ClusterSpecifier::Cluster(name.clone()),
            ClusterChoice::Header(name) => ClusterSpecifier::ClusterHeader(name.clone()),
            ClusterChoice::Weighted(all) => ClusterSpecifier::WeightedClusters(pb::route::WeightedCluster {
                clusters: all.iter().map(|one| weighted(one, dialect)).collect(),
                ..Default::default()
            }),
        }),
        metadata_match: labels(&forward.metadata_match),
        cluster_not_found_response_code: missing.into(),
        prefix_rewrite,
        regex_rewrite,
        host_rewrite_specifier: forward.host_rewrite.as_ref().map(|rewrite| match rewrite {
            HostRewrite::Literal(text) => HostRewriteSpecifier::HostRewriteLiteral(text.clone()),
            HostRewrite::Header(name) => HostRewriteSpecifier::HostRewriteHeader(name.clone()),
            HostRewrite::PathRegex { pattern, substitution } => {
                HostRewriteSpecifier::HostRewritePathRegex(substitute(pattern, substitution))
            }
            HostRewrite::Auto => HostRewriteSpecifier::AutoHostRewrite(boolean(true)),
        }),
        append_x_forwarded_host: forward.append_forwarded_host,
        timeout: Some(limit(forward.timeout)),
        idle_timeout: forward.idle_timeout.map(duration),
        max_stream_duration: stream,
        retry_policy: forward.retry.as_ref().and_then(|policy| retry(policy, dialect)),
        request_mirror_policies: forward.mirrors.iter().map(mirror).collect(),
        hash_policy: forward.hash.iter().map(hash).collect(),
        upgrade_configs: forward
            .upgrades
            .iter()
            .map(|(protocol, enabled)| route_action::UpgradeConfig {
                upgrade_type: protocol.clone(),
                enabled: Some(boolean(*enabled)),
                connect_config: None,
            })
            .collect(),
        priority: priority.into(),
        rate_limits: forward.rate_limits.iter().map(actions).collect(),
        internal_redirect_policy: forward.internal_redirect.as_deref().map(internal_redirect),
        include_vh_rate_limits: forward.include_host_rate_limits.then(|| boolean(true)),
        ..Default::default()
    }
}

fn weighted(one: &WeightedCluster, dialect: Dialect<'_>) -> pb::route::weighted_cluster::ClusterWeight {
    let changes = Changes::of(&one.headers);
    pb::route::weighted_cluster::ClusterWeight {
        name: one.cluster.clone(),
        weight: Some(number(one.weight)),
        metadata_match: labels(&one.metadata_match),
        typed_per_filter_config: overrides(&one.filters, dialect),
        request_headers_to_add: changes.request_add,
        request_headers_to_remove: changes.request_remove,
        response_headers_to_add: changes.response_add,
        response_headers_to_remove: changes.response_remove,
        ..Default::default()
    }
}

fn substitute(expression: &str, substitution: &str) -> pb::matcher::RegexMatchAndSubstitute {
    pb::matcher::RegexMatchAndSubstitute {
        pattern: Some(pattern(expression)),
        substitution: substitution.to_owned(),
    }
}

fn redirect(redirect: &Redirect) -> pb::route::RedirectAction {
    use pb::route::redirect_action::RedirectResponseCode as Code;
    let code = match redirect.status {
        302 => Code::Found,
        303 => Code::SeeOther,
        307 => Code::TemporaryRedirect,
        308 => Code::PermanentRedirect,
        _ => Code::MovedPermanently,
    };
    pb::route::RedirectAction {
        response_code: code.into(),
        scheme_rewrite_specifier: redirect
            .scheme
            .as_ref()
            .map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.clone())),
        host_redirect: redirect.host.clone().unwrap_or_default(),
        port_redirect: redirect.port.map_or(0, u32::from),
        path_rewrite_specifier: redirect.path.as_ref().map(|path| match path {
            RedirectPath::Full(path) => PathRewriteSpecifier::PathRedirect(path.clone()),
            RedirectPath::Rewrite(PathRewrite::Prefix(prefix)) => {
                PathRewriteSpecifier::PrefixRewrite(prefix.clone())
            }
            RedirectPath::Rewrite(PathRewrite::Regex { pattern, substitution }) => {
                PathRewriteSpecifier::RegexRewrite(substitute(pattern, substitution))
            }
        }),
        strip_query: redirect.strip_query,
    }
}

fn mirror(mirror: &Mirror) -> route_action::RequestMirrorPolicy {
    route_action::RequestMirrorPolicy {
        cluster: mirror.cluster.clone(),
        runtime_fraction: mirror.share.map(runtime_fraction),
        ..Default::default()
    }
}

fn hash(policy: &HashPolicy) -> route_action::HashPolicy {
    use route_action::hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter};
    let source = match &policy.source {
        HashSource::Header(name) => {
            PolicySpecifier::Header(Header { header_name: name.clone(), regex_rewrite: None })
        }
        HashSource::Cookie { name, ttl, path } => PolicySpecifier::Cookie(Cookie {
            name: name.clone(),
            ttl: ttl.map(duration),
            path: path.clone(),
            attributes: Vec::new(),
        }),
        HashSource::SourceIp => {
            PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
        }
        HashSource::Query(name) => PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() }),
    };
    route_action::HashPolicy { terminal: policy.terminal, policy_specifier: Some(source) }
}

/// `None`: gRPC takes no policy without a retry.
fn retry(policy: &RetryPolicy, dialect: Dialect<'_>) -> Option<pb::route::RetryPolicy> {
    use pb::route::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType};
    if policy.retries == 0 && matches!(dialect, Dialect::Grpc) {
        return None;
    }
    let previous = policy.avoid_previous_hosts.then(|| RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&pb::previous_hosts::PreviousHostsPredicate {}))),
    });
    Some(pb::route::RetryPolicy {
        retry_on: policy.on.tokens().collect::<Vec<_>>().join(","),
        num_retries: Some(number(policy.retries)),
        per_try_timeout: policy.per_try_timeout.map(duration),
        retry_host_predicate: previous.into_iter().collect(),
        host_selection_retry_max_attempts: policy.host_selection_attempts.into(),
        retriable_status_codes: policy.status_codes.iter().map(|&code| code.into()).collect(),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(duration(policy.backoff_base)),
            max_interval: Some(duration(policy.backoff_max)),
        }),
        retriable_headers: policy.headers.iter().map(header).collect(),
        ..Default::default()
    })
}

/// Header changes as Envoy writes them: what is removed and what is added apart.
#[derive(Default)]
struct Changes {
    request_add: Vec<pb::core::HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<pb::core::HeaderValueOption>,
    response_remove: Vec<String>,
}

impl Changes {
    fn of(changes: &HeaderChanges) -> Self {
        let mut all = Self::default();
        for change in &changes.request {
            push(change, &mut all.request_add, &mut all.request_remove);
        }
        for change in &changes.response {
            push(change, &mut all.response_add, &mut all.response_remove);
        }
        all
    }
}

fn push(change: &HeaderChange, added: &mut Vec<pb::core::HeaderValueOption>, removed: &mut Vec<String>) {
    match addition(change) {
        Ok(option) => added.push(option),
        Err(name) => removed.push(name.to_owned()),
    }
}

/// What is added, or the name of what is removed.
pub(super) fn addition(change: &HeaderChange) -> Result<pb::core::HeaderValueOption, &str> {
    use pb::core::header_value_option::HeaderAppendAction as A;
    let (name, value, append, keep_empty) = match change {
        HeaderChange::Remove(name) => return Err(name),
        HeaderChange::Add { name, value, append, keep_empty } => (name, value, append, keep_empty),
    };
    let action = match append {
        Append::AppendIfExistsOrAdd => A::AppendIfExistsOrAdd,
        Append::AddIfAbsent => A::AddIfAbsent,
        Append::OverwriteIfExistsOrAdd => A::OverwriteIfExistsOrAdd,
        Append::OverwriteIfExists => A::OverwriteIfExists,
    };
    Ok(pb::core::HeaderValueOption {
        header: Some(pb::core::HeaderValue {
            key: name.clone(),
            value: value.clone(),
            raw_value: Vec::new(),
        }),
        append_action: action.into(),
        keep_empty_value: *keep_empty,
        ..Default::default()
    })
}
