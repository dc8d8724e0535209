//! Follows the request heads of a connection below hyper: sends interim responses (1xx), which
//! hyper's server can't, and finds the heads that hyper refused.
//!
//! hyper has no way to send an interim response over either protocol
//! ([hyper#2743](https://github.com/hyperium/hyper/issues/2743),
//! [hyper#4114](https://github.com/hyperium/hyper/pull/4114)). [`HeadTracker`] keeps them until the
//! stream below hyper can write them: over HTTP/1.1 when hyper's buffer is empty, over HTTP/2
//! between two frames. Their fields are literals that no HPACK table keeps (RFC 7541 section
//! 6.2.2), so hyper's encoder and the client's decoder stay in step.
//!
//! Over HTTP/2 hyper does not tell on which stream a request came. [`RequestStreams`] infers it from
//! the order of header blocks and requests; a request whose stream is not known sends no interim
//! responses. [`RefusedHeads`] uses the same counts to find the heads that were refused.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http::{HeaderMap, StatusCode};
use tokio::io::AsyncWrite;

use super::refused_heads::{Dropped, HeadRefusal, RefusedHead, RefusedHeads};
use super::request_streams::RequestStreams;
use crate::labels::Protocol;
use crate::proxy::h1_fields::push_fields;

/// The most bytes of interim responses that wait for a client.
const MAX_QUEUED_BYTES: usize = 64 * 1024;
/// The largest interim response. Every client accepts a frame of this size (RFC 9113 section 4.2).
const MAX_RESPONSE_BYTES: usize = 16 * 1024;
// Error codes (RFC 9113 section 7).
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;

/// The request heads of one connection: their streams, their interim responses, and which were refused.
pub struct HeadTracker {
    protocol: Protocol,
    /// Whether interim responses wait, or one is partly written. Only a hint: `state` says which.
    waiting: AtomicBool,
    /// Whether there are refused or dropped heads. Only a hint, too.
    refused: AtomicBool,
    /// Whether the client did not take all that was to be written, since everything was settled.
    is_blocked: AtomicBool,
    state: Mutex<State>,
    /// Whether the connection is closed from this side for what the client sent.
    is_closing: AtomicBool,
    /// Wakes the connection.
    writer: AtomicWaker,
    /// Wakes the one request of an HTTP/1.1 connection.
    written: AtomicWaker,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Interim>,
    /// Whether the first of the queue is partly written.
    is_partly_written: bool,
    streams: RequestStreams,
    refused_heads: RefusedHeads,
}

struct Interim {
    stream: u32,
    bytes: Bytes,
}

impl HeadTracker {
    pub fn new(protocol: Protocol) -> Arc<Self> {
        let (writer, written) = (AtomicWaker::new(), AtomicWaker::new());
        let [waiting, refused, is_blocked, is_closing] = [false; 4].map(AtomicBool::new);
        let state = Mutex::default();
        Arc::new(Self { protocol, waiting, refused, is_blocked, state, is_closing, writer, written })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that hyper got the whole header block that begins `stream`.
    pub fn note_block(&self, stream: u32) {
        let State { streams, refused_heads, .. } = &mut *self.state();
        refused_heads.note_block(stream);
        streams.note_block(stream);
    }

    /// Notes that hyper passes a request on; returns what sends its interim responses. Must be
    /// called in the order of requests.
    pub fn begin_request(self: &Arc<Self>) -> InterimSender {
        let State { streams, refused_heads, .. } = &mut *self.state();
        let (number, stream) = match self.protocol {
            Protocol::H1 => (streams.note_h1_request(), 0),
            Protocol::H2 => {
                refused_heads.note_request();
                streams.note_h2_request()
            }
        };
        InterimSender { head_tracker: Arc::clone(self), stream, number }
    }

    /// Notes whether something is left that could not be written.
    pub fn note_blocked(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, Ordering::Relaxed);
    }

    /// Notes that hyper has done all that it can for now.
    pub fn settle(&self) {
        // What could not be written may say what came of a head.
        if !self.is_blocked.swap(false, Ordering::Relaxed) {
            self.settle_all();
            return;
        }
        self.state().streams.settle_known();
    }

    /// Notes that the connection has ended.
    pub fn settle_all(&self) {
        if self.protocol == Protocol::H1 {
            return;
        }
        let State { streams, refused_heads, .. } = &mut *self.state();
        refused_heads.settle();
        if !refused_heads.is_empty() {
            self.refused.store(true, Ordering::Relaxed);
        }
        streams.settle();
    }

