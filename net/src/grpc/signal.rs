//! What is asked of an open connection from outside.
//!
//! A connection looks at it whenever anything happens there, and there are thousands of connections:
//! so it is one word for each, not a lock that all of them share.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// What may be asked; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Asked {
    /// Answer what has been asked, and close.
    Finish = 1,
    /// Close at once.
    Cut = 2,
}

/// For one task that waits, and anybody who asks.
#[derive(Debug, Default)]
pub(super) struct Signal {
    asked: AtomicU8,
    bell: AtomicWaker,
}

impl Signal {
    pub(super) fn ask(&self, what: Asked) {
        self.asked.fetch_max(what as u8, Ordering::AcqRel);
        self.bell.wake();
    }

    pub(super) fn is_asked(&self, what: Asked) -> bool {
        self.asked.load(Ordering::Acquire) >= what as u8
    }

    /// Waits until it is asked.
    pub(super) async fn asked(&self, what: Asked) {
        poll_fn(|context| self.poll(what, context)).await;
    }

    fn poll(&self, what: Asked, context: &Context<'_>) -> Poll<()> {
        if self.is_asked(what) {
            return Poll::Ready(());
        }
        self.bell.register(context.waker());
        if self.is_asked(what) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Does something unless that is asked before it ends.
    pub(super) async fn unless<T>(&self, what: Asked, other: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.asked(what) => None,
            done = other => Some(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn who_waits_is_told_what_is_asked_and_what_includes_it() {
        for (what, asked) in
            [(Asked::Finish, Asked::Finish), (Asked::Finish, Asked::Cut), (Asked::Cut, Asked::Cut)]
        {
            let signal = Arc::new(Signal::default());
            let waiting = Arc::clone(&signal);
            let waiting =
                tokio::spawn(async move { waiting.unless(what, std::future::pending::<()>()).await });
            tokio::task::yield_now().await;
            signal.ask(asked);
            assert_eq!(waiting.await.expect("ends"), None, "{what:?} by {asked:?}");
            assert_eq!(signal.unless(what, async { 1 }).await, None, "asked before it began");
        }
        let signal = Signal::default();
        signal.ask(Asked::Finish);
        assert_eq!(signal.unless(Asked::Cut, async { 1 }).await, Some(1));
    }
}
