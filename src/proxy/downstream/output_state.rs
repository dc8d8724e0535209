//! How much of what hyper wrote the socket has taken.
//!
//! Over HTTP/1.1 the bodies of responses read it, so that hyper buffers little of a response, and
//! so that they know when a part of it has left the process. Over HTTP/2 the windows of the streams
//! do the first.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::HeaderMap;

use crate::proxy::chunked_trailers::{FlushCounter, TrailerSlot};
use crate::proxy::read_offset::READ_OFFSET;

/// When hyper has buffered this many bytes of an HTTP/1.1 response, no more are read from the
/// gateway. It is the number of bytes that a block of 16 KiB has room for.
const HIGH_WATER_MARK: usize = 16 * 1024 - READ_OFFSET;

/// The output of one connection. The stream below hyper records it, and the bodies of responses
/// read it.
#[derive(Debug, Default)]
pub struct OutputState {
    /// Bytes of HTTP/1.1 responses that hyper has and the socket has not taken.
    buffered_bytes: AtomicUsize,
    /// Whether the socket did not take all bytes of the last write or flush.
    is_socket_full: AtomicBool,
    flushes: FlushCounter,
    /// The trailers of the HTTP/1.1 response whose last chunk hyper writes next.
    trailer_slot: TrailerSlot,
}

impl OutputState {
    /// Records that the socket took `count` bytes. `is_all` is whether these are all that it was
    /// offered.
    pub fn record_write(&self, count: usize, is_all: bool) {
        let still_buffered = self.buffered_bytes.load(Ordering::Relaxed).saturating_sub(count);
        self.buffered_bytes.store(still_buffered, Ordering::Relaxed);
        self.is_socket_full.store(!is_all, Ordering::Relaxed);
    }

    /// Records a flush. `is_all` is whether it completed, so that everything written has left the
    /// process.
    pub fn record_flush(&self, is_all: bool) {
        if is_all {
            self.buffered_bytes.store(0, Ordering::Relaxed);
            self.flushes.increment();
        }
        self.is_socket_full.store(!is_all, Ordering::Relaxed);
    }

    /// Returns the slot for the trailers of the chunked body that hyper is writing.
    pub fn trailer_slot(&self) -> &TrailerSlot {
        &self.trailer_slot
    }

    /// Records that hyper got `count` more bytes of an HTTP/1.1 response.
    pub fn add_buffered(&self, count: usize) {
        self.buffered_bytes.fetch_add(count, Ordering::Relaxed);
    }

    /// Completes when hyper may get more bytes of an HTTP/1.1 response.
    pub fn poll_below_high_water_mark(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_above_high_water_mark() {
            return Poll::Ready(());
        }
        // hyper polls the body after one flush only, so later flushes must wake it.
        self.flushes.wake_on_flush(cx);
        Poll::Pending
    }

    /// Returns whether hyper has enough bytes of an HTTP/1.1 response for now.
    fn is_above_high_water_mark(&self) -> bool {
        self.is_socket_full() || self.buffered_bytes.load(Ordering::Relaxed) >= HIGH_WATER_MARK
    }

    /// Returns whether the socket did not take all bytes of the last write or flush.
    pub fn is_socket_full(&self) -> bool {
        self.is_socket_full.load(Ordering::Relaxed)
    }

    /// Returns the number of flushes of the connection. At each, all bytes written have left the
    /// process.
    pub fn flush_count(&self) -> u64 {
        self.flushes.flush_count()
    }

    /// Completes once the connection was flushed after `since`, an earlier result of
    /// [`Self::flush_count`]: all bytes that hyper had by then have left the process. HTTP/1.1
    /// only.
    pub fn poll_flushed(&self, since: u64, cx: &mut Context<'_>) -> Poll<()> {
        self.flushes.poll_flushed_since(since, cx)
    }

    /// Sets the trailers of the chunked body that ends next. All bytes that hyper had of it must
    /// have left the process.
    pub fn end_with_trailers(&self, trailers: &HeaderMap) {
        self.trailer_slot.set(trailers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_follows_what_the_socket_takes() {
        let output = OutputState::default();
        assert!(!output.is_above_high_water_mark());
        output.add_buffered(HIGH_WATER_MARK - 1);
        assert!(!output.is_above_high_water_mark(), "below the mark");
        output.add_buffered(1);
        assert!(output.is_above_high_water_mark());
        output.record_write(HIGH_WATER_MARK / 2, false);
        assert!(output.is_above_high_water_mark(), "the socket is full");
        output.record_write(HIGH_WATER_MARK, true);
        assert!(!output.is_above_high_water_mark());
        output.record_flush(false);
        assert!(output.is_above_high_water_mark(), "written, but not flushed");
        output.record_flush(true);
        assert!(!output.is_above_high_water_mark());
        output.add_buffered(1 << 20);
        output.record_flush(true);
        assert!(!output.is_above_high_water_mark(), "a flush leaves nothing");
    }
}