    /// Notes that hyper ended the connection without an error; returns whether it did so because of a head.
    pub fn note_end(&self) -> bool {
        let is_refused = self.protocol == Protocol::H2 && self.state().refused_heads.note_end();
        if is_refused {
            self.refused.store(true, Ordering::Relaxed);
            self.is_closing.store(true, Ordering::Relaxed);
        }
        is_refused
    }

    /// Notes that the connection is closed for what the client sent, without a frame of `h2`.
    pub fn note_closing(&self) {
        self.state().refused_heads.note_closing();
        self.is_closing.store(true, Ordering::Relaxed);
    }

    /// Notes that `h2` closes the connection with `code` and `debug_data`, and has taken the streams up to
    /// `last_stream`.
    pub fn note_goaway(&self, last_stream: u32, code: u32, debug_data: &[u8]) {
        self.state().refused_heads.note_goaway(last_stream, code, debug_data);
        if code != NO_ERROR {
            self.is_closing.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether the connection is closed from this side for what the client sent.
    pub fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Notes a request head that was refused before there was a request.
    pub fn note_refused(&self, refusal: HeadRefusal) {
        self.state().refused_heads.note(refusal);
        self.refused.store(true, Ordering::Relaxed);
    }

    /// Notes that the header block that goes on did not end in time, for which the connection is closed.
    pub fn note_block_timeout(&self) {
        self.state().refused_heads.note_block_timeout();
        self.refused.store(true, Ordering::Relaxed);
        self.is_closing.store(true, Ordering::Relaxed);
    }

    /// Returns the heads that were refused or dropped since the last call, over HTTP/2 after [`settle`](Self::settle).
    pub fn take_refused(&self) -> (Vec<RefusedHead>, Dropped) {
        if !self.refused.load(Ordering::Relaxed) {
            return Default::default();
        }
        let mut state = self.state();
        self.refused.store(false, Ordering::Relaxed);
        state.refused_heads.take()
    }

    /// Has `note` take what hyper wrote, or the client sent.
    pub fn note_heads(&self, note: impl FnOnce(&mut RefusedHeads)) {
        note(&mut self.state().refused_heads);
    }

    /// Notes that `h2` resets `stream` with `code`.
    pub fn note_reset(&self, stream: u32, code: u32) {
        let State { streams, refused_heads, .. } = &mut *self.state();
        refused_heads.note_reset(stream, code);
        if matches!(code, PROTOCOL_ERROR | FLOW_CONTROL_ERROR) {
            streams.note_reset(stream);
        }
    }

    /// Notes a final response on `stream`, or its trailers; `is_status` says whether it has nothing but a status.
    pub fn note_response(&self, stream: u32, is_status: bool) {
        let mut state = self.state();
        state.refused_heads.note_response(stream, is_status);
        self.close_in(&mut state, stream);
    }

    /// Drops what is kept of `stream`, which was reset.
    pub fn close_stream(&self, stream: u32) {
        self.close_in(&mut self.state(), stream);
    }

    fn close_in(&self, state: &mut State, stream: u32) {
        if !state.streams.close(stream) || state.queue.is_empty() {
            return;
        }
        let keep = usize::from(state.is_partly_written);
        let mut index = 0;
        state.queue.retain(|interim| {
            index += 1;
            index <= keep || interim.stream != stream
        });
        self.waiting.store(!state.queue.is_empty(), Ordering::Relaxed);
    }

    /// Returns whether interim responses wait to be written.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns whether one of them is partly written, so that nothing else may be.
    pub fn is_partly_written(&self) -> bool {
        self.is_waiting() && self.state().is_partly_written
    }

    /// Has `cx` woken when there are some to be written.
    pub fn register(&self, cx: &Context<'_>) {
        self.writer.register(cx.waker());
    }

    /// Writes what waits to `stream`, where hyper's bytes are at a point at which something else
    /// may come; only the rest of one that is partly written if `only_rest`.
    pub fn poll_write<S>(&self, stream: &mut S, cx: &mut Context<'_>, only_rest: bool) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        if !self.is_waiting() {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.state();
        while !only_rest || state.is_partly_written {
            let Some(first) = state.queue.front_mut() else { break };
            match ready!(Pin::new(&mut *stream).poll_write(cx, &first.bytes))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => first.bytes.advance(count),
            }
            state.is_partly_written = !first.bytes.is_empty();
            if !state.is_partly_written {
                state.queue.pop_front();
            }
        }
        if state.queue.is_empty() {
            self.waiting.store(false, Ordering::Relaxed);
            self.written.wake();
        }
        Poll::Ready(Ok(()))
    }
}

/// Sends the interim responses of one request.
#[derive(Clone)]
pub struct InterimSender {
    head_tracker: Arc<HeadTracker>,
    /// The stream; 0 over HTTP/1.1, and where it is not known.
    stream: u32,
    /// Which request of the connection it is.
    number: u64,
}

impl fmt::Debug for InterimSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterimSender").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl InterimSender {
    /// Sends an interim response with `status`, which must be 1xx and not 101, and fields from
    /// which hop-by-hop fields were removed. It is dropped where the stream is not known, where the
    /// final response has begun, and where the client reads too slowly.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) {
        let Self { head_tracker, stream, number } = self;
        let bytes = match head_tracker.protocol {
            Protocol::H1 => h1_interim(status, headers),
            Protocol::H2 => h2_interim(*stream, status, headers),
        };
        if bytes.len() > MAX_RESPONSE_BYTES {
            return;
        }
        let mut state = head_tracker.state();
        let streams = &state.streams;
        let is_current = match head_tracker.protocol {
            Protocol::H1 => streams.is_last(*number),
            Protocol::H2 => streams.is_known(*number) && streams.is_open(*stream),
        };
        let waiting: usize = state.queue.iter().map(|interim| interim.bytes.len()).sum();
        if !is_current || waiting + bytes.len() > MAX_QUEUED_BYTES {
            return;
        }
        state.queue.push_back(Interim { stream: *stream, bytes: bytes.into() });
        head_tracker.waiting.store(true, Ordering::Relaxed);
        drop(state);
        head_tracker.writer.wake();
    }

    /// Completes once nothing waits any more. Over HTTP/1.1 a final response must not be begun before.
    pub fn poll_written(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.head_tracker.written.register(cx.waker());
        if self.head_tracker.is_waiting() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Returns the HTTP/2 stream of the request; `None` while it is not known.
    #[cfg(any(test, fuzzing))]
    pub fn stream(&self) -> Option<u32> {
        self.head_tracker.state().streams.is_known(self.number).then_some(self.stream)
    }

    /// Returns whether `h2` reset the request's stream because of what the client sent; `false` where
    /// the stream is not known.
    pub fn was_reset(&self) -> bool {
        let State { streams, .. } = &*self.head_tracker.state();
        streams.is_known(self.number) && streams.was_reset(self.stream)
    }

    /// Returns whether the connection is closed from this side for what the client sent.
    pub fn is_closing(&self) -> bool {
        self.head_tracker.is_closing()
    }

    /// Returns whether the connection speaks HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.head_tracker.protocol == Protocol::H2
    }

    /// Returns whether something waits to be written.
    pub fn is_waiting(&self) -> bool {
        self.head_tracker.is_waiting()
    }
}

