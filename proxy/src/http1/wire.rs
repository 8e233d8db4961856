//! One connection's bytes: what was read and not taken yet, and what waits to be written.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// A stream with a buffer in each direction.
pub(crate) struct Wire<I> {
    pub(crate) io: I,
    /// What was read.
    pub(crate) read: BytesMut,
    /// Read at a time; more while reads fill it.
    room: usize,
    /// Goes out first: heads, framing, small pieces of bodies.
    out: Vec<u8>,
    /// Of `out`, what was written.
    done: usize,
    /// Then a large piece, and what belongs behind it.
    piece: Bytes,
    behind: &'static [u8],
    /// What was written may be held back by the stream.
    unflushed: bool,
}

impl<I> Wire<I> {
    pub(crate) fn new(io: I) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            room: ROOM,
            out: Vec::new(),
            done: 0,
            piece: Bytes::new(),
            behind: b"",
            unflushed: false,
        }
    }

    /// Where heads and framing are put.
    pub(crate) fn head(&mut self) -> &mut Vec<u8> {
        self.settle();
        &mut self.out
    }

    /// Puts a piece of a body and what belongs behind it.
    pub(crate) fn put(&mut self, piece: Bytes, behind: &'static [u8]) {
        self.settle();
        if piece.len() <= COPIED {
            self.out.extend_from_slice(&piece);
            self.out.extend_from_slice(behind);
        } else {
            (self.piece, self.behind) = (piece, behind);
        }
    }

    /// Nothing can be put before a large piece any more.
    fn settle(&mut self) {
        if !self.piece.is_empty() || !self.behind.is_empty() {
            self.out.extend_from_slice(&std::mem::take(&mut self.piece));
            self.out.extend_from_slice(std::mem::take(&mut self.behind));
        }
    }

    /// Whether more may be put: what waits is written first.
    pub(crate) fn has_room(&self) -> bool {
        self.piece.is_empty() && self.behind.is_empty() && self.out.len() < OUT_MAX
    }

    /// Whether everything was written.
    pub(crate) fn is_written(&self) -> bool {
        self.out.is_empty() && self.piece.is_empty() && self.behind.is_empty() && !self.unflushed
    }

    /// Lets go of what an idle connection does not need.
    pub(crate) fn rest(&mut self) {
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        if self.out.is_empty() && self.out.capacity() > ROOM {
            self.out = Vec::new();
        }
        self.room = ROOM;
    }

    #[cfg(test)]
    pub(super) fn unsent(mut self) -> Vec<u8> {
        self.settle();
        self.out.to_vec()
    }
}

impl<I: AsyncRead + Unpin> Wire<I> {
    /// Reads something; 0: the other end says no more.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let count = if self.room == ROOM && self.read.is_empty() {
            // Whoever waits for a message holds no memory for it.
            let mut few = [MaybeUninit::uninit(); ROOM];
            let mut few = ReadBuf::uninit(&mut few);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut few))?;
            self.read.extend_from_slice(few.filled());
            few.filled().len()
        } else {
            self.read.reserve(self.room);
            ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read))?
        };
        if count >= self.room {
            self.room = (self.room * 2).min(ROOM_MAX);
        }
        Poll::Ready(Ok(count))
    }

    /// Reads what follows a message, once that is another protocol.
    pub(crate) fn poll_read_on(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> Wire<I> {
    /// Writes everything that waits.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let slices = [&self.out[self.done..], &self.piece[..], self.behind];
            let waiting = slices.iter().map(|slice| slice.len()).sum::<usize>();
            if waiting == 0 {
                break;
            }
            let io = Pin::new(&mut self.io);
            let written = if slices[1].is_empty() && slices[2].is_empty() {
                ready!(io.poll_write(cx, slices[0]))?
            } else {
                ready!(io.poll_write_vectored(cx, &slices.map(IoSlice::new)))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written(written);
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what follows a message, once that is another protocol.
    pub(crate) fn poll_write_on(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.is_written() {
            ready!(self.poll_write(cx))?;
        }
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn written(&mut self, mut count: usize) {
        self.unflushed = true;
        let of_out = count.min(self.out.len() - self.done);
        self.done += of_out;
        if self.done == self.out.len() {
            self.out.clear();
            self.done = 0;
        }
        count -= of_out;
        let of_piece = count.min(self.piece.len());
        self.piece.advance(of_piece);
        if self.piece.is_empty() {
            // Its memory may be large.
            self.piece = Bytes::new();
        }
        self.behind = &self.behind[count - of_piece..];
    }
}

/// Read at a time at first: most heads fit.
const ROOM: usize = 4 << 10;
/// Read at a time at most.
const ROOM_MAX: usize = 64 << 10;
/// Pieces up to this are copied beside the head: that costs less than a slice of their own.
const COPIED: usize = 4 << 10;
/// What waits to be written before more is taken.
const OUT_MAX: usize = 64 << 10;
