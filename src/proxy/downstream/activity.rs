//! What a downstream connection is doing, for its deadlines.
//!
//! Workaround: hyper has one timeout for a slow head and for an idle connection
//! ([hyper#1628](https://github.com/hyperium/hyper/issues/1628),
//! [hyper#3828](https://github.com/hyperium/hyper/pull/3828)). Delete when it has one for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::h2_stream_stall::StreamStall;
use crate::labels::Protocol;
use crate::proxy::chunked_trailers::{FlushCounter, TrailerSlot};

/// Shared by a connection's I/O, its requests and its deadlines.
#[derive(Debug)]
pub struct Activity {
    epoch: Instant,
    /// How many requests are being served.
    active_requests: AtomicUsize,
    /// How many of them are WebSockets over HTTP/2.
    h2_tunnels: AtomicUsize,
    /// Milliseconds after `epoch` at which the current phase began, shifted left by one; the low
    /// bit is set if a head has begun.
    phase: AtomicU64,
    /// How many responses wait for the client to read what is there.
    unread_responses: AtomicUsize,
    /// Milliseconds after `epoch` at which the client last read some.
    last_progress: AtomicU64,
    /// Whether the last bytes from the client ended in the middle of a head.
    is_in_head: AtomicBool,
    /// Milliseconds after `epoch`, plus one, at which the HTTP/2 header block began that goes on; 0 if none does.
    block_since: AtomicU64,
    /// The stream of that block, or 0.
    block_stream: AtomicU32,
    /// Whether the time for a head has passed.
    is_head_abandoned: AtomicBool,
    /// Bytes of HTTP/1.1 responses that hyper has and the socket has not.
    buffered: AtomicUsize,
    /// Whether the socket took less than it was offered the last time.
    is_socket_full: AtomicBool,
    flushes: FlushCounter,
    /// The trailers of the HTTP/1.1 response that is being sent.
    trailer_slot: TrailerSlot,
    /// Requests that began since the connection did.
    requests_begun: AtomicU64,
}

/// Bytes that hyper may hold of an HTTP/1.1 response before the next are asked for.
const HIGH_WATER_MARK: usize = 16 * 1024;

/// How long a connection may stay in a phase.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the first byte of a head to its end; over HTTP/2 that of the preface.
    pub head: Duration,
    /// The same for a header block of HTTP/2.
    pub block: Duration,
    /// Between requests.
    pub idle: Duration,
    /// While the client reads nothing of a response.
    pub stall: Duration,
}

/// Which deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// The client did not finish a head; over HTTP/2 its preface.
    Head,
    /// The client did not finish a header block of HTTP/2.
    HeaderBlock,
    /// The client sent no request.
    Idle,
    /// The client read nothing of a response.
    Stall,
}

impl Overdue {
    /// The reason in one word, for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Head | Self::HeaderBlock => "head",
            Self::Idle => "idle",
            Self::Stall => "stall",
        }
    }
}

