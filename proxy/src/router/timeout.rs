//! All the time limits of one request behind one timer: what comes next, and what it means.

use std::rc::Rc;
use std::time::Duration;

use http::HeaderMap;
use pillion_model::http::HttpConnectionManager;
use tokio::time::{Instant, sleep_until};

use crate::exchange::Head;
use crate::headers::names;
use crate::local_reply::Cause;
use crate::request::Progress;
use crate::snapshot::ForwardTo;

/// The limits of one request.
pub(crate) struct Timers {
    pub(crate) progress: Rc<Progress>,
    started: Instant,
    /// When the router had the request: what filters took does not count for the route's limit.
    routed: Instant,
    /// From the end of the request.
    route: Option<Duration>,
    /// From the start of the try, once the request is complete.
    pub(crate) per_try: Option<Duration>,
    /// Without anything moving.
    idle: Option<Duration>,
    /// From the start.
    max_stream: Option<Duration>,
    /// `max_stream` is the client's own deadline.
    grpc_deadline: bool,
    /// The caller takes 204 for a timeout (`x-envoy-upstream-rq-timeout-alt-response`).
    accepted: bool,
    /// From the start to the end of the request.
    request: Option<Duration>,
}

/// Which limit passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    Route,
    PerTry,
    Idle,
    MaxStream { grpc_deadline: bool },
    Request,
}

impl Timers {
    /// Before a route is known.
    pub(crate) fn new(progress: Rc<Progress>, started: Instant, config: &HttpConnectionManager) -> Self {
        Self {
            progress,
            started,
            routed: started,
            route: None,
            per_try: None,
            idle: config.stream_idle_timeout.filter(|limit| !limit.is_zero()),
            max_stream: None,
            grpc_deadline: false,
            accepted: false,
            request: config.request_timeout.filter(|limit| !limit.is_zero()),
        }
    }

    /// Takes the route's limits over, as far as `steering`, the client's own headers, does not override
    /// them.
    pub(crate) fn follow(&mut self, forward: &ForwardTo, head: &Head, steering: &HeaderMap) {
        self.routed = Instant::now();
        self.route = match millis(steering, &names::TIMEOUT_MS) {
            Some(given) => Some(given).filter(|limit| !limit.is_zero()),
            // One limit or the other, as in Envoy.
            None if forward.max_stream_duration.is_some() || forward.grpc_timeout_max.is_some() => None,
            None => forward.timeout,
        };
        self.accepted = steering.contains_key(&names::TIMEOUT_ALT_RESPONSE);
        if let Some(idle) = forward.idle_timeout {
            self.idle = Some(idle).filter(|limit| !limit.is_zero());
        }
        self.max_stream = forward.max_stream_duration;
        if head.grpc
            && let Some(cap) = forward.grpc_timeout_max
            && let Some(asked) =
                head.headers.get(&names::GRPC_TIMEOUT).and_then(|value| grpc_timeout(value.as_bytes()))
        {
            let limit = if cap.is_zero() { asked } else { asked.min(cap) };
            self.max_stream = Some(self.max_stream.map_or(limit, |max| max.min(limit)));
            self.grpc_deadline = true;
        }
        self.per_try = millis(steering, &names::PER_TRY_TIMEOUT_MS)
            .or_else(|| forward.retry.as_ref().and_then(|retry| retry.per_try_timeout))
            .filter(|per_try| !per_try.is_zero() && self.route.is_none_or(|route| *per_try < route));
    }

    /// Since when the answer is awaited.
    fn awaited(&self) -> Option<Instant> {
        self.progress.complete().map(|complete| complete.max(self.routed))
    }

