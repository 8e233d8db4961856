//! The filter that checks JSON Web Tokens.

use std::collections::HashMap;
use std::mem::take;
use std::time::Duration;

use pillion_model::jwt::{JwtAuthn, JwtKeys, JwtOverride, JwtProvider, JwtRequirement, JwtRule, RemoteKeys};
use pillion_model::route::RouteMatch;
use pillion_model::tls::DataSource;

use crate::decode::Context;
use crate::decode::context::ignored;
use crate::decode::matcher::string;
use crate::pb;
use pb::jwt_authn::jwt_requirement::RequiresType;

/// Envoy's.
const CLOCK_SKEW_SECONDS: u32 = 60;
/// How long keys are good where nothing is said.
const CACHE: Duration = Duration::from_mins(10);
/// Requirements inside requirements.
const DEPTH_MAX: usize = 16;

pub(super) fn filter(cx: &mut Context, mut m: pb::jwt_authn::JwtAuthentication) -> JwtAuthn {
    let mut jwt = JwtAuthn {
        bypass_cors_preflight: take(&mut m.bypass_cors_preflight),
        strip_failure_response: take(&mut m.strip_failure_response),
        stat_prefix: take(&mut m.stat_prefix),
        ..JwtAuthn::default()
    };
    for (name, provider_) in sorted(take(&mut m.providers)) {
        let read = cx.at(format_args!("providers[\"{name}\"]"), |cx| provider(cx, provider_));
        jwt.providers.insert(name, read);
    }
    for (name, needed) in sorted(take(&mut m.requirement_map)) {
        let read = cx.at(format_args!("requirement_map[\"{name}\"]"), |cx| requirement(cx, needed, &jwt, 0));
        if let Some(read) = read {
            jwt.requirements.insert(name, read);
        }
    }
    let rules = cx.each("rules", take(&mut m.rules), |cx, one| rule(cx, one, &jwt));
    jwt.rules = rules;
    cx.rest(&m);
    jwt
}

fn sorted<T>(map: HashMap<String, T>) -> Vec<(String, T)> {
    let mut all: Vec<_> = map.into_iter().collect();
    all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    all
}

fn provider(cx: &mut Context, mut m: pb::jwt_authn::JwtProvider) -> JwtProvider {
    use pb::jwt_authn::jwt_provider::JwksSourceSpecifier as Source;
    // Every token is checked anew.
    ignored!(cx, m, failed_status_in_metadata, jwt_cache_config);
    let keys = match m.jwks_source_specifier.take() {
        Some(Source::LocalJwks(source)) => {
            JwtKeys::Local(cx.at("local_jwks", |cx| crate::decode::tls::data_source(cx, source)))
        }
        Some(Source::RemoteJwks(remote)) => {
            JwtKeys::Remote(cx.at("remote_jwks", |cx| remote_keys(cx, remote)))
        }
        None => {
            cx.refuse("has no keys; want local_jwks or remote_jwks");
            JwtKeys::Local(DataSource::Inline(Vec::new()))
        }
    };
    let skew = take(&mut m.clock_skew_seconds);
    let provider = JwtProvider {
        issuer: take(&mut m.issuer),
        audiences: take(&mut m.audiences),
        keys,
        from_headers: cx.each("from_headers", take(&mut m.from_headers), |cx, header| {
            if header.name.is_empty() {
                cx.missing("name");
            }
            (header.name.to_ascii_lowercase(), header.value_prefix)
        }),
        from_params: take(&mut m.from_params),
        from_cookies: take(&mut m.from_cookies),
        forward: take(&mut m.forward),
        payload_header: take(&mut m.forward_payload_header).to_ascii_lowercase(),
        pad_payload_header: take(&mut m.pad_forward_payload_header),
        claim_headers: cx.each("claim_to_headers", take(&mut m.claim_to_headers), claim),
        subjects: cx.some("subjects", m.subjects.take(), string),
        require_expiration: take(&mut m.require_expiration),
        max_lifetime: cx.duration("max_lifetime", m.max_lifetime.take()),
        payload_metadata: take(&mut m.payload_in_metadata),
        split_claims: m
            .normalize_payload_in_metadata
            .take()
            .map_or_else(Vec::new, |normal| normal.space_delimited_claims),
        header_metadata: take(&mut m.header_in_metadata),
        clear_route_cache: take(&mut m.clear_route_cache),
        clock_skew_seconds: if skew == 0 { CLOCK_SKEW_SECONDS } else { skew },
    };
    cx.rest(&m);
    provider
}

fn claim(cx: &mut Context, mut m: pb::jwt_authn::JwtClaimToHeader) -> (String, String) {
    let read = (take(&mut m.header_name).to_ascii_lowercase(), take(&mut m.claim_name));
    if read.0.is_empty() {
        cx.missing("header_name");
    }
    if read.1.is_empty() && m.claim_path.is_empty() {
        cx.missing("claim_name");
    }
    cx.rest(&m);
    read
}

