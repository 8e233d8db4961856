//! HTTP/1 connections from clients: one request after the other, carried by the connection's own task.
//!
//! No head is acted on that was not judged ([`head`]). What is refused is answered, written down, and
//! ends the connection.

mod answer;
mod head;
mod stream;

use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{Method, Request, Response};
use http_body::Body as _;
use tokio::io::AsyncWrite as _;
use tokio::sync::oneshot;
use tokio::time::timeout;

pub(crate) use self::head::Refused;
use self::head::{Head, Then, is_worth_judging};
pub(crate) use self::stream::{Http1Body, Http1Stream};
use super::connection::Connection;
use super::io::Io;
use super::linger::Linger;
use super::tunnel::ClientTunnel;
use crate::chain;
use crate::headers::hop;
use crate::http1::{Decoder, Encoder, Wire, head_end};
use crate::request::Arriving;
use crate::response::ResponseBody;
use crate::snapshot::Hcm;

/// One connection.
pub(super) struct Http1 {
    connection: Rc<Connection>,
    hcm: Arc<Hcm>,
    wired: Rc<RefCell<Wired>>,
    /// The request that is carried is the last.
    last: Cell<bool>,
}

/// The connection's bytes, and the message that comes.
struct Wired {
    wire: Wire<Io>,
    /// What is left of the request.
    decoder: Decoder,
    /// Counts requests, so that a body that was left behind does not read the next one's.
    request: u64,
    interim: Interim,
    /// How much there was of the head that is waited for when it was judged last.
    judged: usize,
}

/// Whether the client is to be told to go on (100 Continue) when its request's body is wanted. Nobody
/// but the response writes once that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interim {
    None,
    Due,
    /// It is being written.
    Going,
}

/// Why no further request is taken.
#[derive(Debug)]
pub(super) enum Ending {
    /// The client has left, or a response could not be sent to its end.
    Gone,
    /// All that was to be said was said.
    Said,
    /// A response came before its request's end: the client may still be sending.
    Early,
    /// What comes now is no HTTP, and another's.
    Tunnel,
    /// A head was refused.
    Refused(Refused),
}

/// What a response depends on.
struct Asked {
    method: Method,
    /// The client wants no further answer on this connection.
    close: bool,
    /// Gives the stream to the tunnel, if there is to be one.
    tunnel: Option<oneshot::Sender<Http1Stream>>,
}

/// What one look at a head found.
enum Looked {
    Head(Box<Head>),
    Refused(Refused),
    /// There will be none.
    Ended,
}

impl Http1 {
    pub(super) fn new(connection: &Rc<Connection>, hcm: &Arc<Hcm>, io: Io) -> Self {
        let wired = Wired {
            wire: Wire::new(io),
            decoder: Decoder::Done,
            request: 0,
            interim: Interim::None,
            judged: 0,
        };
        Self {
            connection: Rc::clone(connection),
            hcm: Arc::clone(hcm),
            wired: Rc::new(RefCell::new(wired)),
            last: Cell::new(false),
        }
    }

    /// After the response that is on its way, or at once, the connection ends.
    pub(super) fn end_soon(&self) {
        self.last.set(true);
    }

    /// Carries requests.
    pub(super) async fn run(&self) -> Ending {
        loop {
            let head = match poll_fn(|cx| self.poll_head(cx)).await {
                Looked::Head(head) => head,
                Looked::Refused(refused) => return Ending::Refused(refused),
                Looked::Ended => return Ending::Said,
            };
            let (request, tunnel, asked) = self.begin(*head);
            let mut handled = pin!(chain::handle(Rc::clone(&self.connection), request, tunnel));
            let answered = poll_fn(|cx| match handled.as_mut().poll(cx) {
                Poll::Ready(response) => Poll::Ready(Some(response)),
                Poll::Pending => self.poll_gone(cx).map(|()| None),
            });
            let Some(response) = answered.await else { return Ending::Gone };
            if let Some(ending) = self.respond(response, asked).await {
                return ending;
            }
        }
    }

    /// Reads up to the end of a head.
    fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Looked> {
        let wired = &mut *self.wired.borrow_mut();
        let max = self.hcm.config.max_request_headers_kb as usize * 1024;
        loop {
            if let Some(length) = head_end(&wired.wire.read, wired.judged) {
                let bytes = wired.wire.read.split_to(length).freeze();
                wired.judged = 0;
                return Poll::Ready(match head::judge(&bytes, max) {
                    Ok(head) => Looked::Head(Box::new(head)),
                    Err(refused) => Looked::Refused(refused),
                });
            }
            if !wired.wire.read.is_empty() {
                self.connection.activity.read();
                if is_worth_judging(wired.wire.read.len(), wired.judged, max) {
                    if let Err(refused) = head::judge_part(&wired.wire.read, max) {
                        return Poll::Ready(Looked::Refused(refused));
                    }
                    wired.judged = wired.wire.read.len();
                }
            } else if self.last.get() {
                return Poll::Ready(Looked::Ended);
            }
            // A head that is cut off is nobody's.
            if !matches!(ready!(wired.wire.poll_fill(cx)), Ok(1..)) {
                return Poll::Ready(Looked::Ended);
            }
        }
    }

