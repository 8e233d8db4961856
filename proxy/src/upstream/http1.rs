//! HTTP/1 connections, each carried by the request that is on it: no task stands between them.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::io::Io;
use super::pool::EndpointPool;
use crate::body::{Body, BodyError};
use crate::headers::framing::{Framing, Lengths, Unclear};
use crate::headers::hop;
use crate::http1::{
    BadBody, Decoder, Encoder, HEADERS_MAX, Wire, head_end, headers, put_headers, put_request_line,
};

/// A connection, idle or with one request.
pub(super) struct Http1 {
    wired: Rc<RefCell<Wired>>,
    /// Requests served before this one.
    pub(super) served: u32,
    /// Of the transport's TLS configuration it was made with.
    pub(super) generation: u64,
    /// Ends the task that still sends a request whose answer has begun.
    sender: Option<DropGuard>,
    _open: Open,
}

/// The connection's bytes and the messages on it.
struct Wired {
    wire: Wire<Io>,
    /// What is left of the request.
    body: Option<Body>,
    encoder: Encoder,
    /// What is left of the response.
    decoder: Decoder,
    /// Whether a further request may follow.
    keep_alive: bool,
    /// Whether any byte of the request may have gone out.
    begun: bool,
    /// Both sides agreed to change protocol.
    tunnel: bool,
}

/// Tells the pool of a connection's end.
struct Open(Weak<EndpointPool>);

/// Why a request has no answer, or not all of one.
#[derive(Debug, thiserror::Error)]
pub enum Http1Error {
    /// The connection ended before the answer began.
    #[error("connection closed before message completed")]
    Closed,
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The connection ended within a head.
    #[error("the response's head was cut off")]
    Cut,
    /// Nobody can tell where the response ends.
    #[error("the response's length is not clear")]
    Unclear,
    /// What came is no response.
    #[error("the response's head cannot be read: {0}")]
    Head(httparse::Error),
    /// A name or value that none of HTTP's has.
    #[error("the response has a header that is none")]
    Header,
    /// The head is too large.
    #[error("the response's head is larger than {HEAD_MAX} bytes")]
    TooLarge,
    /// The response is not what its head says.
    #[error(transparent)]
    Body(#[from] BadBody),
    /// The request's own body failed.
    #[error("{0}")]
    Request(Box<BodyError>),
    /// The request's own body was shorter than its head said.
    #[error("the request's body is shorter than its length")]
    Short,
}

/// A request without an answer.
pub(super) struct Unanswered {
    pub(super) error: Http1Error,
    /// Not a byte of the request went out: it has its body again.
    pub(super) unsent: bool,
}

impl Http1 {
    /// Over a stream that was just opened for `pool`.
    pub(super) fn new(io: Io, generation: u64, pool: &Rc<EndpointPool>) -> Self {
        let wired = Wired {
            wire: Wire::new(io),
            body: None,
            encoder: Encoder::Done,
            decoder: Decoder::Done,
            keep_alive: true,
            begun: false,
            tunnel: false,
        };
        let _open = Open(Rc::downgrade(pool));
        Self { wired: Rc::new(RefCell::new(wired)), served: 0, generation, sender: None, _open }
    }

    /// Whether an idle connection can take a request: the peer has neither closed it nor said
    /// anything. Costs no system call unless something came.
    pub(super) fn is_usable(&self) -> bool {
        let mut wired = self.wired.borrow_mut();
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        wired.keep_alive && Pin::new(&mut wired.wire.io).poll_read(&mut context, &mut buffer).is_pending()
    }

