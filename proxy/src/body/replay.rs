//! A request body that can be sent again: the first reader streams it while it is recorded, later
//! readers start from the record and then go on with the source.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::{Body, BodyError};

/// The shared record of one request body. Stays with whoever decides about retries.
#[derive(Clone)]
pub struct ReplayBuffer(Rc<RefCell<Record>>);

/// One reader of a [`ReplayBuffer`].
pub struct Replay {
    record: Rc<RefCell<Record>>,
    /// Frames already given, counted from the start of the body.
    at: usize,
    trailers_given: bool,
}

struct Record {
    /// Where frames come from, until its end.
    source: Body,
    /// Frames kept, from the first one on; empty once let go.
    kept: Vec<Bytes>,
    /// Frames read from the source in all.
    read: usize,
    kept_bytes: usize,
    limit: usize,
    /// Frames read are no longer all kept.
    let_go: bool,
    trailers: Option<HeaderMap>,
    state: State,
    hint: SizeHint,
    waiting: Vec<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Failed,
}

impl ReplayBuffer {
    /// Records at most `limit` bytes of `source`. Past that nothing is kept any more, and
    /// [`ReplayBuffer::reader`] gives `None`.
    pub fn new(source: Body, limit: usize) -> Self {
        let hint = source.size_hint();
        let state = if source.is_end_stream() { State::Ended } else { State::Open };
        Self(Rc::new(RefCell::new(Record {
            source,
            kept: Vec::new(),
            read: 0,
            kept_bytes: 0,
            limit,
            let_go: false,
            trailers: None,
            state,
            hint,
            waiting: Vec::new(),
        })))
    }

    /// A body from the first byte on, unless the record was let go.
    pub fn reader(&self) -> Option<Replay> {
        let record = self.0.borrow();
        (!record.let_go && record.state != State::Failed).then(|| Replay {
            record: Rc::clone(&self.0),
            at: 0,
            trailers_given: false,
        })
    }

    /// Lets the record go: no further reader can start, the present one streams on.
    pub fn release(&self) {
        self.0.borrow_mut().release();
    }

    /// Whether the whole request, trailers included, has come in.
    pub fn is_ended(&self) -> bool {
        self.0.borrow().state == State::Ended
    }

    /// Whether the body outgrew the limit or was released.
    pub fn is_let_go(&self) -> bool {
        self.0.borrow().let_go
    }
}

impl Record {
    fn release(&mut self) {
        self.let_go = true;
        self.kept = Vec::new();
        self.kept_bytes = 0;
    }

    fn keep(&mut self, data: &Bytes) {
        self.read += 1;
        if self.let_go {
            return;
        }
        self.kept_bytes += data.len();
        if self.kept_bytes > self.limit {
            self.release();
        } else {
            self.kept.push(data.clone());
        }
    }

    fn wake_others(&mut self) {
        for waker in self.waiting.drain(..) {
            waker.wake();
        }
    }

    /// Reads one more frame from the source: `None` at its end, which may have left trailers.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.source).poll_frame(cx) else {
                if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    self.waiting.push(cx.waker().clone());
                }
                return Poll::Pending;
            };
            let next = match frame {
                None => {
                    self.state = State::Ended;
                    None
                }
                Some(Err(error)) => {
                    self.state = State::Failed;
                    Some(Err(error))
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.keep(&data);
                        if self.source.is_end_stream() {
                            self.state = State::Ended;
                        }
                        Some(Ok(data))
                    }
                    Err(frame) => {
                        let Ok(trailers) = frame.into_trailers() else { continue };
                        self.trailers = Some(trailers);
                        self.state = State::Ended;
                        None
                    }
                },
            };
            self.wake_others();
            return Poll::Ready(next);
        }
    }
}

impl Replay {
    /// Another reader from the first byte on, as [`ReplayBuffer::reader`].
    pub fn restart(&self) -> Option<Self> {
        ReplayBuffer(Rc::clone(&self.record)).reader()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut record = self.record.borrow_mut();
        if self.at < record.read {
            let kept = record.kept.get(self.at).cloned();
            self.at += 1;
            return Poll::Ready(Some(kept.map(Frame::data).ok_or(BodyError::NotKept)));
        }
        if record.state == State::Open {
            match std::task::ready!(record.poll_source(cx)) {
                Some(Ok(data)) => {
                    self.at += 1;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {}
            }
        }
        if record.state == State::Failed {
            return Poll::Ready(Some(Err(BodyError::Source)));
        }
        let trailers = if self.trailers_given { None } else { record.trailers.clone() };
        self.trailers_given = true;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let record = self.record.borrow();
        record.state == State::Ended
            && self.at == record.read
            && (self.trailers_given || record.trailers.is_none())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        if self.at == 0 { self.record.borrow().hint } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::task::noop_waker;
    use http_body_util::BodyExt;

    use super::*;

    /// Runs a body to its end: its bytes, and the error it ended with.
    fn read(replay: &mut Replay) -> (Vec<u8>, Option<BodyError>) {
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut bytes = Vec::new();
        while let Poll::Ready(Some(frame)) = replay.poll_frame(&mut cx) {
            match frame {
                Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(error) => return (bytes, Some(error)),
            }
        }
        (bytes, None)
    }

    #[test]
    fn a_second_reader_gets_the_same_bytes() -> Result<(), Infallible> {
        let buffer = ReplayBuffer::new(Body::full("four"), 4);
        let mut first = buffer.reader().unwrap();
        assert_eq!(first.size_hint().exact(), Some(4));
        assert_eq!(read(&mut first).0, b"four");
        assert!(first.is_end_stream());
        let mut second = buffer.reader().unwrap();
        assert_eq!(second.size_hint().exact(), Some(4));
        assert!(!second.is_end_stream());
        assert_eq!(read(&mut second).0, b"four");
        Ok(())
    }

    #[test]
    fn past_the_limit_the_first_reader_streams_on_and_no_other_starts() {
        let buffer = ReplayBuffer::new(Body::full("five!"), 4);
        let mut first = buffer.reader().unwrap();
        let mut late = buffer.reader().unwrap();
        assert_eq!(read(&mut first).0, b"five!");
        assert!(buffer.is_let_go());
        assert!(buffer.reader().is_none());
        assert!(matches!(read(&mut late).1, Some(BodyError::NotKept)));
    }

    #[tokio::test]
    async fn two_readers_share_one_source() {
        let buffer = ReplayBuffer::new(Body::full("both"), 64);
        let first = Body::Replay(buffer.reader().unwrap()).collect();
        let second = Body::Replay(buffer.reader().unwrap()).collect();
        let (first, second) = tokio::join!(first, second);
        assert_eq!(first.unwrap().to_bytes(), "both");
        assert_eq!(second.unwrap().to_bytes(), "both");
    }
}
