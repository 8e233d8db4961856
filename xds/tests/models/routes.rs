//! Route configurations.

use std::collections::BTreeMap;

use pillion_model::filter::FilterKind;
use pillion_model::http::CorsPolicy;
use pillion_model::internal_redirect::{InternalRedirect, REDIRECTS, RedirectPredicate};
use pillion_model::retry::{RetryOn, RetryPolicy};
use pillion_model::route::{
    Append, ClusterChoice, FilterOverrides, Forward, HashPolicy, HashSource, HeaderChange, HeaderChanges,
    HostRewrite, Mirror, PathMatch, PathRewrite, Redirect, RedirectPath, Route, RouteAction,
    RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
};
use pillion_model::tls::DataSource;
use proptest::collection::btree_map;
use proptest::prelude::*;
use proptest::sample::select;

use super::authz::authz_of_route;
use super::filters::mutations;
use super::http::fault;
use super::jwt::jwt_of_route;
use super::matchers::{header, query, rbac, regex, string};
use super::rate_limit::{actions, rate_limit};
use super::subsets::fields;
use super::{duration, few, fraction, free, maybe, name, some, text, time};

pub(crate) fn configuration() -> BoxedStrategy<RouteConfiguration> {
    (name(), few(virtual_host()), changes(), any::<bool>(), overrides())
        .prop_map(|(name, virtual_hosts, headers, wins, filters)| RouteConfiguration {
            name,
            virtual_hosts,
            headers,
            most_specific_header_mutations_wins: wins,
            filters,
        })
        .boxed()
}

fn virtual_host() -> BoxedStrategy<VirtualHost> {
    let limits = few(actions());
    (
        name(),
        some(text()),
        few(route()),
        changes(),
        maybe(retry()),
        any::<(bool, bool)>(),
        overrides(),
        limits,
    )
        .prop_map(|(name, domains, routes, headers, retry, (include, in_response), filters, limits)| {
            VirtualHost {
                name,
                domains,
                routes,
                headers,
                retry,
                include_attempt_count: include,
                include_attempt_count_in_response: in_response,
                rate_limits: limits,
                filters,
            }
        })
        .boxed()
}

fn route() -> BoxedStrategy<Route> {
    let action = prop_oneof![
        4 => forward().prop_map(|forward| RouteAction::Forward(Box::new(forward))),
        1 => redirect().prop_map(RouteAction::Redirect),
        1 => (200_u16..600, proptest::collection::vec(any::<u8>(), 0..8))
            .prop_map(|(status, body)| RouteAction::Respond { status, body }),
        1 => (200_u16..600, text()).prop_map(|(status, path)| RouteAction::RespondFrom {
            status,
            body: DataSource::File(path),
        }),
        1 => Just(RouteAction::NonForwarding),
    ];
    (name(), route_match(), action, changes(), overrides())
        .prop_map(|(name, matches, action, headers, filters)| Route {
            name,
            matches,
            action,
            headers,
            filters,
        })
        .boxed()
}

pub(crate) fn route_match() -> BoxedStrategy<RouteMatch> {
    let path = prop_oneof![
        text().prop_map(PathMatch::Prefix),
        text().prop_map(PathMatch::Exact),
        text().prop_map(PathMatch::SegmentPrefix),
        regex().prop_map(PathMatch::Regex),
        Just(PathMatch::Connect),
    ];
    (path, any::<bool>(), few(header()), few(query()), any::<bool>(), maybe(fraction()))
        .prop_map(|(path, case_sensitive, headers, query, grpc, share)| RouteMatch {
            path,
            case_sensitive,
            headers,
            query,
            grpc,
            share,
        })
        .boxed()
}

fn forward() -> BoxedStrategy<Forward> {
    let weighted = (name(), 1_u32..1000, fields(), changes(), overrides()).prop_map(
        |(cluster, weight, metadata_match, headers, filters)| WeightedCluster {
            cluster,
            weight,
            metadata_match,
            headers,
            filters,
        },
    );
    let to = prop_oneof![
        name().prop_map(ClusterChoice::Cluster),
        name().prop_map(ClusterChoice::Header),
        some(weighted).prop_map(ClusterChoice::Weighted),
    ];
    let host_rewrite = prop_oneof![
        text().prop_map(HostRewrite::Literal),
        name().prop_map(HostRewrite::Header),
        Just(HostRewrite::Auto),
        (regex(), free()).prop_map(|(pattern, substitution)| HostRewrite::PathRegex {
            pattern: pattern.source().to_owned(),
            substitution,
        }),
    ];
    let mirror = (name(), maybe(fraction())).prop_map(|(cluster, share)| Mirror { cluster, share });
    let missing = prop_oneof![Just(503), Just(404), Just(500)];
    let times = (maybe(time()), maybe(duration()), maybe(time()), maybe(duration()));
    (
        ((to, fields()), missing, maybe(rewrite()), maybe(host_rewrite), times),
        (
            maybe(retry()),
            few(mirror),
            few(hash()),
            few((name(), any::<bool>())),
            any::<[bool; 3]>(),
            few(actions()),
            maybe(internal_redirect()),
        ),
    )
        .prop_map(
            |(
                ((to, metadata_match), missing, rewrite, host_rewrite, times),
                (retry, mirrors, hash, upgrades, [high, append, include], rate_limits, internal_redirect),
            )| {
                Forward {
                    to,
                    metadata_match,
                    cluster_missing_status: missing,
                    rewrite,
                    host_rewrite,
                    append_forwarded_host: append,
                    timeout: times.0,
                    idle_timeout: times.1,
                    max_stream_duration: times.2,
                    grpc_timeout_max: times.3,
                    retry,
                    mirrors,
                    hash,
                    upgrades,
                    high_priority: high,
                    rate_limits,
                    include_host_rate_limits: include,
                    internal_redirect: internal_redirect.map(Box::new),
                }
            },
        )
        .boxed()
}

