//! Keeps a stream readable after a write fails: if the client of a WebSocket sends something after
//! the gateway's close frame, the write fails while the last bytes of the gateway wait to be read.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that stays readable after a failed write: from then on, written bytes are discarded.
pub struct ReadableAfterWriteError<S> {
    stream: S,
    has_write_failed: bool,
}

impl<S> ReadableAfterWriteError<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, has_write_failed: false }
    }

    /// Returns whether a write has failed.
    pub fn has_write_failed(&self) -> bool {
        self.has_write_failed
    }

    /// Calls `write`, unless a write has failed before. Returns `done` if it fails or has failed
    /// before.
    fn write_or_discard<T>(
        &mut self,
        done: T,
        write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>>
    where
        S: Unpin,
    {
        if !self.has_write_failed {
            match write(Pin::new(&mut self.stream)) {
                Poll::Ready(Err(_)) => self.has_write_failed = true,
                poll => return poll,
            }
        }
        Poll::Ready(Ok(done))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadableAfterWriteError<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadableAfterWriteError<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write_or_discard(buf.len(), |stream| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write_or_discard(bufs.iter().map(|buf| buf.len()).sum(), |stream| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_or_discard((), |stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_or_discard((), |stream| stream.poll_shutdown(cx))
    }
}
