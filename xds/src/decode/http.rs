//! The HTTP connection manager and its filters.

use std::mem::take;

use pillion_model::http::{
    AccessLog, ClientCertDetails, Codec, EscapedSlashes, ForwardClientCert, HttpConnectionManager, LogFormat,
    RouteSource, ServerHeader, StripPort,
};
use pillion_model::route::RouteConfiguration;

use super::Context;
use super::context::{ignored, inert, is};
use super::local_reply::local_replies;
use super::matcher::cidr;
use super::source::source;
use crate::pb;
use crate::type_url::ROUTE;
use pb::hcm::http_connection_manager as manager;

const OFF: Option<pb::BoolValue> = Some(pb::BoolValue { value: false });

pub(super) fn connection_manager(
    cx: &mut Context,
    mut m: pb::hcm::HttpConnectionManager,
) -> HttpConnectionManager {
    ignored!(
        cx,
        m,
        tracing,
        access_log_options,
        request_id_extension,
        delayed_close_timeout,
        stream_flush_timeout,
        drain_timeout_jitter,
        proxy_status_config,
    );
    ignored_log_flushes(cx, &mut m);
    inert!(m, add_user_agent = OFF, stream_error_on_invalid_http_message = OFF);
    let routes = routes(cx, m.route_specifier.take());
    let mut http = HttpConnectionManager::new(take(&mut m.stat_prefix), routes);
    http.codec = codec(cx, take(&mut m.codec_type));
    http.filters = super::filters::filters(cx, take(&mut m.http_filters));
    http.upgrades = cx.each("upgrade_configs", take(&mut m.upgrade_configs), |cx, mut upgrade| {
        inert!(upgrade, enabled = Some(pb::BoolValue { value: true }));
        let protocol = take(&mut upgrade.upgrade_type);
        cx.rest(&upgrade);
        protocol
    });
    http.access_logs = access_logs(cx, take(&mut m.access_log));
    http.use_remote_address = m.use_remote_address.take().is_some_and(|on| on.value);
    http.xff_trusted_hops = take(&mut m.xff_num_trusted_hops);
    let internal =
        cx.some("internal_address_config", m.internal_address_config.take(), |cx, mut internal| {
            let ranges = cx.each("cidr_ranges", take(&mut internal.cidr_ranges), cidr);
            cx.rest(&internal);
            ranges
        });
    http.internal_addresses = internal.unwrap_or_default();
    http.skip_xff_append = take(&mut m.skip_xff_append);
    http.client_cert = client_cert(cx, take(&mut m.forward_client_cert_details));
    http.client_cert_details = cx
        .some(
            "set_current_client_cert_details",
            m.set_current_client_cert_details.take(),
            client_cert_details,
        )
        .unwrap_or_default();
    let server_name = take(&mut m.server_name);
    if !server_name.is_empty() {
        http.server_name = server_name;
    }
    http.server_header = server_header(cx, take(&mut m.server_header_transformation));
    http.generate_request_id = m.generate_request_id.take().is_none_or(|on| on.value);
    http.preserve_external_request_id = take(&mut m.preserve_external_request_id);
    http.always_set_request_id_in_response = take(&mut m.always_set_request_id_in_response);
    http.normalize_path = m.normalize_path.take().is_some_and(|on| on.value);
    http.merge_slashes = take(&mut m.merge_slashes);
    http.escaped_slashes = escaped_slashes(cx, take(&mut m.path_with_escaped_slashes_action));
    let any = matches!(m.strip_port_mode.take(), Some(manager::StripPortMode::StripAnyHostPort(true)));
    http.strip_port = match (any, take(&mut m.strip_matching_host_port)) {
        (false, false) => StripPort::None,
        (false, true) => StripPort::Matching,
        (true, false) => StripPort::Any,
        (true, true) => {
            cx.refuse_at("strip_matching_host_port", "cannot stand beside strip_any_host_port");
            StripPort::Any
        }
    };
    // How an Envoy is told what our own metadata tells a Pillion proxy.
    if m.local_reply_config.as_ref() == Some(&crate::encode::local_reply_mark()) {
        m.local_reply_config = None;
        http.mark_local_replies = true;
    }
    http.local_replies = cx.some("local_reply_config", m.local_reply_config.take(), local_replies);
    timeouts(cx, &mut m, &mut http);
    cx.rest(&m);
    http
}

