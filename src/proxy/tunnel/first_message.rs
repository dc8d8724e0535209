//! Holds back what a client sends on a WebSocket until its first message is whole, and has it checked.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// The largest first message, in bytes. OpenClaw 2026.9 takes no larger one before authentication.
const MAX_MESSAGE: usize = 64 * 1024;
/// The most bytes that are held back: a message with the headers of its fragments, and control frames before it.
const MAX_HELD: usize = MAX_MESSAGE + 4 * 1024;

/// How many of these bytes a client may always have.
const FREE_BYTES: usize = 8 * 1024;

/// The bytes beyond the free ones that may be held for all clients together.
#[derive(Debug)]
pub struct FirstMessageBudget {
    limit: usize,
    used: AtomicUsize,
}

impl FirstMessageBudget {
    /// Allows half of `buffered` bytes.
    pub fn new(buffered: usize) -> Arc<Self> {
        Arc::new(Self { limit: buffered / 2, used: AtomicUsize::new(0) })
    }
}

/// A client's part of the budget, returned when dropped.
pub struct FirstMessageLease {
    budget: Arc<FirstMessageBudget>,
    bytes: usize,
}

impl FirstMessageLease {
    /// Extends the lease so that `held` bytes may be held; returns whether that is possible.
    fn extend(&mut self, held: usize) -> bool {
        let more = held.saturating_sub(FREE_BYTES).saturating_sub(self.bytes);
        let fits = |used: usize| used.checked_add(more).filter(|used| *used <= self.budget.limit);
        if more > 0 && self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return false;
        }
        self.bytes += more;
        true
    }
}

impl Drop for FirstMessageLease {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Checks a whole first message.
pub type CheckMessage = Box<dyn FnOnce(&[u8]) -> Checked + Send>;

/// What a first message is.
pub enum Checked {
    /// A `connect`, which passes once the future completes; nothing follows it until the gateway has answered it.
    Connect(BoxFuture<'static, ()>),
    /// A message that a gateway accepts only where it speaks another protocol.
    Other,
    /// One for which the WebSocket must close, for this reason.
    Refused(String),
}

/// What becomes of the bytes that were held back.
pub enum Verdict {
    /// More is needed.
    Wait,
    /// A whole `connect`, with the control frames before it, and what was read after it.
    Connect {
        /// Completes when the message may pass.
        ready: BoxFuture<'static, ()>,
        /// The message.
        message: Bytes,
        /// What follows it.
        rest: Bytes,
    },
    /// The beginning of a message of another protocol, or more than that.
    Other(Bytes),
    /// A close frame, after which nothing more counts.
    Close(Bytes),
    /// Whole control frames before the message.
    Control(Bytes),
    /// The WebSocket must close, for this reason.
    Refuse(String),
    /// The client breaks the WebSocket protocol, in this way. What it sent is not passed on: the
    /// gateway might read it differently.
    Malformed(String),
}

/// Follows the frames of a client (RFC 6455 section 5) to the end of its first message.
pub struct FirstMessage {
    held: Vec<u8>,
    /// The part of the budget for `held`.
    lease: Option<FirstMessageLease>,
    /// How much of `held` was parsed.
    parsed: usize,
    /// The length of the message so far.
    length: usize,
    /// How much of the current frame's payload was found to be white space.
    leading_blanks: usize,
    /// Whether the message begins like a JSON object.
    is_object: bool,
    /// Whether a fragment of the message was read already.
    has_begun: bool,
    /// Whether only JSON objects matter, so that another message passes as soon as its first byte is known.
    objects_only: bool,
    check: Option<CheckMessage>,
}

impl FirstMessage {
    /// Has `check` look at the first message; with `objects_only`, only if it begins like a JSON object.
    pub fn new(objects_only: bool, budget: Arc<FirstMessageBudget>, check: CheckMessage) -> Self {
        Self {
            held: Vec::new(),
            lease: Some(FirstMessageLease { budget, bytes: 0 }),
            parsed: 0,
            length: 0,
            leading_blanks: 0,
            is_object: false,
            has_begun: false,
            objects_only,
            check: Some(check),
        }
    }

    /// Returns whether messages of other protocols may pass.
    pub fn allows_other_protocols(&self) -> bool {
        self.objects_only
    }

    /// Returns how many more bytes may be held back.
    pub fn room(&self) -> usize {
        MAX_HELD.saturating_sub(self.held.len())
    }

    /// Returns the part of the budget, for as long as bytes are held that were read together with the message.
    pub fn take_lease(&mut self) -> Option<FirstMessageLease> {
        self.lease.take()
    }

    /// Returns whether a part of a frame or message is held back.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Returns the bytes that were held back, and forgets them.
    pub fn take_held(&mut self) -> Bytes {
        std::mem::take(&mut self.held).into()
    }

    /// Takes the next bytes of the client.
    pub fn feed(&mut self, bytes: &[u8]) -> Verdict {
        if self.lease.as_mut().is_none_or(|lease| !lease.extend(self.held.len() + bytes.len())) {
            return refuse("too many long first messages at once");
        }
        self.held.extend_from_slice(bytes);
        loop {
            match self.parse_frame() {
                Parsed::Verdict(verdict) => return verdict,
                Parsed::Incomplete if self.held.len() >= MAX_HELD => return refuse("first message is too long"),
                Parsed::Incomplete if self.parsed > 0 && !self.has_begun => {
                    let rest = self.held.split_off(std::mem::take(&mut self.parsed));
                    return Verdict::Control(std::mem::replace(&mut self.held, rest).into());
                }
                Parsed::Incomplete => return Verdict::Wait,
                Parsed::Next if self.parsed > MAX_HELD => return refuse("first message is too long"),
                Parsed::Next => {}
            }
        }
    }

