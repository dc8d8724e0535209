//! Reads larger blocks from a socket than rustls asks for, while much data arrives.
//!
//! Workaround: rustls 0.23 reads 4 KiB at a time
//! ([rustls#2960](https://github.com/rustls/rustls/pull/2960)), which would be four system calls
//! for each TLS record of an upload. Delete when rustls does larger reads.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// The size of a read ahead, in bytes: two TLS records.
const READ_SIZE: usize = 32 * 1024;
/// The minimum size of a read, in bytes, after which more data is expected. A smaller read, even if
/// it fills the caller's buffer, does not start reading ahead.
const BUSY_READ: usize = 4096;

thread_local! {
    /// A buffer that the connections of this thread share. A connection takes the buffer to read
    /// ahead, and returns the buffer when all bytes are consumed.
    static SPARE_BUFFER: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// A byte stream that reads ahead while much data arrives, and holds no buffer while it is idle.
#[derive(Debug)]
pub struct ReadAhead<S> {
    inner: S,
    buffer: BytesMut,
    /// Whether the last read was large, so that more data is likely.
    expects_more: bool,
    /// Whether the last read was pending.
    was_pending: bool,
}

impl<S> ReadAhead<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, buffer: BytesMut::new(), expects_more: false, was_pending: false }
    }

    /// Moves bytes from the buffer to `buf`. Once the buffer is empty, leaves its memory to the
    /// other connections of the thread.
    fn read_from_buffer(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.buffer.len().min(buf.remaining());
        buf.put_slice(&self.buffer[..count]);
        self.buffer.advance(count);
        if self.buffer.is_empty() {
            SPARE_BUFFER.set(Some(std::mem::take(&mut self.buffer)));
        }
    }
}

impl ReadAhead<TcpStream> {
    /// Returns whether the last read was pending, and another one would be pending too. If so, the
    /// task of `cx` is woken once the socket is readable.
    ///
    /// Returns `false` after a read that was not pending: `tokio_rustls` may have kept an error for
    /// its next read.
    pub(crate) fn is_read_pending(&self, cx: &mut Context<'_>) -> bool {
        self.was_pending && self.inner.poll_read_ready(cx).is_pending()
    }
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    /// Reads from the buffer. If it is empty, reads from the stream, ahead into the buffer if more
    /// data is expected.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.buffer.is_empty() {
            self.read_from_buffer(buf);
            return Poll::Ready(Ok(()));
        }
        if !self.expects_more || buf.remaining() >= READ_SIZE {
            let capacity = buf.remaining();
            ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
            self.expects_more = capacity >= BUSY_READ && buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        let mut buffer = SPARE_BUFFER.take().unwrap_or_default();
        buffer.reserve(READ_SIZE);
        let poll = poll_read_buf(Pin::new(&mut self.inner), cx, &mut buffer);
        self.expects_more = matches!(poll, Poll::Ready(Ok(count)) if count >= BUSY_READ);
        self.buffer = buffer;
        self.read_from_buffer(buf);
        poll.map_ok(|_| ())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let poll = self.poll_read_ahead(cx, buf);
        self.was_pending = poll.is_pending();
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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

    /// Yields `data` in pieces of these sizes; 0 means pending once. After the last piece, it ends
    /// if `ends` is true, and else stays pending. `asked` has the capacity of the buffer of each
    /// read.
    struct ScriptedReader {
        data: Vec<u8>,
        pieces: VecDeque<usize>,
        ends: bool,
        asked: Vec<usize>,
    }

    impl AsyncRead for ScriptedReader {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.asked.push(buf.remaining());
            let piece = match self.pieces.pop_front() {
                Some(0) => return Poll::Pending,
                Some(piece) => piece,
                None if self.ends => return Poll::Ready(Ok(())),
                None => return Poll::Pending,
            };
            let count = piece.min(buf.remaining()).min(self.data.len());
            buf.put_slice(&self.data[..count]);
            self.data.drain(..count);
            if piece > count {
                self.pieces.push_front(piece - count);
            }
            Poll::Ready(Ok(()))
        }
    }

    /// Reads `pieces` 4 KiB at a time. Returns the data sent, the data read, and how many bytes
    /// each read asked the source for.
    fn read(pieces: &[usize], ends: bool) -> (Vec<u8>, Vec<u8>, Vec<usize>) {
        let data: Vec<u8> = (0..pieces.iter().sum()).map(|at: usize| (at % 251) as u8).collect();
        let reader =
            ScriptedReader { data: data.clone(), pieces: pieces.iter().copied().collect(), ends, asked: Vec::new() };
        let mut stream = ReadAhead::new(reader);
        let mut received = Vec::new();
        let (waker, mut polls_left) = (noop_waker(), pieces.iter().filter(|piece| **piece == 0).count() + 1);
        loop {
            let mut block = [0; 4096];
            let mut block = ReadBuf::new(&mut block);
            match Pin::new(&mut stream).poll_read(&mut Context::from_waker(&waker), &mut block) {
                Poll::Ready(read) => {
                    read.unwrap();
                    if block.filled().is_empty() {
                        break;
                    }
                    received.extend_from_slice(block.filled());
                }
                Poll::Pending => {
                    assert_eq!(stream.buffer.capacity(), 0, "an idle stream holds memory");
                    polls_left -= 1;
                    if polls_left == 0 {
                        break;
                    }
                }
            }
        }
        (data, received, stream.inner.asked)
    }

    #[test]
    fn all_data_is_read_once_and_in_order() {
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
                let (sent, received, _) = read(pieces, ends);
                assert!(sent == received, "{pieces:?}: {} of {}", received.len(), sent.len());
            }
        }
    }

    #[test]
    fn only_a_busy_stream_is_read_ahead() {
        let (.., asked) = read(&[100, 0, 4000, 0, 100], true);
        assert!(asked.iter().all(|asked| *asked == 4096), "{asked:?}");
        let (.., asked) = read(&[1 << 20], true);
        assert!(asked.len() < 40, "{}", asked.len());
        assert!(asked[1..].iter().all(|asked| *asked >= READ_SIZE), "{asked:?}");
    }
}