fn timeouts(cx: &mut Context, m: &mut pb::hcm::HttpConnectionManager, http: &mut HttpConnectionManager) {
    http.stream_idle_timeout =
        cx.limit("stream_idle_timeout", m.stream_idle_timeout.take(), http.stream_idle_timeout);
    http.request_timeout = cx.limit("request_timeout", m.request_timeout.take(), None);
    http.request_headers_timeout =
        cx.limit("request_headers_timeout", m.request_headers_timeout.take(), None);
    if let Some(drain) = cx.duration("drain_timeout", m.drain_timeout.take()) {
        http.drain_timeout = drain;
    }
    if let Some(kib) = m.max_request_headers_kb.take() {
        http.max_request_headers_kb = kib.value;
    }
    let common = m.common_http_protocol_options.take();
    cx.some("common_http_protocol_options", common, |cx, mut common| {
        http.idle_timeout = cx.limit("idle_timeout", common.idle_timeout.take(), http.idle_timeout);
        http.max_connection_duration =
            cx.limit("max_connection_duration", common.max_connection_duration.take(), None);
        cx.rest(&common);
    });
    let http1 = m.http_protocol_options.take();
    cx.some("http_protocol_options", http1, http1_options);
    let http2 = m.http2_protocol_options.take();
    cx.some("http2_protocol_options", http2, |cx, mut http2| {
        if let Some(streams) = http2.max_concurrent_streams.take() {
            http.max_concurrent_streams = streams.value;
        }
        // Only what is listed in upgrade_configs is taken, whatever the codec allows.
        http2.allow_connect = false;
        http2_options(cx, http2);
    });
}

/// HTTP/1 settings: what is left after taking those that change nothing.
pub(super) fn http1_options(cx: &mut Context, mut options: pb::core::Http1ProtocolOptions) {
    inert!(options, allow_absolute_url = Some(pb::BoolValue { value: true }));
    options.use_balsa_parser = None;
    cx.rest(&options);
}

/// HTTP/2 settings: windows and frame limits are our own.
pub(super) fn http2_options(cx: &mut Context, mut options: pb::core::Http2ProtocolOptions) {
    options.use_oghttp2_codec = None;
    ignored!(
        cx,
        options,
        hpack_table_size,
        initial_stream_window_size,
        initial_connection_window_size,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        connection_keepalive,
        enable_huffman_encoding,
        stream_reset_burst,
        stream_reset_rate,
    );
    cx.rest(&options);
}

fn ignored_log_flushes(cx: &mut Context, m: &mut pb::hcm::HttpConnectionManager) {
    ignored!(cx, m, access_log_flush_interval, flush_access_log_on_new_request);
}

fn routes(cx: &mut Context, specifier: Option<manager::RouteSpecifier>) -> RouteSource {
    match specifier {
        Some(manager::RouteSpecifier::RouteConfig(routes)) => {
            RouteSource::Inline(cx.at("route_config", |cx| super::route::configuration(cx, routes)))
        }
        Some(manager::RouteSpecifier::Rds(rds)) => cx.at("rds", |cx| {
            let from = cx.some("config_source", rds.config_source, source);
            if from.is_none() {
                cx.missing("config_source");
            }
            if rds.route_config_name.is_empty() {
                cx.missing("route_config_name");
            }
            RouteSource::Rds(cx.refer(ROUTE, &rds.route_config_name, from))
        }),
        Some(manager::RouteSpecifier::ScopedRoutes(_)) => {
            cx.refuse_at("scoped_routes", "is not supported; supported: rds, route_config");
            RouteSource::Inline(RouteConfiguration::default())
        }
        None => {
            cx.missing("route_config");
            RouteSource::Inline(RouteConfiguration::default())
        }
    }
}

fn codec(cx: &mut Context, value: i32) -> Codec {
    match manager::CodecType::try_from(value) {
        Ok(manager::CodecType::Auto) => Codec::Auto,
        Ok(manager::CodecType::Http1) => Codec::Http1,
        Ok(manager::CodecType::Http2) => Codec::Http2,
        Ok(manager::CodecType::Http3) | Err(_) => {
            cx.refuse_at("codec_type", "is not supported; supported: AUTO, HTTP1, HTTP2");
            Codec::Auto
        }
    }
}

fn client_cert(cx: &mut Context, value: i32) -> ForwardClientCert {
    use manager::ForwardClientCertDetails as F;
    match F::try_from(value) {
        Ok(F::Sanitize) => ForwardClientCert::Sanitize,
        Ok(F::ForwardOnly) => ForwardClientCert::ForwardOnly,
        Ok(F::AppendForward) => ForwardClientCert::AppendForward,
        Ok(F::SanitizeSet) => ForwardClientCert::SanitizeSet,
        Ok(F::AlwaysForwardOnly) => ForwardClientCert::AlwaysForwardOnly,
        Err(_) => {
            cx.refuse_at("forward_client_cert_details", format!("got {value}, want a known value"));
            ForwardClientCert::Sanitize
        }
    }
}

fn client_cert_details(
    cx: &mut Context,
    mut details: manager::SetCurrentClientCertDetails,
) -> ClientCertDetails {
    let taken = ClientCertDetails {
        subject: details.subject.take().is_some_and(|on| on.value),
        cert: take(&mut details.cert),
        chain: take(&mut details.chain),
        dns: take(&mut details.dns),
        uri: take(&mut details.uri),
    };
    cx.rest(&details);
    taken
}

