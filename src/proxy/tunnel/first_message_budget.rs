//! The memory for the bytes that are held back until clients' first messages are complete.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes that may always be held back for a client. Only bytes beyond these need the budget.
pub const FREE_BYTES: usize = 8 * 1024;

/// The memory for bytes beyond `FREE_BYTES` that are held back, for all clients together.
#[derive(Debug)]
pub struct FirstMessageBudget {
    limit: usize,
    used_bytes: AtomicUsize,
}

impl FirstMessageBudget {
    /// Creates a budget of half of `buffered` bytes, beside those of uploads and tunnels: all of
    /// them together are one and a half times `buffered`.
    pub fn new(buffered: usize) -> Arc<Self> {
        Arc::new(Self { limit: buffered / 2, used_bytes: AtomicUsize::new(0) })
    }
}

/// One client's part of the budget, returned when dropped.
pub struct FirstMessageLease {
    budget: Arc<FirstMessageBudget>,
    bytes: usize,
}

impl FirstMessageLease {
    /// Returns a lease of no bytes.
    pub fn new(budget: Arc<FirstMessageBudget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Extends the lease so that `held` bytes may be held back; returns whether the budget allows
    /// it.
    pub fn try_extend(&mut self, held: usize) -> bool {
        let additional = held.saturating_sub(FREE_BYTES).saturating_sub(self.bytes);
        let fits = |used: usize| used.checked_add(additional).filter(|used| *used <= self.budget.limit);
        if additional > 0 && self.budget.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return false;
        }
        self.bytes += additional;
        true
    }
}

impl Drop for FirstMessageLease {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
