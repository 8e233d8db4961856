//! The HTTP connection manager.

use pillion_model::http::{
    AccessLog, ClientCertDetails, Codec, EscapedSlashes, FaultPolicy, ForwardClientCert,
    HttpConnectionManager, LogFormat, RouteSource, ServerHeader,
};
use proptest::collection::btree_map;
use proptest::prelude::*;

use super::filters::filters;
use super::matchers::header;
use super::{duration, few, fraction, maybe, name, text, time};

pub(crate) fn connection_manager() -> BoxedStrategy<HttpConnectionManager> {
    let codec = prop_oneof![Just(Codec::Auto), Just(Codec::Http1), Just(Codec::Http2)];
    let routes = prop_oneof![
        super::routes::configuration().prop_map(RouteSource::Inline),
        name().prop_map(RouteSource::Rds),
    ];
    let client_cert = prop_oneof![
        Just(ForwardClientCert::Sanitize),
        Just(ForwardClientCert::ForwardOnly),
        Just(ForwardClientCert::AppendForward),
        Just(ForwardClientCert::SanitizeSet),
        Just(ForwardClientCert::AlwaysForwardOnly),
    ];
    let details = any::<[bool; 5]>().prop_map(|[subject, cert, chain, dns, uri]| ClientCertDetails {
        subject,
        cert,
        chain,
        dns,
        uri,
    });
    let server = prop_oneof![
        Just(ServerHeader::Overwrite),
        Just(ServerHeader::AppendIfAbsent),
        Just(ServerHeader::PassThrough),
    ];
    let slashes = prop_oneof![
        Just(EscapedSlashes::Keep),
        Just(EscapedSlashes::Reject),
        Just(EscapedSlashes::UnescapeAndRedirect),
        Just(EscapedSlashes::UnescapeAndForward),
    ];
    let limits = [(); 5].map(|()| maybe(time()));
    (
        (name(), codec, routes, filters(), few(name()), few(access_log())),
        (client_cert, details, text(), server, slashes, few(super::matchers::cidr())),
        (any::<[bool; 9]>(), any::<[u32; 3]>()),
        (limits, duration()),
    )
        .prop_map(
            |(
                (stat_prefix, codec, routes, filters, upgrades, access_logs),
                (
                    client_cert,
                    client_cert_details,
                    server_name,
                    server_header,
                    escaped_slashes,
                    internal_addresses,
                ),
                (on, numbers),
                ([stream_idle, request, request_headers, idle, connection], drain),
            )| HttpConnectionManager {
                stat_prefix,
                codec,
                routes,
                filters,
                upgrades,
                access_logs,
                use_remote_address: on[0],
                xff_trusted_hops: numbers[0],
                internal_addresses,
                skip_xff_append: on[1],
                client_cert,
                client_cert_details,
                server_name,
                server_header,
                generate_request_id: on[2],
                preserve_external_request_id: on[3],
                always_set_request_id_in_response: on[4],
                normalize_path: on[5],
                merge_slashes: on[6],
                escaped_slashes,
                strip_any_host_port: on[7],
                stream_idle_timeout: stream_idle,
                request_timeout: request,
                request_headers_timeout: request_headers,
                idle_timeout: idle,
                max_connection_duration: connection,
                drain_timeout: drain,
                max_request_headers_kb: numbers[1],
                max_concurrent_streams: numbers[2],
                mark_local_replies: on[8],
            },
        )
        .boxed()
}

pub(crate) fn fault() -> BoxedStrategy<FaultPolicy> {
    let delay = (duration(), fraction());
    let abort = (200_u16..600, fraction());
    (maybe(delay), maybe(abort), few(header()))
        .prop_map(|(delay, abort, headers)| FaultPolicy { delay, abort, headers })
        .boxed()
}

pub(crate) fn access_log() -> BoxedStrategy<AccessLog> {
    let format = prop_oneof![
        maybe(text()).prop_map(LogFormat::Text),
        btree_map(text(), text(), 0..3).prop_map(|fields| LogFormat::Json(fields.into_iter().collect())),
    ];
    (text(), format).prop_map(|(path, format)| AccessLog { path, format }).boxed()
}
