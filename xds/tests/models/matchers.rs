//! Matchers, authorization and TLS.

use pillion_model::matcher::{
    Cidr, HeaderMatcher, HeaderValueMatch, Pattern, QueryMatcher, Regex, StringMatcher,
};
use pillion_model::metadata::{MetadataMatcher, ValueMatcher};
use pillion_model::rbac::{Action, Permission, Policy, Principal, Rbac};
use pillion_model::tls::{
    Certificate, DataSource, DownstreamTls, NameKind, NameMatcher, Roots, TlsVersion, UpstreamTls, Validation,
};
use proptest::collection::btree_map;
use proptest::prelude::*;

use super::{few, free, ip, maybe, name, some, text};

pub(crate) fn regex() -> BoxedStrategy<Regex> {
    prop_oneof![Just("a+"), Just("/v[0-9]+/.*"), Just("x|y")]
        .prop_map(|source| Regex::new(source).unwrap())
        .boxed()
}

pub(crate) fn string() -> BoxedStrategy<StringMatcher> {
    let pattern = prop_oneof![
        free().prop_map(Pattern::Exact),
        text().prop_map(Pattern::Prefix),
        text().prop_map(Pattern::Suffix),
        text().prop_map(Pattern::Contains),
        regex().prop_map(Pattern::Regex),
    ];
    (pattern, any::<bool>()).prop_map(|(pattern, ignore_case)| StringMatcher { pattern, ignore_case }).boxed()
}

pub(crate) fn header() -> BoxedStrategy<HeaderMatcher> {
    let value = prop_oneof![
        any::<bool>().prop_map(HeaderValueMatch::Present),
        string().prop_map(HeaderValueMatch::Text),
        any::<(i64, i64)>().prop_map(|(start, end)| HeaderValueMatch::Range { start, end }),
    ];
    (name(), value, any::<bool>(), any::<bool>())
        .prop_map(|(name, value, invert, treat_missing_as_empty)| HeaderMatcher {
            name,
            value,
            invert,
            treat_missing_as_empty,
        })
        .boxed()
}

pub(crate) fn query() -> BoxedStrategy<QueryMatcher> {
    (text(), maybe(string())).prop_map(|(name, value)| QueryMatcher { name, value }).boxed()
}

pub(crate) fn cidr() -> BoxedStrategy<Cidr> {
    (ip(), 0_u8..=128)
        .prop_map(|(ip, length)| {
            let length = if ip.is_ipv4() { length.min(32) } else { length };
            Cidr::new(ip, length).unwrap()
        })
        .boxed()
}

pub(crate) fn rbac() -> BoxedStrategy<Rbac> {
    let policy = (some(permission()), some(principal()))
        .prop_map(|(permissions, principals)| Policy { permissions, principals });
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Log)];
    (action, btree_map(text(), policy, 0..3)).prop_map(|(action, policies)| Rbac { action, policies }).boxed()
}

fn metadata() -> BoxedStrategy<MetadataMatcher> {
    let leaf = prop_oneof![
        Just(ValueMatcher::Null),
        (-1e9..1e9).prop_map(ValueMatcher::Number),
        (-1e9..0.0, 0.0..1e9).prop_map(|(start, end)| ValueMatcher::Range { start, end }),
        string().prop_map(ValueMatcher::Text),
        any::<bool>().prop_map(ValueMatcher::Bool),
        any::<bool>().prop_map(ValueMatcher::Present),
    ];
    let value = leaf.prop_recursive(2, 4, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| ValueMatcher::List(Box::new(one))),
            some(inner).prop_map(ValueMatcher::Or),
        ]
    });
    (text(), some(text()), value, any::<bool>())
        .prop_map(|(filter, path, value, invert)| MetadataMatcher { filter, path, value, invert })
        .boxed()
}

fn permission() -> BoxedStrategy<Permission> {
    let leaf = prop_oneof![
        Just(Permission::Any),
        header().prop_map(Permission::Header),
        string().prop_map(Permission::UrlPath),
        cidr().prop_map(Permission::DestinationIp),
        any::<u16>().prop_map(Permission::DestinationPort),
        string().prop_map(Permission::RequestedServerName),
        (0_i32..100, 100_i32..).prop_map(|(start, end)| Permission::DestinationPortRange(start, end)),
        metadata().prop_map(Permission::Metadata),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            some(inner.clone()).prop_map(Permission::And),
            some(inner.clone()).prop_map(Permission::Or),
            inner.prop_map(|one| Permission::Not(Box::new(one))),
        ]
    })
    .boxed()
}

fn principal() -> BoxedStrategy<Principal> {
    let leaf = prop_oneof![
        Just(Principal::Any),
        maybe(string()).prop_map(Principal::Authenticated),
        cidr().prop_map(Principal::DirectRemoteIp),
        cidr().prop_map(Principal::RemoteIp),
        header().prop_map(Principal::Header),
        string().prop_map(Principal::UrlPath),
        metadata().prop_map(Principal::Metadata),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            some(inner.clone()).prop_map(Principal::And),
            some(inner.clone()).prop_map(Principal::Or),
            inner.prop_map(|one| Principal::Not(Box::new(one))),
        ]
    })
    .boxed()
}

pub(crate) fn source() -> BoxedStrategy<DataSource> {
    prop_oneof![
        text().prop_map(DataSource::File),
        proptest::collection::vec(any::<u8>(), 0..8).prop_map(DataSource::Inline),
        text().prop_map(DataSource::Environment),
    ]
    .boxed()
}

fn certificate() -> BoxedStrategy<Certificate> {
    prop_oneof![
        (source(), source()).prop_map(|(chain, key)| Certificate::Given { chain, key }),
        text().prop_map(Certificate::Secret),
    ]
    .boxed()
}

fn validation() -> BoxedStrategy<Validation> {
    let roots =
        prop_oneof![source().prop_map(Roots::Given), text().prop_map(Roots::Secret), Just(Roots::System),];
    let kind =
        prop_oneof![Just(NameKind::Uri), Just(NameKind::Dns), Just(NameKind::Ip), Just(NameKind::Email)];
    let name = (kind, string()).prop_map(|(kind, matcher)| NameMatcher { kind, matcher });
    (roots, few(name)).prop_map(|(roots, names)| Validation { roots, names }).boxed()
}

fn versions() -> BoxedStrategy<(TlsVersion, TlsVersion)> {
    use TlsVersion::{V1_2, V1_3};
    prop_oneof![Just((V1_2, V1_2)), Just((V1_2, V1_3)), Just((V1_3, V1_3))].boxed()
}

pub(crate) fn downstream_tls() -> BoxedStrategy<DownstreamTls> {
    (certificate(), maybe(validation()), any::<bool>(), few(name()), versions())
        .prop_map(|(certificate, validation, require, alpn, (min_version, max_version))| DownstreamTls {
            certificates: vec![certificate],
            require_client_certificate: require && validation.is_some(),
            validation,
            alpn,
            min_version,
            max_version,
        })
        .boxed()
}

pub(crate) fn upstream_tls() -> BoxedStrategy<UpstreamTls> {
    (maybe(certificate()), maybe(validation()), free(), few(name()), versions())
        .prop_map(|(certificate, validation, sni, alpn, (min_version, max_version))| UpstreamTls {
            certificate,
            validation,
            sni,
            alpn,
            min_version,
            max_version,
        })
        .boxed()
}
