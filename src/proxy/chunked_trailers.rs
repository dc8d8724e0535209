//! Sends the trailers of a chunked body, which hyper's HTTP/1.1 encoder drops.
//!
//! hyper sends a trailer field only if a `Trailer` field named it before the body, and in a
//! response only if the client sent `TE: trailers`
//! ([hyper#3375](https://github.com/hyperium/hyper/pull/3375)). Senders need not name them (RFC
//! 9110 section 6.6.2), and a proxy learns them only at the end of the body.
//!
//! So a body does not give its trailers to hyper:
//!
//! 1. It waits until hyper's buffer is empty, which [`FlushCounter`] shows.
//! 2. It puts the trailers into the [`TrailerSlot`] of the stream below hyper, and ends.
//! 3. hyper then writes the last chunk, `0 CR LF CR LF`. The stream writes the last chunk with the
//!    trailers in its place. If hyper writes anything else, the write fails.
//!
//! Workaround: delete when hyper sends all trailers.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use tokio::io::AsyncWrite;

use crate::proxy::h1_fields::push_fields;

/// The bytes with which hyper ends a chunked body without trailers.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Counts the flushes of a stream below hyper. hyper flushes it only when its own buffer is empty,
/// so at each flush everything that hyper has written has left the process.
#[derive(Debug, Default)]
pub struct FlushCounter {
    count: AtomicU64,
    waker: AtomicWaker,
}

impl FlushCounter {
    /// Counts a flush.
    pub fn increment(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Returns the number of flushes since the connection began.
    pub fn flush_count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Registers the task of `cx` to be woken by the next flush.
    pub fn wake_on_flush(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// Completes once there were more than `since` flushes.
    pub fn poll_flushed_since(&self, since: u64, cx: &mut Context<'_>) -> Poll<()> {
        self.wake_on_flush(cx);
        if self.flush_count() > since { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// The trailers that a stream below hyper adds to the last chunk that hyper writes next.
#[derive(Debug, Default)]
pub struct TrailerSlot {
    is_set: AtomicBool,
    /// The rest of the last chunk with its trailers that is not written yet.
    unwritten: Mutex<Bytes>,
}

impl TrailerSlot {
    /// Sets the trailers of the body that ends next. hyper's buffer must be empty.
    pub fn set(&self, trailers: &HeaderMap) {
        *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner) = last_chunk(trailers).into();
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// Returns whether trailers wait for the last chunk.
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }

    /// Removes the trailers.
    pub fn clear(&self) {
        self.is_set.store(false, Ordering::Relaxed);
    }

    /// Writes the last chunk with its trailers to `stream`, in place of the last chunk in
    /// `offered`; returns the number of bytes of `offered` that it replaces. `None` if no trailers
    /// wait.
    ///
    /// # Errors
    /// `offered` does not begin with the last chunk, or the stream fails.
    pub fn poll_replace_last_chunk<S>(
        &self,
        stream: &mut S,
        cx: &mut Context<'_>,
        offered: &[u8],
    ) -> Option<Poll<io::Result<usize>>>
    where
        S: AsyncWrite + Unpin,
    {
        if !self.is_set() {
            return None;
        }
        Some(self.poll_write_trailers_for_last_chunk(stream, cx, offered))
    }

    /// Does the work of [`Self::poll_replace_last_chunk`] while trailers are set.
    fn poll_write_trailers_for_last_chunk<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        cx: &mut Context<'_>,
        offered: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !offered.starts_with(LAST_CHUNK) {
            self.clear();
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "there are trailers, but hyper did not write the last chunk",
            )));
        }
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        while !unwritten.is_empty() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &unwritten))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => unwritten.advance(count),
            }
        }
        self.clear();
        Poll::Ready(Ok(LAST_CHUNK.len()))
    }
}

/// Returns the last chunk of a body with `trailers` (RFC 9112 section 7.1).
fn last_chunk(trailers: &HeaderMap) -> Vec<u8> {
    let mut bytes = b"0\r\n".to_vec();
    push_fields(&mut bytes, trailers);
    bytes
}

/// Returns the first of `bufs` that is not empty; an empty slice if all are.
pub fn first_nonempty<'a>(bufs: &'a [io::IoSlice<'_>]) -> &'a [u8] {
    bufs.iter().find(|buf| !buf.is_empty()).map_or(&[], |buf| buf)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http::HeaderValue;

    use super::*;

    /// A stream that accepts one byte at every second call.
    #[derive(Default)]
    struct Slow {
        written: Vec<u8>,
        ready: bool,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.ready = !self.ready;
            if !self.ready {
                return Poll::Pending;
            }
            self.written.push(buf[0]);
            Poll::Ready(Ok(1))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([("x-checksum".parse().unwrap(), HeaderValue::from_static("abc"))])
    }

    #[test]
    fn only_the_last_chunk_is_replaced() {
        let (slot, mut stream) = (TrailerSlot::default(), Slow::default());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(slot.poll_replace_last_chunk(&mut stream, &mut cx, LAST_CHUNK).is_none(), "no trailers");
        slot.set(&trailers());
        let count = loop {
            match slot
                .poll_replace_last_chunk(&mut stream, &mut cx, b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
                .expect("trailers wait")
            {
                Poll::Ready(count) => break count.unwrap(),
                Poll::Pending => {}
            }
        };
        assert_eq!((count, stream.written.as_slice()), (5, &b"0\r\nx-checksum: abc\r\n\r\n"[..]));
        assert!(
            slot.poll_replace_last_chunk(&mut stream, &mut cx, LAST_CHUNK).is_none(),
            "the trailers belong to one last chunk only"
        );
    }

    #[test]
    fn a_write_other_than_the_last_chunk_fails() {
        let others = [
            "5\r\nhello\r\n0\r\n\r\n",
            "\r\n0\r\n\r\n",
            "0\r\n",
            "0\r\nx: y\r\n\r\n",
            "00\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "",
        ];
        for offered in others {
            let (slot, mut stream) = (TrailerSlot::default(), Slow::default());
            slot.set(&trailers());
            let poll =
                slot.poll_replace_last_chunk(&mut stream, &mut Context::from_waker(Waker::noop()), offered.as_bytes());
            assert!(matches!(poll, Some(Poll::Ready(Err(_)))) && stream.written.is_empty(), "{offered:?}");
        }
    }
}