    /// Parses one frame.
    fn parse_frame(&mut self) -> Parsed {
        let rest = &self.held[self.parsed..];
        let mut cursor = Cursor::new(rest);
        let (header, length) = match FrameHeader::parse(&mut cursor) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Parsed::Incomplete,
            Err(_) => return Parsed::Verdict(malformed("not a WebSocket frame")),
        };
        let start = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        // Extensions are not negotiated, and clients mask what they send.
        let Some(mask) = header.mask.filter(|_| !header.rsv1 && !header.rsv2 && !header.rsv3) else {
            return Parsed::Verdict(malformed("frame is compressed or not masked"));
        };
        let (is_data, is_close) = match header.opcode {
            OpCode::Data(Data::Text | Data::Binary) if !self.has_begun => (true, false),
            OpCode::Data(Data::Continue) if self.has_begun => (true, false),
            OpCode::Control(Control::Close) if header.is_final && length <= 125 => (false, true),
            OpCode::Control(Control::Ping | Control::Pong) if header.is_final && length <= 125 => (false, false),
            _ => return Parsed::Verdict(malformed("unexpected WebSocket frame")),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let available = &rest[start.min(rest.len())..];
        let available = &available[..length.min(available.len())];
        if is_data && !self.is_object {
            let unmasked = available.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
            match unmasked
                .enumerate()
                .skip(self.leading_blanks)
                .find(|(_, byte)| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
            {
                Some((_, b'{')) => self.is_object = true,
                Some(_) if self.objects_only => {
                    return Parsed::Verdict(Verdict::Other(std::mem::take(&mut self.held).into()));
                }
                _ => self.leading_blanks = available.len(),
            }
        }
        if is_data && length > MAX_MESSAGE - self.length {
            return Parsed::Verdict(refuse("first message is too long"));
        }
        if available.len() < length {
            return Parsed::Incomplete;
        }
        self.parsed += start + length;
        if is_close {
            self.held.truncate(self.parsed);
            return Parsed::Verdict(Verdict::Close(std::mem::take(&mut self.held).into()));
        }
        if is_data {
            self.has_begun = true;
            self.length += length;
            self.leading_blanks = 0;
        }
        if !is_data || !header.is_final {
            return Parsed::Next;
        }
        let Some(check) = self.check.take() else { return Parsed::Verdict(refuse("message after the first")) };
        let checked = check(&payload(&self.held[..self.parsed], self.length));
        let mut held = Bytes::from(std::mem::take(&mut self.held));
        Parsed::Verdict(match checked {
            Checked::Connect(ready) => {
                let rest = held.split_off(self.parsed);
                Verdict::Connect { ready, message: held, rest }
            }
            Checked::Other => Verdict::Other(held),
            Checked::Refused(reason) => Verdict::Refuse(reason),
        })
    }
}

/// Returns the payload of `length` bytes of the data frames in `frames`, all of which are whole.
fn payload(frames: &[u8], length: usize) -> Vec<u8> {
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

/// What the next frame is.
enum Parsed {
    /// It is not whole yet.
    Incomplete,
    /// It is whole and decides nothing: the one after it must be parsed.
    Next,
    /// It decides.
    Verdict(Verdict),
}

fn refuse(reason: &str) -> Verdict {
    Verdict::Refuse(format!("loopgate: {reason}"))
}

fn malformed(reason: &str) -> Verdict {
    Verdict::Malformed(format!("loopgate: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

    /// A masked frame; `first` is its first byte.
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

    /// The verdict on `stream`, fed in pieces of `size`, with a check that refuses whatever contains `admin`.
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
        let fed = stream.chunks(size).map(|piece| match first.feed(piece) {
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
    fn what_could_hide_a_message_is_refused() {
        let unmasked = [&[0x81, 5][..], b"admin"].concat();
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
            if let Verdict::Control(frames) = first.feed(piece) {
                passed.extend_from_slice(&frames);
            }
        }
        assert_eq!(passed, [&ping[..], &pong].concat());
        let Verdict::Other(message) = first.feed(&connect[4..]) else { panic!("the message") };
        assert_eq!(message, connect);
    }

    #[test]
    fn what_all_clients_hold_beyond_their_free_bytes_has_a_limit() {
        let budget = FirstMessageBudget::new(2 * 100);
        let client = || FirstMessage::new(false, Arc::clone(&budget), Box::new(|_: &[u8]| Checked::Other));
        let begun = &frame(0x81, &[b'{'; 20_000])[..FREE_BYTES];
        let mut clients = [client(), client(), client()];
        for client in &mut clients {
            assert!(matches!(client.feed(begun), Verdict::Wait));
        }
        assert!(matches!(clients[0].feed(&[0; 60]), Verdict::Wait));
        assert!(matches!(clients[1].feed(&[0; 60]), Verdict::Refuse(_)));
        assert!(matches!(clients[1].feed(&[0; 40]), Verdict::Wait));
        drop(clients);
        assert!(matches!(client().feed(&[begun, &[0; 100]].concat()), Verdict::Wait));
    }

    #[test]
    fn other_protocols_pass_at_once_where_only_objects_matter() {
        let start = &frame(0x82, &[7; 1_000_000])[..100];
        assert_eq!(verdict(start, 100, true), Outcome::Other(start.to_vec()));
        assert!(matches!(verdict(start, 100, false), Outcome::Refuse(_)));
        let close = frame(0x88, &[3, 0xe8]);
        for size in [1, 100] {
            assert_eq!(verdict(&[&close[..], b"more"].concat(), size, false), Outcome::Close(close.clone()));
        }
    }
}
