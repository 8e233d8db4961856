//! A bucket of tokens that all workers take from without a lock.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pillion_model::rate_limit::TokenBucket;
use tokio::time::Instant;

/// A bucket of tokens: one number, the time at which it would have been empty.
#[derive(Debug)]
pub(in crate::filters) struct Bucket {
    /// Seconds since the start, as bits of a floating-point number.
    empty_at: AtomicU64,
    pub(super) tokens_max: f64,
    pub(super) per_second: f64,
}

impl Bucket {
    pub(super) fn full(bucket: TokenBucket, now: f64) -> Self {
        let tokens_max = f64::from(bucket.max_tokens);
        let per_second = f64::from(bucket.tokens_per_fill) / bucket.fill_interval.as_secs_f64();
        Self { empty_at: AtomicU64::new((now - tokens_max / per_second).to_bits()), tokens_max, per_second }
    }

    /// Tokens at `now`.
    pub(super) fn tokens(&self, now: f64) -> f64 {
        self.tokens_after(f64::from_bits(self.empty_at.load(Relaxed)), now)
    }

    fn tokens_after(&self, empty_at: f64, now: f64) -> f64 {
        ((now - empty_at) * self.per_second).min(self.tokens_max)
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&self, now: f64) -> bool {
        let taken = self.empty_at.fetch_update(Relaxed, Relaxed, |empty_at| {
            let left = self.tokens_after(f64::from_bits(empty_at), now) - 1.0;
            (left > -ROUNDING).then(|| (now - left.max(0.0) / self.per_second).to_bits())
        });
        taken.is_ok()
    }

    /// Seconds until there is a token.
    pub(super) fn next_in(&self, now: f64) -> f64 {
        ((1.0 - self.tokens(now)) / self.per_second).max(0.0)
    }
}

/// By how much sums of floating-point numbers may be off, in tokens.
const ROUNDING: f64 = 1e-6;

/// Seconds since the first use.
pub(super) fn now() -> f64 {
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
