//! The HTTP connection manager.

use pillion_model::http::{
    AccessLog, ClientCertDetails, Codec, EscapedSlashes, FaultPolicy, ForwardClientCert,
    HttpConnectionManager, LocalReplies, LogFormat, ReplyFormat, ReplyMapper, RouteSource, ServerHeader,
    StripPort,
};
use pillion_model::log_filter::{Comparison, ComparisonOperator, LogFilter};
use pillion_model::route::{Append, HeaderChange};
use proptest::collection::btree_map;
use proptest::prelude::*;

use super::filters::filters;
use super::matchers::header;
use super::{duration, few, fraction, free, maybe, name, text, time};

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
    let strip_port = prop_oneof![Just(StripPort::None), Just(StripPort::Matching), Just(StripPort::Any)];
    let limits = [(); 5].map(|()| maybe(time()));
    (
        (name(), codec, routes, filters(), few(name()), few(access_log())),
        (client_cert, details, text(), server, slashes, few(super::matchers::cidr())),
        (any::<[bool; 8]>(), any::<[u32; 3]>(), strip_port, maybe(local_replies())),
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
                (on, numbers, strip_port, local_replies),
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
                strip_port,
                stream_idle_timeout: stream_idle,
                request_timeout: request,
                request_headers_timeout: request_headers,
                idle_timeout: idle,
                max_connection_duration: connection,
                drain_timeout: drain,
                max_request_headers_kb: numbers[1],
                max_concurrent_streams: numbers[2],
                mark_local_replies: on[7],
                local_replies,
            },
        )
        .boxed()
}

pub(crate) fn fault() -> BoxedStrategy<FaultPolicy> {
    let delay = prop_oneof![
        Just(FaultPolicy::default()),
        (duration(), fraction()).prop_map(|it| FaultPolicy { delay: Some(it), ..FaultPolicy::default() }),
        fraction().prop_map(|it| FaultPolicy { header_delay: Some(it), ..FaultPolicy::default() }),
    ];
    let abort = prop_oneof![
        Just(FaultPolicy::default()),
        (200_u16..600, fraction()).prop_map(|it| FaultPolicy { abort: Some(it), ..FaultPolicy::default() }),
        (0_u32..=16, fraction())
            .prop_map(|it| FaultPolicy { grpc_abort: Some(it), ..FaultPolicy::default() }),
        fraction().prop_map(|it| FaultPolicy { header_abort: Some(it), ..FaultPolicy::default() }),
    ];
    (delay, abort, few(header()))
        .prop_map(|(delay, abort, headers)| FaultPolicy {
            delay: delay.delay,
            header_delay: delay.header_delay,
            headers,
            ..abort
        })
        .boxed()
}

pub(crate) fn access_log() -> BoxedStrategy<AccessLog> {
    (text(), format(), maybe(log_filter()))
        .prop_map(|(path, format, filter)| AccessLog { path, format, filter })
        .boxed()
}

fn format() -> BoxedStrategy<LogFormat> {
    prop_oneof![maybe(text()).prop_map(LogFormat::Text), lines()].boxed()
}

fn lines() -> BoxedStrategy<LogFormat> {
    btree_map(text(), text(), 0..3).prop_map(|fields| LogFormat::Json(fields.into_iter().collect())).boxed()
}

fn local_replies() -> BoxedStrategy<LocalReplies> {
    let format = || {
        (prop_oneof![text().prop_map(|line| LogFormat::Text(Some(line))), lines()], free())
            .prop_map(|(format, content_type)| ReplyFormat { format, content_type })
    };
    let append = prop_oneof![Just(Append::AppendIfExistsOrAdd), Just(Append::OverwriteIfExistsOrAdd)];
    let added = (name(), free(), append, any::<bool>())
        .prop_map(|(name, value, append, keep_empty)| HeaderChange::Add { name, value, append, keep_empty });
    let body = proptest::collection::vec(any::<u8>(), 0..8);
    let mapper = (log_filter(), maybe(200_u16..600), maybe(body), maybe(format()), few(added)).prop_map(
        |(filter, status, body, format, headers)| ReplyMapper { filter, status, body, format, headers },
    );
    (few(mapper), maybe(format())).prop_map(|(mappers, format)| LocalReplies { mappers, format }).boxed()
}

fn log_filter() -> BoxedStrategy<LogFilter> {
    let operator = prop_oneof![
        Just(ComparisonOperator::Equal),
        Just(ComparisonOperator::AtLeast),
        Just(ComparisonOperator::AtMost),
        Just(ComparisonOperator::NotEqual),
    ];
    let than = (operator, any::<u32>()).prop_map(|(operator, value)| Comparison { operator, value });
    let leaf = prop_oneof![
        than.clone().prop_map(LogFilter::Status),
        than.prop_map(LogFilter::Duration),
        Just(LogFilter::NotHealthCheck),
        fraction().prop_map(LogFilter::Share),
        header().prop_map(LogFilter::Header),
        few(text()).prop_map(LogFilter::Flags),
        (few(0_u32..17), any::<bool>())
            .prop_map(|(statuses, exclude)| LogFilter::GrpcStatus { statuses, exclude }),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![few(inner.clone()).prop_map(LogFilter::All), few(inner).prop_map(LogFilter::Any)]
    })
    .boxed()
}