fn server_header(cx: &mut Context, value: i32) -> ServerHeader {
    use manager::ServerHeaderTransformation as S;
    match S::try_from(value) {
        Ok(S::Overwrite) => ServerHeader::Overwrite,
        Ok(S::AppendIfAbsent) => ServerHeader::AppendIfAbsent,
        Ok(S::PassThrough) => ServerHeader::PassThrough,
        Err(_) => {
            cx.refuse_at("server_header_transformation", format!("got {value}, want a known value"));
            ServerHeader::Overwrite
        }
    }
}

fn escaped_slashes(cx: &mut Context, value: i32) -> EscapedSlashes {
    use manager::PathWithEscapedSlashesAction as P;
    match P::try_from(value) {
        Ok(P::ImplementationSpecificDefault | P::KeepUnchanged) => EscapedSlashes::Keep,
        Ok(P::RejectRequest) => EscapedSlashes::Reject,
        Ok(P::UnescapeAndRedirect) => EscapedSlashes::UnescapeAndRedirect,
        Ok(P::UnescapeAndForward) => EscapedSlashes::UnescapeAndForward,
        Err(_) => {
            cx.refuse_at("path_with_escaped_slashes_action", format!("got {value}, want a known value"));
            EscapedSlashes::Reject
        }
    }
}

pub(super) fn access_logs(cx: &mut Context, logs: Vec<pb::accesslog::AccessLog>) -> Vec<AccessLog> {
    cx.each("access_log", logs, access_log).into_iter().flatten().collect()
}

/// An access log that is not supported is one that is not written: listed, not refused.
fn access_log(cx: &mut Context, mut log: pb::accesslog::AccessLog) -> Option<AccessLog> {
    use pb::accesslog::access_log::ConfigType;
    use pb::file_log::file_access_log::AccessLogFormat;
    use pb::stream_log::{stderr_access_log, stdout_access_log};
    let filter = cx.some("filter", log.filter.take(), super::log_filter::filter).flatten();
    let Some(ConfigType::TypedConfig(any)) = log.config_type else {
        cx.ignore("typed_config");
        return None;
    };
    cx.at("typed_config", |cx| {
        let (path, format) = if is::<pb::file_log::FileAccessLog>(&any) {
            let file: pb::file_log::FileAccessLog = cx.unpack(&any);
            (file.path, file.access_log_format)
        } else if is::<pb::stream_log::StdoutAccessLog>(&any) {
            let log: pb::stream_log::StdoutAccessLog = cx.unpack(&any);
            let format =
                log.access_log_format.map(|stdout_access_log::AccessLogFormat::LogFormat(format)| format);
            ("/dev/stdout".to_owned(), format.map(AccessLogFormat::LogFormat))
        } else if is::<pb::stream_log::StderrAccessLog>(&any) {
            let log: pb::stream_log::StderrAccessLog = cx.unpack(&any);
            let format =
                log.access_log_format.map(|stderr_access_log::AccessLogFormat::LogFormat(format)| format);
            ("/dev/stderr".to_owned(), format.map(AccessLogFormat::LogFormat))
        } else {
            cx.ignore("@type");
            return None;
        };
        Some(AccessLog { path, format: log_format(cx, format), filter })
    })
}

fn log_format(cx: &mut Context, format: Option<pb::file_log::file_access_log::AccessLogFormat>) -> LogFormat {
    use pb::file_log::file_access_log::AccessLogFormat as F;
    match format {
        None => LogFormat::Text(None),
        Some(F::Format(line)) if line.is_empty() => LogFormat::Text(None),
        Some(F::Format(line)) => LogFormat::Text(Some(line)),
        Some(F::JsonFormat(fields)) => cx.at("json_format", |cx| json_format(cx, fields)),
        Some(F::TypedJsonFormat(fields)) => cx.at("typed_json_format", |cx| json_format(cx, fields)),
        Some(F::LogFormat(format)) => cx.at("log_format", |cx| substitution(cx, format)),
    }
}

pub(super) fn substitution(cx: &mut Context, mut format: pb::core::SubstitutionFormatString) -> LogFormat {
    use pb::core::substitution_format_string::Format;
    ignored!(cx, format, omit_empty_values, content_type, formatters, json_format_options);
    match format.format {
        None => LogFormat::Text(None),
        Some(Format::TextFormat(line)) => LogFormat::Text(Some(line)),
        Some(Format::JsonFormat(fields)) => cx.at("json_format", |cx| json_format(cx, fields)),
        Some(Format::TextFormatSource(source)) => match source.specifier {
            Some(pb::core::data_source::Specifier::InlineString(line)) => LogFormat::Text(Some(line)),
            _ => {
                cx.ignore("text_format_source");
                LogFormat::Text(None)
            }
        },
    }
}

/// Keys in order; a protobuf map has none of its own.
fn json_format(cx: &mut Context, fields: pb::Struct) -> LogFormat {
    let mut all: Vec<(String, String)> = Vec::new();
    for (key, value) in fields.fields {
        match value.kind {
            Some(pb::Kind::StringValue(format)) => all.push((key, format)),
            _ => cx.ignore(key),
        }
    }
    all.sort_unstable();
    LogFormat::Json(all)
}
