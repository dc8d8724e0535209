//! A gibibyte in which a lost, repeated or moved block is found, and which is never whole in memory.

use std::fmt::Write as _;
use std::sync::LazyLock;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

/// Its size in bytes.
pub const SIZE: u64 = 1 << 30;
const BLOCK: usize = 64 * 1024;

/// Its blocks, in order. Each carries its number, and bytes that don't compress.
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

/// Its SHA-256.
pub fn checksum() -> String {
    let mut sum = Checksum::default();
    blocks().for_each(|block| sum.update(&block));
    sum.hex()
}

/// A SHA-256 of what it is given.
pub struct Checksum(Context);

impl Default for Checksum {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Checksum {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The sum of it all.
    pub fn hex(self) -> String {
        self.0.finish().as_ref().iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a string");
            hex
        })
    }
}
