//! Holds back what a client sends on a WebSocket until its first message is complete, and checks
//! that message.

use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::first_message_budget::{FirstMessageBudget, FirstMessageLease};

#[cfg(test)]
mod tests;

/// The largest first message, in bytes. OpenClaw 2026.9 accepts no larger one before
/// authentication.
const MAX_MESSAGE: usize = 64 * 1024;
/// The most bytes that are held back for a client: a message, the headers of its frames, and
/// control frames before it.
const MAX_HELD: usize = MAX_MESSAGE + 4 * 1024;

/// Checks a complete first message.
pub type CheckMessage = Box<dyn FnOnce(&[u8]) -> Checked + Send>;

/// The result of the check of a first message.
pub enum Checked {
    /// The message is a `connect`. The `connect` passes once the future completes, and later bytes
    /// pass once the gateway has accepted the `connect`.
    Connect(BoxFuture<'static, ()>),
    /// The message is not a `connect`. The gateway accepts it only if it speaks another protocol.
    Other,
    /// Close the WebSocket, for this reason.
    Refused(String),
}

/// What to do with the bytes that were held back.
pub enum Verdict {
    /// Hold the bytes back until more have come.
    Wait,
    /// A complete `connect` has come.
    Connect {
        /// Completes when the message may pass.
        ready: BoxFuture<'static, ()>,
        /// The frames of the message, and the control frames before it.
        message: Bytes,
        /// The bytes that were read after the message.
        rest: Bytes,
    },
    /// Pass the bytes: they begin with a message that is not a `connect`, or with a part of such a
    /// message.
    Other(Bytes),
    /// Pass the bytes: they end with a close frame. Discard all later bytes.
    Close(Bytes),
    /// Pass these bytes: complete control frames before the message.
    Control(Bytes),
    /// Close the WebSocket, for this reason.
    Refuse(String),
    /// Close the WebSocket, because the client violates the WebSocket protocol in this way. The
    /// gateway might read the bytes differently, so they don't pass.
    Malformed(String),
}

/// Follows the frames of a client (RFC 6455 section 5) to the end of its first message.
pub struct FirstMessage {
    held_bytes: Vec<u8>,
    /// The memory of `held_bytes`.
    lease: Option<FirstMessageLease>,
    /// The number of bytes of `held_bytes` that were parsed.
    parsed_length: usize,
    /// The length of the message so far, in bytes.
    length: usize,
    /// How much of the current frame's payload was found to be white space.
    leading_blanks: usize,
    /// Whether the message begins like a JSON object.
    is_object: bool,
    /// Whether a frame of the message was read already.
    has_begun: bool,
    /// Whether only JSON objects are checked. Any other message then passes as soon as its first
    /// byte is known.
    objects_only: bool,
    check: Option<CheckMessage>,
}

impl FirstMessage {
    /// Creates the state before the first byte. `check` checks the first message; with
    /// `objects_only`, only if the message begins like a JSON object.
    pub fn new(objects_only: bool, budget: Arc<FirstMessageBudget>, check: CheckMessage) -> Self {
        Self {
            held_bytes: Vec::new(),
            lease: Some(FirstMessageLease::new(budget)),
            parsed_length: 0,
            length: 0,
            leading_blanks: 0,
            is_object: false,
            has_begun: false,
            objects_only,
            check: Some(check),
        }
    }

    /// Returns whether the client may speak another protocol with the gateway.
    pub fn allows_other_protocols(&self) -> bool {
        self.objects_only
    }

    /// Returns how many more bytes may be held back.
    pub fn remaining_capacity(&self) -> usize {
        MAX_HELD.saturating_sub(self.held_bytes.len())
    }

    /// Takes the lease. The caller keeps it while it holds bytes that were read together with the
    /// message.
    pub fn take_lease(&mut self) -> Option<FirstMessageLease> {
        self.lease.take()
    }

    /// Returns whether bytes are held back.
    pub fn is_holding(&self) -> bool {
        !self.held_bytes.is_empty()
    }

    /// Takes the bytes that were held back.
    pub fn take_held(&mut self) -> Bytes {
        std::mem::take(&mut self.held_bytes).into()
    }

    /// Takes the next bytes of the client; returns what to do with all that are held back.
    pub fn check_next_bytes(&mut self, bytes: &[u8]) -> Verdict {
        if self.lease.as_mut().is_none_or(|lease| !lease.try_extend(self.held_bytes.len() + bytes.len())) {
            return refused_verdict("too many long first messages at once; try again");
        }
        self.held_bytes.extend_from_slice(bytes);
        loop {
            match self.parse_frame() {
                ParsedFrame::Verdict(verdict) => return verdict,
                ParsedFrame::Incomplete if self.held_bytes.len() >= MAX_HELD => {
                    return refused_verdict("first message is too long");
                }
                ParsedFrame::Incomplete if self.parsed_length > 0 && !self.has_begun => {
                    let unparsed = self.held_bytes.split_off(std::mem::take(&mut self.parsed_length));
                    return Verdict::Control(std::mem::replace(&mut self.held_bytes, unparsed).into());
                }
                ParsedFrame::Incomplete => return Verdict::Wait,
                ParsedFrame::Next if self.parsed_length > MAX_HELD => {
                    return refused_verdict("first message is too long");
                }
                ParsedFrame::Next => {}
            }
        }
    }

