//! Answers of our own: the one place where a cause becomes status, body, response flag and details.
//!
//! Texts and codes are Envoy's, down to the byte. To a gRPC request every reply becomes a
//! trailers-only response with status 200.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use http::{HeaderMap, Method, Response, StatusCode};
use pillion_model::retry::Reset;

use crate::body::Body;
use crate::flags::Flags;
use crate::headers::names::{GRPC_MESSAGE, GRPC_STATUS, LOCAL_REPLY, OVERLOADED};
use crate::upstream::reset_reason;

/// Why the proxy answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A body in a coding other than `chunked`.
    TransferCoding,
    /// A QUERY without content type.
    QueryWithoutType,
    /// HTTP/1.0.
    LowVersion,
    /// The head is too large, or has too many headers.
    TooLarge(&'static str),
    /// Memory is short.
    Overloaded,
    /// The head took too long to come in.
    HeadTimeout,
    /// No `Host`, or two, or one that names no host.
    MissingHost,
    /// Something about the request's headers is wrong.
    BadRequest(&'static str),
    /// No path.
    MissingPath,
    /// A path that does not begin with `/`.
    AbsolutePath,
    /// The path cannot be brought into its normal form.
    PathNormalization,
    /// The path has escaped slashes: the client shall come back with this one.
    PathRedirect(String),
    /// No route configuration of that name yet.
    NoRouteConfiguration,
    /// No route.
    NoRoute,
    /// The route's cluster does not exist.
    NoCluster(StatusCode),
    /// The route does not allow the upgrade.
    UpgradeFailed,
    /// A policy says no; its name.
    AccessDenied(Option<String>),
    /// A fault on purpose.
    FaultAbort(StatusCode),
    /// No endpoint.
    NoHealthyUpstream,
    /// Dropped on purpose by the endpoints' overload policy.
    DropOverload,
    /// The upstream gave no response headers.
    UpstreamReset { reset: Reset, detail: Cow<'static, str>, retried: bool },
    /// A timeout of a caller that asked for 204 instead of 504, with these details.
    TimeoutAccepted(&'static str),
    /// The route's timeout.
    RouteTimeout,
    /// The last try's timeout.
    PerTryTimeout,
    /// The stream's longest life.
    MaxStreamDuration { request_complete: bool, grpc_deadline: bool },
    /// Nothing moved.
    StreamIdle { request_complete: bool },
    /// The request took too long to come in.
    RequestTimeout,
    /// A destination the egress policy does not allow.
    EgressDenied(String),
    /// A destination outside the mesh that could not be reached.
    EgressFailed(String),
    /// A destination outside the mesh whose name has no address.
    EgressUnresolved(String),
    /// A name of the mesh's zone that no service has, or a port that the service does not have.
    NoService(String),
    /// The mesh has not said yet whether a service has this name.
    NameUnanswered(String),
}

/// A reply, described.
#[derive(Clone, Debug)]
pub(crate) struct LocalReply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    pub(crate) flags: Flags,
    pub(crate) details: Cow<'static, str>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Close the HTTP/1 connection.
    pub(crate) close: bool,
    /// Instead of what the status means.
    pub(crate) grpc_status: Option<u32>,
}

impl LocalReply {
    fn new(
        status: StatusCode,
        body: impl Into<Bytes>,
        flags: Flags,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            body: body.into(),
            flags,
            details: details.into(),
            headers: Vec::new(),
            close: false,
            grpc_status: None,
        }
    }

    /// What a route or filter answers on purpose.
    pub(crate) fn direct(status: StatusCode, body: Bytes, details: &'static str) -> Self {
        Self::new(status, body, Flags::NONE, details)
    }

    /// With one more header.
    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// With these headers instead of those before.
    pub(crate) fn set_headers(&mut self, headers: HeaderMap) {
        let mut last = None;
        self.headers.clear();
        for (name, value) in headers {
            // Only the first of several values comes with its name.
            last = name.or(last);
            self.headers.extend(last.clone().map(|name| (name, value)));
        }
    }

    fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// The response. `mark` tells a caller's sidecar that the application has not seen the request.
    pub(crate) fn into_response(self, method: &Method, grpc: bool, mark: bool) -> Response<Body> {
        let mut response = Response::new(Body::Empty);
        let headers = response.headers_mut();
        headers.extend(self.headers);
        if mark {
            headers.insert(&LOCAL_REPLY, HeaderValue::from_static("1"));
        }
        if grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(&GRPC_STATUS, self.grpc_status.unwrap_or_else(|| grpc_status(self.status)).into());
            if !self.body.is_empty() && method != Method::HEAD {
                headers.insert(&GRPC_MESSAGE, percent_encode(&self.body));
            }
            return response;
        }
        if !self.body.is_empty() {
            headers.insert(CONTENT_LENGTH, self.body.len().into());
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
        }
        *response.status_mut() = self.status;
        if method != Method::HEAD {
            *response.body_mut() = Body::full(self.body);
        }
        response
    }
}

