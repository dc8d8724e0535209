//! On which HTTP/2 stream each request of a connection came, as far as that is known.
//!
//! hyper does not tell it. [`RequestStreams`] counts the header blocks that begin a stream, and the
//! requests that hyper passes on; both come in the same order. Whenever there are as many requests as
//! blocks, each block was one request, and the streams are known. Once hyper has done all it can and
//! everything was written, the blocks that are left never will be requests; malformed and refused
//! requests cause that. Then the streams of the requests since the last such moment stay unknown: no
//! stream is guessed.

use std::collections::VecDeque;
use std::ops::Range;

/// The most header blocks that are kept. hyper passes fewer on at once; h2 drops those that come
/// after a GOAWAY, however many there are.
const MAX_BLOCKS: usize = 256;
/// The most streams that are kept of those which `h2` reset.
const MAX_RESET: usize = 64;
/// The most ranges that are kept of requests whose streams are not known.
const MAX_UNKNOWN: usize = 16;

/// The streams of requests. A round lasts until everything is earlier_requests.
#[derive(Default)]
pub struct RequestStreams {
    /// Header blocks of the round that hyper got and has not passed_on on as a request.
    blocks: VecDeque<BegunStream>,
    /// The streams of the requests of the round, if each block becomes one.
    passed_on: Vec<BegunStream>,
    /// Whether a header block of the round was no request, or the reverse.
    is_round_unknown: bool,
    /// Requests so far.
    requests: u64,
    /// How many of them came in earlier rounds.
    earlier_requests: u64,
    /// Numbers of requests of earlier rounds whose streams are not known.
    unknown: VecDeque<Range<u64>>,
    /// Of the first so many requests, no stream is known.
    unknown_up_to: u64,
    /// Streams of requests that hyper has not begun to answer, and that neither side has reset.
    open: Vec<u32>,
    /// Streams of requests that `h2` reset for what the client sent; it closes a connection with many.
    reset: Vec<u32>,
}

/// A stream that the client began.
struct BegunStream {
    stream: u32,
    /// Whether it is open; it may be reset before there is a request.
    is_open: bool,
}

impl RequestStreams {
    /// Notes that hyper got the whole header block that begins `stream`.
    pub fn note_block(&mut self, stream: u32) {
        if self.is_round_unknown {
            return;
        }
        if self.blocks.len() >= MAX_BLOCKS {
            self.give_up_round();
            return;
        }
        self.blocks.push_back(BegunStream { stream, is_open: true });
    }

    /// Notes a request over HTTP/1.1, where there are no streams; returns its number.
    pub fn note_h1_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// Notes a request over HTTP/2; returns its number, and the stream that is its own if
    /// [`is_known`](Self::is_known) says so later.
    pub fn note_h2_request(&mut self) -> (u64, u32) {
        self.requests += 1;
        match self.blocks.pop_front() {
            Some(block) if !self.is_round_unknown && self.passed_on.len() < MAX_BLOCKS => {
                let stream = block.stream;
                self.passed_on.push(block);
                (self.requests, stream)
            }
            _ => {
                self.give_up_round();
                (self.requests, 0)
            }
        }
    }

    /// Notes that `h2` reset `stream` for what the client sent.
    pub fn note_reset(&mut self, stream: u32) {
        if self.reset.len() < MAX_RESET {
            self.reset.push(stream);
        }
    }

    /// Notes that `stream` was reset, or that its response has begun; returns whether it is the stream
    /// of an open request.
    pub fn close(&mut self, stream: u32) -> bool {
        let Some(at) = self.open.iter().position(|open| *open == stream) else {
            for opened in self.blocks.iter_mut().chain(&mut self.passed_on) {
                opened.is_open &= opened.stream != stream;
            }
            return false;
        };
        self.open.swap_remove(at);
        true
    }

    /// Ends the round if the streams of all its requests are known.
    pub fn end_round_if_known(&mut self) {
        if self.blocks.is_empty() && !self.is_round_unknown {
            self.end_round();
        }
    }

    /// Ends the round. If a block became no request, it is not known which, so the streams of its requests
    /// never are.
    pub fn end_round(&mut self) {
        let is_known = !std::mem::take(&mut self.is_round_unknown) && self.blocks.is_empty();
        self.blocks.clear();
        if is_known {
            self.open
                .extend(self.passed_on.iter().filter(|passed_on| passed_on.is_open).map(|passed_on| passed_on.stream));
        } else if self.requests > self.earlier_requests {
            if self.unknown.len() == MAX_UNKNOWN {
                self.unknown_up_to = self.unknown.pop_front().map_or(0, |unknown| unknown.end - 1);
            }
            self.unknown.push_back(self.earlier_requests + 1..self.requests + 1);
        }
        self.passed_on.clear();
        self.earlier_requests = self.requests;
    }

    /// Gives up the streams of the round.
    fn give_up_round(&mut self) {
        self.is_round_unknown = true;
        self.blocks = VecDeque::new();
        self.passed_on = Vec::new();
    }

    /// Returns whether the stream of the request with this number is known.
    pub fn is_known(&self, number: u64) -> bool {
        number <= self.earlier_requests
            && number > self.unknown_up_to
            && !self.unknown.iter().any(|unknown| unknown.contains(&number))
    }

    /// Returns whether no request came after the one with this number.
    pub fn is_last(&self, number: u64) -> bool {
        number == self.requests
    }

    /// Returns whether `stream` is that of a request that hyper has not begun to answer.
    pub fn is_open(&self, stream: u32) -> bool {
        self.open.contains(&stream)
    }

    /// Returns whether `h2` reset `stream` for what the client sent.
    pub fn was_reset(&self, stream: u32) -> bool {
        self.reset.contains(&stream)
    }

    /// Returns whether nothing takes more memory than it may, however many streams there were.
    #[cfg(test)]
    pub fn is_within_limits(&self) -> bool {
        self.blocks.len() <= MAX_BLOCKS
            && self.passed_on.len() <= MAX_BLOCKS
            && self.reset.len() <= MAX_RESET
            && self.unknown.len() <= MAX_UNKNOWN
    }

    /// Returns whether the blocks of the round take no memory.
    #[cfg(test)]
    pub fn has_released_blocks(&self) -> bool {
        self.blocks.capacity() == 0
    }
}
