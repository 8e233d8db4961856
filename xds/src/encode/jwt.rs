//! The filter that checks JSON Web Tokens.

use pillion_model::jwt::{JwtAuthn, JwtKeys, JwtOverride, JwtProvider, JwtRequirement, RemoteKeys};

use super::duration;
use crate::pb;
use pb::jwt_authn::jwt_provider::NormalizePayload;
use pb::jwt_authn::jwt_requirement::RequiresType;

pub(super) fn filter(jwt: &JwtAuthn) -> pb::jwt_authn::JwtAuthentication {
    use pb::jwt_authn::requirement_rule::RequirementType;
    let provider = |(name, one): (&String, &JwtProvider)| (name.clone(), provider(one));
    let needed = |(name, one): (&String, &JwtRequirement)| (name.clone(), requirement(one));
    let rules = jwt.rules.iter().map(|rule| pb::jwt_authn::RequirementRule {
        r#match: Some(super::route::matches(&rule.matches)),
        requirement_type: rule.requires.as_ref().map(|requires| match requires {
            JwtRequirement::Named(name) => RequirementType::RequirementName(name.clone()),
            requires => RequirementType::Requires(requirement(requires)),
        }),
    });
    pb::jwt_authn::JwtAuthentication {
        providers: jwt.providers.iter().map(provider).collect(),
        rules: rules.collect(),
        requirement_map: jwt.requirements.iter().map(needed).collect(),
        bypass_cors_preflight: jwt.bypass_cors_preflight,
        strip_failure_response: jwt.strip_failure_response,
        stat_prefix: jwt.stat_prefix.clone(),
        ..Default::default()
    }
}

fn provider(one: &JwtProvider) -> pb::jwt_authn::JwtProvider {
    use pb::jwt_authn::jwt_provider::JwksSourceSpecifier as Source;
    let header = |(name, prefix): &(String, String)| pb::jwt_authn::JwtHeader {
        name: name.clone(),
        value_prefix: prefix.clone(),
    };
    let claim = |(header, claim): &(String, String)| pb::jwt_authn::JwtClaimToHeader {
        header_name: header.clone(),
        claim_name: claim.clone(),
        ..Default::default()
    };
    pb::jwt_authn::JwtProvider {
        issuer: one.issuer.clone(),
        audiences: one.audiences.clone(),
        forward: one.forward,
        from_headers: one.from_headers.iter().map(header).collect(),
        from_params: one.from_params.clone(),
        from_cookies: one.from_cookies.clone(),
        forward_payload_header: one.payload_header.clone(),
        pad_forward_payload_header: one.pad_payload_header,
        claim_to_headers: one.claim_headers.iter().map(claim).collect(),
        subjects: one.subjects.as_ref().map(super::matcher::string),
        require_expiration: one.require_expiration,
        max_lifetime: one.max_lifetime.map(duration),
        payload_in_metadata: one.payload_metadata.clone(),
        normalize_payload_in_metadata: (!one.split_claims.is_empty())
            .then(|| NormalizePayload { space_delimited_claims: one.split_claims.clone() }),
        header_in_metadata: one.header_metadata.clone(),
        clear_route_cache: one.clear_route_cache,
        clock_skew_seconds: one.clock_skew_seconds,
        jwks_source_specifier: Some(match &one.keys {
            JwtKeys::Local(source) => Source::LocalJwks(super::tls::data_source(source)),
            JwtKeys::Remote(remote) => Source::RemoteJwks(remote_keys(remote)),
        }),
        ..Default::default()
    }
}

fn remote_keys(remote: &RemoteKeys) -> pb::jwt_authn::RemoteJwks {
    pb::jwt_authn::RemoteJwks {
        http_uri: Some(http_uri(&remote.uri, &remote.cluster, remote.timeout)),
        cache_duration: Some(duration(remote.cache)),
        async_fetch: remote.ahead.then(pb::jwt_authn::JwksAsyncFetch::default),
        retry_policy: None,
    }
}

pub(super) fn http_uri(uri: &str, cluster: &str, timeout: std::time::Duration) -> pb::core::HttpUri {
    pb::core::HttpUri {
        uri: uri.to_owned(),
        timeout: Some(duration(timeout)),
        http_upstream_type: Some(pb::core::http_uri::HttpUpstreamType::Cluster(cluster.to_owned())),
    }
}

fn requirement(one: &JwtRequirement) -> pb::jwt_authn::JwtRequirement {
    let many = |all: &[JwtRequirement]| all.iter().map(requirement).collect();
    let requires_type = match one {
        JwtRequirement::Provider { name, audiences } if audiences.is_empty() => {
            RequiresType::ProviderName(name.clone())
        }
        JwtRequirement::Provider { name, audiences } => {
            RequiresType::ProviderAndAudiences(pb::jwt_authn::ProviderWithAudiences {
                provider_name: name.clone(),
                audiences: audiences.clone(),
            })
        }
        JwtRequirement::Any(all) => {
            RequiresType::RequiresAny(pb::jwt_authn::JwtRequirementOrList { requirements: many(all) })
        }
        JwtRequirement::All(all) => {
            RequiresType::RequiresAll(pb::jwt_authn::JwtRequirementAndList { requirements: many(all) })
        }
        JwtRequirement::AllowMissing => RequiresType::AllowMissing(pb::Empty {}),
        JwtRequirement::AllowMissingOrFailed => RequiresType::AllowMissingOrFailed(pb::Empty {}),
        // The decoder makes it at rules only, and there it is written otherwise.
        JwtRequirement::Named(_) => return pb::jwt_authn::JwtRequirement { requires_type: None },
    };
    pb::jwt_authn::JwtRequirement { requires_type: Some(requires_type) }
}

pub(super) fn of_route(said: &JwtOverride) -> pb::jwt_authn::PerRouteConfig {
    use pb::jwt_authn::per_route_config::RequirementSpecifier;
    pb::jwt_authn::PerRouteConfig {
        requirement_specifier: Some(match said {
            JwtOverride::Disabled => RequirementSpecifier::Disabled(true),
            JwtOverride::Requirement(name) => RequirementSpecifier::RequirementName(name.clone()),
        }),
    }
}
