//! The open connections of one server, and which of them nobody would miss.
//!
//! A connection is busy while one of its requests is answered, streams included, and idle otherwise. Where
//! there are too many, the one that never asked anything goes first, then the one that has been idle for
//! longest; who is busy is left alone.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};

use super::signal::{Asked, Signal};

/// The open connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    held: Arc<Mutex<Held>>,
    max: usize,
}

#[derive(Default)]
struct Held {
    open: HashMap<u64, Open>,
    /// By who goes first: whether it has asked anything, and since when it is idle.
    idle: BTreeMap<(bool, u64), u64>,
    next: u64,
}

struct Open {
    signal: Arc<Signal>,
    /// Requests that are being answered.
    busy: usize,
    asked: bool,
    /// Where it stands among the idle.
    since: u64,
}

impl Connections {
    pub(super) fn new(max: usize) -> Self {
        Self { held: Arc::default(), max }
    }

    /// Takes a connection in. Where that is one too many, an idle one must go; `None` if nobody is idle.
    pub(super) fn enter(&self) -> Option<Place> {
        let mut held = self.lock();
        if held.open.len() >= self.max && !held.shed() {
            return None;
        }
        let id = held.tick();
        let signal = Arc::new(Signal::default());
        held.open.insert(id, Open { signal: Arc::clone(&signal), busy: 0, asked: false, since: id });
        held.idle.insert((false, id), id);
        drop(held);
        Some(Place { connections: self.clone(), id, signal })
    }

    /// Asks something of everybody.
    pub(super) fn ask_all(&self, what: Asked) {
        let signals: Vec<_> = self.lock().open.values().map(|open| Arc::clone(&open.signal)).collect();
        signals.iter().for_each(|signal| signal.ask(what));
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether there was an idle one to cut.
    fn shed(&mut self) -> bool {
        let Some((_, id)) = self.idle.pop_first() else { return false };
        if let Some(open) = self.open.remove(&id) {
            open.signal.ask(Asked::Cut);
        }
        true
    }

    fn leave(&mut self, id: u64) {
        if let Some(open) = self.open.remove(&id) {
            self.idle.remove(&(open.asked, open.since));
        }
    }

    fn begin(&mut self, id: u64) {
        let Some(open) = self.open.get_mut(&id) else { return };
        if open.busy == 0 {
            self.idle.remove(&(open.asked, open.since));
        }
        open.busy += 1;
        open.asked = true;
    }

    fn end(&mut self, id: u64) {
        let since = self.tick();
        let Some(open) = self.open.get_mut(&id) else { return };
        open.busy -= 1;
        if open.busy == 0 {
            open.since = since;
            self.idle.insert((true, since), id);
        }
    }
}

/// One connection's place, given back when dropped.
pub(super) struct Place {
    connections: Connections,
    id: u64,
    signal: Arc<Signal>,
}

impl Place {
    /// What is asked of the connection.
    pub(super) fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }

    /// Whether it has asked anything yet.
    pub(super) fn has_asked(&self) -> bool {
        self.connections.lock().open.get(&self.id).is_some_and(|open| open.asked)
    }

    /// Makes it busy, until what is returned is dropped.
    pub(super) fn begin(&self) -> Busy {
        self.connections.lock().begin(self.id);
        Busy { connections: self.connections.clone(), id: self.id }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().leave(self.id);
    }
}

/// A request that is being answered.
pub(super) struct Busy {
    connections: Connections,
    id: u64,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.connections.lock().end(self.id);
    }
}

/// A response's body; its connection is busy until it has been sent or given up.
pub(super) struct Answering {
    pub(super) body: Body,
    pub(super) _busy: Busy,
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idle_go_first_and_the_busy_stay() {
        let connections = Connections::new(3);
        let enter = || connections.enter();
        let (asked, silent, busy) = (enter().expect("room"), enter().expect("room"), enter().expect("room"));
        drop(asked.begin());
        let request = busy.begin();
        let cut = |place: &Place| place.signal().is_asked(Asked::Cut);
        // Who never asked goes before who asked once, though that one came first.
        let first = enter().expect("an idle one goes");
        assert_eq!([cut(&asked), cut(&silent), cut(&busy)], [false, true, false]);
        let second = first.begin();
        let third = enter().expect("an idle one goes").begin();
        assert_eq!([cut(&asked), cut(&busy), cut(&first)], [true, false, false]);
        drop((asked, silent)); // what was cut is not counted twice
        drop(third);
        let fourth = enter().expect("the third was given back");
        let _busy_too = fourth.begin();
        assert!(enter().is_none(), "everybody is busy");
        drop(request);
        assert!(enter().is_some() && cut(&busy));
        drop((busy, first, fourth, second));
        let held = connections.lock();
        assert_eq!((held.open.len(), held.idle.len()), (0, 0));
    }
}
