//! Interim responses (1xx) that wait to be written, in the form of their protocol.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http::{HeaderMap, StatusCode};
use tokio::io::AsyncWrite;

use crate::proxy::h1_fields::push_fields;

/// The most bytes of interim responses that wait for a client.
pub const MAX_QUEUED_BYTES: usize = 64 * 1024;
/// The largest interim response, in bytes. Every client accepts a frame of this size (RFC 9113
/// section 4.2).
pub const MAX_RESPONSE_BYTES: usize = 16 * 1024;

/// The interim responses of one connection: requests add them, and the stream below hyper writes
/// them.
#[derive(Debug, Default)]
pub struct Interims {
    queue: Mutex<InterimQueue>,
    /// Whether `queue` has responses: read without the lock, for each write.
    has_any: AtomicBool,
    /// Wakes the connection's task.
    writer: AtomicWaker,
    /// Wakes the one request of an HTTP/1.1 connection, which waits before its final response.
    written: AtomicWaker,
}

impl Interims {
    fn queue(&self) -> MutexGuard<'_, InterimQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether no response waits.
    pub fn is_empty(&self) -> bool {
        !self.has_any.load(Ordering::Relaxed)
    }

    /// Returns whether a response is partly written, so that nothing else may be written before its
    /// rest.
    pub fn is_partly_written(&self) -> bool {
        !self.is_empty() && self.queue().is_partly_written
    }

    /// Registers the task of `cx` to be woken when a response is added.
    pub fn register_writer(&self, cx: &Context<'_>) {
        self.writer.register(cx.waker());
    }

    /// Adds a response, and wakes the task that writes it. Drops the response if it is larger than
    /// [`MAX_RESPONSE_BYTES`], or if more than [`MAX_QUEUED_BYTES`] would wait.
    pub fn push(&self, stream: u32, response: Vec<u8>) {
        if self.queue().try_push(stream, response) {
            self.has_any.store(true, Ordering::Relaxed);
            self.writer.wake();
        }
    }

    /// Drops the responses on `stream`, except one that is partly written.
    pub fn remove_stream(&self, stream: u32) {
        if !self.is_empty() {
            let mut queue = self.queue();
            queue.remove_stream(stream);
            self.has_any.store(!queue.responses.is_empty(), Ordering::Relaxed);
        }
    }

    /// Writes the responses that wait to `stream`; with `only_rest` only the rest of one that is
    /// partly written. Without `only_rest`, hyper's last bytes must have ended a message over
    /// HTTP/1.1, or a frame and its header block over HTTP/2.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_write<S>(&self, stream: &mut S, cx: &mut Context<'_>, only_rest: bool) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        if self.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut queue = self.queue();
        ready!(queue.poll_write(stream, cx, only_rest))?;
        if queue.responses.is_empty() {
            self.has_any.store(false, Ordering::Relaxed);
            self.written.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// Completes once no response waits. Only one task may wait for this.
    pub fn poll_all_written(&self, cx: &Context<'_>) -> Poll<()> {
        self.written.register(cx.waker());
        if self.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// The responses that are not written yet, the oldest first.
#[derive(Debug, Default)]
struct InterimQueue {
    responses: VecDeque<Interim>,
    /// Whether a part of the first response is written.
    is_partly_written: bool,
}

/// An interim response, or what is left of it.
#[derive(Debug)]
struct Interim {
    /// The HTTP/2 stream; 0 over HTTP/1.1.
    stream: u32,
    unwritten: Bytes,
}

impl InterimQueue {
    /// Adds a response, unless it is larger than [`MAX_RESPONSE_BYTES`] or the queue would be
    /// larger than [`MAX_QUEUED_BYTES`]; returns whether it was added.
    fn try_push(&mut self, stream: u32, response: Vec<u8>) -> bool {
        let queued: usize = self.responses.iter().map(|interim| interim.unwritten.len()).sum();
        let fits = response.len() <= MAX_RESPONSE_BYTES && queued + response.len() <= MAX_QUEUED_BYTES;
        if fits {
            self.responses.push_back(Interim { stream, unwritten: response.into() });
        }
        fits
    }

    /// Drops the responses on `stream`, except one that is partly written.
    fn remove_stream(&mut self, stream: u32) {
        let keep = usize::from(self.is_partly_written);
        let mut index = 0;
        self.responses.retain(|interim| {
            index += 1;
            index <= keep || interim.stream != stream
        });
    }

    /// Writes all responses to `stream`; with `only_rest` only the rest of one that is partly
    /// written.
    ///
    /// # Errors
    /// Those of the stream.
    fn poll_write<S>(&mut self, stream: &mut S, cx: &mut Context<'_>, only_rest: bool) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while !only_rest || self.is_partly_written {
            let Some(Interim { unwritten, .. }) = self.responses.front_mut() else { break };
            match ready!(Pin::new(&mut *stream).poll_write(cx, unwritten))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => unwritten.advance(count),
            }
            self.is_partly_written = !unwritten.is_empty();
            if !self.is_partly_written {
                self.responses.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Encodes an interim response of HTTP/1.1.
pub fn encode_h1(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).into_bytes();
    push_fields(&mut bytes, headers);
    bytes
}

/// Encodes an interim response on `stream` of HTTP/2: a HEADERS frame with END_HEADERS and without
/// END_STREAM (RFC 9113 section 6.2).
pub fn encode_h2(stream: u32, status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    // Entry 8 of the static table is `:status`; the literal is not indexed.
    let mut block = vec![8];
    push_string(&mut block, status.as_str().as_bytes());
    for (name, value) in headers {
        // A literal that is never indexed (RFC 7541 section 6.2.3), or one that is not indexed.
        block.push(if value.is_sensitive() { 0x10 } else { 0 });
        push_string(&mut block, name.as_str().as_bytes());
        push_string(&mut block, value.as_bytes());
    }
    let length = u32::try_from(block.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[1, 4], &stream.to_be_bytes(), &block].concat()
}

/// Appends `text` to `block` as a string literal without Huffman code (RFC 7541 sections 5.1 and
/// 5.2).
pub fn push_string(block: &mut Vec<u8>, text: &[u8]) {
    let mut length = text.len();
    if length < 127 {
        block.push(u8::try_from(length).unwrap_or(0));
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128).unwrap_or(0) | 128);
            length /= 128;
        }
        block.push(u8::try_from(length).unwrap_or(0));
    }
    block.extend_from_slice(text);
}
