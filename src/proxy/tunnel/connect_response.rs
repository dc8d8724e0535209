//! Finds the gateway's response to a `connect`, which says whether it was accepted.

use std::borrow::Cow;
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// The most bytes of a message that are examined. A longer response is recognized by its beginning,
/// which is the same in both versions of the gateway.
const MAX_EXAMINED: usize = 4096;
/// The event of the message by which the gateway asks for a `connect`.
const CHALLENGE: &[u8] = b"connect.challenge";
/// The longest frame header, in bytes.
const MAX_HEADER: usize = 14;

/// The id of a `connect` that was sent, and what to do when the gateway answers it; `None` if
/// nothing is pending.
#[derive(Default)]
pub struct PendingConnect(Mutex<Option<(String, Answered)>>);

/// Called with `true` when the `connect` is accepted, or `false` when it is refused. Dropped if
/// there is no answer.
type Answered = Box<dyn FnOnce(bool) + Send>;

impl PendingConnect {
    /// Sets the id of the `connect`, and what to do when it is answered.
    pub fn expect_answer(&self, id: &str, answered: impl FnOnce(bool) + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((id.into(), Box::new(answered)));
    }
}

/// What the gateway has sent so far on a WebSocket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GatewaySent {
    /// Whether the first message asks for a `connect`, as OpenClaw's gateway always does; `None`
    /// before that message.
    pub challenge: Option<bool>,
    /// Whether the gateway has accepted the `connect`; `None` before its answer.
    pub answer: Option<bool>,
    /// Whether the gateway has sent a close frame.
    pub closed: bool,
}

/// Follows the gateway's bytes: finds its first message, its answer to the `connect`, and its close
/// frame.
pub struct ConnectResponseWatcher {
    pending: Arc<PendingConnect>,
    sent: GatewaySent,
    /// Whether invalid bytes came, so that nothing more can be read.
    is_unreadable: bool,
    /// The first bytes of the current frame.
    frame_start: Vec<u8>,
    /// The bytes of the current frame that are still to come and not examined.
    skip_length: u64,
}

/// The fields that are read of a response.
#[derive(Deserialize)]
struct ResponseFields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    ok: bool,
}

impl ConnectResponseWatcher {
    /// Creates the state before the gateway's first byte. It finds the response to `pending`.
    pub fn new(pending: Arc<PendingConnect>) -> Self {
        Self { pending, sent: GatewaySent::default(), is_unreadable: false, frame_start: Vec::new(), skip_length: 0 }
    }

    /// Returns what the gateway has sent so far.
    pub fn gateway_sent(&self) -> GatewaySent {
        self.sent
    }

