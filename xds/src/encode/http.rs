//! The HTTP connection manager and its filters.

use pillion_model::http::{
    AccessLog, Codec, EscapedSlashes, ForwardClientCert, HttpConnectionManager, LogFormat, RouteSource,
    ServerHeader, StripPort,
};
use pillion_model::retry::LOCAL_REPLY_HEADER;

use super::{Dialect, ads, any, boolean, duration, limit, number, texts};
use crate::pb;
use pb::hcm::http_connection_manager as manager;

pub(super) fn connection_manager(
    http: &HttpConnectionManager,
    dialect: Dialect<'_>,
) -> pb::hcm::HttpConnectionManager {
    let codec = match http.codec {
        Codec::Auto => manager::CodecType::Auto,
        Codec::Http1 => manager::CodecType::Http1,
        Codec::Http2 => manager::CodecType::Http2,
    };
    let server_header = match http.server_header {
        ServerHeader::Overwrite => manager::ServerHeaderTransformation::Overwrite,
        ServerHeader::AppendIfAbsent => manager::ServerHeaderTransformation::AppendIfAbsent,
        ServerHeader::PassThrough => manager::ServerHeaderTransformation::PassThrough,
    };
    let slashes = match http.escaped_slashes {
        EscapedSlashes::Keep => manager::PathWithEscapedSlashesAction::KeepUnchanged,
        EscapedSlashes::Reject => manager::PathWithEscapedSlashesAction::RejectRequest,
        EscapedSlashes::UnescapeAndRedirect => manager::PathWithEscapedSlashesAction::UnescapeAndRedirect,
        EscapedSlashes::UnescapeAndForward => manager::PathWithEscapedSlashesAction::UnescapeAndForward,
    };
    let client_cert = match http.client_cert {
        ForwardClientCert::Sanitize => manager::ForwardClientCertDetails::Sanitize,
        ForwardClientCert::ForwardOnly => manager::ForwardClientCertDetails::ForwardOnly,
        ForwardClientCert::AppendForward => manager::ForwardClientCertDetails::AppendForward,
        ForwardClientCert::SanitizeSet => manager::ForwardClientCertDetails::SanitizeSet,
        ForwardClientCert::AlwaysForwardOnly => manager::ForwardClientCertDetails::AlwaysForwardOnly,
    };
    let details = http.client_cert_details;
    pb::hcm::HttpConnectionManager {
        codec_type: codec.into(),
        stat_prefix: http.stat_prefix.clone(),
        route_specifier: Some(match &http.routes {
            RouteSource::Inline(routes) => {
                manager::RouteSpecifier::RouteConfig(super::route::configuration(routes, dialect))
            }
            RouteSource::Rds(name) => manager::RouteSpecifier::Rds(pb::hcm::Rds {
                config_source: Some(ads()),
                route_config_name: name.clone(),
            }),
        }),
        http_filters: super::filters::filters(&http.filters, dialect),
        upgrade_configs: http
            .upgrades
            .iter()
            .map(|protocol| manager::UpgradeConfig { upgrade_type: protocol.clone(), ..Default::default() })
            .collect(),
        access_log: access_logs(&http.access_logs),
        use_remote_address: Some(boolean(http.use_remote_address)),
        xff_num_trusted_hops: http.xff_trusted_hops,
        internal_address_config: (!http.internal_addresses.is_empty()).then(|| {
            pb::hcm::http_connection_manager::InternalAddressConfig {
                cidr_ranges: http.internal_addresses.iter().map(super::matcher::cidr).collect(),
                ..Default::default()
            }
        }),
        skip_xff_append: http.skip_xff_append,
        forward_client_cert_details: client_cert.into(),
        set_current_client_cert_details: Some(manager::SetCurrentClientCertDetails {
            subject: details.subject.then(|| boolean(true)),
            cert: details.cert,
            chain: details.chain,
            dns: details.dns,
            uri: details.uri,
            ..Default::default()
        }),
        server_name: http.server_name.clone(),
        server_header_transformation: server_header.into(),
        generate_request_id: Some(boolean(http.generate_request_id)),
        preserve_external_request_id: http.preserve_external_request_id,
        always_set_request_id_in_response: http.always_set_request_id_in_response,
        normalize_path: Some(boolean(http.normalize_path)),
        merge_slashes: http.merge_slashes,
        path_with_escaped_slashes_action: slashes.into(),
        strip_matching_host_port: http.strip_port == StripPort::Matching,
        strip_port_mode: (http.strip_port == StripPort::Any)
            .then_some(manager::StripPortMode::StripAnyHostPort(true)),
        stream_idle_timeout: Some(limit(http.stream_idle_timeout)),
        request_timeout: http.request_timeout.map(duration),
        request_headers_timeout: http.request_headers_timeout.map(duration),
        common_http_protocol_options: Some(pb::core::HttpProtocolOptions {
            idle_timeout: Some(limit(http.idle_timeout)),
            max_connection_duration: http.max_connection_duration.map(duration),
            ..Default::default()
        }),
        http2_protocol_options: Some(pb::core::Http2ProtocolOptions {
            max_concurrent_streams: Some(number(http.max_concurrent_streams)),
            allow_connect: !http.upgrades.is_empty(),
            ..Default::default()
        }),
        drain_timeout: Some(duration(http.drain_timeout)),
        max_request_headers_kb: Some(number(http.max_request_headers_kb)),
        local_reply_config: match dialect {
            Dialect::Envoy(_) if http.mark_local_replies => Some(local_reply_mark()),
            _ => http.local_replies.as_ref().map(super::local_reply::local_replies),
        },
        ..Default::default()
    }
}

