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
//!
//! A block that goes on in CONTINUATION frames may be refused before its end. And for one request, a
//! CONNECT with a body, hyper ends the connection without a frame (`hyper/src/proto/h2/server.rs`, "h2
//! connect request with non-zero body not supported"): that is seen by a block that is missing then.

use std::mem::take;

use http::StatusCode;

/// The most streams that are kept of one connection.
const MAX_STREAMS: usize = 256;

/// Codes of stream and connection errors (RFC 9113 section 7).
const PROTOCOL_ERROR: u32 = 1;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// What `h2` says beside `ENHANCE_YOUR_CALM` where the cause is a head.
const HEAD_TOO_LARGE: [&[u8]; 2] = [b"header_list_way_too_large", b"too_many_continuations"];
/// The length of the longest of these.
pub const LONGEST_DEBUG_DATA: usize = HEAD_TOO_LARGE[0].len();

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
    /// The HTTP/2 connection has as many open streams as `limits.h2_streams` allows.
    TooManyStreams,
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
            Self::TooManyStreams => "too_many_streams",
        }
    }

    /// The status of the response over HTTP/1.1.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::AmbiguousLength => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooManyStreams => StatusCode::SERVICE_UNAVAILABLE,
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
            Self::TooManyStreams => "The connection has too many open streams.",
        }
    }
}

/// The refused heads of one connection, until [`take`](Self::take) returns them.
#[derive(Debug, Default)]
pub struct RefusedHeads {
    refused: Vec<Refused>,
    /// HTTP/2: the stream whose header block goes on; and one whose block was refused before its end.
    partial: Option<u32>,
    refused_partial: Option<u32>,
    /// Whether the client closed its side, or a GOAWAY was written: then hyper may end the connection.
    is_ending: bool,
    /// HTTP/2: the streams that began since hyper last had done all it could, and the requests since then.
    begun: Vec<Begun>,
    requests: usize,
    /// Earlier streams of which some became no requests, and of how many of them that is not explained.
    doubtful: Vec<Begun>,
    missing: usize,
    /// Resets and responses since then that may explain it; the former rather than the latter,
    /// which a request may have, too.
    resets: Vec<Refused>,
    answers: Vec<Refused>,
    /// How many streams `h2` refused because there were too many.
    surplus: usize,
}

/// A refused head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: HeadRefusal,
    /// Whether a response says so, rather than a reset or the end of the connection.
    pub is_answered: bool,
}

impl Refused {
    const fn answered(why: HeadRefusal) -> Self {
        Self { why, is_answered: true }
    }

    const fn reset(why: HeadRefusal) -> Self {
        Self { why, is_answered: false }
    }
}

/// A stream whose header block was received.
#[derive(Clone, Copy, Debug)]
struct Begun {
    stream: u32,
    /// Whether a response or a reset was written.
    is_over: bool,
}

impl RefusedHeads {
    /// Notes a refused head that gets a response.
    pub fn note(&mut self, refusal: HeadRefusal) {
        self.refused.push(Refused::answered(refusal));
    }

    /// Returns the refused heads since it was called the last time.
    pub fn take(&mut self) -> Vec<Refused> {
        take(&mut self.refused)
    }

    /// Notes that `h2` got the beginning of the header block that begins `stream`.
    pub fn partly_received(&mut self, stream: u32) {
        self.partial = Some(stream);
    }

    /// Notes that `h2` got the whole header block that begins `stream`.
    pub fn begun(&mut self, stream: u32) {
        self.partial = None;
        if self.refused_partial != Some(stream) {
            self.begin(stream);
        }
    }

    fn begin(&mut self, stream: u32) {
        if self.begun.len() < MAX_STREAMS {
            self.begun.push(Begun { stream, is_over: false });
        }
    }

    /// Notes that the block that goes on will become no request.
    fn refuse_partial(&mut self) {
        if let Some(stream) = self.partial.take() {
            self.refused_partial = Some(stream);
            self.begin(stream);
        }
    }

    /// Notes that the client closed its side.
    pub fn client_ended(&mut self) {
        self.is_ending = true;
    }

    /// Notes that hyper ended the connection without an error; returns whether it did so because of a head.
    pub fn ended(&mut self) -> bool {
        self.settle();
        let is_refused = !self.is_ending && self.missing > 0;
        if is_refused {
            self.missing -= 1;
            self.refused.push(Refused::reset(HeadRefusal::Malformed));
        }
        is_refused
    }

    /// Notes that hyper passes a request on.
    pub fn request(&mut self) {
        self.requests += 1;
    }

    /// Notes a response without a body on `stream`, which `h2` sends where a head is too large (431).
    pub fn answered(&mut self, stream: u32) {
        if self.mark(stream) {
            self.answers.push(Refused::answered(HeadRefusal::TooLarge));
        }
    }

    /// Notes that `h2` reset `stream` with `code`.
    pub fn reset(&mut self, stream: u32, code: u32) {
        if self.partial == Some(stream) {
            self.refuse_partial();
        }
        let is_first = self.mark(stream);
        match code {
            // Only for a head, and for each once.
            REFUSED_STREAM => self.surplus += 1,
            PROTOCOL_ERROR | INTERNAL_ERROR if is_first => self.resets.push(Refused::reset(HeadRefusal::Malformed)),
            _ => {}
        }
    }

    /// Notes that `h2` closes the connection with `code` and `debug_data`, which it does where it can't
    /// read a block, or will read no more of it.
    pub fn closed(&mut self, code: u32, debug_data: &[u8]) {
        self.is_ending = true;
        let refusal = match code {
            PROTOCOL_ERROR | COMPRESSION_ERROR => HeadRefusal::Malformed,
            ENHANCE_YOUR_CALM if HEAD_TOO_LARGE.contains(&debug_data) => HeadRefusal::TooLarge,
            _ => return,
        };
        self.refuse_partial();
        self.resets.push(Refused::reset(refusal));
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
        // Each has explained one, if that was kept.
        self.missing = self.missing.saturating_sub(self.surplus);
        let surplus = std::iter::repeat_n(Refused::reset(HeadRefusal::TooManyStreams), take(&mut self.surplus));
        self.refused.extend(surplus);
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
mod tests;
