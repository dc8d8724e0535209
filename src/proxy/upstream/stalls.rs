//! Remembers the clients whose responses were reset because they did not read them.
//!
//! The gateway frees the memory of such a response some time later. So a client that left several
//! unread must not have as many others in their place at once.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// A client that left more than `limit / STALLED_SHARE` responses unread may hold no more than so many permits; at
/// least one.
pub const STALLED_SHARE: usize = 32;
/// How long after the last unread response a client's count is kept.
pub const REMEMBERED: Duration = Duration::from_secs(60);

/// A client's responses that were reset.
#[derive(Debug, Default)]
pub struct Stalls {
    count: AtomicUsize,
    /// The time, in milliseconds, at which they are forgotten.
    expires_at: AtomicU64,
}

impl Stalls {
    /// Returns the most permits of `limit` that the client may hold, whatever is free. `now` is in milliseconds.
    pub fn most_permits(&self, limit: usize, now: impl FnOnce() -> u64) -> usize {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return usize::MAX;
        }
        if self.has_expired(now()) {
            self.count.store(0, Ordering::Relaxed);
            return usize::MAX;
        }
        // A single one may be a device that fell asleep.
        let part = (limit / STALLED_SHARE).max(1);
        if count > part { part } else { usize::MAX }
    }

    /// Counts a response; returns whether it is the first.
    pub fn note(&self, now: u64) -> bool {
        if self.has_expired(now) {
            self.count.store(0, Ordering::Relaxed);
        }
        let remembered = u64::try_from(REMEMBERED.as_millis()).unwrap_or(u64::MAX);
        self.expires_at.store(now.saturating_add(remembered), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Returns whether they no longer count.
    pub fn has_expired(&self, now: u64) -> bool {
        self.expires_at.load(Ordering::Relaxed) <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_after_the_time_begins_a_new_count() {
        let stalls = Stalls::default();
        let later = u64::try_from(REMEMBERED.as_millis()).unwrap();
        assert!(stalls.note(0) && !stalls.note(1));
        assert_eq!(stalls.most_permits(STALLED_SHARE, || 2), 1);
        assert!(stalls.note(later + 1));
        assert_eq!(stalls.most_permits(STALLED_SHARE, || later + 2), usize::MAX);
    }
}
