//! What a server has met, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start, and one gauge.
#[derive(Debug, Default)]
pub struct Stats {
    /// Messages that came in datagrams.
    pub udp_messages: Count,
    /// Messages that came on connections.
    pub tcp_messages: Count,
    /// Messages that were no question: refused, or left unanswered.
    pub malformed: Count,
    /// Answers over UDP withheld from networks over the limit, which were told to use TCP.
    pub limited: Count,
    /// Answers that failed because too many were under way, or took too long.
    pub late: Count,
    /// Connections accepted.
    pub connections: Count,
    /// Connections closed to make room for others.
    pub connections_cut: Count,
    /// Connections open now.
    pub connections_open: Count,
}

/// A number that many tasks change.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// The number now.
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, number: usize) {
        self.0.store(number as u64, Ordering::Relaxed);
    }
}
