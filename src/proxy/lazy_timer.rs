//! A timer for a deadline that moves often.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// A timer that is reset only if it would fire after the deadline, or has fired before it: a reset
/// costs more than a look at the clock.
#[derive(Debug)]
pub(super) struct LazyTimer {
    sleep: Pin<Box<Sleep>>,
    recheck_interval: Duration,
}

impl LazyTimer {
    /// Creates a timer that wakes the task every `recheck_interval` while there is no deadline.
    pub(super) fn new(recheck_interval: Duration) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(recheck_interval)), recheck_interval }
    }

    /// Completes with the current time once `due` has passed. Without a deadline it stays pending,
    /// and wakes the task every `recheck_interval` to be polled with a newer one.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>, due: Option<Instant>) -> Poll<Instant> {
        if let Some(due) = due
            && due < self.sleep.deadline()
        {
            self.sleep.as_mut().reset(due);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let now = Instant::now();
            match due {
                Some(due) if due <= now => return Poll::Ready(now),
                Some(due) => self.sleep.as_mut().reset(due),
                None => self.sleep.as_mut().reset(now + self.recheck_interval),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_met_after_it_moved_forward_or_back() {
        let start = Instant::now();
        let mut timer = LazyTimer::new(Duration::from_secs(60));
        // The last deadline, 5 s, has passed already.
        for seconds in [10, 90, 91, 300, 300, 5] {
            let due = start + Duration::from_secs(seconds);
            let now = poll_fn(|cx| timer.poll_due(cx, Some(due))).await;
            assert!(now >= due && now - due < Duration::from_secs(1) || due < start + Duration::from_secs(10));
        }
        let mut wakes = 0;
        let none = poll_fn(|cx| {
            wakes += 1;
            timer.poll_due(cx, None)
        });
        assert!(tokio::time::timeout(Duration::from_secs(181), none).await.is_err());
        assert!((4..10).contains(&wakes), "polled once at first, and then every 60 s: {wakes}");
    }
}