    /// Parses the next frame of `held_bytes`, and checks the message if the frame ends it.
    fn parse_frame(&mut self) -> ParsedFrame {
        let mut cursor = Cursor::new(&self.held_bytes[self.parsed_length..]);
        let (header, length) = match FrameHeader::parse(&mut cursor) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return ParsedFrame::Incomplete,
            Err(_) => return ParsedFrame::Verdict(malformed_verdict("not a WebSocket frame")),
        };
        let header_length = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        // No extension is negotiated, so the reserved bits must be 0, and clients must mask their
        // frames.
        let Some(mask) = header.mask.filter(|_| !header.rsv1 && !header.rsv2 && !header.rsv3) else {
            return ParsedFrame::Verdict(malformed_verdict("frame is compressed or not masked"));
        };
        let Some(kind) = FrameKind::of(&header, length, self.has_begun) else {
            return ParsedFrame::Verdict(malformed_verdict("unexpected WebSocket frame"));
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let payload_start = self.parsed_length.saturating_add(header_length).min(self.held_bytes.len());
        let available = payload_start..payload_start.saturating_add(length).min(self.held_bytes.len());
        let is_complete = available.len() == length;
        if kind == FrameKind::Message {
            if self.is_exempt(available, mask) {
                return ParsedFrame::Verdict(Verdict::Other(std::mem::take(&mut self.held_bytes).into()));
            }
            if length > MAX_MESSAGE - self.length {
                return ParsedFrame::Verdict(refused_verdict("first message is too long"));
            }
        }
        if !is_complete {
            return ParsedFrame::Incomplete;
        }
        self.parsed_length += header_length + length;
        match kind {
            FrameKind::PingOrPong => ParsedFrame::Next,
            FrameKind::Close => {
                self.held_bytes.truncate(self.parsed_length);
                ParsedFrame::Verdict(Verdict::Close(std::mem::take(&mut self.held_bytes).into()))
            }
            FrameKind::Message => {
                self.has_begun = true;
                self.length += length;
                self.leading_blanks = 0;
                if header.is_final { ParsedFrame::Verdict(self.check_message()) } else { ParsedFrame::Next }
            }
        }
    }

    /// Returns whether the message is not checked: only JSON objects are, and it begins otherwise.
    /// Remembers what it has found, so that it examines each byte once.
    /// `payload` is the part of the current frame's payload that has come, as a range of
    /// `held_bytes`.
    fn is_exempt(&mut self, payload: Range<usize>, mask: [u8; 4]) -> bool {
        if self.is_object {
            return false;
        }
        let payload = &self.held_bytes[payload];
        let unmasked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        let first = unmasked.skip(self.leading_blanks).find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
        match first {
            Some(b'{') => self.is_object = true,
            Some(_) if self.objects_only => return true,
            _ => self.leading_blanks = payload.len(),
        }
        false
    }

    /// Checks the message, which is complete.
    fn check_message(&mut self) -> Verdict {
        let Some(check) = self.check.take() else {
            return refused_verdict("message after the first");
        };
        let checked = check(&unmasked_payload(&self.held_bytes[..self.parsed_length], self.length));
        let mut held = Bytes::from(std::mem::take(&mut self.held_bytes));
        match checked {
            Checked::Connect(ready) => {
                let rest = held.split_off(self.parsed_length);
                Verdict::Connect { ready, message: held, rest }
            }
            Checked::Other => Verdict::Other(held),
            Checked::Refused(reason) => Verdict::Refuse(reason),
        }
    }
}

/// The kind of a frame that may come before the end of the first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameKind {
    /// The first or a further frame of the message.
    Message,
    Close,
    PingOrPong,
}

impl FrameKind {
    /// Returns the kind of the frame with `header` and a payload of `length` bytes; `None` if the
    /// frame is not allowed here. `has_begun` is whether a frame of the message was read already.
    fn of(header: &FrameHeader, length: u64, has_begun: bool) -> Option<Self> {
        let is_valid_control = header.is_final && length <= 125;
        match header.opcode {
            OpCode::Data(Data::Text | Data::Binary) if !has_begun => Some(Self::Message),
            OpCode::Data(Data::Continue) if has_begun => Some(Self::Message),
            OpCode::Control(Control::Close) if is_valid_control => Some(Self::Close),
            OpCode::Control(Control::Ping | Control::Pong) if is_valid_control => Some(Self::PingOrPong),
            _ => None,
        }
    }
}

/// Returns the unmasked payload of the data frames in `frames`, which are complete. `length` is its
/// length in bytes.
fn unmasked_payload(frames: &[u8], length: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(length);
    let mut cursor = Cursor::new(frames);
    while let Ok(Some((header, length))) = FrameHeader::parse(&mut cursor) {
        let start = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        let (Some(payload), Some(mask)) = (frames.get(start..end), header.mask) else { break };
        if matches!(header.opcode, OpCode::Data(_)) {
            message.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        }
        cursor.set_position(end as u64);
    }
    message
}

/// The result of parsing a frame.
enum ParsedFrame {
    /// The frame is not complete yet.
    Incomplete,
    /// The frame is complete and decides nothing: the next one must be parsed.
    Next,
    /// The frame decides what to do.
    Verdict(Verdict),
}

fn refused_verdict(reason: &str) -> Verdict {
    Verdict::Refuse(format!("loopgate: {reason}"))
}

fn malformed_verdict(reason: &str) -> Verdict {
    Verdict::Malformed(format!("loopgate: {reason}"))
}
