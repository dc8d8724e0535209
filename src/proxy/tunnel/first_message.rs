//! Holds back what a client sends on a WebSocket until its first message is whole, and has it checked.

use std::io::Cursor;

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// The largest first message, in bytes. OpenClaw 2026.9 takes no larger one before authentication.
const MAX_MESSAGE: usize = 64 * 1024;
/// The most bytes that are held back: a message with the headers of its fragments, and control frames before it.
const MAX_HELD: usize = 2 * MAX_MESSAGE;

/// Checks a whole first message; `Err` has the reason for which the WebSocket must close.
pub type CheckMessage = Box<dyn FnOnce(&[u8]) -> Result<(), String> + Send>;

/// What becomes of the bytes that were held back.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More is needed.
    Wait,
    /// These bytes go to the gateway, and all that follow.
    Pass(Bytes),
    /// The WebSocket must close, for this reason.
    Refuse(String),
}

/// Follows the frames of a client (RFC 6455 section 5) to the end of its first message.
pub struct FirstMessage {
    held: Vec<u8>,
    /// How much of `held` was parsed.
    parsed: usize,
    message: Vec<u8>,
    /// Whether a fragment of the message was read already.
    begun: bool,
    /// Whether only JSON objects matter, so that another message passes as soon as its first byte is known.
    objects_only: bool,
    check: Option<CheckMessage>,
}

impl FirstMessage {
    /// Has `check` look at the first message; with `objects_only`, only if it begins like a JSON object.
    pub fn new(objects_only: bool, check: CheckMessage) -> Self {
        Self { held: Vec::new(), parsed: 0, message: Vec::new(), begun: false, objects_only, check: Some(check) }
    }

    /// Takes the next bytes of the client.
    pub fn feed(&mut self, bytes: &[u8]) -> Verdict {
        self.held.extend_from_slice(bytes);
        loop {
            match self.frame() {
                Ok(Some(verdict)) => return verdict,
                Ok(None) if self.held.len() - self.parsed > MAX_HELD || self.parsed > MAX_HELD => {
                    return refuse("first message is too long");
                }
                Ok(None) => return Verdict::Wait,
                Err(Next) => {}
            }
        }
    }

    /// Parses one frame; `Ok(None)` if it is not whole yet, `Err(Next)` if the next one must be parsed.
    fn frame(&mut self) -> Result<Option<Verdict>, Next> {
        let rest = &self.held[self.parsed..];
        let mut cursor = Cursor::new(rest);
        let (header, length) = match FrameHeader::parse(&mut cursor) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Ok(None),
            Err(_) => return Ok(Some(refuse("not a WebSocket frame"))),
        };
        let start = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        // Extensions are not negotiated, and clients mask what they send.
        let Some(mask) = header.mask.filter(|_| !header.rsv1 && !header.rsv2 && !header.rsv3) else {
            return Ok(Some(refuse("frame is compressed or not masked")));
        };
        let is_data = match header.opcode {
            OpCode::Data(Data::Text | Data::Binary) if !self.begun => true,
            OpCode::Data(Data::Continue) if self.begun => true,
            OpCode::Control(Control::Close) => return Ok(Some(self.pass())),
            OpCode::Control(Control::Ping | Control::Pong) if header.is_final && length <= 125 => false,
            _ => return Ok(Some(refuse("unexpected WebSocket frame"))),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let available = &rest[start.min(rest.len())..];
        if is_data && self.objects_only && !self.begins_object(available, length, mask) {
            return Ok(Some(self.pass()));
        }
        if length > MAX_MESSAGE - self.message.len().min(MAX_MESSAGE) {
            return Ok(Some(refuse("first message is too long")));
        }
        let Some(payload) = available.get(..length) else { return Ok(None) };
        if is_data {
            self.message.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
            self.begun = true;
        }
        self.parsed += start + length;
        if !is_data || !header.is_final {
            return Err(Next);
        }
        let check = self.check.take().map_or(Ok(()), |check| check(&self.message));
        Ok(Some(match check {
            Ok(()) => self.pass(),
            Err(reason) => Verdict::Refuse(reason),
        }))
    }

    /// Returns whether the message may still turn out to be a JSON object, with what is `available` of a frame's payload of `length` bytes.
    fn begins_object(&self, available: &[u8], length: usize, mask: [u8; 4]) -> bool {
        let payload = available.iter().take(length).zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        self.message
            .iter()
            .copied()
            .chain(payload)
            .find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
            .is_none_or(|byte| byte == b'{')
    }

    fn pass(&mut self) -> Verdict {
        Verdict::Pass(std::mem::take(&mut self.held).into())
    }
}

/// The next frame must be parsed.
struct Next;

fn refuse(reason: &str) -> Verdict {
    Verdict::Refuse(format!("loopgate: {reason}"))
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

    /// The verdict on `stream`, fed in pieces of `size`, with a check that refuses whatever contains `admin`.
    fn verdict(stream: &[u8], size: usize, objects_only: bool) -> Verdict {
        let check = |message: &[u8]| if message.windows(5).any(|word| word == b"admin") { Err("no".to_owned()) } else { Ok(()) };
        let mut first = FirstMessage::new(objects_only, Box::new(check));
        let mut fed = stream.chunks(size).map(|piece| first.feed(piece));
        fed.find(|verdict| *verdict != Verdict::Wait).unwrap_or(Verdict::Wait)
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
                    assert_eq!(verdict(stream, size, objects_only), Verdict::Refuse("no".into()), "{size} {stream:x?}");
                }
            }
        }
        let fine = [frame(0x01, b"{\"a\":"), ping, frame(0x80, b"1}"), frame(0x81, b"{\"admin\":1}")].concat();
        assert_eq!(verdict(&fine, fine.len(), false), Verdict::Pass(fine.clone().into()));
    }

    #[test]
    fn what_could_hide_a_message_is_refused() {
        let unmasked = [&[0x81, 5][..], b"admin"].concat();
        for stream in [
            frame(0xc1, b"{}"),
            frame(0xa1, b"{}"),
            unmasked,
            frame(0x80, b"{}"),
            [frame(0x01, b"{"), frame(0x81, b"{}")].concat(),
            frame(0x83, b"{}"),
            frame(0x09, b"{}"),
            frame(0x81, &[b'{'; MAX_MESSAGE + 1]),
            [frame(0x01, &[b'{'; MAX_MESSAGE]), frame(0x80, b"{")].concat(),
            frame(0x89, b"").repeat(MAX_HELD),
            [frame(0x01, b"{"), frame(0x00, b"").repeat(MAX_HELD)].concat(),
        ] {
            for objects_only in [true, false] {
                assert!(matches!(verdict(&stream, 4096, objects_only), Verdict::Refuse(_)), "{:x?}", &stream[..stream.len().min(16)]);
            }
        }
    }

    #[test]
    fn other_protocols_pass_at_once_where_only_objects_matter() {
        let start = &frame(0x82, &[7; 1_000_000])[..100];
        assert_eq!(verdict(start, 100, true), Verdict::Pass(start.to_vec().into()));
        assert!(matches!(verdict(start, 100, false), Verdict::Refuse(_)));
        let close = frame(0x88, &[3, 0xe8]);
        assert_eq!(verdict(&close, 100, false), Verdict::Pass(close.clone().into()));
    }
}
