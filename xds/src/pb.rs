//! Short names for the generated Envoy types.

pub(crate) use envoy_types::pb::envoy::config::accesslog::v3 as accesslog;
pub(crate) use envoy_types::pb::envoy::config::bootstrap::v3 as bootstrap;
pub(crate) use envoy_types::pb::envoy::config::cluster::v3 as cluster;
pub(crate) use envoy_types::pb::envoy::config::common::mutation_rules::v3 as mutation_rules;
pub(crate) use envoy_types::pb::envoy::config::core::v3 as core;
pub(crate) use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
pub(crate) use envoy_types::pb::envoy::config::listener::v3 as listener;
pub(crate) use envoy_types::pb::envoy::config::rbac::v3 as rbac;
pub(crate) use envoy_types::pb::envoy::config::route::v3 as route;
pub(crate) use envoy_types::pb::envoy::extensions::access_loggers::{
    file::v3 as file_log, stream::v3 as stream_log,
};
pub(crate) use envoy_types::pb::envoy::extensions::clusters::aggregate::v3 as aggregate;
pub(crate) use envoy_types::pb::envoy::extensions::common::ratelimit::v3 as ratelimit;
pub(crate) use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common_fault;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::{
    buffer::v3 as buffer, cors::v3 as cors, ext_authz::v3 as ext_authz, fault::v3 as fault,
    header_mutation::v3 as header_mutation, health_check::v3 as health_check, jwt_authn::v3 as jwt_authn,
    local_ratelimit::v3 as local_ratelimit, rbac::v3 as http_rbac, router::v3 as router,
};
pub(crate) use envoy_types::pb::envoy::extensions::filters::listener::{
    http_inspector::v3 as http_inspector, original_dst::v3 as original_dst,
    proxy_protocol::v3 as proxy_protocol, tls_inspector::v3 as tls_inspector,
};
pub(crate) use envoy_types::pb::envoy::extensions::filters::network::{
    http_connection_manager::v3 as hcm, rbac::v3 as network_rbac, tcp_proxy::v3 as tcp_proxy,
};
pub(crate) use envoy_types::pb::envoy::extensions::internal_redirect::{
    allow_listed_routes::v3 as allow_listed_routes, previous_routes::v3 as previous_routes,
    safe_cross_scheme::v3 as safe_cross_scheme,
};
pub(crate) use envoy_types::pb::envoy::extensions::load_balancing_policies as lb;
pub(crate) use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3 as previous_hosts;
pub(crate) use envoy_types::pb::envoy::extensions::transport_sockets::{
    raw_buffer::v3 as raw_buffer, tls::v3 as tls,
};
pub(crate) use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream_http;
pub(crate) use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
pub(crate) use envoy_types::pb::envoy::r#type::v3 as types;
pub(crate) use envoy_types::pb::google::protobuf::{
    Any, BoolValue, Duration, Empty, ListValue, Struct, UInt32Value, UInt64Value, Value, value::Kind,
};
pub(crate) use envoy_types::pb::xds::core::v3 as xds;

/// `xds.type.v3.TypedStruct`: how a type that the other side may not know travels.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TypedStruct {
    /// What the value is.
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    /// The value.
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<Struct>,
}

impl prost::Name for TypedStruct {
    const NAME: &'static str = "TypedStruct";
    const PACKAGE: &'static str = "xds.type.v3";

    fn type_url() -> String {
        format!("type.googleapis.com/{}", Self::full_name())
    }
}

/// What Pillion adds to Envoy's API travels under this metadata key; it never decides access.
pub(crate) const METADATA: &str = "pillion";

/// The balancing policy of ours that Envoy does not have.
pub(crate) const EWMA: &str = "type.googleapis.com/pillion.mesh.v1.Ewma";

/// Names of filters and transport sockets, as Envoy registers them.
pub(crate) mod names {
    use pillion_model::filter::FilterKind;

    pub(crate) const ROUTER: &str = "envoy.filters.http.router";
    pub(crate) const RBAC: &str = "envoy.filters.http.rbac";
    pub(crate) const FAULT: &str = "envoy.filters.http.fault";
    pub(crate) const CORS: &str = "envoy.filters.http.cors";
    pub(crate) const HEADER_MUTATION: &str = "envoy.filters.http.header_mutation";
    pub(crate) const BUFFER: &str = "envoy.filters.http.buffer";
    pub(crate) const HEALTH_CHECK: &str = "envoy.filters.http.health_check";
    pub(crate) const EXT_AUTHZ: &str = "envoy.filters.http.ext_authz";
    pub(crate) const JWT_AUTHN: &str = "envoy.filters.http.jwt_authn";
    pub(crate) const LOCAL_RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";
    pub(crate) const HTTP: &str = "envoy.filters.network.http_connection_manager";
    pub(crate) const TCP: &str = "envoy.filters.network.tcp_proxy";
    pub(crate) const NETWORK_RBAC: &str = "envoy.filters.network.rbac";
    pub(crate) const TLS: &str = "envoy.transport_sockets.tls";
    pub(crate) const RAW: &str = "envoy.transport_sockets.raw_buffer";
    pub(crate) const UPSTREAM_HTTP: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    pub(crate) const SUBSET: &str = "envoy.lb";
    pub(crate) const TRANSPORT: &str = "envoy.transport_socket_match";

    /// The name under which routes have settings for a filter.
    pub(crate) fn of(kind: FilterKind) -> &'static str {
        match kind {
            FilterKind::Rbac => RBAC,
            FilterKind::Fault => FAULT,
            FilterKind::Cors => CORS,
            FilterKind::HeaderMutation => HEADER_MUTATION,
            FilterKind::Buffer => BUFFER,
            FilterKind::HealthCheck => HEALTH_CHECK,
            FilterKind::LocalRateLimit => LOCAL_RATE_LIMIT,
            FilterKind::JwtAuthn => JWT_AUTHN,
            FilterKind::ExtAuthz => EXT_AUTHZ,
        }
    }

    /// The filter of that name.
    pub(crate) fn kind(name: &str) -> Option<FilterKind> {
        FilterKind::ALL.into_iter().find(|kind| of(*kind) == name)
    }
}
