//! The filter that asks a server whether requests may pass.

use std::mem::take;
use std::time::Duration;

use pillion_model::authz::{AuthzBody, AuthzHttp, AuthzOverride, AuthzService, ExtAuthz};
use pillion_model::endpoint::Fraction;
use pillion_model::matcher::StringMatcher;

use super::jwt::http_uri;
use crate::decode::Context;
use crate::decode::context::{ignored, inert};
use crate::decode::matcher::string;
use crate::pb;

/// Envoy's time for an answer over gRPC.
const TIMEOUT: Duration = Duration::from_millis(200);

pub(super) fn filter(cx: &mut Context, mut m: pb::ext_authz::ExtAuthz) -> ExtAuthz {
    ignored!(
        cx,
        m,
        charge_cluster_response_stats,
        emit_filter_state_stats,
        filter_metadata,
        emit_client_span
    );
    inert!(m, encode_raw_headers = false);
    if m.transport_api_version != i32::from(pb::core::ApiVersion::V3) {
        cx.refuse_at("transport_api_version", "want V3");
    }
    m.transport_api_version = 0;
    let all = Fraction { numerator: 100, denominator: 100 };
    let mut allowed = list(cx, "allowed_headers", m.allowed_headers.take());
    let service = match m.services.take() {
        Some(pb::ext_authz::ext_authz::Services::GrpcService(grpc)) => {
            cx.at("grpc_service", |cx| grpc_service(cx, grpc))
        }
        Some(pb::ext_authz::ext_authz::Services::HttpService(http)) => {
            let (http, own) = cx.at("http_service", |cx| http_service(cx, http));
            if !own.is_empty() && allowed.is_empty() {
                allowed = own;
            }
            AuthzService::Http(http)
        }
        None => {
            cx.refuse("asks nobody; want grpc_service or http_service");
            AuthzService::Http(nobody())
        }
    };
    let status = m.status_on_error.take().map_or(403, |status| status.code);
    if !(200..=511).contains(&status) {
        cx.refuse_at("status_on_error", format!("got {status}, want 200 to 511"));
    }
    let authz = ExtAuthz {
        service,
        failure_mode_allow: take(&mut m.failure_mode_allow),
        failure_mode_header: take(&mut m.failure_mode_allow_header_add),
        status_on_error: u16::try_from(status).unwrap_or(403),
        body: cx.some("with_request_body", m.with_request_body.take(), body),
        validate_mutations: take(&mut m.validate_mutations),
        allowed_headers: allowed,
        disallowed_headers: list(cx, "disallowed_headers", m.disallowed_headers.take()),
        enabled: cx.some("filter_enabled", m.filter_enabled.take(), Context::runtime_fraction).unwrap_or(all),
        tls_session: take(&mut m.include_tls_session),
        stat_prefix: take(&mut m.stat_prefix),
    };
    cx.rest(&m);
    authz
}

fn list(
    cx: &mut Context,
    field: &str,
    matchers: Option<pb::matcher::ListStringMatcher>,
) -> Vec<StringMatcher> {
    let matchers = cx.some(field, matchers, |cx, list| cx.each("patterns", list.patterns, string));
    matchers.unwrap_or_default()
}

fn body(cx: &mut Context, mut m: pb::ext_authz::BufferSettings) -> AuthzBody {
    let body = AuthzBody {
        bytes_max: take(&mut m.max_request_bytes),
        partial: take(&mut m.allow_partial_message),
        as_bytes: take(&mut m.pack_as_bytes),
    };
    if body.bytes_max == 0 {
        cx.refuse_at("max_request_bytes", "got 0, want 1 or more");
    }
    cx.rest(&m);
    body
}

