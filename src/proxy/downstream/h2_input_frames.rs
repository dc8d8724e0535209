//! Limits the HTTP/2 control frames of a client, and reports its header blocks, resets and
//! SETTINGS.
//!
//! A PING, a SETTINGS or a WINDOW_UPDATE costs the client next to nothing, while the server must
//! read it and often answer it. The `h2` crate limits how many of them it holds, but not how many a
//! client may send over time. So [`H2InputFrames`] counts all frames except HEADERS and DATA with
//! content, and calls them control frames. It reads only the heads of frames (RFC 9113 section
//! 4.1), and the payload of SETTINGS.
//!
//! Workaround: such floods are those of CVE-2019-9512 and CVE-2019-9515. Delete when `h2` has a
//! limit for control frames.

use std::time::{Duration, Instant};

use super::h2_frame_head::{
    ACK, CONTINUATION, DATA, END_HEADERS, FrameHead, HEADERS, HeadReader, PREFACE, RST_STREAM, SETTINGS,
};
use super::h2_output_frames::H2OutputFrames;

/// The number of control frames after which their rate is checked. More than this many in
/// [`INTERVAL`], on average since the last check, is a flood.
const MAX_CONTROL_FRAMES: u64 = 10_000;
/// The time in which a client may send [`MAX_CONTROL_FRAMES`].
const INTERVAL: Duration = Duration::from_secs(2);
/// One more control frame is allowed for this many bytes written to the client, since the client
/// acknowledges what it reads.
const BYTES_PER_FRAME: u64 = 256;

/// A GOAWAY frame with the code ENHANCE_YOUR_CALM. Its last stream is the highest number there is:
/// the gateway may have got any of the client's requests, so the client must not repeat them
/// automatically.
pub const ENHANCE_YOUR_CALM: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 11];

/// A GOAWAY frame with the code PROTOCOL_ERROR and the last stream 0.
pub const PROTOCOL_ERROR: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// The reason why a connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The client sent too many control frames.
    Flood,
    /// The first frame is not SETTINGS (RFC 9113 section 3.4), which `h2` does not check.
    NoSettings,
}

/// Follows the frames of one client.
#[derive(Debug)]
pub struct H2InputFrames {
    /// The bytes of the current frame, or of the preface, that are still to come.
    bytes_left: usize,
    head: HeadReader,
    /// The number of frames that have begun; not counted beyond 2.
    frames_begun: u8,
    /// The latest stream that the client began.
    last_stream: u32,
    /// The stream whose first header block has begun and not ended.
    unfinished_block: Option<u32>,
    /// Whether that header block ends with the current frame.
    is_last_of_block: bool,
    /// Whether the current frame is SETTINGS without ACK.
    is_in_settings: bool,
    /// Control frames received since `since`.
    control_frames: u64,
    /// Bytes written to the client since `since`.
    written: u64,
    since: Instant,
}

impl H2InputFrames {
    /// Creates the state at the beginning of a connection, before the client's preface.
    pub fn new() -> Self {
        Self {
            bytes_left: PREFACE.len(),
            head: HeadReader::default(),
            frames_begun: 0,
            last_stream: 0,
            unfinished_block: None,
            is_last_of_block: false,
            is_in_settings: false,
            control_frames: 0,
            written: 0,
            since: Instant::now(),
        }
    }

    /// Parses the next bytes from the client, which may end inside a frame, and counts the control
    /// frames in them. Reports header blocks, resets and SETTINGS to `frames`.
    ///
    /// # Errors
    /// The reason why the connection must be closed: the frames exceed the limit, or the first one
    /// is not SETTINGS.
    pub fn check_input(&mut self, mut bytes: &[u8], frames: &mut H2OutputFrames) -> Result<(), Violation> {
        loop {
            let step = self.bytes_left.min(bytes.len());
            self.bytes_left -= step;
            if self.is_in_settings {
                frames.table_updates().parse_settings(&bytes[..step]);
            }
            bytes = &bytes[step..];
            if self.bytes_left == 0
                && std::mem::take(&mut self.is_last_of_block)
                && let Some(stream) = self.unfinished_block.take()
            {
                frames.head_tracker().record_header_block(stream);
            }
            if bytes.is_empty() {
                return if self.control_frames >= MAX_CONTROL_FRAMES && self.check_flood_and_reset_count() {
                    Err(Violation::Flood)
                } else {
                    Ok(())
                };
            }
            if let Some(head) = self.head.take_head(&mut bytes) {
                self.begin_frame(head, frames);
                if self.frames_begun == 1 {
                    self.control_frames = 0;
                    if head.kind != SETTINGS {
                        return Err(Violation::NoSettings);
                    }
                }
            }
        }
    }

    /// Returns whether the preface and the first frame are complete. That frame must be SETTINGS
    /// (RFC 9113 section 3.4).
    pub fn has_begun(&self) -> bool {
        self.frames_begun > 1 || self.frames_begun == 1 && self.bytes_left == 0
    }

    /// Returns the stream whose first header block has begun and not ended; `None` if there is
    /// none.
    pub fn unfinished_block(&self) -> Option<u32> {
        self.unfinished_block
    }

