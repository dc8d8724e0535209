//! Keeps a stream readable after a write fails, so that an early response is not lost.
//!
//! A gateway that does not want a body answers before it has read the body, and closes the connection. The next write
//! then fails while the response waits to be read. The same happens if the client of a WebSocket sends something after
//! the gateway's close frame.
//!
//! Workaround: hyper 1.12 reports the failed write in place of the response that it could read
//! (`src/proto/h1/dispatch.rs`, `poll_loop`). Delete when its client reads first.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::chunked_trailers::{FlushCounter, TrailerSlot, first_nonempty};

/// A stream that stays readable after a failed write: from then on, written bytes are discarded.
pub struct ReadableAfterWriteError<S> {
    stream: S,
    state: Arc<StreamState>,
}

/// The state of a [`ReadableAfterWriteError`]. It is shared with the owner of hyper's connection, which owns the
/// stream.
#[derive(Debug, Default)]
pub struct StreamState {
    has_read: AtomicBool,
    has_write_failed: AtomicBool,
    flushes: FlushCounter,
    /// The trailers of the request whose last chunk hyper writes next.
    trailer_slot: TrailerSlot,
}

impl StreamState {
    /// Begins a new request: no byte of its response was read.
    pub fn begin_request(&self) {
        self.has_read.store(false, Ordering::Relaxed);
    }

    /// Returns whether a byte was read since [`Self::begin_request`].
    pub fn has_read_since_request(&self) -> bool {
        self.has_read.load(Ordering::Relaxed)
    }

    /// Returns the counter of flushes. At each, all bytes that hyper wrote have left the process.
    pub fn flush_counter(&self) -> &FlushCounter {
        &self.flushes
    }

    /// Returns the slot for the trailers of the chunked body that hyper is writing.
    pub fn trailer_slot(&self) -> &TrailerSlot {
        &self.trailer_slot
    }

    /// Returns whether a write has failed.
    pub fn has_write_failed(&self) -> bool {
        self.has_write_failed.load(Ordering::Relaxed)
    }
}

impl<S> ReadableAfterWriteError<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, state: Arc::default() }
    }

    pub fn state(&self) -> &Arc<StreamState> {
        &self.state
    }

    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Writes the last chunk with its trailers in place of the one in `offered`; `None` if no trailers wait.
    fn poll_write_trailers(&mut self, offered: &[u8], cx: &mut Context<'_>) -> Option<Poll<io::Result<usize>>>
    where
        S: AsyncWrite + Unpin,
    {
        if !self.state.trailer_slot.is_set() {
            return None;
        }
        let state = Arc::clone(&self.state);
        Some(self.write_or_discard(offered.len(), |mut stream| {
            state.trailer_slot.poll_replace_last_chunk(&mut *stream, cx, offered).unwrap_or(Poll::Ready(Ok(0)))
        }))
    }

    /// Calls `write`, unless a write has failed before. Returns `done` if it fails or has failed before.
    fn write_or_discard<T>(
        &mut self,
        done: T,
        write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>>
    where
        S: Unpin,
    {
        if !self.state.has_write_failed() {
            match write(Pin::new(&mut self.stream)) {
                Poll::Ready(Err(_)) => self.state.has_write_failed.store(true, Ordering::Relaxed),
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
            self.state.has_read.store(true, Ordering::Relaxed);
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadableAfterWriteError<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(poll) = self.poll_write_trailers(buf, cx) {
            return poll;
        }
        self.write_or_discard(buf.len(), |stream| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(poll) = self.poll_write_trailers(first_nonempty(bufs), cx) {
            return poll;
        }
        self.write_or_discard(bufs.iter().map(|buf| buf.len()).sum(), |stream| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = self.write_or_discard((), |stream| stream.poll_flush(cx));
        if poll.is_ready() {
            self.state.flushes.increment();
        }
        poll
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_or_discard((), |stream| stream.poll_shutdown(cx))
    }
}
