//! A gibibyte of content for transfers, which is never in memory as a whole. A lost, repeated or
//! moved block changes its checksum.

use std::fmt::Write as _;
use std::sync::LazyLock;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

/// The size of the content, in bytes.
pub const SIZE: u64 = 1 << 30;
const BLOCK: usize = 64 * 1024;

/// Returns the blocks of the content, in order. A block is its number and bytes that don't
/// compress.
pub fn blocks() -> impl Iterator<Item = Bytes> + Send {
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..BLOCK).map(|_| next()).collect()
    });
    (0..SIZE / BLOCK as u64).map(|number| {
        let mut block = NOISE.clone();
        block[..8].copy_from_slice(&number.to_le_bytes());
        Bytes::from(block)
    })
}

/// Returns the SHA-256 of the whole content, in hexadecimal.
pub fn checksum() -> String {
    let mut sum = Checksum::default();
    blocks().for_each(|block| sum.update(&block));
    sum.hex()
}

/// Computes a SHA-256 step by step.
pub struct Checksum(Context);

impl Default for Checksum {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Checksum {
    /// Adds bytes to the digest.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest of all bytes, in hexadecimal.
    pub fn hex(self) -> String {
        self.0.finish().as_ref().iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a string");
            hex
        })
    }
}
