//! Limits how often each address may try to enrol.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::token_bucket::{Rate, TokenBucket};

/// Ten attempts at once, and one more every three seconds.
const RATE: Rate = Rate { burst: 10, interval: Duration::from_secs(3) };

/// A token bucket for each address.
#[derive(Debug, Default)]
pub(super) struct Limiter(Mutex<HashMap<IpAddr, TokenBucket>>);

impl Limiter {
    /// Returns whether `ip` may try now, and counts the attempt if so.
    pub(super) fn admits(&self, ip: IpAddr) -> bool {
        let now = Instant::now();
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|_, bucket| !bucket.is_full(now));
        buckets.entry(ip).or_insert(TokenBucket::full(now)).try_take(RATE, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_gets_its_burst_and_then_one_attempt_at_a_time() {
        let limiter = Limiter::default();
        let (one, other) = ("172.18.0.3".parse().unwrap(), "172.18.0.4".parse().unwrap());
        assert_eq!((0..20).filter(|_| limiter.admits(one)).count(), 10);
        assert!(limiter.admits(other));
        tokio::time::advance(RATE.interval).await;
        assert_eq!((0..20).filter(|_| limiter.admits(one)).count(), 1);
        tokio::time::advance(RATE.interval * RATE.burst).await;
        assert!(limiter.admits(other));
        assert_eq!(limiter.0.lock().unwrap().len(), 1, "full buckets are forgotten");
    }
}
