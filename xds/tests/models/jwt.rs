//! The filter that checks JSON Web Tokens.

use pillion_model::jwt::{JwtAuthn, JwtKeys, JwtOverride, JwtProvider, JwtRequirement, JwtRule, RemoteKeys};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::matchers::{source, string};
use super::routes::route_match;
use super::{few, free, maybe, name, text, time};

pub(crate) fn jwt() -> BoxedStrategy<JwtAuthn> {
    let rule =
        (route_match(), maybe(requirement())).prop_map(|(matches, requires)| JwtRule { matches, requires });
    (
        btree_map(name(), provider(), 0..2),
        few(rule),
        btree_map(name(), requirement(), 0..2),
        any::<(bool, bool)>(),
        free(),
    )
        .prop_map(|(mut providers, rules, requirements, flags, stat_prefix)| {
            let provider = JwtProvider { issuer: "of-requirements".to_owned(), ..plain() };
            providers.insert("p".to_owned(), provider);
            JwtAuthn {
                providers,
                rules,
                requirements,
                bypass_cors_preflight: flags.0,
                strip_failure_response: flags.1,
                stat_prefix,
            }
        })
        .boxed()
}

fn plain() -> JwtProvider {
    JwtProvider {
        issuer: String::new(),
        audiences: Vec::new(),
        keys: JwtKeys::Local(pillion_model::tls::DataSource::Inline(Vec::new())),
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        forward: false,
        payload_header: String::new(),
        pad_payload_header: false,
        claim_headers: Vec::new(),
        subjects: None,
        require_expiration: false,
        max_lifetime: None,
        payload_metadata: String::new(),
        split_claims: Vec::new(),
        header_metadata: String::new(),
        clear_route_cache: false,
        clock_skew_seconds: 60,
    }
}

fn provider() -> BoxedStrategy<JwtProvider> {
    let remote = (text(), text(), time(), time(), any::<bool>())
        .prop_map(|(uri, cluster, timeout, cache, ahead)| RemoteKeys { uri, cluster, timeout, cache, ahead });
    let keys = prop_oneof![source().prop_map(JwtKeys::Local), remote.prop_map(JwtKeys::Remote)];
    let places = (few((name(), free())), few(text()), few(text()));
    let limits = (maybe(string()), maybe(time()), any::<bool>(), 1_u32..);
    let metadata = (free(), few(text()), free(), any::<bool>());
    let rest = (limits, metadata);
    (free(), few(text()), keys, places, any::<(bool, bool)>(), free(), few((name(), text())), rest)
        .prop_map(|(issuer, audiences, keys, places, flags, header, claim_headers, rest)| JwtProvider {
            issuer,
            audiences,
            keys,
            from_headers: places.0,
            from_params: places.1,
            from_cookies: places.2,
            forward: flags.0,
            pad_payload_header: flags.1,
            payload_header: header.to_ascii_lowercase(),
            claim_headers,
            subjects: rest.0.0,
            max_lifetime: rest.0.1,
            require_expiration: rest.0.2,
            payload_metadata: rest.1.0,
            split_claims: rest.1.1,
            header_metadata: rest.1.2,
            clear_route_cache: rest.1.3,
            clock_skew_seconds: rest.0.3,
        })
        .boxed()
}

fn requirement() -> BoxedStrategy<JwtRequirement> {
    let leaf = prop_oneof![
        few(text()).prop_map(|audiences| JwtRequirement::Provider { name: "p".to_owned(), audiences }),
        Just(JwtRequirement::AllowMissing),
        Just(JwtRequirement::AllowMissingOrFailed),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 2..4).prop_map(JwtRequirement::Any),
            vec(inner, 2..4).prop_map(JwtRequirement::All),
        ]
    })
    .boxed()
}

pub(crate) fn jwt_of_route() -> BoxedStrategy<JwtOverride> {
    prop_oneof![Just(JwtOverride::Disabled), text().prop_map(JwtOverride::Requirement)].boxed()
}
