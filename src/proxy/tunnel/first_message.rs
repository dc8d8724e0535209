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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::tunnel::first_message_budget::FREE_BYTES;

    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

    /// Returns a masked frame. `first` is its first byte.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
            length @ 126..65_536 => {
                frame.push(0xfe);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                frame.push(0xff);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Outcome {
        Wait,
        Connect(Vec<u8>, Vec<u8>),
        Other(Vec<u8>),
        Close(Vec<u8>),
        Refuse(String),
        Malformed,
    }

    /// Returns the verdict on `stream` in pieces of `size`, with a check that refuses messages that
    /// contain `admin`.
    fn verdict(stream: &[u8], size: usize, objects_only: bool) -> Outcome {
        let check = |message: &[u8]| {
            if message.windows(5).any(|word| word == b"admin") {
                Checked::Refused("no".to_owned())
            } else if message.starts_with(b"{}") {
                Checked::Other
            } else {
                Checked::Connect(Box::pin(async {}))
            }
        };
        let mut first = FirstMessage::new(objects_only, FirstMessageBudget::new(1 << 20), Box::new(check));
        let fed = stream.chunks(size).map(|piece| match first.check_next_bytes(piece) {
            Verdict::Wait | Verdict::Control(_) => Outcome::Wait,
            Verdict::Malformed(_) => Outcome::Malformed,
            Verdict::Connect { message, rest, .. } => Outcome::Connect(message.to_vec(), rest.to_vec()),
            Verdict::Other(held) => Outcome::Other(held.to_vec()),
            Verdict::Close(held) => Outcome::Close(held.to_vec()),
            Verdict::Refuse(reason) => Outcome::Refuse(reason),
        });
        fed.into_iter().find(|verdict| *verdict != Outcome::Wait).unwrap_or(Outcome::Wait)
    }

    #[test]
    fn the_first_message_is_checked_however_it_is_cut() {
        let ping = frame(0x89, b"admin");
        let whole = frame(0x81, b"{\"a\":\"admin\"}");
        let split = [frame(0x01, b"{\"a\":\"ad"), ping.clone(), frame(0x00, b"mi"), frame(0x80, b"n\"}")].concat();
        let binary = frame(0x82, b" \n{\"a\":\"admin\"}");
        for stream in [&whole, &[ping.clone(), whole.clone()].concat(), &split, &binary] {
            for size in [1, 2, 3, 7, stream.len()] {
                for objects_only in [true, false] {
                    assert_eq!(verdict(stream, size, objects_only), Outcome::Refuse("no".into()), "{size} {stream:x?}");
                }
            }
        }
        let (fine, next) =
            ([frame(0x01, b"{\"a\":"), ping, frame(0x80, b"1}")].concat(), frame(0x81, b"{\"admin\":1}"));
        let both = [&fine[..], &next].concat();
        assert_eq!(verdict(&both, both.len(), false), Outcome::Connect(fine, next), "only the first message passes");
    }

    #[test]
    fn frames_that_could_hide_a_message_are_refused() {
        let unmasked = [&[0x81, 5][..], b"admin"].concat();
        // Frames with reserved bits, without a mask, in a wrong order, with an unknown opcode;
        // control frames that are fragmented or too long.
        let malformed = [
            frame(0xc1, b"{}"),
            frame(0xa1, b"{}"),
            unmasked,
            frame(0x80, b"{}"),
            [frame(0x01, b"{"), frame(0x81, b"{}")].concat(),
            frame(0x83, b"{}"),
            frame(0x09, b"{}"),
            frame(0x88, &[b'x'; 126]),
            [frame(0x89, b""), frame(0x89, &[b'x'; 126])].concat(),
        ];
        let too_long = [
            frame(0x81, &[b'{'; MAX_MESSAGE + 1]),
            [frame(0x01, &[b'{'; MAX_MESSAGE]), frame(0x80, b"{")].concat(),
            [frame(0x01, b"{"), frame(0x00, b"").repeat(MAX_HELD)].concat(),
            [frame(0x01, b"{"), frame(0x89, b"").repeat(MAX_HELD)].concat(),
        ];
        for objects_only in [true, false] {
            for stream in &malformed {
                assert_eq!(
                    verdict(stream, 4096, objects_only),
                    Outcome::Malformed,
                    "{:x?}",
                    &stream[..stream.len().min(16)]
                );
            }
            for stream in &too_long {
                assert!(matches!(verdict(stream, 4096, objects_only), Outcome::Refuse(_)), "{:x?}", &stream[..16]);
            }
        }
    }

    #[test]
    fn control_frames_before_the_message_pass_at_once() {
        let mut first = FirstMessage::new(true, FirstMessageBudget::new(1 << 20), Box::new(|_: &[u8]| Checked::Other));
        let (ping, pong) = (frame(0x89, b"{"), frame(0x8a, b""));
        let connect = frame(0x81, b"{}");
        let mut passed = Vec::new();
        for piece in [&ping[..3], &[&ping[3..], &pong, &connect[..4]].concat(), &pong[..0]] {
            if let Verdict::Control(frames) = first.check_next_bytes(piece) {
                passed.extend_from_slice(&frames);
            }
        }
        assert_eq!(passed, [&ping[..], &pong].concat());
        let Verdict::Other(message) = first.check_next_bytes(&connect[4..]) else { panic!("the message is held") };
        assert_eq!(message, connect);
    }

    #[test]
    fn the_bytes_of_all_clients_beyond_their_free_bytes_are_limited() {
        let budget = FirstMessageBudget::new(2 * 100);
        let client = || FirstMessage::new(false, Arc::clone(&budget), Box::new(|_: &[u8]| Checked::Other));
        let begun = &frame(0x81, &[b'{'; 20_000])[..FREE_BYTES];
        let mut clients = [client(), client(), client()];
        for client in &mut clients {
            assert!(matches!(client.check_next_bytes(begun), Verdict::Wait));
        }
        assert!(matches!(clients[0].check_next_bytes(&[0; 60]), Verdict::Wait));
        assert!(matches!(clients[1].check_next_bytes(&[0; 60]), Verdict::Refuse(_)));
        assert!(matches!(clients[1].check_next_bytes(&[0; 40]), Verdict::Wait));
        drop(clients);
        assert!(matches!(client().check_next_bytes(&[begun, &[0; 100]].concat()), Verdict::Wait));
    }

    #[test]
    fn other_protocols_pass_at_once_if_only_objects_are_checked() {
        let start = &frame(0x82, &[7; 1_000_000])[..100];
        assert_eq!(verdict(start, 100, true), Outcome::Other(start.to_vec()));
        assert!(matches!(verdict(start, 100, false), Outcome::Refuse(_)));
        let close = frame(0x88, &[3, 0xe8]);
        for size in [1, 100] {
            assert_eq!(verdict(&[&close[..], b"more"].concat(), size, false), Outcome::Close(close.clone()));
        }
    }
}
