//! HTTP/2 as frames (RFC 9113), which a test can send in ways that no client library does.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

use crate::tls_client::{Tls, TlsClient};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// `SETTINGS_INITIAL_WINDOW_SIZE`.
pub const INITIAL_WINDOW: u16 = 4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The time limit of a read. It is longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Returns the bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns the bytes of a SETTINGS frame.
pub fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// Returns an HPACK integer (RFC 7541 section 5.1) with a prefix of `prefix` bits. `first` has the
/// bits before the prefix.
fn integer(first: u8, prefix: u32, value: usize) -> Vec<u8> {
    let most = (1 << prefix) - 1;
    if value < most {
        return vec![first | u8::try_from(value).unwrap()];
    }
    let mut bytes = vec![first | u8::try_from(most).unwrap()];
    let mut remainder = value - most;
    while remainder >= 128 {
        bytes.push(u8::try_from(remainder % 128).unwrap() | 128);
        remainder /= 128;
    }
    bytes.push(u8::try_from(remainder).unwrap());
    bytes
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&integer(0, 7, bytes.len())[..], bytes].concat()
}

/// Returns a literal field that the receiver does not add to its dynamic table.
pub fn literal_field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0], string(name), string(value)].concat()
}

/// Returns a literal field that the receiver adds to its dynamic table. Its index is 62 until the
/// next field is added.
pub fn kept_field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0x40], string(name), string(value)].concat()
}

/// Returns a reference to the field at `index` of the receiver's tables.
pub fn indexed_field(index: usize) -> Vec<u8> {
    integer(0x80, 7, index)
}

/// Returns the header block of these fields.
pub fn header_block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal_field(name.as_bytes(), value.as_bytes())).collect()
}

/// Returns the header block of a normal request, with the additional fields `more`.
pub fn request_block(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "https"), (":authority", "gateway.example:18789"), (":path", path)];
    [header_block(&pseudo), header_block(more)].concat()
}

/// What became of a connection or of one of its streams.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The error code of a GOAWAY, unless it is NO_ERROR.
    pub goaway: Option<u32>,
    /// The last stream id of the GOAWAY: that of the last stream that may have been processed.
    pub goaway_stream: u32,
    /// A GOAWAY with NO_ERROR was received.
    pub graceful_goaway: bool,
    /// The connection was closed.
    pub closed: bool,
    /// The code of a RST_STREAM, by stream.
    pub resets: Vec<(u32, u32)>,
    /// The first byte of a response's header block, by stream: 0x88 is the status 200, 0x8c is 400.
    pub heads: Vec<(u32, u8)>,
}

impl Outcome {
    /// Returns whether the connection was closed, or a GOAWAY with an error was received.
    pub fn is_over(&self) -> bool {
        self.closed || self.goaway.is_some()
    }

    /// Returns whether the first request has a response or was reset, or the connection is over.
    pub fn is_decided(&self) -> bool {
        self.is_over() || !self.resets.is_empty() || !self.heads.is_empty()
    }

    fn record(&mut self, frame: &Frame) {
        let code = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
        match frame.kind {
            GOAWAY if code(4) != 0 => (self.goaway, self.goaway_stream) = (Some(code(4)), code(0)),
            GOAWAY => self.graceful_goaway = true,
            RST_STREAM => self.resets.push((frame.stream, code(0))),
            HEADERS => self.heads.push((frame.stream, frame.payload[0])),
            _ => {}
        }
    }
}

/// A connection on which a test writes any frames.
pub struct RawH2 {
    pub read: ReadHalf<Tls>,
    pub write: WriteHalf<Tls>,
}

impl RawH2 {
    /// Connects from `source`, and sends only the preface and these settings.
    pub async fn connect(client: &TlsClient, source: &str, sent_settings: &[(u16, u32)]) -> Self {
        let stream = client.handshake(client.connect_tcp(source).await, "h2").await.unwrap();
        let (read, write) = tokio::io::split(stream);
        let mut raw = Self { read, write };
        raw.send(&[PREFACE, &settings(sent_settings)].concat()).await;
        raw
    }

    /// Sends `bytes`. Ignores errors, because the other side may have closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.write.write_all(bytes).await;
        let _ = self.write.flush().await;
    }

    /// Reads the server's SETTINGS and the WINDOW_UPDATE of the connection, and returns the windows
    /// of a stream and of the connection.
    pub async fn read_windows(&mut self) -> (usize, usize) {
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap()) as usize;
        let (mut stream, mut connection) = (65_535, 65_535);
        // Both come with the first frames, and acknowledgements may come before or after them.
        while let Ok(Some(frame)) = timeout(Duration::from_millis(200), self.next()).await {
            match frame.kind {
                SETTINGS => {
                    for setting in
                        frame.payload.chunks(6).filter(|setting| setting[..2] == INITIAL_WINDOW.to_be_bytes())
                    {
                        stream = number(&setting[2..]);
                    }
                }
                WINDOW_UPDATE if frame.stream == 0 => {
                    connection += number(&frame.payload);
                    break;
                }
                _ => {}
            }
        }
        (stream, connection)
    }

    /// Reads the next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        next(&mut self.read).await
    }

    /// Sends `bytes`, and reads frames meanwhile until `enough` returns true or the connection
    /// ends.
    pub async fn send_until(&mut self, bytes: &[u8], enough: impl Fn(&Outcome) -> bool) -> Outcome {
        let Self { read, write } = self;
        let sending = async {
            for block in bytes.chunks(64 * 1024) {
                if write.write_all(block).await.is_err() {
                    break;
                }
            }
            let _ = write.flush().await;
            std::future::pending().await
        };
        let reading = async {
            let mut outcome = Outcome::default();
            while !enough(&outcome) {
                match next(read).await {
                    Some(frame) => outcome.record(&frame),
                    None => {
                        outcome.closed = true;
                        break;
                    }
                }
            }
            outcome
        };
        tokio::select! {
            never = sending => never,
            outcome = reading => outcome,
        }
    }
}

async fn next(read: &mut ReadHalf<Tls>) -> Option<Frame> {
    timeout(PATIENCE, next_frame(read)).await.expect("a frame or the end of the connection")
}

/// Reads the next frame, however long it takes; `None` at the end of the connection.
pub async fn next_frame(read: &mut ReadHalf<Tls>) -> Option<Frame> {
    let mut head = [0; 9];
    read.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    read.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
    Some(Frame { kind: head[3], flags: head[4], stream, payload })
}