impl Activity {
    /// An HTTP/2 connection begins with a preface and SETTINGS, which count as a head; HTTP/1.1 begins idle.
    pub fn new(protocol: Protocol) -> Arc<Self> {
        let head = u64::from(protocol == Protocol::H2);
        Arc::new(Self {
            epoch: Instant::now(),
            active_requests: AtomicUsize::new(0),
            h2_tunnels: AtomicUsize::new(0),
            phase: AtomicU64::new(head),
            unread_responses: AtomicUsize::new(0),
            last_progress: AtomicU64::new(0),
            is_in_head: AtomicBool::new(false),
            block_since: AtomicU64::new(0),
            block_stream: AtomicU32::new(0),
            is_head_abandoned: AtomicBool::new(false),
            buffered: AtomicUsize::new(0),
            is_socket_full: AtomicBool::new(false),
            flushes: FlushCounter::default(),
            trailer_slot: TrailerSlot::default(),
            requests_begun: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        self.millis(Instant::now())
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from((at - self.epoch).as_millis()).unwrap_or(u64::MAX >> 1)
    }

    /// Notes that bytes were read; `is_in_head` is whether they ended in the middle of a head.
    pub fn note_read(&self, is_in_head: bool) {
        self.is_in_head.store(is_in_head, Ordering::Relaxed);
        if is_in_head
            && self.active_requests.load(Ordering::Relaxed) == 0
            && self.phase.load(Ordering::Relaxed) & 1 == 0
        {
            self.phase.store((self.now() << 1) | 1, Ordering::Relaxed);
        }
    }

    /// Notes the stream in whose first header block the bytes that were read over HTTP/2 end. Its time counts
    /// from the first such read.
    pub fn note_header_block(&self, stream: Option<u32>) {
        if self.block_stream.swap(stream.unwrap_or(0), Ordering::Relaxed) != stream.unwrap_or(0) {
            let since = if stream.is_some() { self.now() + 1 } else { 0 };
            self.block_since.store(since, Ordering::Relaxed);
        }
    }

    /// Returns whether a header block of HTTP/2 goes on.
    pub fn is_in_header_block(&self) -> bool {
        self.block_since.load(Ordering::Relaxed) > 0
    }

    /// Notes that the preface and the first SETTINGS of an HTTP/2 connection are complete.
    pub fn note_preface_end(&self) {
        if self.active_requests.load(Ordering::Relaxed) == 0 {
            self.phase.store(self.now() << 1, Ordering::Relaxed);
        }
    }

    /// Notes that the client took bytes of a response.
    pub fn note_progress(&self) {
        if self.unread_responses.load(Ordering::Relaxed) > 0 {
            self.last_progress.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Notes that `count` bytes were written; `is_all` is whether the socket took everything offered.
    pub fn note_write(&self, count: usize, is_all: bool) {
        let left = self.buffered.load(Ordering::Relaxed).saturating_sub(count);
        self.buffered.store(left, Ordering::Relaxed);
        self.is_socket_full.store(!is_all, Ordering::Relaxed);
    }

    /// Notes a flush; `is_all` is whether everything written was sent.
    pub fn note_flush(&self, is_all: bool) {
        if is_all {
            self.buffered.store(0, Ordering::Relaxed);
            self.flushes.increment();
        }
        self.is_socket_full.store(!is_all, Ordering::Relaxed);
    }

    /// The end of the chunked body that hyper is writing, which trailers may replace.
    pub fn trailer_slot(&self) -> &TrailerSlot {
        &self.trailer_slot
    }

    /// Returns how many requests have begun since the connection did.
    pub fn requests_begun(&self) -> u64 {
        self.requests_begun.load(Ordering::Relaxed)
    }

    /// Returns whether no request is being served.
    pub fn is_idle(&self) -> bool {
        self.active_requests.load(Ordering::Relaxed) == 0
    }

    /// Has the next read answer the unfinished head with an error.
    pub fn abandon_head(&self) {
        self.is_head_abandoned.store(true, Ordering::Relaxed);
    }

    /// Returns whether [`Self::abandon_head`] was called.
    pub fn is_head_abandoned(&self) -> bool {
        self.is_head_abandoned.load(Ordering::Relaxed)
    }

    /// Notes that a request is being served, until the guard is dropped.
    pub fn begin_request(self: &Arc<Self>) -> RequestGuard {
        self.active_requests.fetch_add(1, Ordering::Relaxed);
        self.requests_begun.fetch_add(1, Ordering::Relaxed);
        RequestGuard {
            activity: Arc::clone(self),
            stream: StreamStall::current(),
            is_pending: AtomicBool::new(false),
            is_tunnel: false,
        }
    }

    /// Notes a tunnel on the stream of `request`, until the guard is dropped.
    pub fn begin_tunnel(self: &Arc<Self>, request: &RequestGuard) -> RequestGuard {
        self.active_requests.fetch_add(1, Ordering::Relaxed);
        self.h2_tunnels.fetch_add(1, Ordering::Relaxed);
        RequestGuard {
            activity: Arc::clone(self),
            stream: request.stream.clone(),
            is_pending: AtomicBool::new(false),
            is_tunnel: true,
        }
    }

    /// Returns whether the connection carries tunnels over HTTP/2.
    pub fn has_tunnels(&self) -> bool {
        self.h2_tunnels.load(Ordering::Relaxed) > 0
    }

    /// Returns when the client will be overdue, and with what; `None` while the gateway is waited for.
    pub fn deadline(&self, timeouts: Timeouts) -> Option<(Instant, Overdue)> {
        let since = self.block_since.load(Ordering::Relaxed).checked_sub(1);
        let block =
            since.map(|since| (self.epoch + Duration::from_millis(since) + timeouts.block, Overdue::HeaderBlock));
        self.phase_deadline(timeouts).into_iter().chain(block).min_by_key(|(at, _)| *at)
    }

    /// Returns when the current phase will be overdue, and as what.
    fn phase_deadline(&self, timeouts: Timeouts) -> Option<(Instant, Overdue)> {
        if self.active_requests.load(Ordering::Relaxed) > 0 {
            let has_unread = self.unread_responses.load(Ordering::Relaxed) > 0;
            return has_unread.then(|| {
                (
                    self.epoch + Duration::from_millis(self.last_progress.load(Ordering::Relaxed)) + timeouts.stall,
                    Overdue::Stall,
                )
            });
        }
        let phase = self.phase.load(Ordering::Relaxed);
        let (allowed, overdue) =
            if phase & 1 == 1 { (timeouts.head, Overdue::Head) } else { (timeouts.idle, Overdue::Idle) };
        Some((self.epoch + Duration::from_millis(phase >> 1) + allowed, overdue))
    }
}

/// Held while a request is served, its response body included.
#[derive(Debug)]
pub struct RequestGuard {
    activity: Arc<Activity>,
    /// The HTTP/2 stream that carries the request.
    stream: Option<Arc<StreamStall>>,
    is_pending: AtomicBool,
    is_tunnel: bool,
}

impl RequestGuard {
    /// Notes that a part of the response waits for the client to read it.
    pub fn mark_pending(&self, now: Instant) {
        if !self.is_pending.swap(true, Ordering::Relaxed) {
            // The time first, so that no other thread computes a deadline from an old one.
            self.activity.last_progress.store(self.activity.millis(now), Ordering::Relaxed);
            self.activity.unread_responses.fetch_add(1, Ordering::Release);
            if let Some(stream) = &self.stream {
                stream.begin(now);
            }
        }
    }

    /// Notes that hyper got `count` bytes of the response.
    pub fn add_buffered(&self, count: usize) {
        self.activity.buffered.fetch_add(count, Ordering::Relaxed);
    }

    /// Returns whether hyper holds enough of the response. On HTTP/1.1 only, where hyper asks again
    /// after the next write; a stream of HTTP/2 is limited by its window.
    pub fn is_above_high_water_mark(&self) -> bool {
        self.stream.is_none()
            && (self.activity.is_socket_full.load(Ordering::Relaxed)
                || self.activity.buffered.load(Ordering::Relaxed) >= HIGH_WATER_MARK)
    }

    /// Notes that the client has read all that there was.
    pub fn mark_drained(&self) {
        if self.is_pending.swap(false, Ordering::Relaxed) {
            self.activity.unread_responses.fetch_sub(1, Ordering::Relaxed);
            if let Some(stream) = &self.stream {
                stream.mark_drained();
            }
        }
    }

    /// Resets the HTTP/2 stream of a tunnel in place of ending it.
    pub fn reset_stream(&self) {
        if let Some(stream) = &self.stream {
            stream.reset();
        }
    }

    /// Returns whether the HTTP/2 stream was reset because its client did not read it.
    pub fn is_stream_stalled(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_expired())
    }

    /// Returns whether the request came on a stream of HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.stream.is_some()
    }

    /// Completes once all that hyper had at `since`, a value of `Self::flush_count`, has left the
    /// process. On HTTP/1.1 only.
    pub fn poll_flushed(&self, since: u64, cx: &mut Context<'_>) -> Poll<()> {
        self.activity.flushes.poll_after(since, cx)
    }

    /// Has the chunked body that ends now end with `trailers`. All that hyper had of it must have left the process.
    pub fn end_with_trailers(&self, trailers: &HeaderMap) {
        self.activity.trailer_slot.set(trailers);
    }

    /// Returns how often everything that was written had left the process.
    pub fn flush_count(&self) -> u64 {
        self.activity.flushes.count()
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.mark_drained();
        if self.is_tunnel {
            self.activity.h2_tunnels.fetch_sub(1, Ordering::Relaxed);
        }
        // Before the count falls, so that no other thread takes the connection for idle since its
        // start. The next head may have begun.
        let head = u64::from(self.activity.is_in_head.load(Ordering::Relaxed));
        self.activity.phase.store((self.activity.now() << 1) | head, Ordering::Relaxed);
        self.activity.active_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        head: Duration::from_secs(10),
        block: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        stall: Duration::from_secs(60),
    };

    #[tokio::test(start_paused = true)]
    async fn each_header_block_of_h2_has_a_time_of_its_own() {
        let timeouts = TIMEOUTS;
        let start = Instant::now();
        let activity = Activity::new(Protocol::H2);
        let _request = activity.begin_request();
        // When reads end in these blocks, and when the deadline passes then.
        for (second, stream, deadline) in [
            (0, None, None),
            (5, Some(1), Some(15)),
            (14, Some(1), Some(15)),
            (15, Some(3), Some(25)),
            (20, None, None),
            (21, Some(5), Some(31)),
        ] {
            tokio::time::advance(start + Duration::from_secs(second) - Instant::now()).await;
            activity.note_header_block(stream);
            let expected = deadline.map(|at| (start + Duration::from_secs(at), Overdue::HeaderBlock));
            assert_eq!(activity.deadline(timeouts), expected, "{second} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_follow_idleness_a_slow_head_a_request_and_a_stalled_response() {
        let timeouts = TIMEOUTS;
        let start = Instant::now();
        let activity = Activity::new(Protocol::H1);
        assert_eq!(activity.deadline(timeouts), Some((start + timeouts.idle, Overdue::Idle)));
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.note_read(true);
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.note_read(true);
        assert_eq!(activity.deadline(timeouts), Some((start + Duration::from_secs(15), Overdue::Head)));
        activity.note_read(false);
        let (one, two) = (activity.begin_request(), activity.begin_request());
        drop(one);
        assert_eq!(activity.deadline(timeouts), None);
        two.mark_pending(Instant::now());
        assert_eq!(activity.deadline(timeouts), Some((start + Duration::from_secs(70), Overdue::Stall)));
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.note_progress();
        assert_eq!(activity.deadline(timeouts), Some((start + Duration::from_secs(75), Overdue::Stall)));
        two.mark_drained();
        assert_eq!(activity.deadline(timeouts), None, "the gateway is waited for");
        two.mark_pending(Instant::now());
        drop(two);
        assert_eq!(activity.deadline(timeouts), Some((start + Duration::from_secs(90), Overdue::Idle)));
        let pipelined = activity.begin_request();
        activity.note_read(true);
        drop(pipelined);
        assert_eq!(
            activity.deadline(timeouts),
            Some((start + Duration::from_secs(25), Overdue::Head)),
            "the next head has begun"
        );
    }

    #[test]
    fn hyper_gets_no_more_than_the_socket_takes() {
        let activity = Activity::new(Protocol::H1);
        let guard = activity.begin_request();
        assert!(!guard.is_above_high_water_mark());
        guard.add_buffered(HIGH_WATER_MARK - 1);
        assert!(!guard.is_above_high_water_mark(), "below the mark");
        guard.add_buffered(1);
        assert!(guard.is_above_high_water_mark());
        activity.note_write(HIGH_WATER_MARK / 2, false);
        assert!(guard.is_above_high_water_mark(), "the socket is full");
        activity.note_write(HIGH_WATER_MARK, true);
        assert!(!guard.is_above_high_water_mark());
        activity.note_flush(false);
        assert!(guard.is_above_high_water_mark(), "written, but not flushed");
        activity.note_flush(true);
        assert!(!guard.is_above_high_water_mark());
        guard.add_buffered(1 << 20);
        activity.note_flush(true);
        assert!(!guard.is_above_high_water_mark(), "a flush leaves nothing");
    }
}
