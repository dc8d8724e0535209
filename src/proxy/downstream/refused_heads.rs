//! Finds the request heads that hyper or `h2` refuse before there is a request.
//!
//! Over HTTP/1.1 hyper's response shows the refusal. Over HTTP/2 `h2` resets the stream. It also
//! resets streams whose request's body is malformed, and hyper does not tell on which stream a
//! request came. So [`RefusedHeads`] counts:
//!
//! 1. The header blocks that begin a stream, less the requests, are undecided.
//! 2. A reset with REFUSED_STREAM is a refused head. So is a response whose only field is
//!    `:status`, which `h2` sends if a head is too large. `h2` sends neither for a request.
//! 3. Each other reset of such a stream is a refused head, as long as header blocks are undecided.
//!
//! Step 3 is taken at the end of a round: when hyper has done all that it can, and everything was
//! written. Before that, an undecided header block may still become a request.
//!
//! For example, header blocks come on streams 3, 5 and 7, two become requests, and `h2` resets
//! stream 5. One block is undecided, so the reset is a refused head. A later reset of stream 3 is
//! not one.
//!
//! A header block that continues in CONTINUATION frames may be refused before its end. For one
//! request, a CONNECT with a body, hyper ends the connection without a frame
//! (`hyper/src/proto/h2/server.rs`, "h2 connect request with non-zero body not supported"): it is
//! found by the header block that is undecided when the connection ends.
//!
//! Workaround: [hyper#3225](https://github.com/hyperium/hyper/issues/3225). Delete when hyper
//! reports the heads that it refuses.

use std::mem::take;

use http::StatusCode;

/// The most streams of a round that are kept. `h2` may drop any number of streams after a GOAWAY.
const MAX_STREAMS: usize = 1024;

// Error codes of streams and connections (RFC 9113 section 7).
const PROTOCOL_ERROR: u32 = 1;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The debug data of `h2`'s GOAWAY with `ENHANCE_YOUR_CALM`, if the cause is a head.
const HEAD_TOO_LARGE: [&[u8]; 2] = [b"header_list_way_too_large", b"too_many_continuations"];
/// The length of the longest debug data in [`HEAD_TOO_LARGE`].
pub const LONGEST_DEBUG_DATA: usize = HEAD_TOO_LARGE[0].len();

/// Why a head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadRefusal {
    /// The head is malformed.
    Malformed,
    /// The head states the length of the body more than once.
    AmbiguousLength,
    /// The request target is too long.
    TargetTooLong,
    /// The head exceeds `limits.head_bytes` or `limits.head_fields`.
    TooLarge,
    /// The head did not arrive within `limits.head_timeout`.
    Timeout,
    /// The HTTP/2 connection has as many open streams as `limits.h2_streams` allows.
    TooManyStreams,
}

impl HeadRefusal {
    /// Returns the reason in one word, for logs, metrics and programs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "bad_head",
            Self::AmbiguousLength => "ambiguous_length",
            Self::TargetTooLong => "target_too_long",
            Self::TooLarge => "head_too_large",
            Self::Timeout => "head_timeout",
            Self::TooManyStreams => "too_many_streams",
        }
    }

    /// Returns the status of the response over HTTP/1.1.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::AmbiguousLength => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooManyStreams => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Returns a sentence for the client.
    pub fn client_text(self) -> &'static str {
        match self {
            Self::Malformed => "The request's first line or one of its header fields is malformed.",
            Self::AmbiguousLength => {
                "The request states its length more than once, by Content-Length or Transfer-Encoding."
            }
            Self::TargetTooLong => "The request's target is too long.",
            Self::TooLarge => "The request's head is too large, or has too many header fields.",
            Self::Timeout => "The request's head did not arrive in time.",
            Self::TooManyStreams => "The connection has too many open streams.",
        }
    }
}

