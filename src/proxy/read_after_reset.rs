//! Who takes no more may have said something before, and that is worth more than the error of a write.
//!
//! A gateway answers a body that it does not want before it has read it, and closes the connection; the next write then fails while the
//! answer waits to be read. The same befalls a WebSocket whose client writes after the gateway's goodbye.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that can be read to its end though the other side takes no more: from the first write that fails, what is written vanishes.
pub(super) struct ReadableAfterWriteError<S> {
    stream: S,
    state: Arc<StreamState>,
}

/// What a [`ReadableAfterWriteError`] has noticed, for those who have given it away.
#[derive(Debug, Default)]
pub(super) struct StreamState {
    was_read: AtomicBool,
    write_failed: AtomicBool,
}

impl StreamState {
    /// Forgets what was heard so far.
    pub(super) fn reset(&self) {
        self.was_read.store(false, Ordering::Relaxed);
    }

    /// Whether anything was heard since [`Self::listen`].
    pub(super) fn has_read(&self) -> bool {
        self.was_read.load(Ordering::Relaxed)
    }

    /// Whether a write has failed, so that the stream is good for reading only.
    pub(super) fn has_write_failed(&self) -> bool {
        self.write_failed.load(Ordering::Relaxed)
    }
}

impl<S> ReadableAfterWriteError<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, state: Arc::default() }
    }

    pub(super) fn state(&self) -> &Arc<StreamState> {
        &self.state
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    /// Writes with `write`, unless that has failed before; `done` is what a write that fails pretends to have done.
    fn pretend<T>(&mut self, done: T, write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>>
    where
        S: Unpin,
    {
        if !self.state.has_write_failed() {
            match write(Pin::new(&mut self.stream)) {
                Poll::Ready(Err(_)) => self.state.write_failed.store(true, Ordering::Relaxed),
                poll => return poll,
            }
        }
        Poll::Ready(Ok(done))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadableAfterWriteError<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.state.was_read.store(true, Ordering::Relaxed);
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadableAfterWriteError<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.pretend(buf.len(), |stream| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.pretend(bufs.iter().map(|buf| buf.len()).sum(), |stream| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pretend((), |stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pretend((), |stream| stream.poll_shutdown(cx))
    }
}
