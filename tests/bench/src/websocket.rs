//! The parts of RFC 6455 that client and backend need. The mask is all zeros, so that masking takes
//! no CPU time.

/// The key of RFC 6455 section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The `Sec-WebSocket-Accept` for [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x8;
const MASKED: u8 = 0x80;

/// The header of a binary frame with a payload of `length` bytes. Frames of clients are `masked`.
pub fn header(length: u64, masked: bool) -> Vec<u8> {
    let mask = if masked { MASKED } else { 0 };
    let mut header = vec![BINARY];
    match u16::try_from(length) {
        Ok(length @ 0..126) => header.push(mask | u8::try_from(length).expect("less than 126")),
        Ok(length) => {
            header.push(mask | 126);
            header.extend(length.to_be_bytes());
        }
        Err(_) => {
            header.push(mask | 127);
            header.extend(length.to_be_bytes());
        }
    }
    if masked {
        header.extend([0; 4]);
    }
    header
}

/// A whole frame of a client, with a payload of `length` zeros.
pub fn client_frame(length: usize) -> Vec<u8> {
    let mut frame = header(length as u64, true);
    frame.resize(frame.len() + length, 0);
    frame
}

/// A parsed frame header.
pub struct Header {
    /// The length of the header, in bytes.
    pub size: usize,
    /// The length of the payload, in bytes.
    pub payload: u64,
    /// Whether the frame is a close frame.
    pub close: bool,
}

/// Parses a header; returns `None` if it is incomplete.
pub fn parse(bytes: &[u8]) -> Option<Header> {
    let [first, second, rest @ ..] = bytes else { return None };
    let (extended, payload) = match second & !MASKED {
        126 => (2, u64::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?))),
        127 => (8, u64::from_be_bytes(rest.get(..8)?.try_into().ok()?)),
        length => (0, u64::from(length)),
    };
    let size = 2 + extended + if second & MASKED != 0 { 4 } else { 0 };
    (bytes.len() >= size).then_some(Header { size, payload, close: first & 0xf == CLOSE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_header_can_be_parsed() {
        for length in [0, 125, 126, 65_535, 65_536, 1 << 20] {
            for masked in [false, true] {
                let header = header(length, masked);
                let read = parse(&header).expect("whole");
                assert_eq!((read.size, read.payload, read.close), (header.len(), length, false));
                assert!(parse(&header[..header.len() - 1]).is_none());
            }
        }
    }
}
