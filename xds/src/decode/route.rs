//! Route configurations.

use std::collections::HashMap;
use std::mem::take;
use std::time::Duration;

use pillion_model::http::CorsPolicy;
use pillion_model::retry::{RetryOn, RetryPolicy};
use pillion_model::route::{
    Append, ClusterChoice, FilterOverrides, Forward, HashPolicy, HashSource, HeaderChange, HeaderChanges,
    HostRewrite, Mirror, PathMatch, PathRewrite, Redirect, RedirectPath, Route, RouteAction,
    RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
};
use pillion_model::tls::DataSource;

use super::Context;
use super::context::{ignored, inert, is};
use super::matcher::{flag, header, our_metadata, pattern, query, regex, string};
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

fn route_match(cx: &mut Context, mut m: pb::route::RouteMatch) -> RouteMatch {
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
        cluster_missing_status,
        rewrite,
        host_rewrite,
        timeout: cx.limit("timeout", m.timeout.take(), Some(TIMEOUT)),
        idle_timeout: cx.duration("idle_timeout", m.idle_timeout.take()),
        max_stream_duration,
        grpc_timeout_max,
        retry: cx.some("retry_policy", m.retry_policy.take(), retry_policy),
        mirrors: cx.each("request_mirror_policies", take(&mut m.request_mirror_policies), mirror),
        hash: cx.each("hash_policy", take(&mut m.hash_policy), hash_policy),
        upgrades: cx.each("upgrade_configs", take(&mut m.upgrade_configs), upgrade),
        high_priority: take(&mut m.priority) == i32::from(pb::core::RoutingPriority::High),
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
        headers: HeaderChanges {
            request: changes(cx, "request", &mut m.request_headers_to_remove, &mut m.request_headers_to_add),
            response: changes(
                cx,
                "response",
                &mut m.response_headers_to_remove,
                &mut m.response_headers_to_add,
            ),
        },
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
        _ => {
            cx.refuse(
                "host_rewrite_path_regex is not supported; supported: host_rewrite_literal, host_rewrite_header, \
                 auto_host_rewrite",
            );
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
    let body = cx.some("body", m.body.take(), |cx, source| match super::tls::data_source(cx, source) {
        DataSource::Inline(body) => body,
        DataSource::File(_) | DataSource::Environment(_) => {
            cx.refuse("is not supported; supported: inline_bytes, inline_string");
            Vec::new()
        }
    });
    cx.rest(&m);
    RouteAction::Respond { status: u16::try_from(status).unwrap_or(500), body: body.unwrap_or_default() }
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

fn retry_policy(cx: &mut Context, mut m: pb::route::RetryPolicy) -> RetryPolicy {
    let standard = RetryPolicy::default();
    let mut on = RetryOn::empty();
    for token in take(&mut m.retry_on).split(',').map(str::trim).filter(|token| !token.is_empty()) {
        match RetryOn::parse_token(token) {
            Some(condition) => on = on.with(condition),
            // There is no HTTP/3 to fall back from.
            None if token == "http3-post-connect-failure" => cx.ignore("retry_on"),
            None => cx.refuse_at("retry_on", format!("`{token}` is not supported; {}", conditions())),
        }
    }
    let mut backoff = m.retry_back_off.take().unwrap_or_default();
    let (base, longest) = cx.at("retry_back_off", |cx| {
        (
            cx.duration("base_interval", backoff.base_interval.take()),
            cx.duration("max_interval", backoff.max_interval.take()),
        )
    });
    let backoff_base = base.unwrap_or(standard.backoff_base);
    let attempts = take(&mut m.host_selection_retry_max_attempts);
    let predicates = cx.each("retry_host_predicate", take(&mut m.retry_host_predicate), host_predicate);
    let policy = RetryPolicy {
        on,
        status_codes: cx.each("retriable_status_codes", take(&mut m.retriable_status_codes), |cx, code| {
            u16::try_from(code).unwrap_or_else(|_| {
                cx.refuse(format!("got {code}, want a status code"));
                0
            })
        }),
        headers: cx.each("retriable_headers", take(&mut m.retriable_headers), header),
        retries: m.num_retries.take().map_or(standard.retries, |retries| retries.value),
        per_try_timeout: cx.limit("per_try_timeout", m.per_try_timeout.take(), None),
        backoff_base,
        backoff_max: longest.unwrap_or(backoff_base.saturating_mul(10)),
        avoid_previous_hosts: predicates.contains(&true),
        host_selection_attempts: u32::try_from(attempts).unwrap_or(0).max(1),
        only_safe: false,
    };
    cx.rest(&m);
    policy
}

fn conditions() -> String {
    let tokens: Vec<&str> = RetryOn::ALL.iter().map(|&(_, token)| token).collect();
    format!("supported: {}", tokens.join(", "))
}

fn host_predicate(cx: &mut Context, predicate: pb::route::retry_policy::RetryHostPredicate) -> bool {
    use pb::route::retry_policy::retry_host_predicate::ConfigType;
    match predicate.config_type {
        Some(ConfigType::TypedConfig(any)) if !is::<pb::previous_hosts::PreviousHostsPredicate>(&any) => {
            cx.at("typed_config", |cx| cx.unsupported_type(&any, "previous_hosts"));
        }
        Some(ConfigType::TypedConfig(_)) => return true,
        None if predicate.name == "envoy.retry_host_predicates.previous_hosts" => return true,
        None => cx.missing("typed_config"),
    }
    false
}

const OVERRIDES: &str = "RBACPerRoute, HTTPFault, CorsPolicy under their filters' names";

fn overrides(cx: &mut Context, all: HashMap<String, pb::Any>) -> FilterOverrides {
    let mut filters = FilterOverrides::default();
    for (name, any) in all {
        cx.at(format_args!("typed_per_filter_config[\"{name}\"]"), |cx| {
            let expected = if is::<pb::http_rbac::RbacPerRoute>(&any) {
                let mut message: pb::http_rbac::RbacPerRoute = cx.unpack(&any);
                filters.rbac =
                    Some(message.rbac.take().and_then(|rbac| cx.at("rbac", |cx| rbac_rules(cx, rbac))));
                pb::names::RBAC
            } else if is::<pb::fault::HttpFault>(&any) {
                let message = cx.unpack(&any);
                filters.fault = Some(super::http::fault(cx, message));
                pb::names::FAULT
            } else if is::<pb::cors::CorsPolicy>(&any) {
                let message = cx.unpack(&any);
                filters.cors = Some(cors(cx, message));
                pb::names::CORS
            } else {
                cx.unsupported_type(&any, OVERRIDES);
                return;
            };
            if name != expected {
                cx.refuse(format!("is for no filter that runs here; want `{expected}`"));
            }
        });
    }
    filters
}

fn rbac_rules(cx: &mut Context, rbac: pb::http_rbac::Rbac) -> super::http::Rules {
    let (rules, shadow) = super::http::rbac(cx, rbac);
    if shadow.is_some() {
        cx.ignore("shadow_rules");
    }
    rules
}

fn cors(cx: &mut Context, mut m: pb::cors::CorsPolicy) -> CorsPolicy {
    // On, for all, is what being there says.
    inert!(
        m,
        filter_enabled = Some(everything()),
        allow_private_network_access = Some(pb::BoolValue { value: false })
    );
    ignored!(cx, m, shadow_enabled);
    let policy = CorsPolicy {
        allow_origins: cx.each("allow_origin_string_match", take(&mut m.allow_origin_string_match), string),
        allow_methods: take(&mut m.allow_methods),
        allow_headers: take(&mut m.allow_headers),
        expose_headers: take(&mut m.expose_headers),
        max_age: take(&mut m.max_age),
        allow_credentials: m.allow_credentials.take().map(|on| on.value),
    };
    cx.rest(&m);
    policy
}

fn everything() -> pb::core::RuntimeFractionalPercent {
    pb::core::RuntimeFractionalPercent {
        default_value: Some(pb::types::FractionalPercent { numerator: 100, denominator: 0 }),
        runtime_key: String::new(),
    }
}

/// Removals first: that is the order in which they are applied at each level.
fn changes(
    cx: &mut Context,
    side: &str,
    removed: &mut Vec<String>,
    added: &mut Vec<pb::core::HeaderValueOption>,
) -> Vec<HeaderChange> {
    let mut all: Vec<HeaderChange> =
        take(removed).into_iter().map(|name| HeaderChange::Remove(name.to_ascii_lowercase())).collect();
    all.extend(cx.each(&format!("{side}_headers_to_add"), take(added), addition));
    all
}

fn addition(cx: &mut Context, mut m: pb::core::HeaderValueOption) -> HeaderChange {
    use pb::core::header_value_option::HeaderAppendAction as A;
    let mut header = m.header.take().unwrap_or_default();
    let action = take(&mut m.append_action);
    let append = match (m.append.take(), A::try_from(action)) {
        (Some(on), _) if on.value => Append::AppendIfExistsOrAdd,
        (Some(_), _) => Append::OverwriteIfExistsOrAdd,
        (None, Ok(A::AppendIfExistsOrAdd)) => Append::AppendIfExistsOrAdd,
        (None, Ok(A::AddIfAbsent)) => Append::AddIfAbsent,
        (None, Ok(A::OverwriteIfExistsOrAdd)) => Append::OverwriteIfExistsOrAdd,
        (None, Ok(A::OverwriteIfExists)) => Append::OverwriteIfExists,
        (None, Err(_)) => {
            cx.refuse_at("append_action", format!("got {action}, want a known value"));
            Append::default()
        }
    };
    let name = take(&mut header.key).to_ascii_lowercase();
    if name.is_empty() {
        cx.at("header", |cx| cx.missing("key"));
    }
    let mut value = take(&mut header.value);
    if let Ok(text) = String::from_utf8(take(&mut header.raw_value)) {
        if value.is_empty() {
            value = text;
        }
    } else {
        cx.refuse_at("header.raw_value", "is not UTF-8");
    }
    let keep_empty = take(&mut m.keep_empty_value);
    cx.rest(&m);
    HeaderChange::Add { name, value, append, keep_empty }
}