    /// Makes the request of a head.
    fn begin(&self, head: Head) -> (Request<Arriving>, Option<ClientTunnel>, Asked) {
        let mut wired = self.wired.borrow_mut();
        wired.request += 1;
        wired.interim = if head.expects_continue { Interim::Due } else { Interim::None };
        wired.decoder = match head.then {
            Then::Length(length) => Decoder::length(length),
            Then::Chunks => Decoder::chunked(),
            Then::Rest => Decoder::Done,
        };
        let arriving = match wired.decoder {
            Decoder::Done => Arriving::Nothing,
            _ => Arriving::Http1(Http1Body::new(&self.wired, wired.request)),
        };
        let mut asked = Asked { method: head.request.method().clone(), close: head.close, tunnel: None };
        let mut tunnel = None;
        if head.then == Then::Rest {
            self.connection.activity.judges_no_more();
            let (give, take) = oneshot::channel();
            (asked.tunnel, tunnel) = (Some(give), Some(ClientTunnel::Http1(take)));
        }
        (head.request.map(|()| arriving), tunnel, asked)
    }

    /// Ready when the client has left. What it sends meanwhile is kept for later, up to one read.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let wired = &mut *self.wired.borrow_mut();
        if !wired.decoder.is_done() || !wired.wire.read.is_empty() {
            return Poll::Pending;
        }
        match wired.wire.poll_fill(cx) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(()),
            Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
        }
    }

    /// Sends a response. Why the connection ends after it, if it does.
    async fn respond(&self, response: Response<ResponseBody>, asked: Asked) -> Option<Ending> {
        let (mut parts, body) = response.into_parts();
        let tunnel = asked.tunnel.filter(|_| answer::is_tunnel(&asked.method, parts.status));
        let close = asked.close || self.last.get() || hop::mentions(&parts.headers, &CONNECTION, "close");
        let ends = close && tunnel.is_none();
        let mut encoder = {
            let wired = &mut *self.wired.borrow_mut();
            wired.interim = Interim::None;
            answer::put_head(wired.wire.head(), &asked.method, &mut parts, &body, ends)
        };
        drop(parts);
        let mut body = pin!(body);
        let mut ended = body.is_end_stream();
        let whole = poll_fn(|cx| self.poll_respond(cx, body.as_mut(), &mut encoder, &mut ended)).await;
        let wired = &mut *self.wired.borrow_mut();
        if !whole {
            return Some(Ending::Gone);
        }
        if let Some(tunnel) = tunnel {
            let _ = tunnel.send(Http1Stream::new(&self.wired));
            return Some(Ending::Tunnel);
        }
        if !wired.decoder.is_done() {
            return Some(Ending::Early);
        }
        if ends {
            return Some(Ending::Said);
        }
        wired.wire.rest();
        None
    }

    /// Whether the whole response was sent.
    fn poll_respond(
        &self,
        cx: &mut Context<'_>,
        mut body: Pin<&mut ResponseBody>,
        encoder: &mut Encoder,
        ended: &mut bool,
    ) -> Poll<bool> {
        let (mut broken, mut taken) = (false, 0);
        loop {
            if taken >= TURN {
                // Others have a turn.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut waits = false;
            while !*ended && !broken && self.wired.borrow().wire.has_room() {
                let frame = match body.as_mut().poll_frame(cx) {
                    Poll::Ready(frame) => frame,
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                };
                match frame {
                    Some(Ok(frame)) => {
                        taken += frame.data_ref().map_or(0, Bytes::len);
                        encoder.put(frame, &mut self.wired.borrow_mut().wire);
                        *ended = body.is_end_stream();
                    }
                    Some(Err(_)) => broken = true,
                    None => *ended = true,
                }
            }
            {
                let wire = &mut self.wired.borrow_mut().wire;
                if *ended && !broken {
                    broken = !encoder.end(wire);
                }
                if ready!(wire.poll_write(cx)).is_err() || broken {
                    return Poll::Ready(false);
                }
            }
            if *ended {
                return Poll::Ready(true);
            }
            if waits {
                return self.poll_gone(cx).map(|()| false);
            }
        }
    }

    /// The last words, if there are any, and the end.
    pub(super) async fn close(&self, ending: &Ending) {
        let words = match ending {
            Ending::Gone | Ending::Said | Ending::Early => Bytes::new(),
            Ending::Tunnel => return,
            Ending::Refused(refused) => answer::bytes(refused, &self.hcm),
        };
        self.wired.borrow_mut().wire.put(words, b"");
        let closed = timeout(CLOSE_MAX, poll_fn(|cx| self.poll_close(cx))).await;
        // Closing at once would take the last words along, as the client may still be sending.
        if matches!((closed, ending), (Ok(Ok(())), Ending::Early | Ending::Refused(_))) {
            let mut linger = Linger::new();
            poll_fn(|cx| linger.poll(Pin::new(&mut self.wired.borrow_mut().wire.io), cx)).await;
        }
    }

    fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = &mut self.wired.borrow_mut().wire;
        ready!(wire.poll_write(cx))?;
        Pin::new(&mut wire.io).poll_shutdown(cx)
    }
}

/// Bytes of a response sent in one go while other connections wait.
const TURN: usize = 256 << 10;
/// How long a client may take to read the last words.
const CLOSE_MAX: Duration = Duration::from_secs(1);