/// The refused heads of one connection.
#[derive(Debug, Default)]
pub struct RefusedHeads {
    refused_heads: Vec<RefusedHead>,
    /// HTTP/2: the stream whose header block continues in CONTINUATION frames.
    partial_block: Option<u32>,
    /// HTTP/2: the last stream whose header block was refused before its end, so that the end is
    /// not counted again.
    abandoned_block: Option<u32>,
    /// Whether the client closed its direction of the connection: then hyper may end the connection
    /// for that reason.
    has_client_ended: bool,
    /// Whether `h2` or loopgate closes the connection: hyper ignores new streams.
    is_closing: bool,
    /// HTTP/2: the streams that began in the current round, in ascending order.
    begun_streams: Vec<BegunStream>,
    /// The number of streams of the round that are neither a request nor refused yet.
    undecided_count: usize,
    /// The streams of earlier rounds that were neither a request nor refused.
    dropped_heads: DroppedHeads,
    /// Possible refusals of the round: resets of streams in `begun_streams`, and a GOAWAY.
    resets: Vec<RefusedHead>,
}

/// A refused head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedHead {
    /// The reason.
    pub why: HeadRefusal,
    /// Whether the client gets a response, rather than a reset or the end of the connection.
    pub is_answered: bool,
}

impl RefusedHead {
    const fn with_response(why: HeadRefusal) -> Self {
        Self { why, is_answered: true }
    }

    const fn without_response(why: HeadRefusal) -> Self {
        Self { why, is_answered: false }
    }
}

/// Why hyper ended a connection without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanEnd {
    /// It refused a request head.
    RefusedHead,
    /// Another reason, such as the end of the client's direction.
    Other,
}

/// The numbers of heads that became neither a request nor a refusal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedHeads {
    /// Heads whose stream the client reset, or whose connection it closed.
    pub by_client: usize,
    /// Heads on a connection that `h2` or loopgate was closing.
    pub by_closing: usize,
}

/// A stream whose header block was received.
#[derive(Clone, Copy, Debug)]
struct BegunStream {
    stream: u32,
    /// Whether a response or a reset was written on it.
    is_answered: bool,
}

impl RefusedHeads {
    /// Records a refused head that gets a response.
    pub fn add_answered(&mut self, refusal: HeadRefusal) {
        self.refused_heads.push(RefusedHead::with_response(refusal));
    }

    /// Returns the heads that were refused or dropped since the last call.
    pub fn take_refused_and_dropped(&mut self) -> (Vec<RefusedHead>, DroppedHeads) {
        (take(&mut self.refused_heads), take(&mut self.dropped_heads))
    }

    /// Records that `h2` got the first part of the header block that begins `stream`.
    pub fn record_partial_header_block(&mut self, stream: u32) {
        self.partial_block = Some(stream);
    }

    /// Records that the connection is closed because its unfinished header block did not end in
    /// time.
    pub fn record_header_block_timeout(&mut self) {
        self.partial_block = None;
        self.is_closing = true;
        self.refused_heads.push(RefusedHead::without_response(HeadRefusal::Timeout));
    }

    /// Records that `h2` got the whole header block that begins `stream`.
    pub fn record_header_block(&mut self, stream: u32) {
        self.partial_block = None;
        if self.abandoned_block != Some(stream) {
            self.add_undecided(stream);
        }
    }

    fn add_undecided(&mut self, stream: u32) {
        self.undecided_count += 1;
        if self.begun_streams.len() < MAX_STREAMS {
            self.begun_streams.push(BegunStream { stream, is_answered: false });
        }
    }

    /// Records that the unfinished header block, if there is one, never becomes a request. It
    /// counts as received, and is not counted again at its end.
    fn record_abandoned_block(&mut self) {
        if let Some(stream) = self.partial_block.take() {
            self.abandoned_block = Some(stream);
            self.add_undecided(stream);
        }
    }

    /// Records that the client closed its direction of the connection.
    pub fn record_client_end(&mut self) {
        self.has_client_ended = true;
    }

    /// Records that loopgate closes the connection, without a GOAWAY of `h2`.
    pub fn mark_closing(&mut self) {
        self.is_closing = true;
    }

