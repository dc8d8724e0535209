//! Follows the request heads of a connection below hyper: sends interim responses (1xx), which
//! hyper's server can't, and finds the heads that hyper refused.
//!
//! hyper has no way to send an interim response over either protocol
//! ([hyper#2743](https://github.com/hyperium/hyper/issues/2743),
//! [hyper#4114](https://github.com/hyperium/hyper/pull/4114)). [`Interims`] keeps them until the
//! stream below hyper can write them: over HTTP/1.1 when hyper's buffer is empty, over HTTP/2
//! between two frames. Their fields are literals that no HPACK table keeps (RFC 7541 section
//! 6.2.2), so hyper's encoder and the client's decoder stay in step. Workaround: delete when
//! hyper's server sends them.
//!
//! Over HTTP/2 hyper does not tell on which stream a request came. [`RequestStreams`] infers it
//! from the order of header blocks and requests; a request whose stream is not known sends no
//! interim responses. [`RefusedHeads`] uses the same counts to find the heads that were refused.
//! Both count in rounds: a round ends when hyper has done all that it can and everything was
//! written.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http::{HeaderMap, StatusCode};

use super::interim_queue::{Interims, encode_h1, encode_h2};
use super::refused_heads::{CleanEnd, DroppedHeads, HeadRefusal, RefusedHead, RefusedHeads};
use super::request_streams::RequestStreams;
use crate::labels::Protocol;

// Error codes (RFC 9113 section 7).
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;

/// The request heads of one connection: their streams, their interim responses, and which of them
/// hyper refused.
pub struct HeadTracker {
    protocol: Protocol,
    /// Whether `state` has refused or dropped heads: read without the lock, for each poll of the
    /// connection.
    has_unreported_heads: AtomicBool,
    /// Whether the socket did not take all bytes since the last call of
    /// [`HeadTracker::end_round_unless_blocked`].
    is_blocked: AtomicBool,
    state: Mutex<TrackerState>,
    /// Whether loopgate closes the connection because of what the client sent.
    is_closed_for_client_fault: AtomicBool,
    interims: Interims,
}

#[derive(Default)]
struct TrackerState {
    streams: RequestStreams,
    refused_heads: RefusedHeads,
}

impl HeadTracker {
    /// Creates the state at the beginning of a connection that speaks `protocol`.
    pub fn new(protocol: Protocol) -> Arc<Self> {
        Arc::new(Self {
            protocol,
            has_unreported_heads: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            state: Mutex::default(),
            is_closed_for_client_fault: AtomicBool::new(false),
            interims: Interims::default(),
        })
    }

    /// Returns the interim responses of the connection.
    pub fn interims(&self) -> &Interims {
        &self.interims
    }

    fn state(&self) -> MutexGuard<'_, TrackerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that hyper got the whole header block that begins `stream`.
    pub fn record_header_block(&self, stream: u32) {
        let TrackerState { streams, refused_heads, .. } = &mut *self.state();
        refused_heads.record_header_block(stream);
        streams.record_header_block(stream);
    }

    /// Records that hyper passes a request to the service; returns its handle. Must be called in
    /// the order of requests.
    pub fn begin_request(self: &Arc<Self>) -> RequestHandle {
        let TrackerState { streams, refused_heads, .. } = &mut *self.state();
        let (number, stream) = match self.protocol {
            Protocol::H1 => (streams.number_h1_request(), 0),
            Protocol::H2 => {
                refused_heads.record_request();
                streams.number_h2_request()
            }
        };
        RequestHandle { head_tracker: Arc::clone(self), stream, number }
    }

