//! Whether to try again: the route's policy and the request's own headers, how many tries are left,
//! and what was decided.

use std::borrow::Cow;

use http::{HeaderMap, Response};
use pillion_model::matcher::{HeaderMatcher, RequestView};
use pillion_model::retry::{Outcome, Reset, RetryOn, RetryPolicy, is_idempotent};

use crate::body::Body;
use crate::headers::names;
use crate::response::parse_grpc_status;

/// The retry state of one request.
pub(crate) struct Retries<'a> {
    policy: Option<Cow<'a, RetryPolicy>>,
    left: u32,
    made: u32,
    idempotent: bool,
}

/// What to do after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This outcome stands.
    Keep,
    /// It would be tried again, but every try allowed was made.
    LimitReached,
    /// Try again.
    Retry,
}

impl<'a> Retries<'a> {
    /// By the route's policy and the request's `x-envoy-retry-on` and the like.
    pub(crate) fn new(policy: Option<&'a RetryPolicy>, headers: &HeaderMap, method: &str) -> Self {
        let mut policy = policy.map(Cow::Borrowed);
        for name in [&names::RETRY_ON, &names::RETRY_GRPC_ON] {
            let Some(tokens) = headers.get(name).and_then(|value| value.to_str().ok()) else { continue };
            let asked = tokens
                .split(',')
                .filter_map(|token| RetryOn::parse_token(token.trim()))
                .fold(RetryOn::empty(), RetryOn::with);
            let mut own = policy.map_or_else(RetryPolicy::default, Cow::into_owned);
            own.on = own.on.with(asked);
            policy = Some(Cow::Owned(own));
        }
        if let Some(codes) = headers.get(&names::RETRIABLE_CODES).and_then(|value| value.to_str().ok())
            && let Some(policy) = &mut policy
        {
            policy
                .to_mut()
                .status_codes
                .extend(codes.split(',').filter_map(|code| code.trim().parse::<u16>().ok()));
        }
        let policy = policy.filter(|policy| !policy.on.is_empty());
        let asked = headers.get(&names::MAX_RETRIES).and_then(|value| value.to_str().ok()?.parse().ok());
        let left = policy.as_ref().map_or(0, |policy| asked.unwrap_or(policy.retries));
        Self { policy, left, made: 0, idempotent: is_idempotent(method) }
    }

    /// Whether a further try is possible at all.
    pub(crate) fn possible(&self) -> bool {
        self.left > 0
    }

    /// Retries made so far.
    pub(crate) fn made(&self) -> u32 {
        self.made
    }

    /// Draws made to avoid endpoints tried before.
    pub(crate) fn redraws(&self) -> u32 {
        match &self.policy {
            Some(policy) if policy.avoid_previous_hosts => policy.host_selection_attempts.max(1),
            _ => 0,
        }
    }

    /// Judges a response.
    pub(crate) fn response(&self, response: &Response<Body>, kinds: names::Kinds) -> Verdict {
        let Some(policy) = &self.policy else { return Verdict::Keep };
        let headers = response.headers();
        let view = ResponseHeaders(headers);
        let look = |matcher: &HeaderMatcher| matcher.is_match(&view);
        self.verdict(policy.allows(
            Outcome::Response {
                status: response.status().as_u16(),
                grpc_status: if kinds.grpc { parse_grpc_status(headers) } else { None },
                rate_limited: kinds.envoy && headers.contains_key(&names::RATE_LIMITED),
                local_reply: kinds.pillion && headers.contains_key(&names::LOCAL_REPLY),
                headers: &look,
            },
            self.idempotent,
        ))
    }

    /// Judges a try without response headers.
    pub(crate) fn reset(&self, reason: Reset, request_sent: bool) -> Verdict {
        let Some(policy) = &self.policy else { return Verdict::Keep };
        self.verdict(policy.allows(Outcome::Reset { reason, request_sent }, self.idempotent))
    }

    fn verdict(&self, allowed: bool) -> Verdict {
        match (allowed, self.left) {
            (false, _) => Verdict::Keep,
            (true, 0) => Verdict::LimitReached,
            (true, _) => Verdict::Retry,
        }
    }

    /// Notes a further try, and gives the wait before it.
    pub(crate) fn next(&mut self) -> std::time::Duration {
        self.left = self.left.saturating_sub(1);
        self.made += 1;
        let draw = fastrand::u64(..);
        self.policy.as_ref().map_or_else(Default::default, |policy| policy.backoff(self.made, draw))
    }
}

/// Response headers as matchers read them.
struct ResponseHeaders<'a>(&'a HeaderMap);

impl RequestView for ResponseHeaders<'_> {
    fn method(&self) -> &str {
        ""
    }
    fn path(&self) -> &str {
        ""
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn authority(&self) -> &str {
        ""
    }
    fn scheme(&self) -> &str {
        ""
    }
    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        for value in self.0.get_all(name) {
            each(value.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn response(status: u16) -> Response<Body> {
        Response::builder().status(status).body(Body::Empty).unwrap()
    }

    #[test]
    fn headers_ask_for_retries_and_limit_them() {
        let policy = RetryPolicy { on: RetryOn::GATEWAY_ERROR, retries: 1, ..RetryPolicy::default() };
        for (headers, policy, status, want) in [
            (vec![], None, 503, Verdict::Keep),
            (vec![], Some(&policy), 503, Verdict::Retry),
            (vec![], Some(&policy), 500, Verdict::Keep),
            (vec![("x-envoy-retry-on", "nonsense, 5xx")], None, 500, Verdict::Retry),
            (vec![("x-envoy-max-retries", "0")], Some(&policy), 503, Verdict::LimitReached),
            (
                vec![
                    ("x-envoy-retry-on", "retriable-status-codes"),
                    ("x-envoy-retriable-status-codes", "418"),
                ],
                Some(&policy),
                418,
                Verdict::Retry,
            ),
        ] {
            let map: HeaderMap = headers
                .iter()
                .map(|&(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            let retries = Retries::new(policy, &map, "GET");
            let response = response(status);
            let kinds = names::Kinds::of(response.headers());
            assert_eq!(retries.response(&response, kinds), want, "{headers:?} {status}");
        }
    }

    #[test]
    fn tries_run_out() {
        let policy = RetryPolicy { on: RetryOn::CONNECT_FAILURE, retries: 2, ..RetryPolicy::default() };
        let mut retries = Retries::new(Some(&policy), &HeaderMap::new(), "POST");
        for want in [Verdict::Retry, Verdict::Retry, Verdict::LimitReached] {
            assert_eq!(retries.reset(Reset::ConnectFailure, false), want);
            let _ = retries.next();
        }
        assert_eq!(retries.reset(Reset::Overflow, false), Verdict::Keep);
    }
}