    /// Records that hyper ended the connection without an error, and ends the round; returns why
    /// hyper did so. If neither side was closing the connection and a header block is undecided,
    /// hyper refused that head.
    pub fn record_clean_end(&mut self) -> CleanEnd {
        self.attribute_resets();
        let is_refused = !self.is_closing && !self.has_client_ended && self.undecided_count > 0;
        if is_refused {
            self.add_refused(RefusedHead::without_response(HeadRefusal::Malformed));
            self.is_closing = true;
        }
        self.end_round();
        if is_refused { CleanEnd::RefusedHead } else { CleanEnd::Other }
    }

    /// Records that hyper passes a request to the service.
    pub fn record_request(&mut self) {
        self.undecided_count = self.undecided_count.saturating_sub(1);
    }

    fn add_refused(&mut self, refused: RefusedHead) {
        self.undecided_count = self.undecided_count.saturating_sub(1);
        self.refused_heads.push(refused);
    }

    /// Records the head of a response on `stream`. If `is_status_only`, the response is the 431 by
    /// which `h2` refuses a head that is too large.
    pub fn record_response_head(&mut self, stream: u32, is_status_only: bool) {
        let is_first = self.mark_answered(stream);
        if is_first && is_status_only {
            self.add_refused(RefusedHead::with_response(HeadRefusal::TooLarge));
        }
    }

    /// Records that `h2` reset `stream` with `code`.
    pub fn record_reset(&mut self, stream: u32, code: u32) {
        if self.partial_block == Some(stream) {
            self.record_abandoned_block();
        }
        let is_first = self.mark_answered(stream);
        match code {
            // `h2` sends this code only for heads, and only once for each.
            REFUSED_STREAM => self.add_refused(RefusedHead::without_response(HeadRefusal::TooManyStreams)),
            PROTOCOL_ERROR | INTERNAL_ERROR if is_first => {
                self.resets.push(RefusedHead::without_response(HeadRefusal::Malformed))
            }
            _ => {}
        }
    }

    /// Records a GOAWAY of `h2`, and a refused head if it has one of the codes for that and a begun
    /// stream after `last_stream` is unanswered, or too many streams were begun to tell. (Without
    /// such a stream, `h2` had read every head, so the GOAWAY has another cause.)
    pub fn record_goaway(&mut self, last_stream: u32, code: u32, debug_data: &[u8]) {
        self.is_closing = true;
        let refusal = match code {
            PROTOCOL_ERROR | COMPRESSION_ERROR => HeadRefusal::Malformed,
            ENHANCE_YOUR_CALM if HEAD_TOO_LARGE.contains(&debug_data) => HeadRefusal::TooLarge,
            _ => return,
        };
        self.record_abandoned_block();
        let was_not_read = |begun: &BegunStream| begun.stream > last_stream && !begun.is_answered;
        if self.begun_streams.len() == MAX_STREAMS || self.begun_streams.iter().any(was_not_read) {
            self.resets.push(RefusedHead::without_response(refusal));
        }
    }

    /// Ends the round: hyper has done all that it can and everything was written, or the connection
    /// has ended. Heads that are still undecided count as dropped.
    pub fn end_round(&mut self) {
        self.attribute_resets();
        let dropped =
            if self.is_closing { &mut self.dropped_heads.by_closing } else { &mut self.dropped_heads.by_client };
        *dropped += take(&mut self.undecided_count);
        self.begun_streams.clear();
    }

    /// Counts the possible refusals of the round as refused heads, at most as many as heads are
    /// undecided.
    fn attribute_resets(&mut self) {
        for refused in take(&mut self.resets) {
            if self.undecided_count > 0 {
                self.add_refused(refused);
            }
        }
    }

    /// Returns whether there are neither refused nor dropped heads.
    pub fn is_empty(&self) -> bool {
        self.refused_heads.is_empty() && self.dropped_heads == DroppedHeads::default()
    }

    /// Records that a response or reset was written on `stream`; returns whether it is the first
    /// one on a stream of the round, so that it may be a refusal.
    fn mark_answered(&mut self, stream: u32) -> bool {
        let position = self.begun_streams.binary_search_by_key(&stream, |begun| begun.stream);
        position.is_ok_and(|at| !std::mem::replace(&mut self.begun_streams[at].is_answered, true))
    }
}

#[cfg(test)]
mod tests;
