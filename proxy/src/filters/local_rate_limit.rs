//! Limits of this proxy: a bucket of tokens that all workers take from without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use pillion_model::filter::{LocalRateLimit, TokenBucket};
use pillion_model::route::HeaderChanges;
use tokio::time::Instant;

use super::overrides;
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::flags::Flags;
use crate::headers::changes::Changes;
use crate::local_reply::LocalReply;

/// Compiled [`LocalRateLimit`] with its count.
pub(crate) struct Limit {
    pub(crate) settings: LocalRateLimit,
    /// On requests that are too many and sent on, and on refusals.
    pub(crate) changes: Changes,
    status: StatusCode,
    bucket: Option<Bucket>,
    /// What came of requests.
    pub(crate) counts: Counts,
}

/// What came of requests that were counted.
#[derive(Default)]
pub(crate) struct Counts {
    /// Counted at all.
    pub(crate) enabled: AtomicU64,
    /// Within the limit.
    pub(crate) ok: AtomicU64,
    /// Beyond the limit.
    pub(crate) limited: AtomicU64,
    /// Refused.
    pub(crate) enforced: AtomicU64,
}

impl Counts {
    /// By Envoy's names.
    pub(crate) fn read(&self) -> [(&'static str, u64); 4] {
        [
            ("enabled", self.enabled.load(Relaxed)),
            ("ok", self.ok.load(Relaxed)),
            ("rate_limited", self.limited.load(Relaxed)),
            ("enforced", self.enforced.load(Relaxed)),
        ]
    }
}

/// A bucket of tokens: one number, the time at which it would have been empty.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Seconds since the start, as bits of a floating-point number.
    empty_at: AtomicU64,
    tokens_max: f64,
    per_second: f64,
}

impl Limit {
    /// Compiles, with a full bucket.
    pub(crate) fn compile(settings: &LocalRateLimit) -> Result<Self, String> {
        let changes = HeaderChanges {
            request: settings.request_headers.clone(),
            response: settings.response_headers.clone(),
        };
        Ok(Self {
            settings: settings.clone(),
            changes: Changes::compile(&changes)?,
            status: StatusCode::from_u16(settings.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS),
            bucket: settings.bucket.map(|bucket| Bucket::full(bucket, now())),
            counts: Counts::default(),
        })
    }
}

impl Bucket {
    fn full(bucket: TokenBucket, now: f64) -> Self {
        let tokens_max = f64::from(bucket.max_tokens);
        let per_second = f64::from(bucket.tokens_per_fill) / bucket.fill_interval.as_secs_f64();
        Self { empty_at: AtomicU64::new((now - tokens_max / per_second).to_bits()), tokens_max, per_second }
    }

    /// Tokens at `now`.
    fn tokens(&self, now: f64) -> f64 {
        self.tokens_after(f64::from_bits(self.empty_at.load(Relaxed)), now)
    }

    fn tokens_after(&self, empty_at: f64, now: f64) -> f64 {
        ((now - empty_at) * self.per_second).min(self.tokens_max)
    }

    /// Takes a token, if there is one.
    fn take(&self, now: f64) -> bool {
        let taken = self.empty_at.fetch_update(Relaxed, Relaxed, |empty_at| {
            let left = self.tokens_after(f64::from_bits(empty_at), now) - 1.0;
            (left > -ROUNDING).then(|| (now - left.max(0.0) / self.per_second).to_bits())
        });
        taken.is_ok()
    }

    /// Seconds until there is a token.
    fn next_in(&self, now: f64) -> f64 {
        ((1.0 - self.tokens(now)) / self.per_second).max(0.0)
    }
}

/// Takes a token, and refuses what finds none.
pub(super) fn check(x: &mut Exchange, limit: &Arc<Limit>) -> Step {
    let routed = x.record.routed.clone();
    let of_route = overrides(x, routed.as_ref()).and_then(|overrides| overrides.local_rate_limit());
    let limit = of_route.unwrap_or(limit);
    let Some(bucket) = limit.bucket.as_ref().filter(|_| limit.settings.enabled.hits(fastrand::u64(..)))
    else {
        return Ok(());
    };
    limit.counts.enabled.fetch_add(1, Relaxed);
    if limit.settings.limit_headers {
        x.marks.limit = Some(Arc::clone(limit));
    }
    if bucket.take(now()) {
        limit.counts.ok.fetch_add(1, Relaxed);
        return Ok(());
    }
    limit.counts.limited.fetch_add(1, Relaxed);
    if !limit.settings.enforced.hits(fastrand::u64(..)) {
        limit.changes.request(&mut x.head.headers, &x.record);
        return Ok(());
    }
    limit.counts.enforced.fetch_add(1, Relaxed);
    Err(refusal(x, limit))
}

fn refusal(x: &Exchange, limit: &Limit) -> LocalReply {
    let body = Bytes::from_static(b"local_rate_limited");
    let mut reply = LocalReply::direct(limit.status, body, "local_rate_limited");
    reply.flags = Flags::RATE_LIMITED;
    if limit.settings.resource_exhausted {
        reply.grpc_status = Some(RESOURCE_EXHAUSTED);
    }
    let mut headers = HeaderMap::new();
    limit.changes.response(&mut headers, &x.record.request_headers, &x.record);
    reply.headers.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    reply
}

/// Tells how much is left, if that is wanted.
pub(super) fn annotate(x: &Exchange, headers: &mut HeaderMap) {
    let Some(limit) = &x.marks.limit else { return };
    let Some(bucket) = &limit.bucket else { return };
    let now = now();
    for (name, value) in [
        (&LIMIT, bucket.tokens_max),
        (&REMAINING, bucket.tokens(now).floor().max(0.0)),
        (&RESET, bucket.next_in(now).ceil()),
    ] {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole and not negative"
        )]
        headers.append(name, (value as u64).into());
    }
}

static LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// By how much sums of floating-point numbers may be off, in tokens.
const ROUNDING: f64 = 1e-6;
/// gRPC's status code.
const RESOURCE_EXHAUSTED: u32 = 8;

/// Seconds since the first use.
fn now() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn bucket(max_tokens: u32, tokens_per_fill: u32, millis: u64) -> Bucket {
        let fill_interval = Duration::from_millis(millis);
        Bucket::full(TokenBucket { max_tokens, tokens_per_fill, fill_interval }, 1000.0)
    }

    fn taken(bucket: &Bucket, now: f64) -> usize {
        std::iter::from_fn(|| bucket.take(now).then_some(())).count()
    }

    #[test]
    fn tokens_come_back_steadily_and_no_more_than_fit() {
        let bucket = bucket(10, 10, 1000);
        for (at, want) in [(1000.0, 10), (1000.05, 0), (1000.15, 1), (1000.55, 4), (5000.0, 10), (5000.0, 0)]
        {
            assert_eq!(taken(&bucket, at), want, "{at}");
        }
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_gives_nothing() {
        let bucket = bucket(1, 1, 100);
        assert_eq!(taken(&bucket, 1000.0), 1);
        assert_eq!(taken(&bucket, 999.0), 0);
        assert!((bucket.next_in(1000.0) - 0.1).abs() < 1e-6);
    }

    #[test]
    fn workers_share_a_bucket_without_taking_a_token_twice() {
        let bucket = bucket(1000, 1, 3_600_000);
        let all: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| taken(&bucket, 1000.0))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(all, 1000);
    }
}
