//! Follows the frames that hyper writes to an HTTP/2 client, so that interim responses can be
//! written between them.
//!
//! Workaround: [hyper#2743](https://github.com/hyperium/hyper/issues/2743),
//! [hyper#4114](https://github.com/hyperium/hyper/pull/4114). Delete when hyper's server sends
//! interim responses.

use std::sync::Arc;

use super::h2_frame_head::{
    ACK, CONTINUATION, END_HEADERS, END_STREAM, FrameHead, GOAWAY, HEADERS, HeadReader, PUSH_PROMISE, RST_STREAM,
    SETTINGS,
};
use super::head_tracker::HeadTracker;
use super::refused_heads::LONGEST_DEBUG_DATA;

/// The most bytes of a payload that are kept. They suffice for the last stream and the code of a
/// GOAWAY, and for one byte more than the longest debug data that it is compared with, so that
/// longer data are not equal.
const MAX_KEPT_PAYLOAD: usize = 8 + LONGEST_DEBUG_DATA + 1;

/// The initial value of SETTINGS_HEADER_TABLE_SIZE (RFC 9113 section 6.5.2).
const DEFAULT_TABLE_SIZE: u32 = 4096;
/// The identifier of this setting.
const SETTINGS_HEADER_TABLE_SIZE: u16 = 1;

/// Follows hyper's output frame by frame.
pub struct H2OutputFrames {
    head_tracker: Arc<HeadTracker>,
    table_updates: HpackTableUpdates,
    head: HeadReader,
    /// The head of the current frame.
    frame: FrameHead,
    /// The bytes of the current frame that are still to come.
    bytes_left: usize,
    /// The first bytes of the current frame's payload, at most [`MAX_KEPT_PAYLOAD`].
    payload_start: Vec<u8>,
    /// Whether the next frame must be a CONTINUATION.
    is_in_block: bool,
}

impl H2OutputFrames {
    pub fn new(head_tracker: Arc<HeadTracker>) -> Self {
        Self {
            head_tracker,
            table_updates: HpackTableUpdates::default(),
            head: HeadReader::default(),
            frame: FrameHead::default(),
            bytes_left: 0,
            payload_start: Vec::new(),
            is_in_block: false,
        }
    }

    /// Returns the tracker that is notified of header blocks and resets.
    pub fn head_tracker(&self) -> &HeadTracker {
        &self.head_tracker
    }

    /// Returns the state that the client's SETTINGS change.
    pub fn table_updates(&mut self) -> &mut HpackTableUpdates {
        &mut self.table_updates
    }

    /// Parses bytes that hyper wrote, which may end inside a frame. Reports response heads, resets
    /// and GOAWAY to the tracker.
    pub fn observe_output(&mut self, mut bytes: &[u8]) {
        loop {
            let step = self.bytes_left.min(bytes.len());
            self.bytes_left -= step;
            if step > 0 && matches!(self.frame.kind, HEADERS | RST_STREAM | GOAWAY) {
                self.collect_payload(&bytes[..step]);
            }
            bytes = &bytes[step..];
            if bytes.is_empty() {
                return;
            }
            let Some(head) = self.head.take_head(&mut bytes) else { return };
            let FrameHead { length, kind, flags, stream } = head;
            self.frame = head;
            self.bytes_left = length;
            if matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
                self.is_in_block = flags & END_HEADERS == 0;
                self.table_updates.record_header_block_sent();
            }
            self.payload_start.clear();
            match kind {
                RST_STREAM => self.head_tracker.close_stream(stream),
                SETTINGS if flags & ACK != 0 => self.table_updates.record_settings_ack(),
                _ => {}
            }
        }
    }

    /// Takes a part of the payload of HEADERS, RST_STREAM or GOAWAY, and reports the frame at its
    /// end. RST_STREAM holds an error code (RFC 9113 section 6.4); GOAWAY holds the last stream, an
    /// error code and debug data (section 6.8).
    fn collect_payload(&mut self, bytes: &[u8]) {
        let fresh = bytes.len().min(MAX_KEPT_PAYLOAD - self.payload_start.len());
        self.payload_start.extend_from_slice(&bytes[..fresh]);
        if self.bytes_left > 0 {
            return;
        }
        let FrameHead { kind, flags, stream, .. } = self.frame;
        if kind == HEADERS {
            // Every response of the service has more fields: at least `Date`.
            let is_status_only =
                flags & (END_STREAM | END_HEADERS) == END_STREAM | END_HEADERS && is_status_only(&self.payload_start);
            self.head_tracker.record_response_head(stream, is_status_only);
            return;
        }
        let (last_stream, after_stream) = match self.payload_start.split_first_chunk() {
            Some((last, after_stream)) if kind == GOAWAY => (u32::from_be_bytes(*last), after_stream),
            _ => (stream, &self.payload_start[..]),
        };
        if let Some((code, debug_data)) = after_stream.split_first_chunk() {
            let code = u32::from_be_bytes(*code);
            match kind {
                GOAWAY => self.head_tracker.record_goaway(last_stream, code, debug_data),
                _ => self.head_tracker.record_reset(stream, code),
            }
        }
    }

    /// Returns whether an interim response may be written at the next boundary. It must not be
    /// written if hyper's next header block begins with a table size update.
    pub fn allows_interims(&self) -> bool {
        self.table_updates.acknowledgements_before_update.is_none()
    }

    /// Returns whether hyper's output is between two frames and not inside a header block.
    pub fn is_at_boundary(&self) -> bool {
        self.head.is_empty() && self.bytes_left == 0 && !self.is_in_block
    }

    /// Returns the number of bytes that hyper may write before [`Self::is_at_boundary`] may return
    /// `true` again.
    pub fn bytes_to_boundary(&self) -> usize {
        if self.bytes_left > 0 { self.bytes_left } else { self.head.missing_bytes() }
    }
}

