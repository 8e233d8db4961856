//! The filter that asks a server whether requests may pass.

use pillion_model::authz::{AuthzBody, AuthzHttp, AuthzOverride, AuthzService, ExtAuthz};
use proptest::collection::btree_map;
use proptest::prelude::*;

use super::matchers::string;
use super::{duration, few, fraction, free, maybe, name, text, time};

pub(crate) fn authz() -> BoxedStrategy<ExtAuthz> {
    let headers = || few((name(), free()));
    let grpc =
        (text(), free(), maybe(time()), headers()).prop_map(|(cluster, authority, timeout, metadata)| {
            AuthzService::Grpc { cluster, authority, timeout, metadata }
        });
    let lists = || (few(string()), few(string()), few(string()), few(string()));
    let http = (text(), text(), duration(), maybe(name()), headers(), lists()).prop_map(
        |(uri, cluster, timeout, prefix, headers, lists)| {
            AuthzService::Http(AuthzHttp {
                uri,
                cluster,
                timeout,
                path_prefix: prefix.map_or_else(String::new, |prefix| format!("/{prefix}")),
                headers,
                upstream_headers: lists.0,
                upstream_headers_append: lists.1,
                client_headers: lists.2,
                client_headers_on_success: lists.3,
            })
        },
    );
    let service = prop_oneof![grpc, http];
    (
        service,
        any::<[bool; 4]>(),
        200_u16..=511,
        maybe(body()),
        few(string()),
        few(string()),
        fraction(),
        free(),
    )
        .prop_map(|(service, flags, status_on_error, body, allowed, disallowed, enabled, stat_prefix)| {
            ExtAuthz {
                service,
                failure_mode_allow: flags[0],
                failure_mode_header: flags[1],
                status_on_error,
                body,
                validate_mutations: flags[2],
                allowed_headers: allowed,
                disallowed_headers: disallowed,
                enabled,
                tls_session: flags[3],
                stat_prefix,
            }
        })
        .boxed()
}

fn body() -> BoxedStrategy<AuthzBody> {
    (1_u32.., any::<(bool, bool)>())
        .prop_map(|(bytes_max, (partial, as_bytes))| AuthzBody { bytes_max, partial, as_bytes })
        .boxed()
}

pub(crate) fn authz_of_route() -> BoxedStrategy<AuthzOverride> {
    let settings = (btree_map(name(), free(), 0..3), maybe(maybe(body())))
        .prop_map(|(extensions, body)| AuthzOverride::Settings { extensions, body });
    prop_oneof![Just(AuthzOverride::Disabled), settings].boxed()
}