    /// Observes the next bytes of the gateway. Collects the first [`MAX_EXAMINED`] bytes of each
    /// frame's payload, examines them, and skips the rest.
    pub fn observe_bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_unreadable {
            if self.skip_length > 0 {
                let step = usize::try_from(self.skip_length).unwrap_or(usize::MAX).min(bytes.len());
                self.skip_length -= step as u64;
                bytes = &bytes[step..];
                continue;
            }
            let before = self.frame_start.len();
            let taken = (MAX_HEADER + MAX_EXAMINED - before).min(bytes.len());
            self.frame_start.extend_from_slice(&bytes[..taken]);
            let mut cursor = Cursor::new(&self.frame_start[..]);
            let (header, length) = match FrameHeader::parse(&mut cursor) {
                Ok(Some(parsed)) => parsed,
                Ok(None) if taken == bytes.len() => return,
                _ => {
                    self.is_unreadable = true;
                    return;
                }
            };
            let header_length = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
            let examined_end = header_length + usize::try_from(length).unwrap_or(usize::MAX).min(MAX_EXAMINED);
            if self.frame_start.len() < examined_end {
                return;
            }
            match header.opcode {
                OpCode::Data(Data::Text | Data::Binary) => {
                    let is_whole = header.is_final && (examined_end - header_length) as u64 == length;
                    self.examine_message(header_length, examined_end, is_whole);
                }
                OpCode::Control(Control::Close) => self.sent.closed = true,
                _ => {}
            }
            bytes = &bytes[examined_end - before.min(examined_end)..];
            self.skip_length = length - (examined_end - header_length) as u64;
            self.frame_start = Vec::new();
        }
    }

    /// Examines the beginning of a message, or the whole message if `is_whole`. If it answers the
    /// pending `connect`, does what [`PendingConnect::expect_answer`] was given. The message is in
    /// `frame_start`, between `from` and `to`.
    fn examine_message(&mut self, from: usize, to: usize, is_whole: bool) {
        let message = &self.frame_start[from..to];
        if self.sent.challenge.is_none() {
            self.sent.challenge = Some(message.windows(CHALLENGE.len()).any(|part| part == CHALLENGE));
        }
        let mut pending = self.pending.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((id, _)) = &*pending else { return };
        let begins =
            |ok: bool| message.starts_with(format!("{{\"type\":\"res\",\"id\":\"{id}\",\"ok\":{ok}").as_bytes());
        let answer = if is_whole {
            serde_json::from_slice::<ResponseFields>(message)
                .ok()
                .filter(|response| response.kind == "res" && response.id == *id)
                .map(|r| r.ok)
        } else {
            [true, false].into_iter().find(|ok| begins(*ok))
        };
        if let Some(ok) = answer
            && let Some((_, answered)) = pending.take()
        {
            self.sent.answer = Some(ok);
            answered(ok);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap();
        let mut frame = vec![first];
        if length < 126 {
            frame.push(u8::try_from(length).unwrap());
        } else {
            frame.push(126);
            frame.extend(length.to_be_bytes());
        }
        frame.extend(payload);
        frame
    }

    #[test]
    fn the_answer_to_the_connect_is_found_however_it_is_cut() {
        let challenge = frame(
            0x81,
            br#"{"type":"event","event":"connect.challenge","payload":{"nonce":"{\"type\":\"res\",\"id\":\"7\",\"ok\":true"}}"#,
        );
        let hello = |id: &str, ok: bool| {
            frame(
                0x81,
                format!(r#"{{"type":"res","id":"{id}","ok":{ok},"payload":{{"x":"{}"}}}}"#, "y".repeat(30_000))
                    .as_bytes(),
            )
        };
        let reordered = frame(0x81, br#"{ "ok": false, "id": "7", "type": "res" }"#);
        for (stream, answer) in [
            ([challenge.clone(), frame(0x89, b"ping"), hello("7", true)].concat(), Some(true)),
            ([challenge.clone(), hello("8", true), hello("7", true), hello("7", false)].concat(), Some(true)),
            ([challenge.clone(), hello("7", false), hello("7", true)].concat(), Some(false)),
            ([challenge.clone(), reordered, hello("7", true)].concat(), Some(false)),
            ([challenge, hello("8", true)].concat(), None),
        ] {
            for size in [1, 5, 1000, stream.len()] {
                let answers = Arc::new(Mutex::new(Vec::new()));
                let (pending, kept) = (Arc::new(PendingConnect::default()), Arc::clone(&answers));
                pending.expect_answer("7", move |ok| kept.lock().unwrap().push(ok));
                let mut response = ConnectResponseWatcher::new(pending);
                stream.chunks(size).for_each(|piece| response.observe_bytes(piece));
                assert_eq!(*answers.lock().unwrap(), Vec::from_iter(answer), "{size}");
                assert_eq!(response.gateway_sent(), GatewaySent { challenge: Some(true), answer, closed: false });
            }
        }
        // A gateway that speaks another protocol, and sends a close frame.
        let mut response = ConnectResponseWatcher::new(Arc::default());
        response.observe_bytes(&[frame(0x82, b"RFB 003.008\n"), frame(0x88, &[3, 0xf0])].concat());
        assert_eq!(response.gateway_sent(), GatewaySent { challenge: Some(false), answer: None, closed: true });
    }
}
