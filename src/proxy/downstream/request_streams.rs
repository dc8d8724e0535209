//! Finds the HTTP/2 stream of each request of a connection, as far as possible: hyper does not tell
//! it.
//!
//! [`RequestStreams`] records the header blocks that begin a stream, and counts the requests that
//! hyper passes to the service. Both come in the same order, but a malformed or refused head never
//! becomes a request.
//!
//! A round ends when hyper has done all that it can and everything was written. If the round had as
//! many requests as header blocks, each block was one request, and the streams are known. Otherwise
//! the streams of the round's requests stay unknown.

use std::collections::VecDeque;
use std::ops::Range;

/// The most header blocks of a round that are kept. hyper passes fewer on in a round, but `h2` may
/// drop any number after a GOAWAY.
const MAX_BLOCKS: usize = 256;
/// The most streams that are kept of those that `h2` reset.
const MAX_RESET: usize = 64;
/// The most ranges of requests with unknown streams that are kept.
const MAX_UNKNOWN: usize = 16;

/// The streams of the requests of one connection.
#[derive(Default)]
pub struct RequestStreams {
    /// The header blocks of the round that hyper got and has not passed on as requests.
    blocks: VecDeque<RoundStream>,
    /// The header blocks of the round that count as passed on. They are the streams of the round's
    /// requests if every block became a request.
    passed_blocks: Vec<RoundStream>,
    /// Whether the streams of the round's requests can't be known any more: a request came without
    /// a header block, or there are too many blocks.
    is_round_unknown: bool,
    /// The number of requests so far.
    requests: u64,
    /// The number of requests of earlier rounds.
    earlier_requests: u64,
    /// The numbers of requests of earlier rounds whose streams are unknown.
    unknown_ranges: VecDeque<Range<u64>>,
    /// The streams of all requests up to this number count as unknown.
    unknown_up_to: u64,
    /// The streams of requests that hyper has not begun to answer and neither side has reset.
    unanswered_streams: Vec<u32>,
    /// The streams that `h2` reset because of what the client sent. `h2` closes a connection with
    /// many of them.
    reset_streams: Vec<u32>,
}

/// A stream that the client began.
struct RoundStream {
    stream: u32,
    /// Whether neither side has reset it.
    is_open: bool,
}

impl RequestStreams {
    /// Records that hyper got the whole header block that begins `stream`. If the round has too
    /// many blocks, the streams of its requests stay unknown.
    pub fn record_header_block(&mut self, stream: u32) {
        if self.is_round_unknown {
            return;
        }
        if self.blocks.len() >= MAX_BLOCKS {
            self.give_up_round();
            return;
        }
        self.blocks.push_back(RoundStream { stream, is_open: true });
    }

    /// Records a request over HTTP/1.1, which has no stream; returns its number.
    pub fn number_h1_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// Records a request over HTTP/2; returns its number and its presumed stream. The stream is
    /// certain once the round has ended and [`Self::is_stream_known`] is true.
    pub fn number_h2_request(&mut self) -> (u64, u32) {
        self.requests += 1;
        match self.blocks.pop_front() {
            Some(block) if !self.is_round_unknown && self.passed_blocks.len() < MAX_BLOCKS => {
                let stream = block.stream;
                self.passed_blocks.push(block);
                (self.requests, stream)
            }
            _ => {
                self.give_up_round();
                (self.requests, 0)
            }
        }
    }

    /// Records that `h2` reset `stream` because of what the client sent. At most [`MAX_RESET`]
    /// streams are kept.
    pub fn record_reset_for_client_error(&mut self, stream: u32) {
        if self.reset_streams.len() < MAX_RESET {
            self.reset_streams.push(stream);
        }
    }

    /// Records that `stream` was reset, or that its response has begun; returns whether it was the
    /// stream of an unanswered request of an earlier round. A stream of this round is no longer
    /// open.
    pub fn remove_unanswered(&mut self, stream: u32) -> bool {
        let Some(at) = self.unanswered_streams.iter().position(|unanswered| *unanswered == stream) else {
            for opened in self.blocks.iter_mut().chain(&mut self.passed_blocks) {
                opened.is_open &= opened.stream != stream;
            }
            return false;
        };
        self.unanswered_streams.swap_remove(at);
        true
    }

    /// Ends the round if the streams of all its requests are known.
    pub fn end_round_if_known(&mut self) {
        if self.blocks.is_empty() && !self.is_round_unknown {
            self.end_round();
        }
    }

    /// Ends the round. If it had more header blocks than requests, or its streams were given up,
    /// the streams of its requests stay unknown.
    pub fn end_round(&mut self) {
        let is_known = !std::mem::take(&mut self.is_round_unknown) && self.blocks.is_empty();
        self.blocks.clear();
        if is_known {
            self.unanswered_streams
                .extend(self.passed_blocks.iter().filter(|block| block.is_open).map(|block| block.stream));
        } else if self.requests > self.earlier_requests {
            if self.unknown_ranges.len() == MAX_UNKNOWN {
                self.unknown_up_to = self.unknown_ranges.pop_front().map_or(0, |range| range.end - 1);
            }
            self.unknown_ranges.push_back(self.earlier_requests + 1..self.requests + 1);
        }
        self.passed_blocks.clear();
        self.earlier_requests = self.requests;
    }

    /// Gives up the streams of the round, and releases their memory.
    fn give_up_round(&mut self) {
        self.is_round_unknown = true;
        self.blocks = VecDeque::new();
        self.passed_blocks = Vec::new();
    }

    /// Returns whether the stream of the request with this number is known. It is not before the
    /// end of the round.
    pub fn is_stream_known(&self, number: u64) -> bool {
        number <= self.earlier_requests
            && number > self.unknown_up_to
            && !self.unknown_ranges.iter().any(|range| range.contains(&number))
    }

    /// Returns whether the request with this number is the latest.
    pub fn is_latest_request(&self, number: u64) -> bool {
        number == self.requests
    }

    /// Returns whether `stream` carries a request that hyper has not begun to answer and neither
    /// side has reset.
    pub fn is_stream_unanswered(&self, stream: u32) -> bool {
        self.unanswered_streams.contains(&stream)
    }

    /// Returns whether `h2` reset `stream` because of what the client sent.
    pub fn was_reset_for_client_error(&self, stream: u32) -> bool {
        self.reset_streams.contains(&stream)
    }

    /// Returns whether all collections are within their limits.
    #[cfg(test)]
    pub fn is_within_limits(&self) -> bool {
        self.blocks.len() <= MAX_BLOCKS
            && self.passed_blocks.len() <= MAX_BLOCKS
            && self.reset_streams.len() <= MAX_RESET
            && self.unknown_ranges.len() <= MAX_UNKNOWN
    }

    /// Returns whether the header blocks of the round take no memory.
    #[cfg(test)]
    pub fn has_released_blocks(&self) -> bool {
        self.blocks.capacity() == 0
    }
}
