//! What others hold of a connection: the body of its request, and after an upgrade its bytes.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Interim, Wired};
use crate::body::BodyError;
use crate::http1::BadBody;

/// The body of one request.
pub(crate) struct Http1Body {
    wired: Rc<RefCell<Wired>>,
    /// Which one's.
    request: u64,
}

impl Http1Body {
    pub(super) fn new(wired: &Rc<RefCell<Wired>>, request: u64) -> Self {
        Self { wired: Rc::clone(wired), request }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let wired = &mut *self.wired.borrow_mut();
        if wired.request != self.request {
            return Poll::Ready(Some(Err(BodyError::Abandoned)));
        }
        if wired.interim == Interim::Due {
            wired.wire.head().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            wired.interim = Interim::Going;
        }
        if wired.interim == Interim::Going {
            match wired.wire.poll_write(cx) {
                Poll::Ready(Ok(())) => wired.interim = Interim::None,
                Poll::Ready(Err(_)) => return Poll::Ready(Some(Err(BadBody::Cut.into()))),
                Poll::Pending => {}
            }
        }
        loop {
            if let Some(frame) = wired.decoder.take(&mut wired.wire.read)? {
                return Poll::Ready(Some(Ok(frame)));
            }
            if wired.decoder.is_done() {
                return Poll::Ready(None);
            }
            match ready!(wired.wire.poll_fill(cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(BadBody::Cut.into()))),
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let wired = self.wired.borrow();
        wired.request != self.request || wired.decoder.is_done()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.wired.borrow().decoder.size_hint()
    }
}

/// The client's bytes after an upgrade.
pub(crate) struct Http1Stream(Rc<RefCell<Wired>>);

impl Http1Stream {
    pub(super) fn new(wired: &Rc<RefCell<Wired>>) -> Self {
        Self(Rc::clone(wired))
    }
}

impl AsyncRead for Http1Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().wire.poll_read_on(cx, buf)
    }
}

impl AsyncWrite for Http1Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().wire.poll_write_on(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().wire.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().wire.io).poll_shutdown(cx)
    }
}