    /// Sends `request` and waits for the head of the response. Takes the body, and leaves the head.
    pub(super) async fn send(&mut self, request: &mut Request<Body>) -> Result<Response<()>, Unanswered> {
        self.wired.borrow_mut().start(request);
        let answered = poll_fn(|cx| self.wired.borrow_mut().poll_answer(cx, request.method())).await;
        let error = match answered {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let wired = &mut *self.wired.borrow_mut();
        let unsent = !wired.begun && matches!(error, Http1Error::Closed | Http1Error::Io(_));
        if unsent {
            *request.body_mut() = wired.body.take().unwrap_or_default();
        }
        Err(Unanswered { error, unsent })
    }

    /// Whether what follows the response is no HTTP.
    pub(super) fn is_tunnel(&self) -> bool {
        self.wired.borrow().tunnel
    }

    /// Whether all of the response has come.
    pub(super) fn is_answered(&self) -> bool {
        self.wired.borrow().decoder.is_done()
    }

    /// The whole body of the response, if it has come together with the head.
    pub(super) fn whole_body(&self) -> Option<Bytes> {
        let wired = &mut *self.wired.borrow_mut();
        let Decoder::Length(left) = wired.decoder else { return None };
        if wired.wire.read.len() as u64 != left {
            return None;
        }
        wired.decoder = Decoder::Done;
        Some(wired.wire.read.split().freeze())
    }

    /// Lets the rest of the request go on by itself while the response comes; `spawn` runs a task.
    pub(super) fn send_rest(&mut self, spawn: impl FnOnce(Pin<Box<dyn Future<Output = ()>>>)) {
        if self.wired.borrow().is_sent() {
            return;
        }
        let (wired, stop) = (Rc::clone(&self.wired), CancellationToken::new());
        self.sender = Some(stop.clone().drop_guard());
        spawn(Box::pin(async move {
            let sent = poll_fn(|cx| wired.borrow_mut().poll_send(cx));
            if let Some(Err(_failed)) = stop.run_until_cancelled(sent).await {
                wired.borrow_mut().keep_alive = false;
            }
        }));
    }

    /// The next part of the response's body.
    pub(super) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Http1Error>>> {
        self.wired.borrow_mut().poll_frame(cx)
    }

    /// What is known of the length of the response's body.
    pub(super) fn size_hint(&self) -> SizeHint {
        self.wired.borrow().decoder.size_hint()
    }

    /// Makes the connection ready for another request; whether it can be.
    pub(super) fn recycle(&mut self) -> bool {
        let wired = &mut *self.wired.borrow_mut();
        self.sender = None;
        wired.wire.rest();
        wired.keep_alive && wired.is_sent() && wired.decoder.is_done() && wired.wire.read.is_empty()
    }
}

impl Wired {
    /// Takes the body and puts the head into what goes out.
    fn start(&mut self, request: &mut Request<Body>) {
        let body = std::mem::take(request.body_mut());
        let connect = request.method() == Method::CONNECT;
        let bodiless = connect || matches!(*request.method(), Method::GET | Method::HEAD);
        self.encoder = frame(request.headers_mut(), &body, connect, bodiless);
        self.begun = false;
        let out = self.wire.head();
        put_request_line(out, request.method(), request.uri());
        put_headers(out, request.headers());
        out.extend_from_slice(b"\r\n");
        self.keep_alive = !hop::mentions(request.headers(), &CONNECTION, "close");
        self.body = Some(body).filter(|body| !body.is_end_stream());
    }

    fn is_sent(&self) -> bool {
        self.body.is_none() && self.wire.is_written()
    }

    /// Sends what is left of the request.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Http1Error>> {
        loop {
            let mut waits = false;
            while let Some(body) = &mut self.body
                && self.wire.has_room()
            {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                    Poll::Ready(Some(Err(error))) => {
                        self.begun = true;
                        return Poll::Ready(Err(Http1Error::Request(Box::new(error))));
                    }
                    Poll::Ready(Some(Ok(frame))) => {
                        self.begun = true;
                        self.encoder.put(frame, &mut self.wire);
                        if !body.is_end_stream() {
                            continue;
                        }
                    }
                    Poll::Ready(None) => {}
                }
                self.body = None;
                if !self.encoder.end(&mut self.wire) {
                    return Poll::Ready(Err(Http1Error::Short));
                }
            }
            if !self.wire.is_written() {
                ready!(self.wire.poll_write(cx))?;
                self.begun = true;
            }
            if self.body.is_none() {
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// Sends, and reads up to the head of the final response.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
    ) -> Poll<Result<Response<()>, Http1Error>> {
        let failed = match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Some(error),
            _ => None,
        };
        loop {
            if let Some(response) = self.head(method)? {
                if failed.is_some() {
                    // It was answered before its end: what is left is of no use.
                    self.keep_alive = false;
                    self.body = None;
                }
                return Poll::Ready(Ok(response));
            }
            match (self.wire.poll_fill(cx), &failed) {
                (Poll::Ready(Ok(0)), None) => {
                    let cut = !self.wire.read.is_empty();
                    return Poll::Ready(Err(if cut { Http1Error::Cut } else { Http1Error::Closed }));
                }
                (Poll::Ready(Ok(count)), _) if count > 0 => self.begun = true,
                (Poll::Pending, None) => return Poll::Pending,
                (Poll::Ready(Err(error)), None) => return Poll::Ready(Err(error.into())),
                (_, Some(_)) => return Poll::Ready(Err(failed.unwrap_or(Http1Error::Closed))),
                (Poll::Ready(Ok(_)), None) => {}
            }
        }
    }