impl From<Cause> for LocalReply {
    fn from(cause: Cause) -> Self {
        use StatusCode as S;
        let timed_out =
            |request_complete| if request_complete { S::GATEWAY_TIMEOUT } else { S::REQUEST_TIMEOUT };
        match cause {
            Cause::LowVersion => Self::new(
                S::UPGRADE_REQUIRED,
                "Upgrade Required",
                Flags::DOWNSTREAM_PROTOCOL_ERROR,
                "low_version",
            )
            .closing(),
            Cause::TooLarge(details) => Self::new(
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "Request Header Fields Too Large",
                Flags::DOWNSTREAM_PROTOCOL_ERROR,
                details,
            )
            .closing(),
            Cause::Overloaded => {
                Self::new(S::SERVICE_UNAVAILABLE, "envoy overloaded", Flags::OVERLOADED, "overload").closing()
            }
            Cause::HeadTimeout => Self::new(
                S::REQUEST_TIMEOUT,
                "Request Timeout",
                Flags::DOWNSTREAM_PROTOCOL_ERROR,
                "request_header_timeout",
            )
            .closing(),
            Cause::TransferCoding => Self::new(
                S::NOT_IMPLEMENTED,
                "Not Implemented",
                Flags::DOWNSTREAM_PROTOCOL_ERROR,
                "http1.invalid_transfer_encoding",
            )
            .closing(),
            Cause::QueryWithoutType => {
                Self::new(S::BAD_REQUEST, "", Flags::NONE, "query_missing_content_type").closing()
            }
            Cause::MissingHost => Self::new(S::BAD_REQUEST, "", Flags::NONE, "missing_host_header").closing(),
            Cause::BadRequest(details) => {
                Self::new(S::BAD_REQUEST, "Bad Request", Flags::DOWNSTREAM_PROTOCOL_ERROR, details).closing()
            }
            Cause::MissingPath => Self::new(S::NOT_FOUND, "", Flags::NONE, "missing_path_rejected"),
            Cause::AbsolutePath => Self::new(S::NOT_FOUND, "", Flags::NONE, "absolute_path_rejected"),
            Cause::PathNormalization => {
                Self::new(S::BAD_REQUEST, "", Flags::NONE, "path_normalization_failed").closing()
            }
            Cause::PathRedirect(to) => {
                let reply = Self::new(S::TEMPORARY_REDIRECT, "", Flags::NONE, "path_normalization_failed");
                match HeaderValue::try_from(to) {
                    Ok(to) => reply.header(LOCATION, to),
                    Err(_) => Cause::PathNormalization.into(),
                }
            }
            Cause::NoRouteConfiguration => {
                Self::new(S::NOT_FOUND, "", Flags::NO_ROUTE, "route_configuration_not_found")
            }
            Cause::NoRoute => Self::new(S::NOT_FOUND, "", Flags::NO_ROUTE, "route_not_found"),
            Cause::NoCluster(status) => Self::new(status, "", Flags::NO_CLUSTER, "cluster_not_found"),
            Cause::UpgradeFailed => Self::new(S::FORBIDDEN, "", Flags::NONE, "upgrade_failed").closing(),
            Cause::AccessDenied(policy) => {
                let policy = policy.map_or_else(|| "none".to_owned(), |name| name.replace(' ', "_"));
                let details = format!("rbac_access_denied_matched_policy[{policy}]");
                Self::new(S::FORBIDDEN, "RBAC: access denied", Flags::NONE, details)
            }
            Cause::FaultAbort(status) => {
                Self::new(status, "fault filter abort", Flags::FAULT_INJECTED, "fault_filter_abort")
            }
            Cause::NoHealthyUpstream => Self::new(
                S::SERVICE_UNAVAILABLE,
                "no healthy upstream",
                Flags::NO_HEALTHY_UPSTREAM,
                "no_healthy_upstream",
            ),
            Cause::DropOverload => {
                Self::new(S::SERVICE_UNAVAILABLE, "drop overload", Flags::UPSTREAM_OVERFLOW, "drop_overload")
            }
            Cause::UpstreamReset { reset, detail, retried } => upstream_reset(reset, &detail, retried),
            Cause::TimeoutAccepted(details) => {
                Self::new(S::NO_CONTENT, "", Flags::UPSTREAM_REQUEST_TIMEOUT, details)
            }
            Cause::RouteTimeout => Self::new(
                S::GATEWAY_TIMEOUT,
                "upstream request timeout",
                Flags::UPSTREAM_REQUEST_TIMEOUT,
                "response_timeout",
            ),
            Cause::PerTryTimeout => Self::new(
                S::GATEWAY_TIMEOUT,
                "upstream request timeout",
                Flags::UPSTREAM_REQUEST_TIMEOUT,
                "upstream_per_try_timeout",
            ),
            Cause::MaxStreamDuration { request_complete, grpc_deadline } => {
                let mut reply = Self::new(
                    timed_out(request_complete),
                    "downstream duration timeout",
                    Flags::NONE,
                    "max_duration_timeout",
                );
                reply.grpc_status = grpc_deadline.then_some(4);
                reply
            }
            Cause::StreamIdle { request_complete } => Self::new(
                timed_out(request_complete),
                "stream timeout",
                Flags::STREAM_IDLE,
                "stream_idle_timeout",
            ),
            Cause::RequestTimeout => {
                Self::new(S::REQUEST_TIMEOUT, "request timeout", Flags::NONE, "request_overall_timeout")
            }
            Cause::EgressDenied(reason) => {
                Self::new(S::BAD_GATEWAY, reason, Flags::NO_ROUTE, "egress_denied")
            }
            Cause::EgressFailed(reason) => {
                Self::new(S::BAD_GATEWAY, reason, Flags::UPSTREAM_CONNECTION_FAILURE, "egress_failed")
            }
            Cause::EgressUnresolved(reason) => Self::new(
                S::SERVICE_UNAVAILABLE,
                reason,
                Flags::DNS_RESOLUTION_FAILURE,
                "dns_resolution_failure",
            ),
            Cause::NoService(reason) => {
                Self::new(S::NOT_FOUND, reason, Flags::NO_ROUTE, "mesh_service_not_found")
            }
            Cause::NameUnanswered(reason) => Self::new(
                S::SERVICE_UNAVAILABLE,
                reason,
                Flags::DNS_RESOLUTION_FAILURE,
                "mesh_name_not_answered",
            ),
        }
    }
}

