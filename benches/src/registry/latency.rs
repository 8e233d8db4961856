//! Waiting times, and what of them is told.

use std::time::Duration;

/// Waiting times, kept whole: at most a few million of four bytes.
#[derive(Debug, Default)]
pub(super) struct Latencies(Vec<u32>);

impl Latencies {
    /// Adds one.
    pub(super) fn add(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// Adds what somebody else measured.
    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The waiting time, in milliseconds, that this share of all did not exceed; 0 of none.
    pub(super) fn quantile_ms(&mut self, share: f64) -> f64 {
        self.0.sort_unstable();
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_added() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile_ms(0.99), 0.0);
        for millis in 1..=100 {
            latencies.add(Duration::from_millis(millis));
        }
        assert_eq!((latencies.quantile_ms(0.5), latencies.quantile_ms(0.99)), (50.0, 99.0));
        assert_eq!(latencies.quantile_ms(1.0), 100.0);
    }
}