/// Marks local replies of an Envoy as a Pillion sidecar marks its own: those to requests that the
/// application cannot have seen.
pub(crate) fn local_reply_mark() -> pb::hcm::LocalReplyConfig {
    use pb::accesslog::access_log_filter::FilterSpecifier;
    let unseen = pb::accesslog::ResponseFlagFilter { flags: UNSEEN.map(str::to_owned).to_vec() };
    pb::hcm::LocalReplyConfig {
        mappers: vec![pb::hcm::ResponseMapper {
            filter: Some(pb::accesslog::AccessLogFilter {
                filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(unseen)),
            }),
            headers_to_add: vec![pb::core::HeaderValueOption {
                header: Some(pb::core::HeaderValue {
                    key: LOCAL_REPLY_HEADER.to_owned(),
                    value: "1".to_owned(),
                    raw_value: Vec::new(),
                }),
                append_action: pb::core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd
                    .into(),
                ..Default::default()
            }],
            ..Default::default()
        }],
        body_format: None,
    }
}

/// Response flags of requests of which no upstream got a byte: no route, no cluster, no endpoint, no
/// connection, no room, or an answer made on purpose.
const UNSEEN: [&str; 9] = ["FI", "NC", "NR", "OM", "RL", "UAEX", "UF", "UH", "UO"];

pub(super) fn access_logs(logs: &[AccessLog]) -> Vec<pb::accesslog::AccessLog> {
    logs.iter().map(access_log).collect()
}

/// `None`: Envoy's default line.
pub(super) fn log_format(format: &LogFormat) -> Option<pb::core::substitution_format_string::Format> {
    use pb::core::substitution_format_string::Format;
    match format {
        LogFormat::Text(None) => None,
        LogFormat::Text(Some(line)) => Some(Format::TextFormatSource(pb::core::DataSource {
            watched_directory: None,
            specifier: Some(pb::core::data_source::Specifier::InlineString(line.clone())),
        })),
        LogFormat::Json(fields) => {
            Some(Format::JsonFormat(texts(fields.iter().map(|(key, format)| (key, format)))))
        }
    }
}

fn access_log(log: &AccessLog) -> pb::accesslog::AccessLog {
    use pb::file_log::file_access_log::AccessLogFormat;
    let format = log_format(&log.format);
    let config = pb::file_log::FileAccessLog {
        path: log.path.clone(),
        access_log_format: format.map(|format| {
            AccessLogFormat::LogFormat(pb::core::SubstitutionFormatString {
                format: Some(format),
                ..Default::default()
            })
        }),
    };
    pb::accesslog::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter: log.filter.as_ref().map(super::log_filter::filter),
        config_type: Some(pb::accesslog::access_log::ConfigType::TypedConfig(any(&config))),
    }
}