fn upstream_reset(reset: Reset, detail: &str, retried: bool) -> LocalReply {
    let reason = reset_reason(reset);
    let body = if retried {
        format!(
            "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: {reason}"
        )
    } else {
        format!("upstream connect error or disconnect/reset before headers. reset reason: {reason}")
    };
    let (status, flags) = match reset {
        Reset::ConnectFailure | Reset::ConnectTimeout => {
            (StatusCode::SERVICE_UNAVAILABLE, Flags::UPSTREAM_CONNECTION_FAILURE)
        }
        Reset::ConnectionTermination => {
            (StatusCode::SERVICE_UNAVAILABLE, Flags::UPSTREAM_CONNECTION_TERMINATION)
        }
        Reset::RemoteReset | Reset::RefusedStream => (StatusCode::SERVICE_UNAVAILABLE, Flags::UPSTREAM_RESET),
        Reset::LocalReset => (StatusCode::SERVICE_UNAVAILABLE, Flags::LOCAL_RESET),
        Reset::Overflow => (StatusCode::SERVICE_UNAVAILABLE, Flags::UPSTREAM_OVERFLOW),
        Reset::ProtocolError => (StatusCode::BAD_GATEWAY, Flags::UPSTREAM_PROTOCOL_ERROR),
        Reset::PerTryTimeout => return Cause::PerTryTimeout.into(),
    };
    let detail = if detail.is_empty() { String::new() } else { format!("|{}", detail.replace(' ', "_")) };
    let details = format!("upstream_reset_before_response_started{{{}{detail}}}", reason.replace(' ', "_"));
    let reply = LocalReply::new(status, body, flags, details);
    if reset == Reset::Overflow {
        return reply.header(OVERLOADED.clone(), HeaderValue::from_static("true"));
    }
    reply
}

