//! Request heads that hyper or `h2` refuse by themselves, before there is a request.
//!
//! Over HTTP/1.1 the response shows the refusal. Over HTTP/2 `h2` resets the stream, but it also does
//! so where a request's body is malformed, and hyper does not tell on which stream a request came. So
//! [`RefusedHeads`] compares counts, each time that hyper has done all it can:
//!
//! 1. It subtracts the requests from the header blocks that began a stream: so many became no request.
//! 2. It collects the resets of those streams, and the responses to them.
//! 3. It reports these as refusals, resets first, but no more than step 1 found.
//!
//! For example, blocks come on streams 3, 5 and 7, two become requests, and `h2` resets stream 5.
//! One block is missing, so the reset is a refused head. A later reset of stream 3 is none.

use std::mem::take;

use http::StatusCode;

/// The most streams that are kept of one connection.
const MAX_STREAMS: usize = 256;

/// Codes of stream and connection errors (RFC 9113 section 7).
const PROTOCOL_ERROR: u32 = 1;
/// hyper's, for a CONNECT with a body.
const INTERNAL_ERROR: u32 = 2;
const COMPRESSION_ERROR: u32 = 9;

/// Why a head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadRefusal {
    /// It is malformed.
    Malformed,
    /// It states its length more than once.
    AmbiguousLength,
    /// Its target is too long.
    TargetTooLong,
    /// It exceeds `limits.head_bytes` or `limits.head_fields`.
    TooLarge,
    /// It did not arrive within `limits.head_timeout`.
    Timeout,
}

impl HeadRefusal {
    /// The reason in one word, for logs, metrics and programs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "bad_head",
            Self::AmbiguousLength => "ambiguous_length",
            Self::TargetTooLong => "target_too_long",
            Self::TooLarge => "head_too_large",
            Self::Timeout => "head_timeout",
        }
    }

    /// The status of the response.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::AmbiguousLength => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// A sentence for the client.
    pub fn text(self) -> &'static str {
        match self {
            Self::Malformed => "The request's first line or one of its header fields is malformed.",
            Self::AmbiguousLength => {
                "The request states its length more than once, by Content-Length or Transfer-Encoding."
            }
            Self::TargetTooLong => "The request's target is too long.",
            Self::TooLarge => "The request's head is too large, or has too many header fields.",
            Self::Timeout => "The request's head did not arrive in time.",
        }
    }
}

/// The refused heads of one connection, until [`take`](Self::take) returns them.
#[derive(Debug, Default)]
pub struct RefusedHeads {
    refused: Vec<HeadRefusal>,
    /// HTTP/2: the streams that began since hyper last had done all it could, and the requests since then.
    begun: Vec<Begun>,
    requests: usize,
    /// Earlier streams of which some became no requests, and of how many of them that is not explained.
    doubtful: Vec<Begun>,
    missing: usize,
    /// Resets and responses since then that may explain it; the former rather than the latter,
    /// which a request may have, too.
    resets: Vec<HeadRefusal>,
    answers: Vec<HeadRefusal>,
}

/// A stream whose header block was received.
#[derive(Clone, Copy, Debug)]
struct Begun {
    stream: u32,
    /// Whether a response or a reset was written.
    is_over: bool,
}

impl RefusedHeads {
    /// Notes a refused head.
    pub fn note(&mut self, refusal: HeadRefusal) {
        self.refused.push(refusal);
    }

    /// Returns the refused heads since it was called the last time.
    pub fn take(&mut self) -> Vec<HeadRefusal> {
        take(&mut self.refused)
    }

    /// Notes that `h2` got the whole header block that begins `stream`.
    pub fn begun(&mut self, stream: u32) {
        if self.begun.len() < MAX_STREAMS {
            self.begun.push(Begun { stream, is_over: false });
        }
    }

    /// Notes that hyper passes a request on.
    pub fn request(&mut self) {
        self.requests += 1;
    }

    /// Notes a response without a body on `stream`, which `h2` sends where a head is too large (431).
    pub fn answered(&mut self, stream: u32) {
        if self.mark(stream) {
            self.answers.push(HeadRefusal::TooLarge);
        }
    }

    /// Notes that `h2` reset `stream` with `code`.
    pub fn reset(&mut self, stream: u32, code: u32) {
        if self.mark(stream) && matches!(code, PROTOCOL_ERROR | INTERNAL_ERROR) {
            self.resets.push(HeadRefusal::Malformed);
        }
    }

    /// Notes that `h2` closes the connection with `code`, which it does where it can't read a block.
    pub fn closed(&mut self, code: u32) {
        if matches!(code, PROTOCOL_ERROR | COMPRESSION_ERROR) {
            self.resets.push(HeadRefusal::Malformed);
        }
    }

    /// Notes that hyper has done all that it can for now; returns whether there are refused heads.
    pub fn settle(&mut self) -> bool {
        let missing = self.begun.len().saturating_sub(take(&mut self.requests));
        if missing > 0 {
            self.missing += missing;
            let free = MAX_STREAMS - self.doubtful.len();
            self.doubtful.extend(self.begun.iter().take(free));
        }
        self.begun.clear();
        self.resets.append(&mut self.answers);
        let count = self.resets.len().min(self.missing);
        self.missing -= count;
        if self.missing == 0 {
            self.doubtful.clear();
        }
        self.resets.truncate(count);
        self.refused.append(&mut self.resets);
        !self.refused.is_empty()
    }

    /// Marks `stream` as over; returns whether it may have been no request, and was not over.
    fn mark(&mut self, stream: u32) -> bool {
        let begun = self.begun.iter_mut().chain(&mut self.doubtful).find(|begun| begun.stream == stream);
        begun.is_some_and(|begun| !std::mem::replace(&mut begun.is_over, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED_STREAM: u32 = 7;

    #[test]
    fn a_reset_is_a_refused_head_only_where_a_block_became_no_request() {
        let mut heads = RefusedHeads::default();
        // A request whose body is malformed.
        heads.begun(1);
        heads.request();
        heads.reset(1, PROTOCOL_ERROR);
        heads.settle();
        heads.reset(1, PROTOCOL_ERROR);
        heads.settle();
        assert_eq!(heads.take(), []);
        // Of three blocks two became requests.
        for stream in [3, 5, 7] {
            heads.begun(stream);
        }
        heads.request();
        heads.reset(5, PROTOCOL_ERROR);
        heads.request();
        heads.settle();
        assert_eq!(heads.take(), [HeadRefusal::Malformed]);
        heads.reset(3, PROTOCOL_ERROR);
        heads.settle();
        assert_eq!(heads.take(), [], "each is counted once");
    }

    #[test]
    fn refusals_that_are_written_later_are_counted_then() {
        let mut heads = RefusedHeads::default();
        for stream in [1, 3, 5] {
            heads.begun(stream);
        }
        heads.settle();
        heads.answered(1);
        heads.reset(1, PROTOCOL_ERROR);
        heads.reset(3, REFUSED_STREAM);
        heads.answered(7);
        heads.settle();
        assert_eq!(heads.take(), [HeadRefusal::TooLarge]);
        heads.closed(COMPRESSION_ERROR);
        heads.closed(0);
        heads.settle();
        assert_eq!(heads.take(), [HeadRefusal::Malformed]);
    }

    #[test]
    fn streams_are_not_kept_without_bound() {
        let mut heads = RefusedHeads::default();
        for stream in 0..10_000 {
            heads.begun(stream);
            if stream % 100 == 0 {
                heads.settle();
            }
        }
        assert!(heads.begun.len() + heads.doubtful.len() <= 2 * MAX_STREAMS);
    }
}
