//! Leaving in order: one signal says "finish", holders of a watch do so, and the signal knows when
//! all have.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct DrainSignal {
    started: CancellationToken,
    cut: CancellationToken,
    held: mpsc::Sender<()>,
    all_dropped: mpsc::Receiver<()>,
}

/// Held by everything that must finish first. Dropping it says "finished".
#[derive(Clone, Debug)]
pub struct DrainWatch {
    started: CancellationToken,
    cut: CancellationToken,
    _held: mpsc::Sender<()>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every watch was dropped in time.
    Complete,
    /// The grace was over first: the rest were told to cut.
    Cut,
}

/// Makes a signal and its first watch.
pub fn channel() -> (DrainSignal, DrainWatch) {
    let (held, all_dropped) = mpsc::channel(1);
    let signal =
        DrainSignal { started: CancellationToken::new(), cut: CancellationToken::new(), held, all_dropped };
    let watch = signal.watch();
    (signal, watch)
}

impl DrainSignal {
    /// Another watch.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch { started: self.started.clone(), cut: self.cut.clone(), _held: self.held.clone() }
    }

    /// Says "finish", and waits until every watch is dropped. After `grace` it says "cut" and waits
    /// on: whoever holds a watch must then end at once.
    pub async fn drain(self, grace: Duration) -> Drained {
        let Self { started, cut, held, mut all_dropped } = self;
        started.cancel();
        drop(held);
        if timeout(grace, all_dropped.recv()).await.is_ok() {
            return Drained::Complete;
        }
        cut.cancel();
        all_dropped.recv().await;
        Drained::Cut
    }
}

impl DrainWatch {
    /// Waits for "finish": take nothing new, complete what is there.
    pub async fn started(&self) {
        self.started.cancelled().await;
    }

    /// Whether "finish" was said.
    pub fn is_draining(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Waits for "cut": the grace is over.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// "Finish" as a token, for what takes one.
    pub fn token(&self) -> CancellationToken {
        self.started.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_signal_waits_for_every_watch() {
        let (signal, watch) = channel();
        let second = signal.watch();
        let worker = tokio::spawn(async move {
            watch.started().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(watch);
        });
        assert!(!second.is_draining());
        drop(second);
        let begin = tokio::time::Instant::now();
        assert_eq!(signal.drain(Duration::from_secs(20)).await, Drained::Complete);
        assert_eq!(begin.elapsed(), Duration::from_secs(3));
        worker.await.expect("ended");
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_grace_the_rest_are_cut() {
        let (signal, watch) = channel();
        let worker = tokio::spawn(async move {
            watch.cut().await;
            watch.is_draining()
        });
        assert_eq!(signal.drain(Duration::from_secs(20)).await, Drained::Cut);
        assert!(worker.await.expect("ended"));
    }
}
