//! Waits for the gateway's response to a `connect`, to learn whether it was accepted.

use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// How much of a message is looked at, in bytes: the beginning of a response, as both versions of the gateway write it.
const LOOK: usize = 512;
/// How much of a frame's header may come before its payload.
const MAX_HEADER: usize = 14;

/// A `connect` that was sent, and what to do once it is accepted.
#[derive(Default)]
pub struct PendingConnect(Mutex<Option<(String, Accepted)>>);

/// What to do once a `connect` is accepted.
type Accepted = Box<dyn FnOnce() + Send>;

impl PendingConnect {
    /// Sets the request's id, and what to do once it is accepted.
    pub fn set(&self, id: &str, accepted: impl FnOnce() + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((id.into(), Box::new(accepted)));
    }
}

/// Follows what the gateway sends until it answers the `connect`.
pub struct ConnectResponse {
    pending: Arc<PendingConnect>,
    /// The beginning of the current frame.
    start: Vec<u8>,
    /// Bytes of the current frame that are still to come, beyond `start`.
    skip: u64,
}

impl ConnectResponse {
    /// Waits for the response to `pending`.
    pub fn new(pending: Arc<PendingConnect>) -> Self {
        Self { pending, start: Vec::new(), skip: 0 }
    }

    /// Takes the next bytes of the gateway; returns whether no more are needed.
    pub fn feed(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let step = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= step as u64;
                bytes = &bytes[step..];
                continue;
            }
            let before = self.start.len();
            let taken = (MAX_HEADER + LOOK - before).min(bytes.len());
            self.start.extend_from_slice(&bytes[..taken]);
            let mut cursor = Cursor::new(&self.start[..]);
            let (header, length) = match FrameHeader::parse(&mut cursor) {
                Ok(Some(parsed)) => parsed,
                Ok(None) if taken == bytes.len() => return false,
                _ => return true,
            };
            let header_length = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
            let wanted = header_length + usize::try_from(length).unwrap_or(usize::MAX).min(LOOK);
            if self.start.len() < wanted {
                return false;
            }
            let is_message = matches!(header.opcode, OpCode::Data(Data::Text | Data::Binary));
            if is_message && self.is_answered(header_length, wanted) {
                return true;
            }
            bytes = &bytes[wanted - before.min(wanted)..];
            self.skip = length - (wanted - header_length) as u64;
            self.start.clear();
        }
        false
    }

    /// Looks at the beginning of a message; returns whether it answers the `connect`.
    fn is_answered(&self, from: usize, to: usize) -> bool {
        let mut pending = self.pending.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((id, _)) = &*pending else { return false };
        let response = format!("{{\"type\":\"res\",\"id\":\"{id}\",\"ok\":");
        let Some(rest) = self.start[from..to].strip_prefix(response.as_bytes()) else { return false };
        if let Some((_, accepted)) = pending.take().filter(|_| rest.starts_with(b"true")) {
            accepted();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

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
    fn only_an_accepted_connect_counts_however_its_response_is_cut() {
        let challenge = frame(
            0x81,
            br#"{"type":"event","event":"connect.challenge","payload":{"nonce":"{\"type\":\"res\",\"id\":\"7\",\"ok\":true"}}"#,
        );
        let hello = |id: &str, ok: bool| {
            frame(0x81, format!(r#"{{"type":"res","id":"{id}","ok":{ok},"payload":{{"x":"{}"}}}}"#, "y".repeat(30_000)).as_bytes())
        };
        for (stream, accepted) in [
            ([challenge.clone(), frame(0x89, b"ping"), hello("7", true)].concat(), 1),
            ([challenge.clone(), hello("8", true), hello("7", true), hello("7", true)].concat(), 1),
            ([challenge.clone(), hello("7", false), hello("7", true)].concat(), 0),
            ([challenge, hello("8", true)].concat(), 0),
        ] {
            for size in [1, 5, 1000, stream.len()] {
                let count = Arc::new(AtomicUsize::new(0));
                let (pending, counted) = (Arc::new(PendingConnect::default()), Arc::clone(&count));
                pending.set("7", move || {
                    counted.fetch_add(1, Ordering::Relaxed);
                });
                let mut response = ConnectResponse::new(pending);
                let _ = stream.chunks(size).any(|piece| response.feed(piece));
                assert_eq!(count.load(Ordering::Relaxed), accepted, "{size}");
            }
        }
    }
}
