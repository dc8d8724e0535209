//! Finds the ends of WebSocket frames (RFC 6455 section 5.2), so that a close frame is not written
//! inside another frame.

use std::io::Cursor;

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode;

/// A server's close frame with status 1001, "going away" (RFC 6455 section 7.4.1).
pub const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];
/// A server's close frame with status 1008, "policy violation".
pub const POLICY_VIOLATION: [u8; 4] = [0x88, 0x02, 0x03, 0xf0];

/// The longest reason in a close frame, in bytes: a payload of 125, less the status (RFC 6455
/// section 5.5).
const MAX_REASON: usize = 123;

/// Returns a server's close frame with status 1008 and `reason`, which is cut to [`MAX_REASON`]
/// bytes.
pub fn policy_violation(reason: &str) -> Bytes {
    close_frame(1008, reason)
}

/// Returns a server's close frame with status 1002, "protocol error", and `reason`, which is cut to
/// [`MAX_REASON`] bytes.
pub fn protocol_error(reason: &str) -> Bytes {
    close_frame(1002, reason)
}

fn close_frame(status: u16, reason: &str) -> Bytes {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let length = u8::try_from(end + 2).unwrap_or(2);
    [&[0x88, length][..], &status.to_be_bytes(), &reason.as_bytes()[..end]].concat().into()
}

/// The longest frame header: two bytes, a length of eight bytes and a mask of four.
const MAX_HEADER: usize = 14;

/// Follows the frames of one direction of a WebSocket. It does not read their payload.
#[derive(Debug, Default)]
pub struct WebSocketFrames {
    /// The bytes of the current frame's payload that are still to come.
    payload: u64,
    /// The first bytes of an incomplete header.
    partial: [u8; MAX_HEADER],
    partial_len: usize,
    /// Whether the current frame is the last one of a message.
    ends_message: bool,
    /// Whether invalid bytes came, so that no further boundary can be found.
    is_lost: bool,
}

impl WebSocketFrames {
    /// Returns whether the bytes so far end with a complete frame, or there were none.
    pub fn is_at_boundary(&self) -> bool {
        self.payload == 0 && self.partial_len == 0 && !self.is_lost
    }

    /// Parses the next bytes; returns the position after the last complete frame that ends in them,
    /// if one does.
    pub fn parse_frames(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        let mut boundary = None;
        while at < bytes.len() && !self.is_lost {
            at += self.parse_step(&bytes[at..]);
            if self.is_at_boundary() {
                boundary = Some(at);
            }
        }
        boundary
    }

    /// Parses the rest of the payload, or a part of a header; returns how many bytes these are.
    fn parse_step(&mut self, bytes: &[u8]) -> usize {
        if self.payload == 0 {
            return self.parse_header(bytes);
        }
        let step = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
        self.payload -= step as u64;
        step
    }

    /// Parses the next bytes up to the end of a message; returns how many these are. `None` if the
    /// message does not end in `bytes`. Invalid bytes count as its end.
    pub fn parse_to_message_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() && !self.is_lost {
            at += self.parse_step(&bytes[at..]);
            if self.is_at_boundary() && self.ends_message {
                return Some(at);
            }
        }
        // Invalid bytes count as the end of the message, because no later end can be found.
        self.is_lost.then_some(at)
    }

    /// Parses a header, or the part of it that is in `bytes`; returns how many bytes these are.
    fn parse_header(&mut self, bytes: &[u8]) -> usize {
        let fresh = bytes.len().min(MAX_HEADER - self.partial_len);
        let mut head = self.partial;
        let have = self.partial_len + fresh;
        head[self.partial_len..have].copy_from_slice(&bytes[..fresh]);
        let mut cursor = Cursor::new(&head[..have]);
        match FrameHeader::parse(&mut cursor) {
            Ok(Some((header, length))) => {
                self.ends_message = header.is_final && matches!(header.opcode, OpCode::Data(_));
                let taken = usize::try_from(cursor.position()).unwrap_or(have) - self.partial_len;
                self.payload = length;
                self.partial_len = 0;
                taken
            }
            Ok(None) => {
                self.partial = head;
                self.partial_len = have;
                fresh
            }
            Err(_) => {
                self.is_lost = true;
                fresh
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x82];
        match length {
            0..126 => bytes.push(mask | u8::try_from(length).unwrap()),
            126..65_536 => {
                bytes.push(mask | 126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(std::iter::repeat_n(0, if masked { 4 } else { 0 }));
        bytes.extend(std::iter::repeat_n(0xff, length));
        bytes
    }

    #[test]
    fn bytes_that_are_no_frame_have_no_boundary() {
        let mut frames = WebSocketFrames::default();
        assert_eq!(frames.parse_frames(&[0x8f, 0x00, 0x82, 0x00]), None);
        assert!(!frames.is_at_boundary());
    }

    proptest! {
        #[test]
        fn boundaries_are_found_however_the_bytes_are_cut(
            sizes in proptest::collection::vec((prop_oneof![0_usize..200, 65_000_usize..66_000], any::<bool>()), 1..6),
            cuts in proptest::collection::vec(1_usize..70_000, 1..40),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            for (length, masked) in sizes {
                stream.extend(frame(length, masked));
                ends.push(stream.len());
            }
            let mut frames = WebSocketFrames::default();
            let (mut at, mut cut) = (0, cuts.iter().cycle());
            while at < stream.len() {
                let to = (at + cut.next().unwrap()).min(stream.len());
                let expected = ends.iter().rev().find(|end| **end > at && **end <= to).map(|end| end - at);
                prop_assert_eq!(frames.parse_frames(&stream[at..to]), expected);
                prop_assert_eq!(frames.is_at_boundary(), ends.contains(&to));
                at = to;
            }
            let mut frames = WebSocketFrames::default();
            let first = stream.iter().position(|byte| frames.parse_to_message_end(&[*byte]).is_some());
            prop_assert_eq!(first.map(|last| last + 1), Some(ends[1]));
        }
    }
}