    /// Begins the frame with this head: counts it if it is a control frame, and reports a reset, or
    /// a header block that continues in further frames, to `frames`.
    fn begin_frame(&mut self, FrameHead { length, kind, flags, stream }: FrameHead, frames: &mut H2OutputFrames) {
        self.frames_begun = self.frames_begun.saturating_add(1).min(2);
        self.bytes_left = length;
        self.is_in_settings = kind == SETTINGS && flags & ACK == 0;
        match kind {
            // A second header block on a stream holds trailers.
            HEADERS => {
                self.unfinished_block = (stream > self.last_stream).then_some(stream);
                self.last_stream = self.last_stream.max(stream);
                self.is_last_of_block = flags & END_HEADERS != 0;
                if let Some(stream) = self.unfinished_block.filter(|_| !self.is_last_of_block) {
                    frames.head_tracker().record_partial_header_block(stream);
                }
            }
            CONTINUATION => self.is_last_of_block = flags & END_HEADERS != 0,
            RST_STREAM => frames.head_tracker().close_stream(stream),
            SETTINGS if self.is_in_settings => frames.table_updates().begin_settings(),
            _ => {}
        }
        if !(kind == HEADERS || kind == DATA && self.bytes_left > 0) {
            self.control_frames += 1;
        }
    }

    /// Counts `bytes` bytes that were written to the client.
    pub fn count_written(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    /// Returns whether the control frames since `since` exceed the limit on average, and starts a
    /// new count of frames and written bytes.
    fn check_flood_and_reset_count(&mut self) -> bool {
        let unexplained = self.control_frames.saturating_sub(self.written / BYTES_PER_FRAME);
        let (now, since) = (Instant::now(), self.since);
        (self.control_frames, self.written, self.since) = (0, 0, now);
        unexplained as f64 * INTERVAL.as_secs_f64() > MAX_CONTROL_FRAMES as f64 * (now - since).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Protocol;
    use crate::proxy::downstream::head_tracker::HeadTracker;

    fn check_input(guard: &mut H2InputFrames, bytes: &[u8]) -> Result<(), Violation> {
        guard.check_input(bytes, &mut H2OutputFrames::new(HeadTracker::new(Protocol::H2)))
    }

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let [.., high, middle, low] = length.to_be_bytes();
        [&[high, middle, low, kind, 0, 0, 0, 0, 1][..], &vec![7; length]].concat()
    }

    /// Returns whether `bytes` exceed the limit if they are read in pieces of `size` bytes, all at
    /// the same moment, after `written` bytes were written to the client.
    fn exceeds(bytes: &[u8], size: usize, written: usize) -> bool {
        let mut guard = H2InputFrames::new();
        guard.count_written(written);
        assert_eq!(check_input(&mut guard, &[&PREFACE[..], &frame(SETTINGS, 0)].concat()), Ok(()));
        bytes.chunks(size).any(|piece| check_input(&mut guard, piece) == Err(Violation::Flood))
    }

    #[test]
    fn control_frames_are_counted_however_reads_cut_them() {
        let most = usize::try_from(MAX_CONTROL_FRAMES).unwrap() - 1;
        let work = [frame(HEADERS, 40), frame(DATA, 300), frame(DATA, 70_000)].concat();
        // PING, SETTINGS, WINDOW_UPDATE, DATA without content, PRIORITY, and a frame of an unknown
        // type.
        for piece in [frame(6, 8), frame(4, 0), frame(8, 4), frame(DATA, 0), frame(2, 5), frame(0x42, 17)] {
            let flood = piece.repeat(most);
            for size in [1, 3, 9, 17, 1000, usize::MAX] {
                assert!(!exceeds(&[&work[..], &flood, &work].concat(), size, 0));
                assert!(exceeds(&[&flood[..], &work, &piece].concat(), size, 0));
            }
        }
        assert!(!exceeds(&work.repeat(100), 16_384, 0));
    }

    #[test]
    fn acknowledgements_of_a_client_that_reads_much_and_slow_frames_are_allowed() {
        let many = usize::try_from(MAX_CONTROL_FRAMES).unwrap();
        let updates = frame(8, 4).repeat(many);
        assert!(!exceeds(&updates, 16_384, many * 256));
        assert!(exceeds(&updates, 16_384, many * 17));
        let mut guard = H2InputFrames { since: Instant::now() - INTERVAL, ..H2InputFrames::new() };
        let preface = [&PREFACE[..], &frame(SETTINGS, 0)].concat();
        assert_eq!(check_input(&mut guard, &[&preface[..], &updates].concat()), Ok(()), "not too many in INTERVAL");
        assert_eq!(check_input(&mut guard, &updates), Err(Violation::Flood), "too many in a moment");
    }

    #[test]
    fn a_connection_that_does_not_begin_with_settings_is_refused() {
        for kind in [DATA, HEADERS, 6, 8, 0x42] {
            let bytes = [&PREFACE[..], &frame(kind, 8)].concat();
            assert_eq!(check_input(&mut H2InputFrames::new(), &bytes), Err(Violation::NoSettings), "{kind}");
        }
    }
}
