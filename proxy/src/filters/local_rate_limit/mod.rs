//! Limits of this proxy: buckets of tokens, one for all requests and one for each description of
//! requests that has a limit of its own.

mod bucket;
mod describe;
mod descriptors;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, StatusCode};
use pillion_model::rate_limit::LocalRateLimit;
use pillion_model::route::HeaderChanges;

pub(super) use self::bucket::Bucket;
use self::bucket::now;
use self::descriptors::Descriptors;
use super::overrides;
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::flags::Flags;
use crate::headers::changes::Changes;
use crate::local_reply::LocalReply;
use crate::snapshot::Routed;

/// Compiled [`LocalRateLimit`] with its count.
pub(crate) struct Limit {
    pub(crate) settings: LocalRateLimit,
    /// On requests that are too many and sent on, and on refusals.
    pub(crate) changes: Changes,
    status: StatusCode,
    bucket: Option<Arc<Bucket>>,
    /// `None`: there is one limit for all.
    descriptors: Option<Descriptors>,
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
    /// Beyond limits that refuse nothing.
    pub(crate) shadowed: AtomicU64,
}

impl Counts {
    /// By Envoy's names.
    pub(crate) fn read(&self) -> [(&'static str, u64); 5] {
        [
            ("enabled", self.enabled.load(Relaxed)),
            ("ok", self.ok.load(Relaxed)),
            ("rate_limited", self.limited.load(Relaxed)),
            ("enforced", self.enforced.load(Relaxed)),
            ("shadow_mode", self.shadowed.load(Relaxed)),
        ]
    }
}

impl Limit {
    /// Compiles, with full buckets.
    pub(crate) fn compile(settings: &LocalRateLimit) -> Result<Self, String> {
        let changes = HeaderChanges {
            request: settings.request_headers.clone(),
            response: settings.response_headers.clone(),
        };
        Ok(Self {
            settings: settings.clone(),
            changes: Changes::compile(&changes)?,
            status: StatusCode::from_u16(settings.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS),
            bucket: settings.bucket.map(|bucket| Arc::new(Bucket::full(bucket, now()))),
            descriptors: Descriptors::compile(settings),
            counts: Counts::default(),
        })
    }

    /// Takes a token from every bucket that the request needs one of: whether there was one in each,
    /// and the bucket that decided, unless it is `default`.
    fn take(
        &self,
        default: &Bucket,
        x: &Exchange,
        routed: Option<&Routed>,
    ) -> (Verdict, Option<Arc<Bucket>>) {
        let now = now();
        let Some(descriptors) = &self.descriptors else {
            return (if default.take(now) { Verdict::Within } else { Verdict::Beyond }, None);
        };
        let mut rules = descriptors.find(&describe::request(x, &self.settings, routed), now);
        // The scarcest first: what it refuses costs the others nothing.
        rules.sort_by(|one, other| one.bucket.per_second.total_cmp(&other.bucket.per_second));
        let mut verdict = Verdict::Within;
        for rule in &rules {
            if rule.bucket.take(now) {
                continue;
            }
            if !rule.shadow {
                return (Verdict::Beyond, Some(Arc::clone(&rule.bucket)));
            }
            verdict = Verdict::Shadowed;
        }
        if (rules.is_empty() || self.settings.always_take_default) && !default.take(now) {
            return (Verdict::Beyond, None);
        }
        (verdict, rules.first().map(|rule| Arc::clone(&rule.bucket)))
    }
}

/// What came of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// There was a token in every bucket.
    Within,
    /// There was none in one that refuses nothing.
    Shadowed,
    /// There was none.
    Beyond,
}

/// Takes a token, and refuses what finds none.
pub(super) fn check(x: &mut Exchange, limit: &Arc<Limit>) -> Step {
    let routed = x.record.routed.clone();
    let of_route = overrides(x, routed.as_ref()).and_then(|overrides| overrides.local_rate_limit());
    let limit = of_route.unwrap_or(limit);
    let Some(default) = limit.bucket.as_ref().filter(|_| limit.settings.enabled.hits(fastrand::u64(..)))
    else {
        return Ok(());
    };
    limit.counts.enabled.fetch_add(1, Relaxed);
    let (verdict, decided) = limit.take(default, x, routed.as_ref());
    let bucket = decided.as_ref().unwrap_or(default);
    if limit.settings.limit_headers {
        x.marks.limit = Some(Arc::clone(bucket));
    }
    if verdict == Verdict::Within {
        limit.counts.ok.fetch_add(1, Relaxed);
        return Ok(());
    }
    limit.counts.limited.fetch_add(1, Relaxed);
    if verdict == Verdict::Shadowed {
        limit.counts.shadowed.fetch_add(1, Relaxed);
        return Ok(());
    }
    if !limit.settings.enforced.hits(fastrand::u64(..)) {
        limit.changes.request(&mut x.head.headers, &x.record);
        return Ok(());
    }
    limit.counts.enforced.fetch_add(1, Relaxed);
    Err(refusal(x, limit, bucket))
}

fn refusal(x: &Exchange, limit: &Limit, bucket: &Bucket) -> LocalReply {
    let body = Bytes::from_static(b"local_rate_limited");
    let mut reply = LocalReply::direct(limit.status, body, "local_rate_limited");
    reply.flags = Flags::RATE_LIMITED;
    if limit.settings.resource_exhausted {
        reply.grpc_status = Some(RESOURCE_EXHAUSTED);
    }
    let mut headers = HeaderMap::new();
    limit.changes.response(&mut headers, &x.record.request_headers, &x.record);
    if limit.settings.retry_after && limit.status == StatusCode::TOO_MANY_REQUESTS {
        let wait = whole(bucket.next_in(now()).ceil()).max(1);
        headers.entry(RETRY_AFTER).or_insert_with(|| wait.into());
    }
    reply.headers.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    reply
}

/// Tells how much is left, if that is wanted.
pub(super) fn annotate(x: &Exchange, headers: &mut HeaderMap) {
    let Some(bucket) = &x.marks.limit else { return };
    let now = now();
    for (name, value) in [
        (&LIMIT, bucket.tokens_max),
        (&REMAINING, bucket.tokens(now).floor().max(0.0)),
        (&RESET, bucket.next_in(now).ceil()),
    ] {
        headers.append(name, whole(value).into());
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and not negative")]
fn whole(value: f64) -> u64 {
    value as u64
}

static LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// gRPC's status code.
const RESOURCE_EXHAUSTED: u32 = 8;
