//! Retry rules: which outcomes may be tried again, how long to wait, how many at once.

use std::time::Duration;

use crate::matcher::HeaderMatcher;

/// A retry policy. Envoy: `RetryPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Which outcomes.
    pub on: RetryOn,
    /// Status codes for `retriable-status-codes`.
    pub status_codes: Vec<u16>,
    /// Response headers for `retriable-headers`.
    pub headers: Vec<HeaderMatcher>,
    /// Tries after the first. Default 1.
    pub retries: u32,
    /// Time for one try; `None`: the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// First wait's upper bound. Default 25 ms.
    pub backoff_base: Duration,
    /// Longest wait. Default ten times the base.
    pub backoff_max: Duration,
    /// Do not try an endpoint again that was tried before.
    pub avoid_previous_hosts: bool,
    /// Draws made to avoid previous hosts. Default 1.
    pub host_selection_attempts: u32,
    /// 503 and gRPC unavailable are retried only if the method is idempotent or the answer is
    /// marked as a sidecar's own local reply (`x-pillion-local-reply`).
    pub only_safe: bool,
}

/// The header a sidecar's inbound side sets on its own local replies, so that the caller's side
/// knows the application has not seen the request.
pub const LOCAL_REPLY_HEADER: &str = "x-pillion-local-reply";

impl Default for RetryPolicy {
    /// Envoy's defaults, with no condition set.
    fn default() -> Self {
        Self {
            on: RetryOn::empty(),
            status_codes: Vec::new(),
            headers: Vec::new(),
            retries: 1,
            per_try_timeout: None,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            avoid_previous_hosts: false,
            host_selection_attempts: 1,
            only_safe: false,
        }
    }
}

/// A set of retry conditions. Envoy: the comma-separated tokens of `retry_on`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RetryOn(u32);

macro_rules! conditions {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $token:literal;)*) => {
        impl RetryOn {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*
            /// Every condition with its token.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $token)),*];
        }
    };
}

conditions! {
    /// Any 500 to 599, and any failure before response headers.
    SERVER_ERROR = 0, "5xx";
    /// 502, 503, 504, and any failure before response headers.
    GATEWAY_ERROR = 1, "gateway-error";
    /// The upstream did not answer.
    RESET = 2, "reset";
    /// The upstream did not answer and no byte of the request was sent.
    RESET_BEFORE_REQUEST = 3, "reset-before-request";
    /// The connection could not be made.
    CONNECT_FAILURE = 4, "connect-failure";
    /// The upstream refused the stream.
    REFUSED_STREAM = 5, "refused-stream";
    /// The response says it was rate limited; without this it is never retried.
    RATE_LIMITED = 6, "envoy-ratelimited";
    /// 409.
    RETRIABLE_4XX = 7, "retriable-4xx";
    /// The listed codes.
    STATUS_CODES = 8, "retriable-status-codes";
    /// The listed response headers.
    HEADERS = 9, "retriable-headers";
    /// gRPC status 1.
    CANCELLED = 10, "cancelled";
    /// gRPC status 4.
    DEADLINE_EXCEEDED = 11, "deadline-exceeded";
    /// gRPC status 8.
    RESOURCE_EXHAUSTED = 12, "resource-exhausted";
    /// gRPC status 13.
    INTERNAL = 13, "internal";
    /// gRPC status 14.
    UNAVAILABLE = 14, "unavailable";
}

impl RetryOn {
    /// No condition.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether no condition is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether one of `other`'s conditions is set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Reads one token.
    pub fn parse_token(token: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, text)| *text == token).map(|&(condition, _)| condition)
    }

    /// The tokens of this set.
    pub fn tokens(self) -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().filter(move |(condition, _)| self.has(*condition)).map(|&(_, token)| token)
    }
}

/// Why a try gave no response headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reset {
    /// The connection could not be made.
    ConnectFailure,
    /// Making the connection took too long.
    ConnectTimeout,
    /// The connection ended.
    ConnectionTermination,
    /// The peer reset the stream.
    RemoteReset,
    /// The peer refused the stream: it has not seen the request.
    RefusedStream,
    /// We reset the stream.
    LocalReset,
    /// A limit of ours was reached: never retried.
    Overflow,
    /// The peer broke the protocol.
    ProtocolError,
    /// The try took too long.
    PerTryTimeout,
}

