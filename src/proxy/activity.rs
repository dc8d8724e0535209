//! What a downstream connection is doing, for its deadlines.
//!
//! hyper's own head timeout counts from the end of the last response, so that it can't tell a slow head from an idle connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::h2_stream_stall::StreamStall;

/// Shared by a connection's I/O, its requests and whoever watches its deadline.
#[derive(Debug)]
pub(super) struct Activity {
    epoch: Instant,
    busy: AtomicUsize,
    /// Milliseconds after `epoch` at which the current phase began, shifted left by one; the low bit says that a head has begun.
    phase: AtomicU64,
    /// How many responses wait for the client to take what is there.
    pending: AtomicUsize,
    /// Milliseconds after `epoch` at which it last took some.
    last_progress: AtomicU64,
    /// Whether what came in last was the middle of a head.
    in_head: AtomicBool,
    /// Whether the timeouts with a head has ended.
    over: AtomicBool,
    /// Bytes of HTTP/1.1 responses that were handed out and not written yet.
    buffered: AtomicUsize,
    /// Whether the client took no more the last time that it was offered some.
    blocked: AtomicBool,
}

/// So much is handed out before any of it must have been taken, in bytes.
const HIGH_WATER_MARK: usize = 16 * 1024;

/// How long a connection may stay in a phase.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From the first byte of a head to its end.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// Without taking anything of a response.
    pub stall: Duration,
}

/// Which deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// A head that was begun and not finished.
    Head,
    /// Nothing at all.
    Idle,
    /// A response of which nothing was last_progress.
    Stall,
}

