//! Counts the responses that a client left unread until they were reset.
//!
//! The gateway frees the memory of such a response only some time later. So a client that left
//! several responses unread must not get as many new ones at once.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The share of a budget's permits that a client gets after it left more responses than that
/// unread: one in this many.
pub const STALLED_ONE_IN: usize = 32;
/// The time for which a count is kept after the latest unread response.
pub const STALL_RETENTION: Duration = Duration::from_secs(60);

/// The responses of one client that were reset because it did not read them.
#[derive(Debug, Default)]
pub struct Stalls {
    count: AtomicUsize,
    /// The time at which the count expires, in milliseconds after the epoch of the budget.
    expires_at: AtomicU64,
}

impl Stalls {
    /// Returns how many permits the client may hold of a budget of `limit`: `usize::MAX`, or
    /// `limit / STALLED_ONE_IN` (at least 1) if it left more responses than that unread. Forgets an
    /// expired count. `now` returns the time in milliseconds after the epoch of the budget.
    pub fn most_permits(&self, limit: usize, now: impl FnOnce() -> u64) -> usize {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return usize::MAX;
        }
        if self.has_expired(now()) {
            self.count.store(0, Ordering::Relaxed);
            return usize::MAX;
        }
        // A few are allowed: a single one may come from a device that was suspended.
        let part = (limit / STALLED_ONE_IN).max(1);
        if count > part { part } else { usize::MAX }
    }

    /// Records an unread response at `now`, in milliseconds; returns whether it is the first of the
    /// count.
    pub fn record_stall(&self, now: u64) -> bool {
        if self.has_expired(now) {
            self.count.store(0, Ordering::Relaxed);
        }
        let remembered = u64::try_from(STALL_RETENTION.as_millis()).unwrap_or(u64::MAX);
        self.expires_at.store(now.saturating_add(remembered), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Returns whether the count has expired at `now`, in milliseconds.
    pub fn has_expired(&self, now: u64) -> bool {
        self.expires_at.load(Ordering::Relaxed) <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_after_the_expiry_begins_a_new_count() {
        let stalls = Stalls::default();
        let later = u64::try_from(STALL_RETENTION.as_millis()).unwrap();
        assert!(stalls.record_stall(0) && !stalls.record_stall(1));
        assert_eq!(stalls.most_permits(STALLED_ONE_IN, || 2), 1);
        assert!(stalls.record_stall(later + 1));
        assert_eq!(stalls.most_permits(STALLED_ONE_IN, || later + 2), usize::MAX);
    }
}