/// Envoy's map from HTTP to gRPC status.
pub(crate) fn grpc_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// Percent-encoding of `grpc-message` (gRPC over HTTP/2, "Responses").
fn percent_encode(text: &[u8]) -> HeaderValue {
    let mut out = Vec::with_capacity(text.len());
    for &byte in text {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    HeaderValue::from_bytes(&out).expect("printable ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset(reset: Reset, detail: &'static str, retried: bool) -> Cause {
        Cause::UpstreamReset { reset, detail: detail.into(), retried }
    }

    /// Every cause with status, body, flag, details and gRPC status: dataplane.md 2.12.
    #[test]
    fn the_table() {
        let before = "upstream connect error or disconnect/reset before headers.";
        for (cause, status, body, flags, details, grpc) in [
            (Cause::LowVersion, 426, "Upgrade Required".into(), "DPE", "low_version", 2),
            (
                Cause::TransferCoding,
                501,
                "Not Implemented".into(),
                "DPE",
                "http1.invalid_transfer_encoding",
                2,
            ),
            (Cause::TooLarge("x"), 431, "Request Header Fields Too Large".into(), "DPE", "x", 2),
            (Cause::Overloaded, 503, "envoy overloaded".into(), "OM", "overload", 14),
            (Cause::HeadTimeout, 408, "Request Timeout".into(), "DPE", "request_header_timeout", 2),
            (Cause::QueryWithoutType, 400, String::new(), "-", "query_missing_content_type", 13),
            (Cause::MissingHost, 400, String::new(), "-", "missing_host_header", 13),
            (Cause::BadRequest("x"), 400, "Bad Request".into(), "DPE", "x", 13),
            (Cause::MissingPath, 404, String::new(), "-", "missing_path_rejected", 12),
            (Cause::AbsolutePath, 404, String::new(), "-", "absolute_path_rejected", 12),
            (Cause::PathNormalization, 400, String::new(), "-", "path_normalization_failed", 13),
            (Cause::PathRedirect("/a".into()), 307, String::new(), "-", "path_normalization_failed", 2),
            (Cause::NoRouteConfiguration, 404, String::new(), "NR", "route_configuration_not_found", 12),
            (Cause::NoRoute, 404, String::new(), "NR", "route_not_found", 12),
            (
                Cause::NoCluster(StatusCode::SERVICE_UNAVAILABLE),
                503,
                String::new(),
                "NC",
                "cluster_not_found",
                14,
            ),
            (Cause::UpgradeFailed, 403, String::new(), "-", "upgrade_failed", 7),
            (
                Cause::AccessDenied(Some("a b".into())),
                403,
                "RBAC: access denied".into(),
                "-",
                "rbac_access_denied_matched_policy[a_b]",
                7,
            ),
            (
                Cause::AccessDenied(None),
                403,
                "RBAC: access denied".into(),
                "-",
                "rbac_access_denied_matched_policy[none]",
                7,
            ),
            (
                Cause::FaultAbort(StatusCode::TOO_MANY_REQUESTS),
                429,
                "fault filter abort".into(),
                "FI",
                "fault_filter_abort",
                14,
            ),
            (Cause::NoHealthyUpstream, 503, "no healthy upstream".into(), "UH", "no_healthy_upstream", 14),
            (
                reset(Reset::Overflow, "", false),
                503,
                format!("{before} reset reason: overflow"),
                "UO",
                "upstream_reset_before_response_started{overflow}",
                14,
            ),
            (
                reset(Reset::ConnectFailure, "Connection refused", false),
                503,
                format!("{before} reset reason: remote connection failure"),
                "UF",
                "upstream_reset_before_response_started{remote_connection_failure|Connection_refused}",
                14,
            ),
            (
                reset(Reset::ConnectTimeout, "", true),
                503,
                format!("{before} retried and the latest reset reason: connection timeout"),
                "UF",
                "upstream_reset_before_response_started{connection_timeout}",
                14,
            ),
            (
                reset(Reset::ConnectionTermination, "", false),
                503,
                format!("{before} reset reason: connection termination"),
                "UC",
                "upstream_reset_before_response_started{connection_termination}",
                14,
            ),
            (
                reset(Reset::RemoteReset, "", false),
                503,
                format!("{before} reset reason: remote reset"),
                "UR",
                "upstream_reset_before_response_started{remote_reset}",
                14,
            ),
            (
                reset(Reset::LocalReset, "", false),
                503,
                format!("{before} reset reason: local reset"),
                "LR",
                "upstream_reset_before_response_started{local_reset}",
                14,
            ),
            (
                reset(Reset::ProtocolError, "", false),
                502,
                format!("{before} reset reason: protocol error"),
                "UPE",
                "upstream_reset_before_response_started{protocol_error}",
                14,
            ),
            (Cause::TimeoutAccepted("response_timeout"), 204, String::new(), "UT", "response_timeout", 2),
            (Cause::RouteTimeout, 504, "upstream request timeout".into(), "UT", "response_timeout", 14),
            (
                Cause::PerTryTimeout,
                504,
                "upstream request timeout".into(),
                "UT",
                "upstream_per_try_timeout",
                14,
            ),
            (
                Cause::MaxStreamDuration { request_complete: true, grpc_deadline: true },
                504,
                "downstream duration timeout".into(),
                "-",
                "max_duration_timeout",
                4,
            ),
            (
                Cause::StreamIdle { request_complete: false },
                408,
                "stream timeout".into(),
                "SI",
                "stream_idle_timeout",
                2,
            ),
            (
                Cause::StreamIdle { request_complete: true },
                504,
                "stream timeout".into(),
                "SI",
                "stream_idle_timeout",
                14,
            ),
            (Cause::RequestTimeout, 408, "request timeout".into(), "-", "request_overall_timeout", 2),
            (Cause::EgressDenied("a".into()), 502, "a".into(), "NR", "egress_denied", 14),
            (Cause::EgressFailed("b".into()), 502, "b".into(), "UF", "egress_failed", 14),
            (Cause::EgressUnresolved("c".into()), 503, "c".into(), "DF", "dns_resolution_failure", 14),
            (Cause::NoService("d".into()), 404, "d".into(), "NR", "mesh_service_not_found", 12),
            (Cause::NameUnanswered("e".into()), 503, "e".into(), "DF", "mesh_name_not_answered", 14),
        ] {
            let reply = LocalReply::from(cause.clone());
            assert_eq!(reply.status.as_u16(), status, "{cause:?}");
            assert_eq!(reply.body, body.as_bytes(), "{cause:?}");
            assert_eq!(reply.flags.text(), flags, "{cause:?}");
            assert_eq!(reply.details, details, "{cause:?}");
            let plain = reply.clone().into_response(&Method::GET, false, false);
            assert_eq!(plain.headers().contains_key(CONTENT_TYPE), !body.is_empty(), "{cause:?}");
            let response = reply.into_response(&Method::POST, true, true);
            assert_eq!(response.status(), 200, "{cause:?}");
            assert_eq!(response.headers()[&GRPC_STATUS], grpc.to_string(), "{cause:?}");
            assert_eq!(response.headers().contains_key(&GRPC_MESSAGE), !body.is_empty(), "{cause:?}");
            assert!(!response.headers().contains_key(CONTENT_LENGTH), "{cause:?}");
            assert_eq!(response.headers()[&LOCAL_REPLY], "1");
        }
    }

    #[test]
    fn head_gets_the_headers_without_the_body() {
        let response = LocalReply::from(Cause::NoHealthyUpstream).into_response(&Method::HEAD, false, false);
        assert_eq!(response.headers()[CONTENT_LENGTH], "19");
        assert!(matches!(response.body(), Body::Empty));
    }

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(percent_encode("50% \n é".as_bytes()), "50%25 %0A %C3%A9");
    }
}