    /// Records whether the socket did not take all that was to be written.
    pub fn set_write_blocked(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, Ordering::Relaxed);
    }

    /// Records that hyper has done all that it can for now. If the socket has taken all bytes since
    /// the last call, this ends the round. Otherwise it ends the round for the streams of requests
    /// alone, if they are known.
    pub fn end_round_unless_blocked(&self) {
        if self.is_blocked.swap(false, Ordering::Relaxed) {
            // A reset or a response that is not written yet may belong to a header block of the
            // round.
            self.state().streams.end_round_if_known();
        } else {
            self.end_round();
        }
    }

    /// Ends the round: a header block of HTTP/2 that hyper has not passed on as a request never
    /// will be one. Must also be called when the connection has ended.
    pub fn end_round(&self) {
        if self.protocol == Protocol::H1 {
            return;
        }
        let TrackerState { streams, refused_heads, .. } = &mut *self.state();
        refused_heads.end_round();
        if !refused_heads.is_empty() {
            self.has_unreported_heads.store(true, Ordering::Relaxed);
        }
        streams.end_round();
    }

    /// Records that hyper ended the connection without an error; returns why it did so. If it
    /// refused a head, that is a fault of the client. Over HTTP/1.1 always [`CleanEnd::Other`].
    pub fn record_clean_end(&self) -> CleanEnd {
        if self.protocol == Protocol::H1 {
            return CleanEnd::Other;
        }
        let end = self.state().refused_heads.record_clean_end();
        if end == CleanEnd::RefusedHead {
            self.has_unreported_heads.store(true, Ordering::Relaxed);
            self.is_closed_for_client_fault.store(true, Ordering::Relaxed);
        }
        end
    }

    /// Records that loopgate closes the connection because of what the client sent, without a
    /// GOAWAY of `h2`.
    pub fn mark_closed_for_client_fault(&self) {
        self.state().refused_heads.mark_closing();
        self.is_closed_for_client_fault.store(true, Ordering::Relaxed);
    }

    /// Records the GOAWAY by which `h2` closes the connection: it has processed the streams up to
    /// `last_stream`. With any `code` but NO_ERROR it is for a fault of the client.
    pub fn record_goaway(&self, last_stream: u32, code: u32, debug_data: &[u8]) {
        self.state().refused_heads.record_goaway(last_stream, code, debug_data);
        if code != NO_ERROR {
            self.is_closed_for_client_fault.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether loopgate closes the connection because of what the client sent.
    pub fn is_closed_for_client_fault(&self) -> bool {
        self.is_closed_for_client_fault.load(Ordering::Relaxed)
    }

    /// Records a request head that hyper refused, and that gets a response.
    pub fn record_refused_head(&self, refusal: HeadRefusal) {
        self.state().refused_heads.add_answered(refusal);
        self.has_unreported_heads.store(true, Ordering::Relaxed);
    }

    /// Records that the connection is closed because its unfinished header block did not end in
    /// time: a refused head, and a fault of the client.
    pub fn record_header_block_timeout(&self) {
        self.state().refused_heads.record_header_block_timeout();
        self.has_unreported_heads.store(true, Ordering::Relaxed);
        self.is_closed_for_client_fault.store(true, Ordering::Relaxed);
    }

    /// Returns the heads that were refused or dropped since the last call. Over HTTP/2 a head is
    /// known to be one of these once its round has ended.
    pub fn take_refused_and_dropped(&self) -> (Vec<RefusedHead>, DroppedHeads) {
        if !self.has_unreported_heads.load(Ordering::Relaxed) {
            return Default::default();
        }
        let mut state = self.state();
        self.has_unreported_heads.store(false, Ordering::Relaxed);
        state.refused_heads.take_refused_and_dropped()
    }

    /// Records that hyper got the first part of the header block that begins `stream`.
    pub fn record_partial_header_block(&self, stream: u32) {
        self.state().refused_heads.record_partial_header_block(stream);
    }

    /// Records that the client closed its direction of the connection, or that reading from it
    /// failed.
    pub fn record_client_end(&self) {
        self.state().refused_heads.record_client_end();
    }

    /// Records that `h2` resets `stream` with `code`. PROTOCOL_ERROR and FLOW_CONTROL_ERROR are
    /// resets for what the client sent.
    pub fn record_reset(&self, stream: u32, code: u32) {
        let TrackerState { streams, refused_heads, .. } = &mut *self.state();
        refused_heads.record_reset(stream, code);
        if matches!(code, PROTOCOL_ERROR | FLOW_CONTROL_ERROR) {
            streams.record_reset_for_client_error(stream);
        }
    }

    /// Records the head of a final response on `stream`, or its trailers: interim responses of the
    /// stream that wait are dropped. `is_status_only` is whether it is a response whose only field
    /// is `:status`.
    pub fn record_response_head(&self, stream: u32, is_status_only: bool) {
        let mut state = self.state();
        state.refused_heads.record_response_head(stream, is_status_only);
        self.close_stream_in(&mut state, stream);
    }

    /// Records that `stream` was reset, by either side: its interim responses are dropped.
    pub fn close_stream(&self, stream: u32) {
        self.close_stream_in(&mut self.state(), stream);
    }

    /// Drops the interim responses of the unanswered request on `stream`, if there is one.
    fn close_stream_in(&self, state: &mut TrackerState, stream: u32) {
        if state.streams.remove_unanswered(stream) {
            self.interims.remove_stream(stream);
        }
    }
}

/// A handle of one request: sends interim responses, and returns whether `h2` reset the request's
/// stream.
#[derive(Clone)]
pub struct RequestHandle {
    head_tracker: Arc<HeadTracker>,
    /// The request's HTTP/2 stream, if [`RequestStreams::is_stream_known`]; 0 over HTTP/1.1.
    stream: u32,
    /// The request's number on its connection, from 1.
    number: u64,
}

impl fmt::Debug for RequestHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHandle").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl RequestHandle {
    /// Sends an interim response with `status`, which must be 1xx and not 101, and `headers`
    /// without hop-by-hop fields. Over HTTP/1.1 the request's final response must not have begun.
    ///
    /// The response is dropped over HTTP/1.1 if a later request has begun; over HTTP/2 if the
    /// stream is not known, was reset, or has its final response. It is also dropped if it is too
    /// large or too many interim responses wait ([`Interims::push`]).
    pub fn send_interim(&self, status: StatusCode, headers: &HeaderMap) {
        let Self { head_tracker, stream, number } = self;
        let response = match head_tracker.protocol {
            Protocol::H1 => encode_h1(status, headers),
            Protocol::H2 => encode_h2(*stream, status, headers),
        };
        let is_current = {
            let streams = &head_tracker.state().streams;
            match head_tracker.protocol {
                Protocol::H1 => streams.is_latest_request(*number),
                Protocol::H2 => streams.is_stream_known(*number) && streams.is_stream_unanswered(*stream),
            }
        };
        if is_current {
            head_tracker.interims.push(*stream, response);
        }
    }

    /// Completes once no interim response of the connection waits. Over HTTP/1.1 a final response
    /// must not begin before that.
    pub fn poll_interims_written(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.head_tracker.interims.poll_all_written(cx)
    }

    /// Returns the HTTP/2 stream of the request; `None` while it is not known.
    #[cfg(any(test, fuzzing))]
    pub fn stream(&self) -> Option<u32> {
        self.head_tracker.state().streams.is_stream_known(self.number).then_some(self.stream)
    }

    /// Returns whether `h2` reset the request's stream because of what the client sent; `false` if
    /// the stream is not known.
    pub fn was_reset_for_client_error(&self) -> bool {
        let TrackerState { streams, .. } = &*self.head_tracker.state();
        streams.is_stream_known(self.number) && streams.was_reset_for_client_error(self.stream)
    }

    /// Returns whether loopgate closes the connection because of what the client sent.
    pub fn is_closed_for_client_fault(&self) -> bool {
        self.head_tracker.is_closed_for_client_fault()
    }

    /// Returns whether the connection speaks HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.head_tracker.protocol == Protocol::H2
    }

    /// Returns whether interim responses of the connection wait to be written.
    pub fn has_interims(&self) -> bool {
        !self.head_tracker.interims.is_empty()
    }
}

#[cfg(test)]
mod tests;
