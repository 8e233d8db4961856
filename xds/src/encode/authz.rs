//! The filter that asks a server whether requests may pass.

use pillion_model::authz::{AuthzBody, AuthzHttp, AuthzOverride, AuthzService, ExtAuthz};
use pillion_model::matcher::StringMatcher;

use super::jwt::http_uri;
use super::matcher::string;
use super::{limit, runtime_fraction};
use crate::pb;

pub(super) fn filter(authz: &ExtAuthz) -> pb::ext_authz::ExtAuthz {
    use pb::ext_authz::ext_authz::Services;
    pb::ext_authz::ExtAuthz {
        transport_api_version: pb::core::ApiVersion::V3.into(),
        services: Some(match &authz.service {
            AuthzService::Grpc { cluster, authority, timeout, metadata } => {
                Services::GrpcService(pb::core::GrpcService {
                    timeout: Some(limit(*timeout)),
                    initial_metadata: metadata.iter().map(header).collect(),
                    target_specifier: Some(pb::core::grpc_service::TargetSpecifier::EnvoyGrpc(
                        pb::core::grpc_service::EnvoyGrpc {
                            cluster_name: cluster.clone(),
                            authority: authority.clone(),
                            ..Default::default()
                        },
                    )),
                    ..Default::default()
                })
            }
            AuthzService::Http(http) => Services::HttpService(http_service(http)),
        }),
        failure_mode_allow: authz.failure_mode_allow,
        failure_mode_allow_header_add: authz.failure_mode_header,
        status_on_error: Some(pb::types::HttpStatus { code: authz.status_on_error.into() }),
        with_request_body: authz.body.map(body),
        validate_mutations: authz.validate_mutations,
        allowed_headers: list(&authz.allowed_headers),
        disallowed_headers: list(&authz.disallowed_headers),
        filter_enabled: Some(runtime_fraction(authz.enabled)),
        include_tls_session: authz.tls_session,
        stat_prefix: authz.stat_prefix.clone(),
        ..Default::default()
    }
}

fn header((key, value): &(String, String)) -> pb::core::HeaderValue {
    pb::core::HeaderValue { key: key.clone(), value: value.clone(), raw_value: Vec::new() }
}

fn list(matchers: &[StringMatcher]) -> Option<pb::matcher::ListStringMatcher> {
    let patterns = matchers.iter().map(string).collect();
    (!matchers.is_empty()).then_some(pb::matcher::ListStringMatcher { patterns })
}

fn body(body: AuthzBody) -> pb::ext_authz::BufferSettings {
    pb::ext_authz::BufferSettings {
        max_request_bytes: body.bytes_max,
        allow_partial_message: body.partial,
        pack_as_bytes: body.as_bytes,
    }
}

fn http_service(http: &AuthzHttp) -> pb::ext_authz::HttpService {
    pb::ext_authz::HttpService {
        server_uri: Some(http_uri(&http.uri, &http.cluster, http.timeout)),
        path_prefix: http.path_prefix.clone(),
        authorization_request: Some(pb::ext_authz::AuthorizationRequest {
            headers_to_add: http.headers.iter().map(header).collect(),
            ..Default::default()
        }),
        authorization_response: Some(pb::ext_authz::AuthorizationResponse {
            allowed_upstream_headers: list(&http.upstream_headers),
            allowed_upstream_headers_to_append: list(&http.upstream_headers_append),
            allowed_client_headers: list(&http.client_headers),
            allowed_client_headers_on_success: list(&http.client_headers_on_success),
            dynamic_metadata_from_headers: None,
        }),
        ..Default::default()
    }
}

pub(super) fn of_route(said: &AuthzOverride) -> pb::ext_authz::ExtAuthzPerRoute {
    use pb::ext_authz::ext_authz_per_route::Override;
    pb::ext_authz::ExtAuthzPerRoute {
        r#override: Some(match said {
            AuthzOverride::Disabled => Override::Disabled(true),
            AuthzOverride::Settings { extensions, body: shown } => {
                Override::CheckSettings(pb::ext_authz::CheckSettings {
                    context_extensions: extensions.clone().into_iter().collect(),
                    disable_request_body_buffering: *shown == Some(None),
                    with_request_body: shown.flatten().map(body),
                    ..Default::default()
                })
            }
        }),
    }
}
