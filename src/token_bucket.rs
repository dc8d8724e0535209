//! A rate limit, such as that of one client, by the generic cell rate algorithm (ITU-T I.371).

use std::time::Duration;

use tokio::time::Instant;

/// How many events are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The largest number of events at once.
    pub burst: u32,
    /// The time after which one more event is allowed.
    pub interval: Duration,
}

impl Rate {
    /// Returns a rate of `count` events per second, with a burst of `count` events. `count` must
    /// not be 0.
    pub fn per_second(count: u32) -> Self {
        Self { burst: count, interval: Duration::from_secs(1) / count }
    }
}

/// The tokens that are left, kept as the time at which the bucket is full again.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    full_at: Instant,
}

impl TokenBucket {
    /// Creates a bucket that is full at the time `now`.
    pub fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes one token if there is one, and returns whether there was.
    pub fn try_take(&mut self, rate: Rate, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + rate.interval;
        let allowed = full_at - now <= rate.interval * rate.burst;
        if allowed {
            self.full_at = full_at;
        }
        allowed
    }

    /// Returns whether no token is missing. A full bucket need not be stored.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_allows_its_burst_and_then_one_event_per_interval() {
        let rate = Rate { burst: 10, interval: Duration::from_secs(3) };
        let mut bucket = TokenBucket::full(Instant::now());
        let mut taken = |tries| (0..tries).filter(|_| bucket.try_take(rate, Instant::now())).count();
        assert_eq!(taken(20), 10);
        tokio::time::advance(rate.interval).await;
        assert_eq!(taken(20), 1);
        tokio::time::advance(rate.interval * 100).await;
        assert_eq!(taken(20), 10, "a bucket never holds more than its burst");
        assert!(!bucket.is_full(Instant::now()));
        assert!(bucket.is_full(Instant::now() + rate.interval * rate.burst));
    }
}
