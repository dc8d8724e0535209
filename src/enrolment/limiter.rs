//! Limits how often each client may try to enrol.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::addr::address_or_v6_prefix;
use crate::token_bucket::{Rate, TokenBucket};

/// The rate limit of one client: ten attempts at once, and one more every three seconds.
const RATE: Rate = Rate { burst: 10, interval: Duration::from_secs(3) };

/// The minimum number of buckets at which full ones are removed.
const MIN_CLEANUP_SIZE: usize = 1024;

/// Limits the attempts of each client by a token bucket. An IPv6 client is a network (see
/// [`address_or_v6_prefix`]).
#[derive(Debug)]
pub(super) struct AttemptLimiter(Mutex<Buckets>);

#[derive(Debug)]
struct Buckets {
    clients: HashMap<IpAddr, TokenBucket>,
    cleanup_size: usize,
}

impl Default for AttemptLimiter {
    fn default() -> Self {
        Self(Mutex::new(Buckets { clients: HashMap::new(), cleanup_size: MIN_CLEANUP_SIZE }))
    }
}

impl AttemptLimiter {
    /// Takes a token for an attempt from `ip`. Returns whether there was one, so that the attempt
    /// is allowed.
    pub(super) fn try_attempt(&self, ip: IpAddr) -> bool {
        let now = Instant::now();
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.clients.len() >= buckets.cleanup_size {
            buckets.clients.retain(|_, bucket| !bucket.is_full(now));
            buckets.cleanup_size = MIN_CLEANUP_SIZE.max(2 * buckets.clients.len());
        }
        buckets.clients.entry(address_or_v6_prefix(ip)).or_insert(TokenBucket::full(now)).try_take(RATE, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_gets_its_burst_and_then_one_attempt_at_a_time() {
        let limiter = AttemptLimiter::default();
        let (one, other) = ("172.18.0.3".parse().unwrap(), "172.18.0.4".parse().unwrap());
        assert_eq!((0..20).filter(|_| limiter.try_attempt(one)).count(), 10);
        assert!(limiter.try_attempt(other));
        tokio::time::advance(RATE.interval).await;
        assert_eq!((0..20).filter(|_| limiter.try_attempt(one)).count(), 1);
        tokio::time::advance(RATE.interval * RATE.burst).await;
        assert!(limiter.try_attempt(other));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_one_ipv6_network_are_one_client_and_full_buckets_are_forgotten() {
        let limiter = AttemptLimiter::default();
        let from = |network: usize, host: usize| format!("fd00:0:0:{network:x}::{host:x}").parse().unwrap();
        assert_eq!((0..20).filter(|host| limiter.try_attempt(from(0, *host))).count(), 10);
        assert!((1..MIN_CLEANUP_SIZE).all(|network| limiter.try_attempt(from(network, 1))));
        let held = || limiter.0.lock().unwrap().clients.len();
        assert_eq!(held(), MIN_CLEANUP_SIZE);
        tokio::time::advance(RATE.interval * RATE.burst).await;
        assert!(limiter.try_attempt(from(0, 1)));
        assert_eq!(held(), 1);
    }
}
