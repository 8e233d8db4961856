//! Active health checks.

use std::mem::take;
use std::ops::Range;
use std::time::Duration;

use pillion_model::health_check::{HealthCheck, HealthChecker, HttpHealthCheck, Pace};

use super::Context;
use super::context::ignored;
use crate::pb;
use pb::core::RequestMethod;
use pb::core::health_check::HealthChecker as Checker;
use pb::types::CodecClientType;

/// Envoy's interval while a cluster has never had a connection.
const NO_TRAFFIC: Duration = Duration::from_secs(60);
/// Status codes that exist.
const CODES: Range<i64> = 100..600;

/// The one check of a cluster; of several Envoy, too, takes one at most.
pub(super) fn one(cx: &mut Context, checks: Vec<pb::core::HealthCheck>) -> Option<HealthCheck> {
    if checks.len() > 1 {
        cx.refuse_at("health_checks", format!("has {}, want one", checks.len()));
    }
    cx.each("health_checks", checks, health_check).into_iter().next()
}

fn health_check(cx: &mut Context, mut m: pb::core::HealthCheck) -> HealthCheck {
    // The other port is not in effect in Envoy either; an endpoint's own would be.
    ignored!(
        cx,
        m,
        alt_port,
        event_log_path,
        event_logger,
        event_service,
        always_log_health_check_failures,
        always_log_health_check_success,
    );
    let timeout = positive(cx, "timeout", m.timeout.take());
    let interval = positive(cx, "interval", m.interval.take());
    let threshold = |cx: &mut Context, field: &str, value: Option<pb::UInt32Value>| {
        if value.is_none() {
            cx.missing(field);
        }
        value.map_or(1, |value| value.value.max(1))
    };
    let unhealthy_threshold = threshold(cx, "unhealthy_threshold", m.unhealthy_threshold.take());
    let healthy_threshold = threshold(cx, "healthy_threshold", m.healthy_threshold.take());
    let mut time = |field, value, default| cx.duration(field, value).unwrap_or(default);
    let unhealthy = time("unhealthy_interval", m.unhealthy_interval.take(), interval);
    let no_traffic = time("no_traffic_interval", m.no_traffic_interval.take(), NO_TRAFFIC);
    let pace = Pace {
        interval,
        unhealthy,
        unhealthy_edge: time("unhealthy_edge_interval", m.unhealthy_edge_interval.take(), unhealthy),
        healthy_edge: time("healthy_edge_interval", m.healthy_edge_interval.take(), interval),
        no_traffic,
        no_traffic_healthy: time(
            "no_traffic_healthy_interval",
            m.no_traffic_healthy_interval.take(),
            no_traffic,
        ),
        initial_jitter: time("initial_jitter", m.initial_jitter.take(), Duration::ZERO),
        jitter: time("interval_jitter", m.interval_jitter.take(), Duration::ZERO),
        jitter_percent: take(&mut m.interval_jitter_percent),
    };
    let reuse_connection = m.reuse_connection.take().is_none_or(|reuse| reuse.value);
    let checker = match m.health_checker.take() {
        Some(Checker::HttpHealthCheck(check)) => {
            cx.at("http_health_check", |cx| HealthChecker::Http(http(cx, check)))
        }
        Some(Checker::TcpHealthCheck(check)) => cx.at("tcp_health_check", |cx| tcp(cx, check)),
        Some(Checker::GrpcHealthCheck(mut check)) => cx.at("grpc_health_check", |cx| {
            let (service, authority) = (take(&mut check.service_name), take(&mut check.authority));
            cx.rest(&check);
            HealthChecker::Grpc { service, authority }
        }),
        Some(Checker::CustomHealthCheck(_)) => {
            cx.refuse_at("custom_health_check", "is not supported; supported: http, tcp, grpc");
            HealthChecker::Tcp { send: Vec::new(), receive: Vec::new() }
        }
        None => {
            cx.missing("http_health_check");
            HealthChecker::Tcp { send: Vec::new(), receive: Vec::new() }
        }
    };
    cx.rest(&m);
    HealthCheck { checker, timeout, reuse_connection, unhealthy_threshold, healthy_threshold, pace }
}

