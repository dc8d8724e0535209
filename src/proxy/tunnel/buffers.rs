//! Limits the memory for bytes that tunnels have read and not written yet.
//!
//! A tunnel reads a block, and nothing more until the block was written. The less memory is left,
//! the smaller are the blocks that the tunnels of a lane read. So many clients that do not read
//! can't make loopgate hold much memory, and every tunnel still makes progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest block, in bytes: four TLS records, which rustls writes with one system call.
pub const MAX_BLOCK: usize = 64 * 1024;
/// A block is at most one part in this many of the memory that is left.
const BLOCK_ONE_IN: usize = 16;
/// The smallest block, in bytes.
const MIN_BLOCK: usize = 4 * 1024;
/// The number of blocks that hyper and `h2` hold of an HTTP/2 stream before a write has to wait:
/// two in the channel to the stream's task, one in that task, one in `h2`.
const BLOCKS_IN_H2: usize = 4;
/// The bytes that `h2` holds of a stream besides these blocks (`max_send_buf_size`).
const H2_BUFFER: usize = 64 * 1024;

/// The budget of memory for the tunnels of one lane.
#[derive(Debug)]
pub struct TunnelBufferBudget {
    limit: usize,
    held_bytes: AtomicUsize,
}

impl TunnelBufferBudget {
    /// Creates the budget of one lane: a quarter of `buffered` bytes.
    pub fn new(buffered: usize) -> Arc<Self> {
        Arc::new(Self { limit: buffered / 4, held_bytes: AtomicUsize::new(0) })
    }
}

/// The bytes that one direction of a tunnel holds, returned when dropped.
#[derive(Debug)]
pub struct BufferLease {
    budget: Arc<TunnelBufferBudget>,
    is_h2: bool,
    held_bytes: usize,
}

impl BufferLease {
    /// Creates a lease of no bytes. `is_h2` is whether the direction writes to an HTTP/2 stream,
    /// which takes some blocks before a write has to wait.
    pub fn new(budget: &Arc<TunnelBufferBudget>, is_h2: bool) -> Self {
        Self { budget: Arc::clone(budget), is_h2, held_bytes: 0 }
    }

    /// Returns the size of the next block to read, in bytes.
    pub fn block_size(&self) -> usize {
        let held = self.budget.held_bytes.load(Ordering::Relaxed);
        (self.budget.limit.saturating_sub(held) / BLOCK_ONE_IN).clamp(MIN_BLOCK, MAX_BLOCK)
    }

    /// Changes the lease to what the direction holds while `unsent` bytes of a block are not
    /// written; 0 if all are.
    pub fn set_unsent(&mut self, unsent: usize) {
        let held = match unsent {
            0 => 0,
            unsent if self.is_h2 => unsent * (1 + BLOCKS_IN_H2) + H2_BUFFER,
            unsent => unsent,
        };
        if held > self.held_bytes {
            self.budget.held_bytes.fetch_add(held - self.held_bytes, Ordering::Relaxed);
        } else if held < self.held_bytes {
            self.budget.held_bytes.fetch_sub(self.held_bytes - held, Ordering::Relaxed);
        }
        self.held_bytes = held;
    }
}

impl Drop for BufferLease {
    fn drop(&mut self) {
        self.set_unsent(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_shrink_as_tunnels_stall_and_their_sum_is_limited() {
        // `most` is what a lease holds for a block of the smallest size.
        for (is_h2, most) in [(false, MIN_BLOCK), (true, H2_BUFFER + (1 + BLOCKS_IN_H2) * MIN_BLOCK)] {
            let budget = TunnelBufferBudget::new(64 << 20);
            let mut leases: Vec<_> = (0..4096).map(|_| BufferLease::new(&budget, is_h2)).collect();
            let mut blocks = Vec::new();
            for lease in &mut leases {
                blocks.push(lease.block_size());
                lease.set_unsent(lease.block_size());
            }
            assert_eq!((blocks[0], blocks[4095]), (MAX_BLOCK, MIN_BLOCK));
            assert!(blocks.is_sorted_by(|one, next| one >= next));
            let held = budget.held_bytes.load(Ordering::Relaxed);
            assert!(held <= (16 << 20) + 4096 * most, "{held}");
            leases.iter_mut().for_each(|lease| lease.set_unsent(0));
            assert_eq!(leases[4095].block_size(), MAX_BLOCK);
            leases[0].set_unsent(1);
            drop(leases);
            assert_eq!(budget.held_bytes.load(Ordering::Relaxed), 0, "every byte was returned");
        }
    }
}