/// What a try ended with, as far as retrying is concerned.
#[derive(Clone, Copy)]
pub enum Outcome<'a> {
    /// Response headers came.
    Response {
        /// The status code.
        status: u16,
        /// `grpc-status` in the response headers.
        grpc_status: Option<u32>,
        /// The response carries `x-envoy-ratelimited`.
        rate_limited: bool,
        /// The response is a sidecar's own local reply.
        local_reply: bool,
        /// Looks up response headers.
        headers: &'a dyn Fn(&HeaderMatcher) -> bool,
    },
    /// No response headers came.
    Reset {
        /// Why.
        reason: Reset,
        /// Whether any byte of the request was handed to the upstream.
        request_sent: bool,
    },
}

impl RetryPolicy {
    /// Whether `outcome` may be tried again. `idempotent`: by the method (RFC 9110 section 9.2.2).
    ///
    /// Follows Envoy's `RetryStateImpl`; counting, budgets and waiting are the caller's.
    pub fn allows(&self, outcome: Outcome<'_>, idempotent: bool) -> bool {
        match outcome {
            Outcome::Reset { reason, request_sent } => self.allows_reset(reason, request_sent, idempotent),
            Outcome::Response { status, grpc_status, rate_limited, local_reply, headers } => {
                if rate_limited {
                    return self.on.has(RetryOn::RATE_LIMITED);
                }
                let safe = !self.only_safe || idempotent || local_reply;
                let by_status = (self.on.has(RetryOn::SERVER_ERROR) && (500..600).contains(&status))
                    || (self.on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status))
                    || (self.on.has(RetryOn::RETRIABLE_4XX) && status == 409)
                    || (self.on.has(RetryOn::STATUS_CODES) && self.status_codes.contains(&status))
                    || (self.on.has(RetryOn::HEADERS) && self.headers.iter().any(headers));
                let by_grpc = grpc_status.is_some_and(|code| {
                    let condition = match code {
                        1 => RetryOn::CANCELLED,
                        4 => RetryOn::DEADLINE_EXCEEDED,
                        8 => RetryOn::RESOURCE_EXHAUSTED,
                        13 => RetryOn::INTERNAL,
                        14 => RetryOn::UNAVAILABLE,
                        _ => RetryOn::empty(),
                    };
                    self.on.has(condition)
                });
                safe && (by_status || by_grpc)
            }
        }
    }

    fn allows_reset(&self, reason: Reset, request_sent: bool, idempotent: bool) -> bool {
        let connect = matches!(reason, Reset::ConnectFailure | Reset::ConnectTimeout);
        if reason == Reset::Overflow {
            return false;
        }
        if connect && self.on.has(RetryOn::CONNECT_FAILURE) {
            return true;
        }
        if reason == Reset::RefusedStream && self.on.has(RetryOn::REFUSED_STREAM) {
            return true;
        }
        if !request_sent && self.on.has(RetryOn::RESET_BEFORE_REQUEST) {
            return true;
        }
        let safe = !self.only_safe || idempotent || !request_sent;
        safe && self.on.has(RetryOn::RESET.with(RetryOn::SERVER_ERROR).with(RetryOn::GATEWAY_ERROR))
    }

    /// How long to wait before try `retry` (1 is the first retry): uniform in
    /// `[0, min((2^retry − 1) × base, max))`, from a draw uniform over all `u64`.
    pub fn backoff(&self, retry: u32, draw: u64) -> Duration {
        let factor = (1_u64 << retry.min(20)) - 1;
        let base_us = u64::try_from(self.backoff_base.as_micros()).unwrap_or(u64::MAX);
        let max_us = u64::try_from(self.backoff_max.as_micros()).unwrap_or(u64::MAX);
        let bound = base_us.saturating_mul(factor).min(max_us).max(1);
        Duration::from_micros(draw % bound)
    }
}

/// Whether a method may be repeated without asking (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// Retries allowed at once under a budget: `max(min, percent × (active + pending))`.
pub fn budget_limit(budget: crate::cluster::RetryBudget, active_and_pending: u64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts are far below 2^52 and the share is not negative"
    )]
    let share = (active_and_pending as f64 * budget.percent / 100.0) as u64;
    share.max(u64::from(budget.concurrency_min))
}