    /// What the upstream is told of the time it has, in milliseconds, at the start of a try.
    pub(crate) fn expected_ms(&self) -> Option<u64> {
        let since = self.awaited().map_or(Duration::ZERO, |since| since.elapsed());
        let left = match (self.route.map(|route| route.saturating_sub(since)), self.per_try) {
            (Some(left), Some(per_try)) => left.min(per_try),
            (left, per_try) => left.or(per_try)?,
        };
        // As in Envoy it is never 0, which would say that there is no limit.
        let millis = left.as_micros().div_ceil(1000).max(1);
        Some(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// The limit that passes next, if nothing moves; `try_started` while a try waits for headers.
    pub(crate) fn next(&self, try_started: Option<Instant>) -> Option<(Instant, Expired)> {
        let complete = self.progress.complete();
        let after = |from: Option<Instant>, limit: Option<Duration>, expired| {
            Some((from?.checked_add(limit?)?, expired))
        };
        let max_stream = Expired::MaxStream { grpc_deadline: self.grpc_deadline };
        let per_try = complete.and_then(|complete| Some(try_started?.max(complete)));
        [
            after(self.awaited(), self.route, Expired::Route),
            after(per_try, self.per_try, Expired::PerTry),
            after(Some(self.progress.last()), self.idle, Expired::Idle),
            after(Some(self.started), self.max_stream, max_stream),
            if complete.is_none() { after(Some(self.started), self.request, Expired::Request) } else { None },
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    /// Waits until a limit passes.
    pub(crate) async fn expired(&self, try_started: Option<Instant>) -> Expired {
        loop {
            let sleep = async {
                match self.next(try_started) {
                    Some((at, _)) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            if self.progress.complete().is_some() {
                sleep.await;
            } else {
                // Completion starts further limits.
                tokio::select! {
                    () = sleep => {}
                    () = self.progress.completed() => continue,
                }
            }
            // Something may have moved meanwhile.
            if let Some((at, expired)) = self.next(try_started)
                && at <= Instant::now()
            {
                return expired;
            }
        }
    }

    /// The answer to a limit that passed before response headers.
    pub(crate) fn cause(&self, expired: Expired) -> Cause {
        let request_complete = self.progress.complete().is_some();
        match expired {
            Expired::Route if self.accepted => Cause::TimeoutAccepted("response_timeout"),
            Expired::PerTry if self.accepted => Cause::TimeoutAccepted("upstream_per_try_timeout"),
            Expired::Route => Cause::RouteTimeout,
            Expired::PerTry => Cause::PerTryTimeout,
            Expired::Idle => Cause::StreamIdle { request_complete },
            Expired::MaxStream { grpc_deadline } => {
                Cause::MaxStreamDuration { request_complete, grpc_deadline }
            }
            Expired::Request => Cause::RequestTimeout,
        }
    }
}

fn millis(headers: &HeaderMap, name: &http::HeaderName) -> Option<Duration> {
    headers.get(name)?.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

/// `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
fn grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count.saturating_mul(3600)),
        b'M' => Duration::from_secs(count.saturating_mul(60)),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_have_units() {
        for (text, want) in [
            ("5S", Some(Duration::from_secs(5))),
            ("100m", Some(Duration::from_millis(100))),
            ("1H", Some(Duration::from_secs(3600))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("123456789S", None),
            ("S", None),
            ("5x", None),
            ("", None),
        ] {
            assert_eq!(grpc_timeout(text.as_bytes()), want, "{text}");
        }
    }

    fn timers(progress: &Rc<Progress>, now: Instant) -> Timers {
        Timers {
            progress: Rc::clone(progress),
            started: now,
            routed: now,
            route: Some(Duration::from_secs(15)),
            per_try: Some(Duration::from_secs(1)),
            idle: Some(Duration::from_secs(300)),
            max_stream: None,
            grpc_deadline: false,
            accepted: false,
            request: Some(Duration::from_secs(20)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn route_and_try_limits_wait_for_the_whole_request() {
        let now = Instant::now();
        let complete = Progress::new(now, true);
        assert_eq!(timers(&complete, now).next(Some(now)).unwrap().1, Expired::PerTry);
        assert_eq!(timers(&complete, now).next(None).unwrap().1, Expired::Route);
        let open = Progress::new(now, false);
        let open_timers = timers(&open, now);
        assert_eq!(open_timers.next(Some(now)).unwrap(), (now + Duration::from_secs(20), Expired::Request));
        assert_eq!(open_timers.expired(Some(now)).await, Expired::Request);
        assert_eq!(now.elapsed(), Duration::from_secs(20));
    }

    #[tokio::test(start_paused = true)]
    async fn movement_puts_idleness_off() {
        let now = Instant::now();
        let progress = Progress::new(now, true);
        let mut timers = timers(&progress, now);
        (timers.route, timers.per_try) = (None, None);
        let moved = async {
            tokio::time::sleep(Duration::from_secs(200)).await;
            progress.moved();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            expired = timers.expired(Some(now)) => assert_eq!(expired, Expired::Idle),
            () = moved => {}
        }
        assert_eq!(now.elapsed(), Duration::from_secs(500));
    }
}
