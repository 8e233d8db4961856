//! What one timer per connection needs to know, so that requests need none of their own for slow
//! heads and idle connections.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by a connection's stream, its requests and its timer; all on one thread.
#[derive(Default)]
pub(crate) struct Activity {
    /// When the first byte of a request's head came that is not complete yet; 0: none.
    head_since: AtomicU64,
    /// When the last request ended; 0: at accept.
    idle_since: AtomicU64,
    requests: AtomicU32,
    /// HTTP/2: bytes that come between requests need not be a head.
    frames: AtomicBool,
    /// What comes now is not looked at: there may be no further request.
    unjudged: AtomicBool,
    /// The client sent too many frames that ask for nothing.
    flooded: AtomicBool,
}

/// What the connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// A request is in flight.
    Busy,
    /// The rest of a head, since then.
    Head(Instant),
    /// The next request, since then.
    Idle(Instant),
}

impl Activity {
    /// At accept.
    pub(crate) fn new() -> Self {
        let activity = Self::default();
        activity.idle_since.store(now(), Relaxed);
        activity
    }

    /// Bytes came.
    pub(crate) fn read(&self) {
        if self.requests.load(Relaxed) == 0
            && self.head_since.load(Relaxed) == 0
            && !self.frames.load(Relaxed)
        {
            self.head_since.store(now(), Relaxed);
        }
    }

    /// A head is complete.
    pub(crate) fn request_started(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.head_since.store(0, Relaxed);
    }

    /// A response ended.
    pub(crate) fn request_ended(&self) {
        if self.requests.fetch_sub(1, Relaxed) == 1 {
            self.idle_since.store(now(), Relaxed);
        }
    }

    /// What the client sends from here on may be another protocol.
    pub(crate) fn judges_no_more(&self) {
        self.unjudged.store(true, Relaxed);
    }

    /// Whether the connection can have no further request.
    pub(crate) fn is_unjudged(&self) -> bool {
        self.unjudged.load(Relaxed)
    }

    /// The client sends too much that asks for nothing.
    pub(crate) fn flooded(&self) {
        self.flooded.store(true, Relaxed);
    }

    /// Whether the connection ends because of what the client sends.
    pub(crate) fn is_flooded(&self) -> bool {
        self.flooded.load(Relaxed)
    }

    /// What the connection is waiting for.
    pub(crate) fn waiting(&self) -> Waiting {
        if self.requests.load(Relaxed) > 0 {
            return Waiting::Busy;
        }
        match self.head_since.load(Relaxed) {
            0 => Waiting::Idle(instant(self.idle_since.load(Relaxed))),
            since => Waiting::Head(instant(since)),
        }
    }

    /// From here on bytes between requests say nothing: HTTP/2 has frames that belong to none.
    pub(crate) fn speaks_frames(&self) {
        self.frames.store(true, Relaxed);
        self.head_since.store(0, Relaxed);
    }
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// Microseconds since the first call, never 0.
fn now() -> u64 {
    u64::try_from(epoch().elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1)
}

fn instant(micros: u64) -> Instant {
    epoch() + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_head_counts_from_its_first_byte_and_idleness_from_the_last_response() {
        let activity = Activity::new();
        let Waiting::Idle(accepted) = activity.waiting() else { panic!("idle at accept") };
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.read();
        let Waiting::Head(first) = activity.waiting() else { panic!("a byte came") };
        assert!(first >= accepted + Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(1)).await;
        activity.read();
        assert_eq!(activity.waiting(), Waiting::Head(first));
        activity.request_started();
        activity.read();
        assert_eq!(activity.waiting(), Waiting::Busy);
        activity.request_ended();
        let Waiting::Idle(ended) = activity.waiting() else { panic!("idle again") };
        assert!(ended > first);
    }
}