impl Overdue {
    /// The reason in one word, as the metric names it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Idle => "idle",
            Self::Stall => "stall",
        }
    }
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            busy: AtomicUsize::new(0),
            phase: AtomicU64::new(0),
            pending: AtomicUsize::new(0),
            last_progress: AtomicU64::new(0),
            in_head: AtomicBool::new(false),
            over: AtomicBool::new(false),
            buffered: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
        })
    }

    fn now(&self) -> u64 {
        self.millis(Instant::now())
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from((at - self.epoch).as_millis()).unwrap_or(u64::MAX >> 1)
    }

    /// Bytes came in, and end in the middle of a head or not.
    pub(super) fn bytes_in(&self, in_head: bool) {
        self.in_head.store(in_head, Ordering::Relaxed);
        if in_head && self.busy.load(Ordering::Relaxed) == 0 && self.phase.load(Ordering::Relaxed) & 1 == 0 {
            self.phase.store((self.now() << 1) | 1, Ordering::Relaxed);
        }
    }

    /// The client took some bytes of a response.
    pub(super) fn bytes_out(&self) {
        if self.pending.load(Ordering::Relaxed) > 0 {
            self.last_progress.store(self.now(), Ordering::Relaxed);
        }
    }

    /// So many bytes were written, and that was all that there was, or not.
    pub(super) fn written(&self, count: usize, all: bool) {
        let left = self.buffered.load(Ordering::Relaxed).saturating_sub(count);
        self.buffered.store(left, Ordering::Relaxed);
        self.blocked.store(!all, Ordering::Relaxed);
    }

    /// Everything that was written has left, or not.
    pub(super) fn flushed(&self, all: bool) {
        if all {
            self.buffered.store(0, Ordering::Relaxed);
        }
        self.blocked.store(!all, Ordering::Relaxed);
    }

    /// The head that has begun is not waited for any longer.
    pub(super) fn give_up_head(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::give_up_head`] was called.
    pub(super) fn head_given_up(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// A request is being served until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> RequestGuard {
        self.busy.fetch_add(1, Ordering::Relaxed);
        RequestGuard { activity: Arc::clone(self), stream: StreamStall::current(), is_pending: false }
    }

    /// When the current phase is overdue, and as what; `None` while a request is being served and it is not the client that is waited for.
    pub(super) fn deadline(&self, timeouts: Timeouts) -> Option<(Instant, Overdue)> {
        if self.busy.load(Ordering::Relaxed) > 0 {
            let pending = self.pending.load(Ordering::Relaxed) > 0;
            return pending.then(|| {
                (self.epoch + Duration::from_millis(self.last_progress.load(Ordering::Relaxed)) + timeouts.stall, Overdue::Stall)
            });
        }
        let phase = self.phase.load(Ordering::Relaxed);
        let (allowed, overdue) = if phase & 1 == 1 { (timeouts.head, Overdue::Head) } else { (timeouts.idle, Overdue::Idle) };
        Some((self.epoch + Duration::from_millis(phase >> 1) + allowed, overdue))
    }
}

/// Held while a request is being served, its response body included.
#[derive(Debug)]
pub(super) struct RequestGuard {
    activity: Arc<Activity>,
    /// In HTTP/2.
    stream: Option<Arc<StreamStall>>,
    is_pending: bool,
}

impl RequestGuard {
    /// There is more of the response, and it is for the client to take it.
    pub(super) fn mark_pending(&mut self, now: Instant) {
        if !self.is_pending {
            self.is_pending = true;
            // The time first, so that nobody sees the debt older than it is.
            self.activity.last_progress.store(self.activity.millis(now), Ordering::Relaxed);
            self.activity.pending.fetch_add(1, Ordering::Release);
            if let Some(stream) = &self.stream {
                stream.begin(now);
            }
        }
    }

    /// So many bytes of the response were handed out.
    pub(super) fn add_buffered(&self, count: usize) {
        self.activity.buffered.fetch_add(count, Ordering::Relaxed);
    }

    /// Whether what was handed out has yet to be taken, so that there is no use in more. Only ever so on HTTP/1.1, where whoever asks is
    /// asked again after the next write; a stream of HTTP/2 has a window to go by.
    pub(super) fn is_above_high_water_mark(&self) -> bool {
        self.stream.is_none()
            && (self.activity.blocked.load(Ordering::Relaxed) || self.activity.buffered.load(Ordering::Relaxed) >= HIGH_WATER_MARK)
    }

    /// The client wants more than there is.
    pub(super) fn mark_drained(&mut self) {
        if std::mem::take(&mut self.is_pending) {
            self.activity.pending.fetch_sub(1, Ordering::Relaxed);
            if let Some(stream) = &self.stream {
                stream.mark_drained();
            }
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.mark_drained();
        // Before the count falls, so that nobody sees the connection idle since the beginning. The next head may have begun by now.
        let head = u64::from(self.activity.in_head.load(Ordering::Relaxed));
        self.activity.phase.store((self.activity.now() << 1) | head, Ordering::Relaxed);
        self.activity.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idle_then_a_slow_head_then_busy_then_stalled() {
        let timeouts = Timeouts { head: Duration::from_secs(10), idle: Duration::from_secs(75), stall: Duration::from_secs(60) };
        let start = Instant::now();
        let activity = Activity::new();
        assert_eq!(activity.deadline(timeouts), Some((start + timeouts.idle, Overdue::Idle)));
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.bytes_in(true);
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.bytes_in(true);
        assert_eq!(activity.deadline(timeouts), Some((start + Duration::from_secs(15), Overdue::Head)));
        activity.bytes_in(false);
        let (one, mut two) = (activity.begin(), activity.begin());
        drop(one);
        assert_eq!(activity.deadline(timeouts), None);
        two.mark_pending(Instant::now());
        assert_eq!(activity.deadline(timeouts), Some((start + Duration::from_secs(70), Overdue::Stall)));
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.bytes_out();
        assert_eq!(activity.deadline(timeouts), Some((start + Duration::from_secs(75), Overdue::Stall)));
        two.mark_drained();
        assert_eq!(activity.deadline(timeouts), None, "it is the gateway that is waited for");
        two.mark_pending(Instant::now());
        drop(two);
        assert_eq!(activity.deadline(timeouts), Some((start + Duration::from_secs(90), Overdue::Idle)));
        let pipelined = activity.begin();
        activity.bytes_in(true);
        drop(pipelined);
        assert_eq!(activity.deadline(timeouts), Some((start + Duration::from_secs(25), Overdue::Head)), "the next one has begun");
    }

    #[test]
    fn no_more_is_handed_out_than_is_taken() {
        let activity = Activity::new();
        let busy = activity.begin();
        assert!(!busy.is_above_high_water_mark());
        busy.add_buffered(HIGH_WATER_MARK - 1);
        assert!(!busy.is_above_high_water_mark(), "there is room for a little more");
        busy.add_buffered(1);
        assert!(busy.is_above_high_water_mark());
        activity.written(HIGH_WATER_MARK / 2, false);
        assert!(busy.is_above_high_water_mark(), "not all of it was taken");
        activity.written(HIGH_WATER_MARK, true);
        assert!(!busy.is_above_high_water_mark());
        activity.flushed(false);
        assert!(busy.is_above_high_water_mark(), "it was taken, and has not left");
        activity.flushed(true);
        assert!(!busy.is_above_high_water_mark());
        busy.add_buffered(1 << 20);
        activity.flushed(true);
        assert!(!busy.is_above_high_water_mark(), "what is left of the count when everything has left is a mistake");
    }
}
