//! Bytes off the wire in large pieces, while there are many.
//!
//! rustls asks for 4 KiB at a time, which is four calls of the kernel for each record of an upload.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// How much is read at once; two records.
const PIECE: usize = 32 * 1024;
/// Who fills as much as this with one read has more to say.
const MUCH: usize = 4096;

thread_local! {
    /// Lent to whichever connection has much to say, and taken back when that was read.
    static SPARE: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// A byte stream that is read ahead while much is coming, and holds nothing while it is quiet.
#[derive(Debug)]
pub struct Wide<S> {
    inner: S,
    ahead: BytesMut,
    /// The last read got all that it asked for.
    more: bool,
}

impl<S> Wide<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, ahead: BytesMut::new(), more: false }
    }

    fn take_ahead(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        if self.ahead.is_empty() {
            SPARE.set(Some(std::mem::take(&mut self.ahead)));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wide<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            this.take_ahead(buf);
            return Poll::Ready(Ok(()));
        }
        if !this.more || buf.remaining() >= PIECE {
            let wanted = buf.remaining();
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
            this.more = wanted >= MUCH && buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        let mut ahead = SPARE.take().unwrap_or_default();
        ahead.reserve(PIECE);
        let poll = poll_read_buf(Pin::new(&mut this.inner), cx, &mut ahead);
        this.more = matches!(poll, Poll::Ready(Ok(count)) if count >= MUCH);
        this.ahead = ahead;
        this.take_ahead(buf);
        poll.map_ok(|_| ())
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wide<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::task::noop_waker;

    use super::*;

    /// Says `said`, in pieces of these sizes, where 0 is a moment without any; then nothing more, for ever or as its end.
    struct Script {
        said: Vec<u8>,
        pieces: VecDeque<usize>,
        ends: bool,
        asked: Vec<usize>,
    }

    impl AsyncRead for Script {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.asked.push(buf.remaining());
            let piece = match self.pieces.pop_front() {
                Some(0) => return Poll::Pending,
                Some(piece) => piece,
                None if self.ends => return Poll::Ready(Ok(())),
                None => return Poll::Pending,
            };
            let count = piece.min(buf.remaining()).min(self.said.len());
            buf.put_slice(&self.said[..count]);
            self.said.drain(..count);
            if piece > count {
                self.pieces.push_front(piece - count);
            }
            Poll::Ready(Ok(()))
        }
    }

    /// What is read from `pieces` by someone who asks for 4 KiB at a time, and what the source was asked for.
    fn read(pieces: &[usize], ends: bool) -> (Vec<u8>, Vec<u8>, Vec<usize>) {
        let said: Vec<u8> = (0..pieces.iter().sum()).map(|at: usize| (at % 251) as u8).collect();
        let script = Script { said: said.clone(), pieces: pieces.iter().copied().collect(), ends, asked: Vec::new() };
        let mut wide = Wide::new(script);
        let mut heard = Vec::new();
        let (waker, mut moments) = (noop_waker(), pieces.iter().filter(|piece| **piece == 0).count() + 1);
        loop {
            let mut block = [0; 4096];
            let mut block = ReadBuf::new(&mut block);
            match Pin::new(&mut wide).poll_read(&mut Context::from_waker(&waker), &mut block) {
                Poll::Ready(read) => {
                    read.unwrap();
                    if block.filled().is_empty() {
                        break;
                    }
                    heard.extend_from_slice(block.filled());
                }
                Poll::Pending => {
                    assert_eq!(wide.ahead.capacity(), 0, "it holds memory while it waits");
                    moments -= 1;
                    if moments == 0 {
                        break;
                    }
                }
            }
        }
        (said, heard, wide.inner.asked)
    }

    #[test]
    fn everything_comes_through_once_and_in_order() {
        for pieces in [
            &[1][..],
            &[4096],
            &[4096, 4096, 4096],
            &[100_000],
            &[4096, 0, 4096, 0, 5],
            &[4095, 4097, 0, 33_000, 0, 32_768, 1, 40_000],
            &[70_000, 0, 10, 0, 70_000],
        ] {
            for ends in [false, true] {
                let (said, heard, _) = read(pieces, ends);
                assert!(said == heard, "{pieces:?}: {} of {}", heard.len(), said.len());
            }
        }
    }

    #[test]
    fn little_is_read_as_it_was_asked_for_and_much_at_once() {
        let (.., asked) = read(&[100, 0, 4000, 0, 100], true);
        assert!(asked.iter().all(|asked| *asked == 4096), "{asked:?}");
        let (.., asked) = read(&[1 << 20], true);
        assert!(asked.len() < 40, "{}", asked.len());
        assert!(asked[1..].iter().all(|asked| *asked >= PIECE), "{asked:?}");
    }
}