/// Returns whether a header block is `:status` alone, with a value that is not in HPACK's static
/// table (RFC 7541 section 6): that is the 431 without fields that `h2` sends if a head is too
/// large.
fn is_status_only(mut block: &[u8]) -> bool {
    // The last entry of the static table, and the first byte of a literal `:status`, with and
    // without indexing.
    const STATIC: u8 = 61;
    const STATUS: [u8; 3] = [0x48, 0x08, 0x18];
    // Skips table size updates.
    while let [first, rest @ ..] = block
        && first & 0xe0 == 0x20
    {
        let continued =
            if first & 0x1f == 0x1f { rest.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1 } else { 0 };
        block = rest.get(continued..).unwrap_or_default();
    }
    match block {
        [0xff, rest @ ..] => rest.iter().position(|byte| byte & 0x80 == 0).is_some_and(|at| at + 1 == rest.len()),
        [index] => *index > 0x80 | STATIC,
        [name, length, value @ ..] => STATUS.contains(name) && usize::from(length & 0x7f) == value.len(),
        [] => false,
    }
}

/// Follows the client's SETTINGS_HEADER_TABLE_SIZE. After the client made the table smaller,
/// hyper's next header block begins with an HPACK table size update, and no other block may come
/// before it (RFC 9113 section 4.3.1).
#[derive(Debug, Default)]
pub struct HpackTableUpdates {
    /// The received bytes of an incomplete setting, and their number.
    entry: [u8; 6],
    entry_len: usize,
    table_size: Option<u32>,
    /// The number of the client's SETTINGS frames that hyper has not acknowledged.
    unacknowledged: usize,
    /// The number of acknowledgements that hyper sends before the header block with the update;
    /// `None` if no update is expected.
    acknowledgements_before_update: Option<usize>,
}

impl HpackTableUpdates {
    /// Records that a SETTINGS frame of the client without ACK begins.
    pub fn begin_settings(&mut self) {
        self.entry_len = 0;
        self.unacknowledged += 1;
    }