fn remote_keys(cx: &mut Context, mut m: pb::jwt_authn::RemoteJwks) -> RemoteKeys {
    let cache = cx.duration("cache_duration", m.cache_duration.take());
    let ahead = cx.some("async_fetch", m.async_fetch.take(), |cx, mut ahead| {
        ignored!(cx, ahead, fast_listener, failed_refetch_duration);
    });
    let (uri, cluster, timeout) = match m.http_uri.take() {
        Some(uri) => cx.at("http_uri", |cx| http_uri(cx, uri)),
        None => {
            cx.missing("http_uri");
            Default::default()
        }
    };
    cx.rest(&m);
    RemoteKeys {
        uri,
        cluster,
        timeout,
        cache: cache.filter(|cache| !cache.is_zero()).unwrap_or(CACHE),
        ahead: ahead.is_some(),
    }
}

/// URI, cluster and timeout.
pub(super) fn http_uri(cx: &mut Context, mut m: pb::core::HttpUri) -> (String, String, Duration) {
    use pb::core::http_uri::HttpUpstreamType;
    let cluster = match m.http_upstream_type.take() {
        Some(HttpUpstreamType::Cluster(cluster)) if !cluster.is_empty() => cluster,
        _ => {
            cx.missing("cluster");
            String::new()
        }
    };
    let timeout = cx.duration("timeout", m.timeout.take());
    if timeout.is_none() {
        cx.missing("timeout");
    }
    let uri = take(&mut m.uri);
    if uri.is_empty() {
        cx.missing("uri");
    }
    cx.rest(&m);
    (uri, cluster, timeout.unwrap_or_default())
}

fn rule(cx: &mut Context, mut m: pb::jwt_authn::RequirementRule, jwt: &JwtAuthn) -> JwtRule {
    use pb::jwt_authn::requirement_rule::RequirementType;
    let matches = match m.r#match.take() {
        Some(matches) => cx.at("match", |cx| crate::decode::route::route_match(cx, matches)),
        None => {
            cx.missing("match");
            RouteMatch::default()
        }
    };
    let requires = match m.requirement_type.take() {
        None => None,
        Some(RequirementType::Requires(needed)) => cx.at("requires", |cx| {
            // That nothing is needed can also be said like this.
            needed.requires_type.is_some().then(|| requirement(cx, needed, jwt, 0)).flatten()
        }),
        Some(RequirementType::RequirementName(name)) => {
            if !jwt.requirements.contains_key(&name) {
                cx.refuse_at("requirement_name", format!("`{name}` is not in requirement_map"));
            }
            Some(JwtRequirement::Named(name))
        }
    };
    JwtRule { matches, requires }
}

fn requirement(
    cx: &mut Context,
    m: pb::jwt_authn::JwtRequirement,
    jwt: &JwtAuthn,
    depth: usize,
) -> Option<JwtRequirement> {
    if depth > DEPTH_MAX {
        cx.refuse(format!("is nested more than {DEPTH_MAX} deep"));
        return None;
    }
    let known = |cx: &mut Context, field: &str, name: &String| {
        if !jwt.providers.contains_key(name) {
            cx.refuse_at(field, format!("`{name}` is not in providers"));
        }
    };
    let many = |cx: &mut Context, all: Vec<pb::jwt_authn::JwtRequirement>| {
        if all.len() < 2 {
            cx.refuse_at("requirements", format!("has {}, want two or more", all.len()));
        }
        let all = cx.each("requirements", all, |cx, one| requirement(cx, one, jwt, depth + 1));
        all.into_iter().flatten().collect()
    };
    Some(match m.requires_type {
        Some(RequiresType::ProviderName(name)) => {
            known(cx, "provider_name", &name);
            JwtRequirement::Provider { name, audiences: Vec::new() }
        }
        Some(RequiresType::ProviderAndAudiences(both)) => cx.at("provider_and_audiences", |cx| {
            known(cx, "provider_name", &both.provider_name);
            JwtRequirement::Provider { name: both.provider_name, audiences: both.audiences }
        }),
        Some(RequiresType::RequiresAny(list)) => {
            JwtRequirement::Any(cx.at("requires_any", |cx| many(cx, list.requirements)))
        }
        Some(RequiresType::RequiresAll(list)) => {
            JwtRequirement::All(cx.at("requires_all", |cx| many(cx, list.requirements)))
        }
        Some(RequiresType::AllowMissing(_)) => JwtRequirement::AllowMissing,
        Some(RequiresType::AllowMissingOrFailed(_)) => JwtRequirement::AllowMissingOrFailed,
        Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
            cx.refuse_at("extract_only_without_validation", "is not supported: nothing would be checked");
            return None;
        }
        None => {
            cx.refuse("requires nothing; want a provider, a list, allow_missing or allow_missing_or_failed");
            return None;
        }
    })
}

pub(super) fn of_route(cx: &mut Context, m: pb::jwt_authn::PerRouteConfig) -> Option<JwtOverride> {
    use pb::jwt_authn::per_route_config::RequirementSpecifier;
    match m.requirement_specifier {
        Some(RequirementSpecifier::Disabled(true)) => Some(JwtOverride::Disabled),
        Some(RequirementSpecifier::RequirementName(name)) if !name.is_empty() => {
            Some(JwtOverride::Requirement(name))
        }
        _ => {
            cx.refuse("says nothing; want disabled or requirement_name");
            None
        }
    }
}
