//! Exponential back-off between the attempts of an operation that is retried without end.

use std::time::Duration;

/// Pauses that double from `first_pause` to `longest_pause`.
#[derive(Clone, Debug)]
pub struct Backoff {
    first_pause: Duration,
    longest_pause: Duration,
    next_pause: Duration,
}

impl Backoff {
    /// Creates a back-off whose first pause is `first_pause`. Each further pause is twice as long,
    /// up to `longest_pause`.
    pub const fn new(first_pause: Duration, longest_pause: Duration) -> Self {
        Self { first_pause, longest_pause, next_pause: first_pause }
    }

    /// Returns the next pause, and doubles the one after it.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next_pause;
        self.next_pause = pause.saturating_mul(2).min(self.longest_pause);
        pause
    }

    /// Makes the next pause the first one again. Callers do so after a success.
    pub fn reset(&mut self) {
        self.next_pause = self.first_pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));
        let pauses: Vec<u128> = (0..4).map(|_| backoff.next_pause().as_millis()).collect();
        assert_eq!(pauses, [10, 20, 35, 35]);
        backoff.reset();
        assert_eq!(backoff.next_pause().as_millis(), 10);
    }
}