    /// Takes a part of the payload of the client's SETTINGS.
    pub fn parse_settings(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.entry[self.entry_len] = *byte;
            self.entry_len += 1;
            if self.entry_len == self.entry.len() {
                self.entry_len = 0;
                let [a, b, value @ ..] = self.entry;
                if u16::from_be_bytes([a, b]) == SETTINGS_HEADER_TABLE_SIZE {
                    let size = u32::from_be_bytes(value);
                    if size < self.table_size.unwrap_or(DEFAULT_TABLE_SIZE) {
                        self.acknowledgements_before_update = Some(self.unacknowledged);
                    }
                    self.table_size = Some(size);
                }
            }
        }
    }

    fn record_settings_ack(&mut self) {
        self.unacknowledged = self.unacknowledged.saturating_sub(1);
        self.acknowledgements_before_update = self.acknowledgements_before_update.map(|due| due.saturating_sub(1));
    }

    fn record_header_block_sent(&mut self) {
        if self.acknowledgements_before_update == Some(0) {
            self.acknowledgements_before_update = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Protocol;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [.., high, middle, low] = length.to_be_bytes();
        [&[high, middle, low, kind, flags, 0, 0, 0, 1][..], &vec![0; length]].concat()
    }

    fn frames() -> H2OutputFrames {
        H2OutputFrames::new(HeadTracker::new(Protocol::H2))
    }

    #[test]
    fn boundaries_are_between_frames_and_not_inside_header_blocks() {
        let written = [
            (frame(SETTINGS, 0, 6), true),
            (frame(0, 0, 300), true),
            (frame(HEADERS, END_HEADERS, 20), true),
            (frame(HEADERS, 0, 20), false),
            (frame(CONTINUATION, 0, 0), false),
            (frame(CONTINUATION, END_HEADERS, 1), true),
            (frame(0, 1, 0), true),
            (frame(RST_STREAM, 0, 4), true),
        ];
        for size in [1, 2, 8, 9, 10, 100, 1000] {
            let mut frames = frames();
            for (bytes, between) in &written {
                let mut left = &bytes[..];
                while !left.is_empty() {
                    let step = size.min(left.len()).min(frames.bytes_to_boundary());
                    frames.observe_output(&left[..step]);
                    left = &left[step..];
                    assert_eq!(frames.is_at_boundary(), left.is_empty() && *between, "{size}: {bytes:?}");
                }
            }
        }
    }

    #[test]
    fn only_a_block_of_status_alone_is_status_only() {
        // A literal `:status` with a Huffman-coded value. The others are literals without Huffman
        // coding, indices of the dynamic table (from 62), and both after table size updates (RFC
        // 7541 section 6). The blocks that are not `:status` alone have two fields, an index of the
        // static table, another name, or no field.
        let status = [0x48, 0x83, 0x68, 0x5f, 0xff];
        for (block, wanted) in [
            (&status[..], true),
            (&[0x08, 3, b'4', b'3', b'1'], true),
            (&[0xbe], true),
            (&[0xff, 0x00], true),
            (&[0xff, 0x80, 0x01], true),
            (&[0xff, 0x00, 0xbe], false),
            (&[&[0x3f, 0xe1, 0x1f, 0x20][..], &status].concat(), true),
            (&[0x3f, 0xe1, 0x1f, 0xbf], true),
            (&[&status[..], &[0xbf]].concat(), false),
            (&[0x89], false),
            (&[0x89, 0xbe], false),
            (&[0x3f, 0xe1], false),
            (&[], false),
            (&[0x0f, 1, 1], false),
        ] {
            assert_eq!(is_status_only(block), wanted, "{block:x?}");
        }
    }

    #[test]
    fn after_a_smaller_table_no_interim_response_comes_before_hypers_block() {
        let mut frames = frames();
        let settings = |frames: &mut H2OutputFrames, size: u32| {
            frames.table_updates().begin_settings();
            let bytes = [&[0, 3, 0, 0, 0, 9, 0, 1][..], &size.to_be_bytes()].concat();
            for piece in bytes.chunks(5) {
                frames.table_updates().parse_settings(piece);
            }
        };
        settings(&mut frames, 65_536);
        assert!(frames.allows_interims(), "the table got larger");
        settings(&mut frames, 4096);
        assert!(!frames.allows_interims(), "the table got smaller");
        frames.observe_output(&frame(HEADERS, END_HEADERS, 1));
        frames.observe_output(&frame(SETTINGS, ACK, 0));
        frames.observe_output(&frame(HEADERS, END_HEADERS, 1));
        assert!(!frames.allows_interims(), "only the first SETTINGS frame was acknowledged");
        frames.observe_output(&frame(SETTINGS, ACK, 0));
        assert!(!frames.allows_interims(), "hyper has not written the block with the update");
        frames.observe_output(&frame(HEADERS, END_HEADERS, 1));
        assert!(frames.allows_interims());
    }
}