fn internal_redirect() -> BoxedStrategy<InternalRedirect> {
    let predicate = prop_oneof![
        Just(RedirectPredicate::PreviousRoutes),
        Just(RedirectPredicate::SafeCrossScheme),
        some(name()).prop_map(RedirectPredicate::AllowListed),
    ];
    let statuses = proptest::sample::subsequence(REDIRECTS.to_vec(), 1..=REDIRECTS.len());
    (any::<u32>(), statuses, few(predicate), any::<bool>(), few(name()))
        .prop_map(|(max, statuses, predicates, cross_scheme, copied_headers)| InternalRedirect {
            max,
            statuses,
            predicates,
            cross_scheme,
            copied_headers,
        })
        .boxed()
}

fn rewrite() -> BoxedStrategy<PathRewrite> {
    prop_oneof![
        text().prop_map(PathRewrite::Prefix),
        (regex(), free()).prop_map(|(pattern, substitution)| PathRewrite::Regex {
            pattern: pattern.source().to_owned(),
            substitution,
        }),
    ]
    .boxed()
}

fn redirect() -> BoxedStrategy<Redirect> {
    let status = prop_oneof![Just(301), Just(302), Just(303), Just(307), Just(308)];
    let path = prop_oneof![free().prop_map(RedirectPath::Full), rewrite().prop_map(RedirectPath::Rewrite)];
    (status, maybe(text()), maybe(text()), maybe(1_u16..), maybe(path), any::<bool>())
        .prop_map(|(status, scheme, host, port, path, strip_query)| Redirect {
            status,
            scheme,
            host,
            port,
            path,
            strip_query,
        })
        .boxed()
}

fn hash() -> BoxedStrategy<HashPolicy> {
    let source = prop_oneof![
        name().prop_map(HashSource::Header),
        (name(), maybe(duration()), free()).prop_map(|(name, ttl, path)| HashSource::Cookie {
            name,
            ttl,
            path
        }),
        Just(HashSource::SourceIp),
        name().prop_map(HashSource::Query),
    ];
    (source, any::<bool>()).prop_map(|(source, terminal)| HashPolicy { source, terminal }).boxed()
}

pub(crate) fn retry() -> BoxedStrategy<RetryPolicy> {
    let on = proptest::sample::subsequence(RetryOn::ALL, 0..=RetryOn::ALL.len())
        .prop_map(|all| all.into_iter().fold(RetryOn::empty(), |set, (one, _)| set.with(one)));
    (
        (on, few(100_u16..600), few(header()), any::<u32>(), maybe(time())),
        (duration(), duration(), any::<bool>(), 1_u32..100, any::<bool>()),
    )
        .prop_map(
            |((on, status_codes, headers, retries, per_try_timeout), (base, max, avoid, attempts, safe))| {
                RetryPolicy {
                    on,
                    status_codes,
                    headers,
                    retries,
                    per_try_timeout,
                    backoff_base: base,
                    backoff_max: max,
                    avoid_previous_hosts: avoid,
                    host_selection_attempts: attempts,
                    only_safe: safe,
                }
            },
        )
        .boxed()
}

fn overrides() -> BoxedStrategy<FilterOverrides> {
    let first = (maybe(maybe(rbac())), maybe(fault()), maybe(cors()));
    let second = (
        maybe(mutations()),
        maybe(maybe(1_u32..)),
        maybe(rate_limit(true)),
        maybe(jwt_of_route()),
        maybe(authz_of_route()),
    );
    (first, second, btree_map(select(FilterKind::ALL.to_vec()), any::<bool>(), 0..3))
        .prop_map(|((rbac, fault, cors), (header_mutation, buffer, limit, jwt, authz), mut switched)| {
            let local_rate_limit = limit.map(Box::new);
            let mut filters = FilterOverrides {
                rbac,
                fault,
                cors,
                header_mutation,
                buffer,
                local_rate_limit,
                jwt,
                authz,
                switched: BTreeMap::new(),
            };
            // Settings switch a filter on by themselves.
            switched.retain(|kind, _| filters.switches(*kind).is_none());
            filters.switched = switched;
            filters
        })
        .boxed()
}

fn cors() -> BoxedStrategy<CorsPolicy> {
    (few(string()), free(), free(), free(), free(), maybe(any::<bool>()))
        .prop_map(
            |(allow_origins, allow_methods, allow_headers, expose_headers, max_age, allow_credentials)| {
                CorsPolicy {
                    allow_origins,
                    allow_methods,
                    allow_headers,
                    expose_headers,
                    max_age,
                    allow_credentials,
                }
            },
        )
        .boxed()
}

pub(crate) fn changes() -> BoxedStrategy<HeaderChanges> {
    (side(), side()).prop_map(|(request, response)| HeaderChanges { request, response }).boxed()
}

fn side() -> BoxedStrategy<Vec<HeaderChange>> {
    let append = prop_oneof![
        Just(Append::AppendIfExistsOrAdd),
        Just(Append::AddIfAbsent),
        Just(Append::OverwriteIfExistsOrAdd),
        Just(Append::OverwriteIfExists),
    ];
    let add = (name(), free(), append, any::<bool>())
        .prop_map(|(name, value, append, keep_empty)| HeaderChange::Add { name, value, append, keep_empty });
    (few(name().prop_map(HeaderChange::Remove)), few(add))
        .prop_map(|(mut all, add)| {
            all.extend(add);
            all
        })
        .boxed()
}