fn grpc_service(cx: &mut Context, mut m: pb::core::GrpcService) -> AuthzService {
    use pb::core::grpc_service::TargetSpecifier;
    let timeout = cx.limit("timeout", m.timeout.take(), Some(TIMEOUT));
    let metadata = cx.each("initial_metadata", take(&mut m.initial_metadata), header);
    let (cluster, authority) = match m.target_specifier.take() {
        Some(TargetSpecifier::EnvoyGrpc(mut target)) => cx.at("envoy_grpc", |cx| {
            let read = (take(&mut target.cluster_name), take(&mut target.authority));
            if read.0.is_empty() {
                cx.missing("cluster_name");
            }
            cx.rest(&target);
            read
        }),
        _ => {
            cx.refuse_at("google_grpc", "is not supported or missing; want envoy_grpc");
            Default::default()
        }
    };
    cx.rest(&m);
    AuthzService::Grpc { cluster, authority, timeout, metadata }
}

fn header(cx: &mut Context, mut m: pb::core::HeaderValue) -> (String, String) {
    let read = (take(&mut m.key).to_ascii_lowercase(), take(&mut m.value));
    if read.0.is_empty() {
        cx.missing("key");
    }
    cx.rest(&m);
    read
}

fn nobody() -> AuthzHttp {
    AuthzHttp {
        uri: String::new(),
        cluster: String::new(),
        timeout: Duration::ZERO,
        path_prefix: String::new(),
        headers: Vec::new(),
        upstream_headers: Vec::new(),
        upstream_headers_append: Vec::new(),
        client_headers: Vec::new(),
        client_headers_on_success: Vec::new(),
    }
}

/// The service, and the headers it is shown by its own word (as Envoy had it before).
fn http_service(cx: &mut Context, mut m: pb::ext_authz::HttpService) -> (AuthzHttp, Vec<StringMatcher>) {
    let mut http = nobody();
    match m.server_uri.take() {
        Some(uri) => {
            (http.uri, http.cluster, http.timeout) = cx.at("server_uri", |cx| http_uri(cx, uri));
        }
        None => cx.missing("server_uri"),
    }
    http.path_prefix = take(&mut m.path_prefix);
    if !http.path_prefix.is_empty() && !http.path_prefix.starts_with('/') {
        cx.refuse_at("path_prefix", format!("got `{}`, want it to begin with /", http.path_prefix));
    }
    let mut own = Vec::new();
    cx.some("authorization_request", m.authorization_request.take(), |cx, mut request| {
        #[expect(deprecated, reason = "what is written for Envoy still says it")]
        let allowed = request.allowed_headers.take();
        own = list(cx, "allowed_headers", allowed);
        http.headers = cx.each("headers_to_add", take(&mut request.headers_to_add), header);
        cx.rest(&request);
    });
    cx.some("authorization_response", m.authorization_response.take(), |cx, mut response| {
        let r = &mut response;
        http.upstream_headers = list(cx, "allowed_upstream_headers", r.allowed_upstream_headers.take());
        http.upstream_headers_append =
            list(cx, "allowed_upstream_headers_to_append", r.allowed_upstream_headers_to_append.take());
        http.client_headers = list(cx, "allowed_client_headers", r.allowed_client_headers.take());
        http.client_headers_on_success =
            list(cx, "allowed_client_headers_on_success", r.allowed_client_headers_on_success.take());
        ignored!(cx, response, dynamic_metadata_from_headers);
        cx.rest(&response);
    });
    cx.rest(&m);
    (http, own)
}

pub(super) fn of_route(cx: &mut Context, m: pb::ext_authz::ExtAuthzPerRoute) -> Option<AuthzOverride> {
    use pb::ext_authz::ext_authz_per_route::Override;
    match m.r#override {
        Some(Override::Disabled(true)) => Some(AuthzOverride::Disabled),
        Some(Override::CheckSettings(settings)) => Some(cx.at("check_settings", |cx| check(cx, settings))),
        _ => {
            cx.refuse("says nothing; want disabled or check_settings");
            None
        }
    }
}

fn check(cx: &mut Context, mut m: pb::ext_authz::CheckSettings) -> AuthzOverride {
    ignored!(cx, m, emit_client_span);
    let shown = cx.some("with_request_body", m.with_request_body.take(), body);
    let body = if take(&mut m.disable_request_body_buffering) { Some(None) } else { shown.map(Some) };
    let extensions = take(&mut m.context_extensions).into_iter().collect();
    cx.rest(&m);
    AuthzOverride::Settings { extensions, body }
}