    /// The head of the final response, once it has come.
    fn head(&mut self, method: &Method) -> Result<Option<Response<()>>, Http1Error> {
        loop {
            let Some(length) = head_end(&self.wire.read, 0) else {
                return self.no_head();
            };
            let head = self.wire.read.split_to(length).freeze();
            let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
            let mut parsed = httparse::Response::new(&mut []);
            let parser = httparse::ParserConfig::default();
            let status = parser
                .parse_response_with_uninit_headers(&mut parsed, &head, &mut fields)
                .map_err(Http1Error::Head)?;
            let (true, Some(code)) = (status == httparse::Status::Complete(head.len()), parsed.code) else {
                return Err(Http1Error::Cut);
            };
            let mut lengths = Lengths::default();
            for field in parsed.headers.iter() {
                lengths.header(field.name, field.value);
            }
            let framing = lengths.framing().map_err(|_: Unclear| Http1Error::Unclear)?;
            if (100..200).contains(&code) && code != 101 {
                continue;
            }
            let old = parsed.version == Some(0);
            if old && framing == Framing::Chunked {
                return Err(Http1Error::Unclear);
            }
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(code).map_err(|_bad| Http1Error::Header)?;
            *response.headers_mut() = headers(&head, parsed.headers).ok_or(Http1Error::Header)?;
            self.answered(&response, framing, old, method);
            return Ok(Some(response));
        }
    }

    /// Whether what has come may become a head.
    fn no_head(&self) -> Result<Option<Response<()>>, Http1Error> {
        if self.wire.read.is_empty() {
            return Ok(None);
        }
        if self.wire.read.len() > HEAD_MAX {
            return Err(Http1Error::TooLarge);
        }
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let parsed = httparse::Response::new(&mut fields).parse(&self.wire.read);
        parsed.map(|_partial| None).map_err(Http1Error::Head)
    }

    /// What follows the head, and whether the connection stays.
    fn answered(&mut self, response: &Response<()>, framing: Framing, old: bool, method: &Method) {
        let status = response.status();
        let tunnel =
            status == StatusCode::SWITCHING_PROTOCOLS || (method == Method::CONNECT && status.is_success());
        let bodiless = method == Method::HEAD || matches!(status.as_u16(), 204 | 304);
        self.decoder = match framing {
            _ if tunnel || bodiless => Decoder::Done,
            Framing::Length(length) => Decoder::length(length),
            Framing::Chunked => Decoder::chunked(),
            Framing::Unsaid => Decoder::UntilClose,
        };
        let headers = response.headers();
        let close = hop::mentions(headers, &CONNECTION, "close")
            || (old && !hop::mentions(headers, &CONNECTION, "keep-alive"));
        self.tunnel = tunnel;
        self.keep_alive &= !close && !tunnel && !matches!(self.decoder, Decoder::UntilClose);
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Http1Error>>> {
        loop {
            if let Some(frame) =
                self.decoder.take(&mut self.wire.read).inspect_err(|_| self.keep_alive = false)?
            {
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.decoder.is_done() {
                return Poll::Ready(None);
            }
            if ready!(self.wire.poll_fill(cx))? == 0 {
                self.decoder.end()?;
                return Poll::Ready(None);
            }
        }
    }
}

/// How the body of a request is sent; the head is made to say so.
fn frame(headers: &mut HeaderMap, body: &Body, connect: bool, bodiless: bool) -> Encoder {
    if body.is_end_stream() || connect {
        headers.remove(TRANSFER_ENCODING);
        return Encoder::Done;
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
        return Encoder::chunked(headers);
    }
    let told = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if let Some(length) = told {
        return Encoder::length(length);
    }
    match body.size_hint().exact() {
        Some(length) => {
            headers.insert(CONTENT_LENGTH, length.into());
            Encoder::length(length)
        }
        // Whoever means a body says so.
        None if bodiless => Encoder::Done,
        None => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            Encoder::chunked(headers)
        }
    }
}

/// After an upgrade the connection is the tunnel's.
impl AsyncRead for Http1 {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.wired.borrow_mut().wire.poll_read_on(cx, buf)
    }
}

impl AsyncWrite for Http1 {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.wired.borrow_mut().wire.poll_write_on(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wired.borrow_mut().wire.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wired.borrow_mut().wire.io).poll_shutdown(cx)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.closed();
        }
    }
}

impl std::fmt::Debug for Http1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http1").field("served", &self.served).finish_non_exhaustive()
    }
}

/// Head of a response. Envoy: 60 KiB by default, of which a part are names and values only.
const HEAD_MAX: usize = 80 << 10;
