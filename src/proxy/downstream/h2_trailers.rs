//! Makes `h2` refuse pseudo-header fields in the trailers of a request.
//!
//! Trailers must not have pseudo-header fields (RFC 9113 section 8.1), but `h2` drops them and
//! accepts the rest. It does refuse a header block in which a pseudo-header field follows a regular
//! field. So [`H2Trailers`] puts a regular field before the client's fields: a HEADERS frame with
//! trailers becomes HEADERS with that field, and CONTINUATION with the client's header block. These
//! are two frames because a header block may begin with an HPACK table size update, which `h2`
//! accepts at the beginning of a frame. Trailers in several frames are forwarded in one
//! CONTINUATION: `h2` forgets the error in a frame that ends inside a field.
//!
//! The field is `Host` without a value. Trailers must not have a `Host` either, so
//! [`scrub_request_trailers`](crate::lane::scrub_request_trailers) removes it from all trailers.
//!
//! Workaround: delete when `h2` resets streams with such trailers.

use std::collections::VecDeque;

use super::h2_frame_head::{
    CONTINUATION, END_HEADERS, END_STREAM, FRAME_HEAD_SIZE, FrameHead, HEADERS, PADDED, PREFACE, PRIORITY,
};

/// The size of the priority fields of a HEADERS frame, in bytes (RFC 9113 section 6.2).
const PRIORITY_SIZE: usize = 5;
/// The largest header block of trailers, in bytes: it must fit into one frame (RFC 9113 section
/// 6.5.2).
const MAX_BLOCK: usize = 16_384;
/// The most frames of one header block of trailers.
const MAX_FRAMES: usize = 16;
/// The most streams that are kept in [`H2Trailers::begun_streams`].
const MAX_STREAMS: usize = 128;

/// `host` with an empty value: entry 38 of HPACK's static table, indexed (RFC 7541 section 6.1).
const EMPTY_HOST: u8 = 0x80 | 38;

/// Follows the frames of one client, and rewrites those with trailers.
#[derive(Debug)]
pub struct H2Trailers {
    /// The bytes of the current frame, or of the preface, that are still to come, without padding.
    bytes_left: usize,
    /// The bytes of the current frame's padding that are still to come. They are dropped.
    padding: usize,
    /// The beginning of a frame that is too short to decide what to do with the frame.
    held_bytes: Vec<u8>,
    /// The header block of trailers that is not complete yet.
    block: Option<TrailerBlock>,
    /// The latest stream that began.
    last_stream: u32,
    /// The latest streams that began without END_STREAM, so that trailers may follow.
    begun_streams: VecDeque<u32>,
    /// The latest stream that was removed from `begun_streams` because that was full; 0 if there is
    /// none.
    dropped_stream: u32,
}

/// The header block of trailers.
#[derive(Debug)]
struct TrailerBlock {
    stream: u32,
    /// The flag END_STREAM if the client's HEADERS frame has it; else 0.
    end_stream: u8,
    bytes: Vec<u8>,
    frames: usize,
    /// Whether the header block ends with the current frame.
    is_last_frame: bool,
}

/// The error that a header block of trailers is too large, or has too many frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

/// What to do with a frame.
enum FrameAction {
    /// More bytes are needed to decide.
    Incomplete,
    /// The frame passes unchanged. It has this many bytes, its head included.
    Passed(usize),
    /// The frame holds a piece of trailers.
    Trailers(BlockPiece),
}

/// A piece of a header block, in one frame.
struct BlockPiece {
    /// The bytes of the frame before the piece.
    before: usize,
    length: usize,
    padding: usize,
    stream: u32,
    flags: u8,
}

impl H2Trailers {
    pub fn new() -> Self {
        Self {
            bytes_left: PREFACE.len(),
            padding: 0,
            held_bytes: Vec::new(),
            block: None,
            last_stream: 0,
            begun_streams: VecDeque::new(),
            dropped_stream: 0,
        }
    }