fn positive(cx: &mut Context, field: &str, value: Option<pb::Duration>) -> Duration {
    if value.is_none() {
        cx.missing(field);
        return Duration::from_secs(1);
    }
    let given = cx.duration(field, value).unwrap_or_default();
    if given.is_zero() {
        cx.refuse_at(field, "got 0s, want more");
    }
    given
}

fn http(cx: &mut Context, mut m: pb::core::health_check::HttpHealthCheck) -> HttpHealthCheck {
    // Bodies are not looked at.
    ignored!(cx, m, response_buffer_size);
    let method = match RequestMethod::try_from(take(&mut m.method)) {
        Ok(RequestMethod::MethodUnspecified) => "GET".to_owned(),
        Ok(RequestMethod::Connect) | Err(_) => {
            cx.refuse_at("method", "want one of GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE, PATCH");
            "GET".to_owned()
        }
        Ok(method) => method.as_str_name().to_owned(),
    };
    let http2 = match CodecClientType::try_from(take(&mut m.codec_client_type)) {
        Ok(CodecClientType::Http1) => false,
        Ok(CodecClientType::Http2) => true,
        _ => {
            cx.refuse_at("codec_client_type", "is not supported; supported: HTTP1, HTTP2");
            false
        }
    };
    let expected = cx.each("expected_statuses", take(&mut m.expected_statuses), statuses);
    let retriable = cx.each("retriable_statuses", take(&mut m.retriable_statuses), statuses);
    let headers = cx.each("request_headers_to_add", take(&mut m.request_headers_to_add), |cx, option| {
        let header = option.header.unwrap_or_default();
        if http_name(&header.key).is_none() {
            cx.refuse_at("header.key", format!("got {:?}, want a header name", header.key));
        }
        // As Envoy has it, `%` begins a command; nothing of a check could be said by one.
        if header.value.contains('%') || !header.value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            cx.refuse_at("header.value", format!("got {:?}, want visible text without %", header.value));
        }
        (header.key, header.value)
    });
    let (host, path) = (take(&mut m.host), take(&mut m.path));
    if !path.starts_with('/') || !path.bytes().all(|byte| (0x21..0x7f).contains(&byte)) {
        cx.refuse_at("path", format!("got {path:?}, want a path such as /healthz"));
    }
    if !host.bytes().all(|byte| (0x21..0x7f).contains(&byte)) {
        cx.refuse_at("host", format!("got {host:?}, want a host"));
    }
    cx.rest(&m);
    let expected = if expected.is_empty() { std::iter::once(200..201).collect() } else { expected };
    HttpHealthCheck { host, path, method, http2, expected, retriable, headers }
}

fn http_name(name: &str) -> Option<()> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (!name.is_empty() && name.bytes().all(token)).then_some(())
}

/// A half-open range of status codes.
fn statuses(cx: &mut Context, range: pb::types::Int64Range) -> Range<u16> {
    let code = |value: i64| u16::try_from(value).unwrap_or(0);
    if range.start < CODES.start || range.end > CODES.end || range.start >= range.end {
        cx.refuse(format!("got {} to {}, want within 100 to 600, the end behind", range.start, range.end));
    }
    code(range.start)..code(range.end)
}

fn tcp(cx: &mut Context, mut m: pb::core::health_check::TcpHealthCheck) -> HealthChecker {
    let send = cx.some("send", m.send.take(), payload).unwrap_or_default();
    let receive = cx.each("receive", take(&mut m.receive), payload);
    cx.rest(&m);
    HealthChecker::Tcp { send, receive }
}

/// Bytes, or their hexadecimal digits.
fn payload(cx: &mut Context, payload: pb::core::health_check::Payload) -> Vec<u8> {
    use pb::core::health_check::payload::Payload;
    let bytes = match payload.payload {
        Some(Payload::Binary(bytes)) => bytes,
        Some(Payload::Text(digits)) => from_hex(&digits).unwrap_or_else(|| {
            cx.refuse_at("text", format!("got {digits:?}, want hexadecimal digits, two for each byte"));
            Vec::new()
        }),
        None => Vec::new(),
    };
    if bytes.is_empty() {
        cx.refuse("is empty, want bytes");
    }
    bytes
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?, 16).ok())
        .collect()
}
