//! How often each address may try to enrol.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Attempts at once.
const BURST: u32 = 10;
/// One attempt more after each of these.
const REFILL: Duration = Duration::from_secs(3);

/// A token bucket for each address, as the time at which it will be full again (the generic cell rate algorithm).
#[derive(Debug, Default)]
pub(super) struct Limiter(Mutex<HashMap<IpAddr, Instant>>);

impl Limiter {
    /// Says whether `ip` may try now, and counts it as a try if so.
    pub(super) fn admits(&self, ip: IpAddr) -> bool {
        let now = Instant::now();
        let mut full_at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        full_at.retain(|_, full_at| *full_at > now);
        let next = full_at.get(&ip).copied().unwrap_or(now) + REFILL;
        let admitted = next <= now + REFILL * BURST;
        if admitted {
            full_at.insert(ip, next);
        }
        admitted
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
        tokio::time::advance(REFILL).await;
        assert_eq!((0..20).filter(|_| limiter.admits(one)).count(), 1);
        tokio::time::advance(REFILL * BURST).await;
        assert!(limiter.admits(other));
        assert_eq!(limiter.0.lock().unwrap().len(), 1, "those that are full again are forgotten");
    }
}