    /// Parses the next bytes from the client, which may end anywhere; returns the bytes that `h2`
    /// gets in their place, or `None` if they are the same. The returned bytes may be empty.
    ///
    /// # Errors
    /// Trailers are too large, so that the connection must be closed.
    pub fn rewrite_input(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, TooLarge> {
        if self.held_bytes.is_empty() && self.block.is_none() && self.padding == 0 {
            let (bytes_left, last_stream) = (self.bytes_left, self.last_stream);
            if self.try_pass_unchanged(bytes) {
                return Ok(None);
            }
            (self.bytes_left, self.last_stream) = (bytes_left, last_stream);
        }
        if self.held_bytes.is_empty() {
            return self.rewrite_frames(bytes).map(Some);
        }
        let mut held_and_new = std::mem::take(&mut self.held_bytes);
        held_and_new.extend_from_slice(bytes);
        self.rewrite_frames(&held_and_new).map(Some)
    }

    /// Parses `bytes` up to the first frame that can't pass unchanged; returns whether there is
    /// none. If there is one, the caller must restore `bytes_left` and `last_stream`.
    fn try_pass_unchanged(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            bytes = &bytes[subtract_up_to(&mut self.bytes_left, bytes)..];
            if bytes.is_empty() {
                return true;
            }
            let FrameAction::Passed(length) = self.begin_frame(bytes) else { return false };
            self.bytes_left = length;
        }
    }

    /// Returns `bytes` with the trailers in them rewritten. An incomplete frame head, and trailers
    /// until their end, are held back.
    fn rewrite_frames(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, TooLarge> {
        let mut rewritten = Vec::with_capacity(bytes.len() + 2 * FRAME_HEAD_SIZE + 1);
        loop {
            let (piece, rest) = bytes.split_at(subtract_up_to(&mut self.bytes_left, bytes));
            match &mut self.block {
                Some(block) => block.bytes.extend_from_slice(piece),
                None => rewritten.extend_from_slice(piece),
            }
            bytes = &rest[subtract_up_to(&mut self.padding, rest)..];
            let has_ended = self.bytes_left == 0 && self.padding == 0;
            if let Some(block) = self.block.take_if(|block| has_ended && block.is_last_frame) {
                block.write_frames_to(&mut rewritten);
            }
            if bytes.is_empty() {
                return Ok(rewritten);
            }
            match self.begin_frame(bytes) {
                FrameAction::Incomplete => {
                    self.held_bytes = bytes.to_vec();
                    return Ok(rewritten);
                }
                FrameAction::Passed(length) => {
                    // Another frame inside a header block is an error (RFC 9113 section 6.10). `h2`
                    // gets both, and refuses them.
                    if let Some(block) = self.block.take() {
                        block.write_frames_to(&mut rewritten);
                    }
                    self.bytes_left = length;
                }
                FrameAction::Trailers(piece) => {
                    bytes = &bytes[piece.before..];
                    (self.bytes_left, self.padding) = (piece.length, piece.padding);
                    let block = self.block.get_or_insert_with(|| TrailerBlock::new(&piece));
                    block.frames += 1;
                    block.is_last_frame = piece.flags & END_HEADERS != 0;
                    if block.bytes.len() + piece.length > MAX_BLOCK || block.frames > MAX_FRAMES {
                        return Err(TooLarge);
                    }
                }
            }
        }
    }

    /// Returns what to do with the frame that `bytes` begin with. Records the stream that the frame
    /// begins.
    fn begin_frame(&mut self, bytes: &[u8]) -> FrameAction {
        let Some((head, payload)) = bytes.split_first_chunk() else { return FrameAction::Incomplete };
        let FrameHead { length, kind, flags, stream } = FrameHead::parse(head);
        let passed = FrameAction::Passed(FRAME_HEAD_SIZE + length);
        if let Some(block) = &self.block {
            let goes_on = kind == CONTINUATION && stream == block.stream;
            let piece = BlockPiece { before: FRAME_HEAD_SIZE, length, padding: 0, stream, flags };
            return if goes_on { FrameAction::Trailers(piece) } else { passed };
        }
        if kind != HEADERS {
            return passed;
        }
        if stream > self.last_stream {
            self.last_stream = stream;
            // `rewrite_input` may examine this frame twice. It is recorded once.
            if flags & END_STREAM == 0 && self.begun_streams.back().is_none_or(|last| *last < stream) {
                if self.begun_streams.len() == MAX_STREAMS {
                    self.dropped_stream = self.begun_streams.pop_front().unwrap_or_default();
                }
                self.begun_streams.push_back(stream);
            }
            return passed;
        }
        // `h2` refuses trailers on any other stream.
        if stream > self.dropped_stream && self.begun_streams.binary_search(&stream).is_err() {
            return passed;
        }
        let is_padded = flags & PADDED != 0;
        let prefix_length = usize::from(is_padded) + if flags & PRIORITY != 0 { PRIORITY_SIZE } else { 0 };
        // `h2` closes the connection for a frame that is too long, or too short for its flags.
        let Some(unprefixed_length) = length.checked_sub(prefix_length).filter(|_| length <= MAX_BLOCK) else {
            return passed;
        };
        if payload.len() < prefix_length {
            return FrameAction::Incomplete;
        }
        let padding = if is_padded { usize::from(payload[0]) } else { 0 };
        let Some(length) = unprefixed_length.checked_sub(padding) else { return passed };
        FrameAction::Trailers(BlockPiece { before: FRAME_HEAD_SIZE + prefix_length, length, padding, stream, flags })
    }
}

impl TrailerBlock {
    fn new(piece: &BlockPiece) -> Self {
        Self {
            stream: piece.stream,
            end_stream: piece.flags & END_STREAM,
            bytes: Vec::new(),
            frames: 0,
            is_last_frame: false,
        }
    }

