//! How long to wait before the next attempt to reach the registry.

use std::time::Duration;

/// Exponential with full jitter: the n-th wait is drawn from 100 ms to 1, 2, 4 and then 5 s, so
/// that the sidecars of a registry that restarts do not all come back in the same moment.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

/// Shortest wait.
const MIN: Duration = Duration::from_millis(100);
/// Longest first wait.
const FIRST_MAX: Duration = Duration::from_secs(1);
/// Longest wait of all.
const MAX: Duration = Duration::from_secs(5);

impl Backoff {
    /// The next wait; `draw` is uniform in 0 to 1.
    pub fn next_wait(&mut self, draw: f64) -> Duration {
        let ceiling = FIRST_MAX.saturating_mul(1 << self.failures.min(8)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        MIN + (ceiling - MIN).mul_f64(draw.clamp(0.0, 1.0))
    }

    /// The registry has answered: the next wait is short again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_seconds_and_start_over() {
        let mut backoff = Backoff::default();
        let longest: Vec<u128> = (0..5).map(|_| backoff.next_wait(1.0).as_millis()).collect();
        assert_eq!(longest, [1000, 2000, 4000, 5000, 5000]);
        assert_eq!(backoff.next_wait(0.0), MIN);
        backoff.reset();
        assert_eq!(backoff.next_wait(1.0), FIRST_MAX);
    }
}
