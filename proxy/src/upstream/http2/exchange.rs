//! One request on its stream, and what answers it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, TE};
use http::{HeaderMap, Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::tunnel::StreamTunnel;
use super::{Http2, Traffic};
use crate::body::{Body, BodyError};
use crate::upstream::failure::find;

/// A place for one request on a connection that takes requests.
pub(in crate::upstream) struct Exchange {
    send: SendRequest<Bytes>,
    traffic: Rc<Traffic>,
}

/// The head of an answer, and where the rest comes from.
pub(in crate::upstream) enum Answered {
    Response(Response<Answer>),
    /// Both sides agreed to change protocol.
    Tunnel(Response<StreamTunnel>),
}

/// Why there is no answer.
pub(in crate::upstream) struct Unanswered {
    pub(in crate::upstream) error: h2::Error,
    /// The request waited for its turn: nothing of it went out.
    pub(in crate::upstream) unsent: bool,
}

/// The body of an answer.
pub(in crate::upstream) struct Answer {
    stream: RecvStream,
    /// Its length, where the head says so.
    length: Option<u64>,
    /// All bytes have come; trailers may follow.
    data_done: bool,
    traffic: Rc<Traffic>,
    /// Ends the task that still sends the request.
    _sender: Option<DropGuard>,
}

/// What is left of a request's body.
struct Sending {
    body: Body,
    stream: SendStream<Bytes>,
    /// Read, and waiting for room in the windows; whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

impl Http2 {
    /// # Errors
    ///
    /// The connection takes no requests any more.
    pub(in crate::upstream) fn exchange(&self) -> Result<Exchange, h2::Error> {
        self.check()?;
        Ok(Exchange { send: self.send.borrow().clone(), traffic: Rc::clone(&self.traffic) })
    }
}

impl Exchange {
    /// Sends `request` and waits for the head of the answer. What is left of the request's body by
    /// then goes on by itself; `spawn` runs a task.
    ///
    /// Of a `tunnel` (CONNECT) only the head is sent.
    pub(in crate::upstream) async fn send(
        mut self,
        request: Request<Body>,
        tunnel: bool,
        spawn: impl FnOnce(Pin<Box<dyn Future<Output = ()>>>),
    ) -> Result<Answered, Unanswered> {
        let (mut head, body) = request.into_parts();
        if head.headers.get(TE).is_some_and(|value| value != "trailers") {
            head.headers.remove(TE);
        }
        if let Some(length) = body.size_hint().exact()
            && length > 0
        {
            head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        if let Some(protocol) = head.extensions.remove::<hyper::ext::Protocol>() {
            head.extensions.insert(h2::ext::Protocol::from(protocol.as_str()));
        }
        let end = !tunnel && body.is_end_stream();
        let unsent = |error| Unanswered { error, unsent: true };
        let (mut answer, stream) =
            self.send.send_request(Request::from_parts(head, ()), end).map_err(unsent)?;
        poll_fn(|cx| self.send.poll_ready(cx)).await.map_err(unsent)?;
        let traffic = self.traffic;
        drop(self.send);
        if tunnel {
            let response = answer.await.map_err(sent)?;
            traffic.heard.set(true);
            return Ok(if response.status().is_success() {
                Answered::Tunnel(response.map(|back| StreamTunnel::new(stream, back)))
            } else {
                Answered::Response(answered(response, traffic, None))
            });
        }
        let mut sending = (!end).then_some(Sending { body, stream, waiting: None });
        let response = poll_fn(|cx| {
            if sending.as_mut().is_some_and(|sending| sending.poll(cx).is_ready()) {
                sending = None;
            }
            Pin::new(&mut answer).poll(cx)
        });
        let response = response.await.map_err(sent)?;
        traffic.heard.set(true);
        let sender = sending.map(|mut sending| {
            let stop = CancellationToken::new();
            let guard = stop.clone().drop_guard();
            spawn(Box::pin(async move {
                let _ended = stop.run_until_cancelled(poll_fn(|cx| sending.poll(cx))).await;
            }));
            guard
        });
        Ok(Answered::Response(answered(response, traffic, sender)))
    }
}

fn sent(error: h2::Error) -> Unanswered {
    Unanswered { error, unsent: false }
}

fn answered(
    response: Response<RecvStream>,
    traffic: Rc<Traffic>,
    sender: Option<DropGuard>,
) -> Response<Answer> {
    let length = length(response.headers());
    response.map(|stream| Answer { stream, length, data_done: false, traffic, _sender: sender })
}

/// The library holds the body against it.
fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Answer {
    pub(in crate::upstream) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    self.traffic.heard.set(true);
                    // Fails only if more is released than came.
                    let _released = self.stream.flow_control().release_capacity(bytes.len());
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(unless_done(error)),
                None => self.data_done = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => unless_done(error),
        })
    }

    pub(in crate::upstream) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(in crate::upstream) fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A reset with NO_ERROR means that the answer is complete, and the rest of the request not wanted
/// (RFC 9113 section 8.1).
fn unless_done<T>(error: h2::Error) -> Option<Result<T, h2::Error>> {
    if error.reason() == Some(Reason::NO_ERROR) { None } else { Some(Err(error)) }
}

impl Sending {
    /// Sends what there is; ready when there is no more, or nobody who wants it: then the answer tells.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            if !ready!(self.poll_room(cx)) {
                return Poll::Ready(());
            }
            if let Some((bytes, last)) = self.waiting.take()
                && (self.stream.send_data(bytes, last).is_err() || last)
            {
                return Poll::Ready(());
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.stream.send_reset(reason(&error));
                    return Poll::Ready(());
                }
                None => {
                    let _ended = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
            };
            match frame.into_data() {
                Ok(bytes) => {
                    // A claim on the windows is made only with bytes in hand, and raised to their number
                    // when they are sent: one that is held while a body says nothing keeps others waiting.
                    if !bytes.is_empty() {
                        self.stream.reserve_capacity(1);
                    }
                    let last = self.body.is_end_stream();
                    self.waiting = Some((bytes, last));
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.stream.reserve_capacity(0);
                        let _ended = self.stream.send_trailers(trailers);
                        return Poll::Ready(());
                    }
                }
            }
        }
    }

    /// Waits for room for what waits; `false`: the stream has ended.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let any = self.waiting.as_ref().is_some_and(|(bytes, _)| !bytes.is_empty());
        while any && self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }
}

/// What the peer is told of a request whose body failed.
fn reason(error: &BodyError) -> Reason {
    find::<h2::Error>(error).and_then(h2::Error::reason).unwrap_or(Reason::INTERNAL_ERROR)
}
