//! The filter that checks JSON Web Tokens.

use pillion_model::jwt::{JwtAuthn, JwtKeys, JwtOverride, JwtProvider, JwtRequirement, JwtRule, RemoteKeys};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::matchers::source;
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
        clock_skew_seconds: 60,
    }
}

fn provider() -> BoxedStrategy<JwtProvider> {
    let remote = (text(), text(), time(), time(), any::<bool>())
        .prop_map(|(uri, cluster, timeout, cache, ahead)| RemoteKeys { uri, cluster, timeout, cache, ahead });
    let keys = prop_oneof![source().prop_map(JwtKeys::Local), remote.prop_map(JwtKeys::Remote)];
    let places = (few((name(), free())), few(text()), few(text()));
    (free(), few(text()), keys, places, any::<(bool, bool)>(), free(), few((name(), text())), 1_u32..)
        .prop_map(|(issuer, audiences, keys, places, flags, header, claim_headers, skew)| JwtProvider {
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
            clock_skew_seconds: skew,
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