    /// Appends the two frames of the trailers to `bytes`.
    fn write_frames_to(self, bytes: &mut Vec<u8>) {
        let [a, b, c, d] = self.stream.to_be_bytes();
        let [.., high, middle, low] = self.bytes.len().to_be_bytes();
        let end_headers = if self.is_last_frame { END_HEADERS } else { 0 };
        bytes.extend_from_slice(&[0, 0, 1, HEADERS, self.end_stream, a, b, c, d, EMPTY_HOST]);
        bytes.extend_from_slice(&[high, middle, low, CONTINUATION, end_headers, a, b, c, d]);
        bytes.extend_from_slice(&self.bytes);
    }
}

/// Subtracts from `left` the bytes of `bytes` that belong to it; returns how many those are.
fn subtract_up_to(left: &mut usize, bytes: &[u8]) -> usize {
    let count = bytes.len().min(*left);
    *left -= count;
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [.., high, middle, low] = payload.len().to_be_bytes();
        [&[high, middle, low, kind, flags], &stream.to_be_bytes()[..], payload].concat()
    }

    fn preface_and_heads() -> Vec<u8> {
        let heads = [1, 3].map(|stream| frame(HEADERS, END_HEADERS, stream, b"head")).concat();
        [&PREFACE[..], &frame(4, 0, 0, &[7; 12]), &heads].concat()
    }

    /// Returns what `h2` gets if `bytes` are read in pieces of `size` bytes, and the state after
    /// them.
    fn rewrite_in_pieces(bytes: &[u8], size: usize) -> (Vec<u8>, H2Trailers) {
        let mut trailers = H2Trailers::new();
        let pieces =
            bytes.chunks(size).map(|piece| trailers.rewrite_input(piece).unwrap().unwrap_or_else(|| piece.to_vec()));
        (pieces.collect::<Vec<_>>().concat(), trailers)
    }

