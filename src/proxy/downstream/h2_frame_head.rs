//! The head of an HTTP/2 frame (RFC 9113 section 4.1), and the frame types and flags that are used
//! here.

/// The preface that a client sends first (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The length of a frame head, in bytes.
pub const FRAME_HEAD_SIZE: usize = 9;

// Frame types (RFC 9113 section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;

// Flags (RFC 9113 section 6). ACK is one of SETTINGS frames; the others are those of HEADERS
// frames.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITY: u8 = 0x20;

/// The fields of a frame head.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameHead {
    /// The length of the payload, in bytes.
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    /// The stream, without the reserved bit, which a receiver must ignore.
    pub stream: u32,
}

impl FrameHead {
    #[inline]
    pub fn parse(bytes: &[u8; FRAME_HEAD_SIZE]) -> Self {
        let [high, middle, low, kind, flags, stream @ ..] = *bytes;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        Self { length, kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff }
    }
}

/// Collects a frame head that arrives in pieces.
#[derive(Debug, Default)]
pub struct HeadReader {
    bytes: [u8; FRAME_HEAD_SIZE],
    filled: usize,
}

impl HeadReader {
    /// Removes the next bytes of the head from the beginning of `bytes`; returns the head once it
    /// is complete.
    #[inline]
    pub fn take_head(&mut self, bytes: &mut &[u8]) -> Option<FrameHead> {
        let (piece, rest) = bytes.split_at(self.missing_bytes().min(bytes.len()));
        self.bytes[self.filled..self.filled + piece.len()].copy_from_slice(piece);
        self.filled += piece.len();
        *bytes = rest;
        if self.filled < FRAME_HEAD_SIZE {
            return None;
        }
        self.filled = 0;
        Some(FrameHead::parse(&self.bytes))
    }

    /// Returns whether no byte of the next head has come.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Returns how many bytes of the head are missing.
    pub fn missing_bytes(&self) -> usize {
        FRAME_HEAD_SIZE - self.filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_however_it_is_cut_and_the_reserved_bit_is_ignored() {
        let bytes = [1, 2, 3, HEADERS, END_HEADERS, 0x80, 0, 0, 5, b'x'];
        for size in 1..=bytes.len() {
            let (mut reader, mut heads) = (HeadReader::default(), Vec::new());
            let mut left = &bytes[..];
            for mut piece in bytes[..FRAME_HEAD_SIZE].chunks(size) {
                heads.extend(reader.take_head(&mut piece));
            }
            assert!(
                matches!(heads[..], [FrameHead { length: 0x01_02_03, kind: HEADERS, flags: 4, stream: 5 }]),
                "{size}"
            );
            assert!(HeadReader::default().take_head(&mut left).is_some() && left == b"x");
        }
    }
}
