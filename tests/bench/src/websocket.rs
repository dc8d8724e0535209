//! As much of RFC 6455 as both ends of an echo need. The mask is all zeros, so that neither spends its time on it.

/// The key of RFC 6455 section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What a server answers to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x8;
const MASKED: u8 = 0x80;

/// The header of a binary frame with `length` bytes; a client's is `masked`.
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

/// A whole frame as a client sends it.
pub fn client_frame(length: usize) -> Vec<u8> {
    let mut frame = header(length as u64, true);
    frame.resize(frame.len() + length, 0);
    frame
}

/// A frame's header as it was read.
pub struct Header {
    /// Its own bytes.
    pub size: usize,
    /// Those of the payload behind it.
    pub payload: u64,
    /// It asks to close.
    pub close: bool,
}

/// Reads a header; `None` while it is not all there.
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
    fn what_is_written_can_be_read() {
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