    #[test]
    fn trailers_get_a_regular_field_before_them_however_reads_cut_them() {
        let flags = END_STREAM | END_HEADERS;
        // The frames that `h2` gets for trailers on stream 3.
        let host = |flags| frame(HEADERS, flags, 3, &[EMPTY_HOST]);
        let rewritten = |flags, block: &[u8]| [host(END_STREAM), frame(CONTINUATION, flags, 3, block)].concat();
        let block = b"block of trailers";
        let continued = frame(CONTINUATION, END_HEADERS, 3, b"more");
        for (name, sent, wanted) in [
            ("plain", frame(HEADERS, flags, 3, block), rewritten(END_HEADERS, block)),
            ("empty", frame(HEADERS, flags, 3, b""), rewritten(END_HEADERS, b"")),
            (
                "without END_STREAM",
                frame(HEADERS, END_HEADERS, 3, block),
                [host(0), frame(CONTINUATION, END_HEADERS, 3, block)].concat(),
            ),
            ("padded", frame(HEADERS, flags | PADDED, 3, b"\x03block\0\0\0"), rewritten(END_HEADERS, b"block")),
            ("all padding", frame(HEADERS, flags | PADDED, 3, b"\x03\0\0\0"), rewritten(END_HEADERS, b"")),
            ("priority", frame(HEADERS, flags | PRIORITY, 3, b"12345block"), rewritten(END_HEADERS, b"block")),
            (
                "both",
                frame(HEADERS, flags | PADDED | PRIORITY, 3, b"\x0212345block\0\0"),
                rewritten(END_HEADERS, b"block"),
            ),
            (
                "continued",
                [&frame(HEADERS, END_STREAM, 3, block)[..], &continued].concat(),
                rewritten(END_HEADERS, b"block of trailersmore"),
            ),
            (
                "continued with the reserved bit",
                [&frame(HEADERS, END_STREAM, 3 | 1 << 31, block)[..], &continued].concat(),
                rewritten(END_HEADERS, b"block of trailersmore"),
            ),
            ("of an earlier stream", frame(HEADERS, flags, 1, block), {
                [frame(HEADERS, END_STREAM, 1, &[EMPTY_HOST]), frame(CONTINUATION, END_HEADERS, 1, block)].concat()
            }),
        ] {
            let after = [frame(0, END_STREAM, 5, b"data"), frame(HEADERS, END_HEADERS, 5, b"head")].concat();
            for size in [1, 2, 8, 9, 10, 14, 1000] {
                let (bytes, trailers) =
                    rewrite_in_pieces(&[preface_and_heads(), sent.repeat(2), after.clone()].concat(), size);
                assert_eq!(bytes, [preface_and_heads(), wanted.repeat(2), after.clone()].concat(), "{name}, {size}");
                assert!(trailers.held_bytes.is_empty(), "{name}, {size}");
            }
        }
    }

    #[test]
    fn all_other_frames_pass_and_complete_ones_are_not_copied() {
        // Frames that are too short for their flags.
        let too_short = [
            frame(HEADERS, PADDED, 3, b""),
            frame(HEADERS, PADDED, 3, b"\x05abc"),
            frame(HEADERS, PRIORITY, 3, b"1234"),
            frame(HEADERS, PADDED | PRIORITY, 3, b"\x0112345"),
        ];
        let frames = [
            vec![
                frame(HEADERS, END_HEADERS | PADDED, 5, b"\x03block\0\0\0"),
                frame(CONTINUATION, 0, 5, b"more"),
                frame(0, 0, 5, &[1; 20_000]),
                frame(3, 0, 5, &[0; 4]),
                frame(0x42, 0xff, 1, &[HEADERS; 40]),
            ],
            too_short.to_vec(),
        ]
        .concat();
        let bytes = [preface_and_heads(), frames.concat()].concat();
        assert_eq!(H2Trailers::new().rewrite_input(&bytes), Ok(None));
        for size in [1, 7, 9, 10, 4096] {
            assert_eq!(rewrite_in_pieces(&bytes, size).0, bytes, "{size}");
        }
    }

    #[test]
    fn a_block_is_bounded_and_one_that_is_interrupted_is_not_completed() {
        // The first frame has 10,000 of the 16,384 bytes that a block may have.
        let more = |size: usize| frame(CONTINUATION, 0, 3, &vec![0; size]);
        let start = frame(HEADERS, END_STREAM, 3, &[0; 10_000]);
        for (continuations, fits) in [
            (more(6384), true),
            (more(6385), false),
            (more(0).repeat(MAX_FRAMES - 1), true),
            (more(0).repeat(MAX_FRAMES), false),
        ] {
            let result = H2Trailers::new().rewrite_input(&[preface_and_heads(), start.clone(), continuations].concat());
            assert_eq!(result, if fits { Ok(Some(preface_and_heads())) } else { Err(TooLarge) });
        }
        for other in [frame(0, 0, 3, b"data"), frame(CONTINUATION, END_HEADERS, 1, b"x"), frame(HEADERS, 0, 5, b"x")] {
            let sent = [preface_and_heads(), frame(HEADERS, END_STREAM, 3, b"block"), other.clone()].concat();
            let (host, block) = (frame(HEADERS, END_STREAM, 3, &[EMPTY_HOST]), frame(CONTINUATION, 0, 3, b"block"));
            assert_eq!(rewrite_in_pieces(&sent, 1000).0, [preface_and_heads(), host, block, other].concat());
        }
    }
}
