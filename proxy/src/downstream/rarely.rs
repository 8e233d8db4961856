//! What ends a connection is waited for beside every request on it, and hardly ever comes: it is not
//! looked at each time a request moves on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Release};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// A future that is polled when it was woken itself, not whenever its task is.
pub(crate) struct Rarely<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    waker: Waker,
}

struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl<F: Future> Rarely<F> {
    pub(crate) fn new(future: F) -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&bell)), bell }
    }
}

impl<F: Future> Future for Rarely<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.bell.task.register(cx.waker());
        if !this.bell.rung.swap(false, AcqRel) {
            return Poll::Pending;
        }
        this.future.as_mut().poll(&mut Context::from_waker(&this.waker))
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_polled_when_it_was_woken() {
        let polls = Rc::new(Cell::new(0));
        let count = Rc::clone(&polls);
        let mut sleep = Box::pin(tokio::time::sleep(Duration::from_secs(1)));
        let mut rarely = Rarely::new(poll_fn(move |cx| {
            count.set(count.get() + 1);
            sleep.as_mut().poll(cx)
        }));
        for _ in 0..10 {
            tokio::select! {
                biased;
                () = &mut rarely => panic!("too early"),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
        rarely.await;
        assert!(polls.get() <= 3, "{}", polls.get());
    }
}