/// An interim response of HTTP/1.1.
fn h1_interim(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).into_bytes();
    push_fields(&mut bytes, headers);
    bytes
}

/// A HEADERS frame with END_HEADERS and without END_STREAM (RFC 9113 section 6.2).
fn h2_interim(stream: u32, status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    // Entry 8 of the static table is `:status`; the literal is not indexed.
    let mut block = vec![8];
    string(&mut block, status.as_str().as_bytes());
    for (name, value) in headers {
        block.push(if value.is_sensitive() { 0x10 } else { 0 });
        string(&mut block, name.as_str().as_bytes());
        string(&mut block, value.as_bytes());
    }
    let length = u32::try_from(block.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[1, 4], &stream.to_be_bytes(), &block].concat()
}

/// Appends a string without Huffman code (RFC 7541 sections 5.1 and 5.2).
fn string(block: &mut Vec<u8>, text: &[u8]) {
    let mut left = text.len();
    if left < 127 {
        block.push(u8::try_from(left).unwrap_or(0));
    } else {
        block.push(127);
        left -= 127;
        while left >= 128 {
            block.push(u8::try_from(left % 128).unwrap_or(0) | 128);
            left /= 128;
        }
        block.push(u8::try_from(left).unwrap_or(0));
    }
    block.extend_from_slice(text);
}

#[cfg(test)]
mod tests;
