//! The client's side of a tunnel: its bytes, once both sides agreed to change protocol.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::http1::Http1Stream;

/// The promise of a client's bytes.
pub(crate) enum ClientTunnel {
    Http1(oneshot::Receiver<Http1Stream>),
    Http2(OnUpgrade),
}

impl ClientTunnel {
    /// Waits for them, until the answer was sent; `None`: the client is gone.
    pub(crate) async fn open(self) -> Option<ClientStream> {
        Some(match self {
            Self::Http1(stream) => ClientStream::Http1(stream.await.ok()?),
            Self::Http2(stream) => ClientStream::Http2(TokioIo::new(stream.await.ok()?)),
        })
    }
}

/// A client's bytes.
pub(crate) enum ClientStream {
    Http1(Http1Stream),
    Http2(TokioIo<Upgraded>),
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Http2(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Http1(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Http2(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(stream) => Pin::new(stream).poll_flush(cx),
            Self::Http2(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Http2(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
