//! Header names that `http` does not know.

use http::HeaderName;

macro_rules! names {
    ($($name:ident = $text:literal;)*) => {
        $(pub(crate) static $name: HeaderName = HeaderName::from_static($text);)*
        /// Every one of them.
        #[cfg(test)]
        pub(crate) static ALL: &[&HeaderName] = &[$(&$name),*];
    };
}

names! {
    AUTH_FAILURE_MODE_ALLOWED = "x-envoy-auth-failure-mode-allowed";
    AUTH_HEADERS_TO_REMOVE = "x-envoy-auth-headers-to-remove";
    AUTH_PARTIAL_BODY = "x-envoy-auth-partial-body";
    ATTEMPT_COUNT = "x-envoy-attempt-count";
    DECORATOR_OPERATION = "x-envoy-decorator-operation";
    DOWNSTREAM_CLUSTER = "x-envoy-downstream-service-cluster";
    DOWNSTREAM_NODE = "x-envoy-downstream-service-node";
    EXPECTED_TIMEOUT_MS = "x-envoy-expected-rq-timeout-ms";
    EXTERNAL_ADDRESS = "x-envoy-external-address";
    FAULT_ABORT = "x-envoy-fault-abort-request";
    FAULT_ABORT_PERCENTAGE = "x-envoy-fault-abort-request-percentage";
    FAULT_DELAY = "x-envoy-fault-delay-request";
    FAULT_DELAY_PERCENTAGE = "x-envoy-fault-delay-request-percentage";
    FAULT_GRPC_ABORT = "x-envoy-fault-abort-grpc-request";
    FORCE_TRACE = "x-envoy-force-trace";
    FORWARDED_CLIENT_CERT = "x-forwarded-client-cert";
    FORWARDED_FOR = "x-forwarded-for";
    FORWARDED_PROTO = "x-forwarded-proto";
    GRPC_MESSAGE = "grpc-message";
    GRPC_STATUS = "grpc-status";
    GRPC_TIMEOUT = "grpc-timeout";
    HEDGE_ON_TIMEOUT = "x-envoy-hedge-on-per-try-timeout";
    HEALTH_CHECKED_CLUSTER = "x-envoy-upstream-healthchecked-cluster";
    IMMEDIATE_HEALTH_CHECK_FAIL = "x-envoy-immediate-health-check-fail";
    INTERNAL = "x-envoy-internal";
    IP_TAGS = "x-envoy-ip-tags";
    MAX_RETRIES = "x-envoy-max-retries";
    ORIGINAL_HOST = "x-envoy-original-host";
    ORIGINAL_PATH = "x-envoy-original-path";
    ORIGINAL_URL = "x-envoy-original-url";
    OVERLOADED = "x-envoy-overloaded";
    RATE_LIMITED = "x-envoy-ratelimited";
    REQUEST_ID = "x-request-id";
    RETRY_GRPC_ON = "x-envoy-retry-grpc-on";
    RETRY_ON = "x-envoy-retry-on";
    RETRIABLE_CODES = "x-envoy-retriable-status-codes";
    ALT_STAT_NAME = "x-envoy-upstream-alt-stat-name";
    TIMEOUT_ALT_RESPONSE = "x-envoy-upstream-rq-timeout-alt-response";
    TIMEOUT_MS = "x-envoy-upstream-rq-timeout-ms";
    PER_TRY_TIMEOUT_MS = "x-envoy-upstream-rq-per-try-timeout-ms";
    TRACEPARENT = "traceparent";
    UPSTREAM_SERVICE_TIME = "x-envoy-upstream-service-time";
    LOCAL_REPLY = "x-pillion-local-reply";
    HTTP2_SETTINGS = "http2-settings";
}

/// Which kinds of names are among headers. Most messages have none of them, and one look at the names
/// costs less than looking for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kinds {
    /// `x-envoy-`: clients steer a request with such.
    pub(crate) envoy: bool,
    /// `x-pillion-`.
    pub(crate) pillion: bool,
    /// `x-forwarded-`.
    pub(crate) forwarded: bool,
    /// `grpc-`.
    pub(crate) grpc: bool,
}

impl Kinds {
    /// Those among `headers`.
    pub(crate) fn of(headers: &http::HeaderMap) -> Self {
        let mut kinds = Self::default();
        for name in headers.keys() {
            let name = name.as_str();
            if let Some(rest) = name.strip_prefix("x-") {
                kinds.envoy |= rest.starts_with("envoy-");
                kinds.pillion |= rest.starts_with("pillion-");
                kinds.forwarded |= rest.starts_with("forwarded-");
            } else {
                kinds.grpc |= name.starts_with("grpc-");
            }
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_name_is_a_valid_lower_case_header_name() {
        for name in super::ALL {
            assert_eq!(name.as_str(), name.as_str().to_ascii_lowercase());
        }
        assert_eq!(super::LOCAL_REPLY.as_str(), pillion_model::retry::LOCAL_REPLY_HEADER);
    }
}
