//! Shares the memory for request bodies among HTTP/2 connections.
//!
//! A client may send as many bytes as its connection's flow-control window before the gateway has
//! taken any, and hyper buffers these bytes. So the windows of all connections together are
//! limited: each new connection gets a part of the memory that is left, but at least the 64 KiB
//! that every connection begins with (RFC 9113 section 6.9.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A new connection gets one part in this many of the memory that is left.
const LEASE_PART: usize = 16;
/// The smallest window, in bytes: every connection begins with it.
const MIN_WINDOW: usize = 65_535;
/// The largest window, in bytes. A larger one does not make a connection faster.
const MAX_WINDOW: usize = 4 << 20;

/// The memory for the windows of all HTTP/2 connections.
#[derive(Debug)]
pub struct WindowBudget {
    limit: usize,
    leased_bytes: AtomicUsize,
}

/// The window of one connection, returned to the budget when dropped.
#[derive(Debug)]
pub struct WindowLease {
    bytes: usize,
    budget: Arc<WindowBudget>,
}

impl WindowBudget {
    /// Creates a budget of half of `buffered` bytes. The other half is that of tunnels, a quarter
    /// for each lane ([`TunnelBufferBudget`](crate::proxy::tunnel::buffers::TunnelBufferBudget)).
    /// First messages have a budget beside both
    /// ([`FirstMessageBudget`](crate::proxy::tunnel::first_message_budget::FirstMessageBudget)).
    pub fn new(buffered: usize) -> Arc<Self> {
        Arc::new(Self { limit: buffered / 2, leased_bytes: AtomicUsize::new(0) })
    }

    /// Takes the window of a new connection.
    pub fn take_lease(self: &Arc<Self>) -> WindowLease {
        let left = self.limit.saturating_sub(self.leased_bytes.load(Ordering::Relaxed));
        let bytes = (left / LEASE_PART).clamp(MIN_WINDOW, MAX_WINDOW);
        self.leased_bytes.fetch_add(bytes, Ordering::Relaxed);
        WindowLease { bytes, budget: Arc::clone(self) }
    }
}

impl WindowLease {
    /// Returns the size of the window in bytes.
    pub fn window_size(&self) -> u32 {
        u32::try_from(self.bytes).expect("at most MAX_WINDOW")
    }
}

impl Drop for WindowLease {
    fn drop(&mut self) {
        self.budget.leased_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_as_connections_open_and_their_sum_is_limited() {
        let budget = WindowBudget::new(64 << 20);
        let leases: Vec<_> = (0..60).map(|_| budget.take_lease()).collect();
        assert_eq!(leases[0].window_size(), 2 << 20);
        assert!(leases.is_sorted_by(|one, next| one.window_size() >= next.window_size()));
        let sum = |leases: &[WindowLease]| leases.iter().map(|lease| lease.bytes).sum::<usize>();
        assert!(sum(&leases) < 32 << 20, "{}", sum(&leases));
        let more: Vec<_> = (0..1000).map(|_| budget.take_lease()).collect();
        assert_eq!(more[999].window_size(), 65_535, "not less than the window that every connection begins with");
        drop((leases, more));
        assert_eq!(budget.take_lease().window_size(), 2 << 20, "every window was returned");
    }
}
