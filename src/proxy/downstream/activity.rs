//! What a downstream connection is doing and since when, for the deadlines of its client.
//!
//! Workaround: hyper has one timeout for a slow head and for an idle connection
//! ([hyper#1628](https://github.com/hyperium/hyper/issues/1628),
//! [hyper#3828](https://github.com/hyperium/hyper/pull/3828)). When it has one for each, delete the
//! phases of [`Activity`]. The deadlines of HTTP/2 header blocks and of clients that do not read
//! are no part of the workaround.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::h2_stream_stall::StreamStall;
use super::output_state::OutputState;
use crate::labels::{LaneKind, Protocol};

#[cfg(test)]
mod tests;

/// The activity of one connection. Its stream and its requests record it, and its task watches the
/// deadlines.
///
/// The fields are atomics because requests over HTTP/2 and tunnels have tasks of their own, and a
/// task must be `Send`. All of them run on the thread of one worker, so the order of the stores
/// does not matter, and `Relaxed` suffices.
#[derive(Debug)]
pub struct Activity {
    epoch: Instant,
    /// The number of requests that are being served, tunnels included.
    active_requests: AtomicUsize,
    /// The number of tunnels over HTTP/2.
    h2_tunnels: AtomicUsize,
    /// The current phase while no request is served. Its times are milliseconds after `epoch`.
    phase: AtomicPhase,
    /// The number of responses of which a part waits for the client to read it.
    unread_responses: AtomicUsize,
    /// The number of those whose request was sent to the gateway on the external lane.
    unread_external: AtomicUsize,
    /// Milliseconds after `epoch` at which the client last read a part of a response.
    last_progress: AtomicU64,
    /// Whether the last bytes from the client ended inside an HTTP/1.1 head.
    is_in_head: AtomicBool,
    /// Milliseconds after `epoch`, plus one, at which the unfinished HTTP/2 header block began; 0
    /// if there is none.
    block_since: AtomicU64,
    /// The stream of that header block; 0 if there is none.
    block_stream: AtomicU32,
    /// Whether the deadline of a head has passed, so that the next read ends the connection.
    is_head_abandoned: AtomicBool,
    /// The number of requests since the connection began.
    requests_begun: AtomicU64,
    output: OutputState,
}

/// What the client is doing while no request is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It sends the head of an HTTP/1.1 request, or the HTTP/2 preface and the first SETTINGS.
    Head,
    /// It sends nothing.
    Idle,
}

/// A [`Phase`] and the time at which it began, in milliseconds. Both are in one atomic, so that
/// they are read together.
#[derive(Debug)]
struct AtomicPhase(AtomicU64);

impl AtomicPhase {
    fn new(phase: Phase, began: u64) -> Self {
        Self(AtomicU64::new(Self::pack(phase, began)))
    }

    /// Begins `phase` at the time `began`.
    fn store(&self, phase: Phase, began: u64) {
        self.0.store(Self::pack(phase, began), Ordering::Relaxed);
    }

    /// Returns the phase and the time at which it began.
    fn load(&self) -> (Phase, u64) {
        let packed = self.0.load(Ordering::Relaxed);
        (if packed & 1 == 1 { Phase::Head } else { Phase::Idle }, packed >> 1)
    }

    /// The low bit is the phase, and the other bits are the time.
    fn pack(phase: Phase, began: u64) -> u64 {
        (began << 1) | u64::from(phase == Phase::Head)
    }
}

/// The longest time for each phase of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the first byte of an HTTP/1.1 head to its end, or for the HTTP/2 preface and first
    /// SETTINGS.
    pub head: Duration,
    /// From the first byte of an HTTP/2 header block to its end.
    pub header_block: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// While the client reads nothing of a response.
    pub stall: Duration,
    /// The same while a response of the external lane is unread. At most `stall`.
    pub external_stall: Duration,
}

/// What a client is overdue with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// The client did not finish an HTTP/1.1 head, or its HTTP/2 preface.
    Head,
    /// The client did not finish an HTTP/2 header block.
    HeaderBlock,
    /// The client sent no request.
    Idle,
    /// The client read nothing of a response.
    Stall,
}

impl Overdue {
    /// Returns the reason in one word, for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Head | Self::HeaderBlock => "head",
            Self::Idle => "idle",
            Self::Stall => "stall",
        }
    }
}

impl Activity {
    /// Creates the activity of a new connection. An HTTP/2 connection begins with its preface and
    /// SETTINGS, which count as a head; an HTTP/1.1 connection begins idle.
    pub fn new(protocol: Protocol) -> Arc<Self> {
        let phase = match protocol {
            Protocol::H1 => Phase::Idle,
            Protocol::H2 => Phase::Head,
        };
        Arc::new(Self {
            epoch: Instant::now(),
            active_requests: AtomicUsize::new(0),
            h2_tunnels: AtomicUsize::new(0),
            phase: AtomicPhase::new(phase, 0),
            unread_responses: AtomicUsize::new(0),
            unread_external: AtomicUsize::new(0),
            last_progress: AtomicU64::new(0),
            is_in_head: AtomicBool::new(false),
            block_since: AtomicU64::new(0),
            block_stream: AtomicU32::new(0),
            is_head_abandoned: AtomicBool::new(false),
            requests_begun: AtomicU64::new(0),
            output: OutputState::default(),
        })
    }

    /// Returns the record of how much of what hyper wrote the socket has taken.
    pub fn output(&self) -> &OutputState {
        &self.output
    }

    fn now_millis(&self) -> u64 {
        self.millis_at(Instant::now())
    }

    fn millis_at(&self, at: Instant) -> u64 {
        u64::try_from((at - self.epoch).as_millis()).unwrap_or(u64::MAX >> 1)
    }

    /// Records that bytes were read over HTTP/1.1. `is_in_head` is whether they ended inside a
    /// head. The time for a head begins with the first such read, or with the end of the request
    /// that is being served.
    pub fn record_h1_read(&self, is_in_head: bool) {
        self.is_in_head.store(is_in_head, Ordering::Relaxed);
        if is_in_head && self.is_idle() && self.phase.load().0 == Phase::Idle {
            self.phase.store(Phase::Head, self.now_millis());
        }
    }

    /// Records that the bytes read over HTTP/2 end inside the header block of `stream`; `None` if
    /// they end in no header block. The time of a block counts from the first such read.
    pub fn set_unfinished_header_block(&self, stream: Option<u32>) {
        if self.block_stream.swap(stream.unwrap_or(0), Ordering::Relaxed) != stream.unwrap_or(0) {
            let since = if stream.is_some() { self.now_millis() + 1 } else { 0 };
            self.block_since.store(since, Ordering::Relaxed);
        }
    }

    /// Returns whether the client has begun an HTTP/2 header block and not finished it.
    pub fn is_in_header_block(&self) -> bool {
        self.block_since.load(Ordering::Relaxed) > 0
    }

    /// Records that the HTTP/2 preface and the first SETTINGS are complete: the time for the next
    /// request begins, if none is being served.
    pub fn record_preface_end(&self) {
        if self.is_idle() {
            self.phase.store(Phase::Idle, self.now_millis());
        }
    }

    /// Records that the socket took bytes of a response: the stall timeout begins anew. Does
    /// nothing while no response waits for the client.
    pub fn record_write_progress(&self) {
        if self.unread_responses.load(Ordering::Relaxed) > 0 {
            self.last_progress.store(self.now_millis(), Ordering::Relaxed);
        }
    }

    /// Returns the number of requests since the connection began.
    pub fn requests_begun(&self) -> u64 {
        self.requests_begun.load(Ordering::Relaxed)
    }

    /// Returns whether no request is being served.
    pub fn is_idle(&self) -> bool {
        self.active_requests.load(Ordering::Relaxed) == 0
    }

    /// Makes the next read answer the unfinished head with an error and end the connection.
    pub fn abandon_head(&self) {
        self.is_head_abandoned.store(true, Ordering::Relaxed);
    }

    /// Returns whether [`Self::abandon_head`] was called.
    pub fn is_head_abandoned(&self) -> bool {
        self.is_head_abandoned.load(Ordering::Relaxed)
    }

    /// Records that a request is served until the returned guard is dropped. `lane` is the
    /// connection's. Over HTTP/2, must be called on the task of its stream.
    pub fn begin_request(self: &Arc<Self>, lane: LaneKind) -> RequestGuard {
        self.active_requests.fetch_add(1, Ordering::Relaxed);
        self.requests_begun.fetch_add(1, Ordering::Relaxed);
        RequestGuard {
            activity: Arc::clone(self),
            stream: StreamStall::of_current_task(),
            is_external: AtomicBool::new(lane == LaneKind::External),
            is_pending: AtomicBool::new(false),
            is_tunnel: false,
        }
    }

    /// Records that the HTTP/2 stream of `request` carries a tunnel until the returned guard is
    /// dropped.
    pub fn begin_tunnel(self: &Arc<Self>, request: &RequestGuard) -> RequestGuard {
        self.active_requests.fetch_add(1, Ordering::Relaxed);
        self.h2_tunnels.fetch_add(1, Ordering::Relaxed);
        RequestGuard {
            activity: Arc::clone(self),
            stream: request.stream.clone(),
            is_external: AtomicBool::new(request.lane() == LaneKind::External),
            is_pending: AtomicBool::new(false),
            is_tunnel: true,
        }
    }

    /// Returns whether the connection carries tunnels over HTTP/2.
    pub fn has_tunnels(&self) -> bool {
        self.h2_tunnels.load(Ordering::Relaxed) > 0
    }

    /// Returns the time at which the client will be overdue, and with what; `None` while only the
    /// gateway is waited for.
    pub fn deadline_and_cause(&self, timeouts: Timeouts) -> Option<(Instant, Overdue)> {
        let since = self.block_since.load(Ordering::Relaxed).checked_sub(1);
        let block = since
            .map(|since| (self.epoch + Duration::from_millis(since) + timeouts.header_block, Overdue::HeaderBlock));
        self.phase_deadline_and_cause(timeouts).into_iter().chain(block).min_by_key(|(at, _)| *at)
    }

    /// Returns the deadline of a stall while a request is served, else that of the current phase.
    /// HTTP/2 header blocks are not considered.
    fn phase_deadline_and_cause(&self, timeouts: Timeouts) -> Option<(Instant, Overdue)> {
        if !self.is_idle() {
            let has_unread = self.unread_responses.load(Ordering::Relaxed) > 0;
            let has_external = self.unread_external.load(Ordering::Relaxed) > 0;
            let allowed = if has_external { timeouts.external_stall } else { timeouts.stall };
            let last_progress = Duration::from_millis(self.last_progress.load(Ordering::Relaxed));
            return has_unread.then(|| (self.epoch + last_progress + allowed, Overdue::Stall));
        }
        let (phase, began) = self.phase.load();
        let (allowed, overdue) = match phase {
            Phase::Head => (timeouts.head, Overdue::Head),
            Phase::Idle => (timeouts.idle, Overdue::Idle),
        };
        Some((self.epoch + Duration::from_millis(began) + allowed, overdue))
    }
}

/// Marks a request as being served, until its response has been sent.
#[derive(Debug)]
pub struct RequestGuard {
    activity: Arc<Activity>,
    /// The HTTP/2 stream that carries the request; `None` over HTTP/1.1.
    stream: Option<Arc<StreamStall>>,
    is_external: AtomicBool,
    is_pending: AtomicBool,
    is_tunnel: bool,
}

impl RequestGuard {
    /// Sets the lane on which the request is sent to the gateway. Must be called before
    /// [`Self::mark_pending`].
    pub fn set_lane(&self, lane: LaneKind) {
        self.is_external.store(lane == LaneKind::External, Ordering::Relaxed);
    }

    /// Returns the lane on which the request is sent to the gateway; before that is known, the
    /// connection's.
    pub fn lane(&self) -> LaneKind {
        if self.is_external.load(Ordering::Relaxed) { LaneKind::External } else { LaneKind::Agent }
    }

    /// Records that since `now` a part of the response waits for the client to read it: starts the
    /// stall timeouts of the connection and of the HTTP/2 stream. Does nothing if a part waits
    /// already.
    pub fn mark_pending(&self, now: Instant) {
        if !self.is_pending.swap(true, Ordering::Relaxed) {
            self.activity.last_progress.store(self.activity.millis_at(now), Ordering::Relaxed);
            self.activity.unread_responses.fetch_add(1, Ordering::Relaxed);
            self.activity.unread_external.fetch_add(self.external_count(), Ordering::Relaxed);
            if let Some(stream) = &self.stream {
                stream.start_timer(now, self.lane());
            }
        }
    }

    /// Returns the record of how much of what hyper wrote the socket has taken.
    pub fn output(&self) -> &OutputState {
        &self.activity.output
    }

    /// Completes when hyper may get more bytes of the response. Over HTTP/2 this is at once: the
    /// stream's window is the limit.
    pub fn poll_below_high_water_mark(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_h2() { Poll::Ready(()) } else { self.activity.output.poll_below_high_water_mark(cx) }
    }

    /// Records that no part of the response waits for the client any more: ends what
    /// [`Self::mark_pending`] began.
    pub fn mark_drained(&self) {
        if self.is_pending.swap(false, Ordering::Relaxed) {
            self.activity.unread_responses.fetch_sub(1, Ordering::Relaxed);
            self.activity.unread_external.fetch_sub(self.external_count(), Ordering::Relaxed);
            if let Some(stream) = &self.stream {
                stream.stop_timer();
            }
        }
    }

    /// Returns 1 on the external lane, 0 on the agent lane.
    fn external_count(&self) -> usize {
        usize::from(self.lane() == LaneKind::External)
    }

    /// Resets the HTTP/2 stream of a tunnel, in place of an END_STREAM. Does nothing over HTTP/1.1.
    pub fn reset_stream(&self) {
        if let Some(stream) = &self.stream {
            stream.reset_stream();
        }
    }

    /// Returns whether the HTTP/2 stream was reset because its client did not read it.
    pub fn is_stream_stalled(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_expired())
    }

    /// Returns whether the request came over HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.stream.is_some()
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.mark_drained();
        if self.is_tunnel {
            self.activity.h2_tunnels.fetch_sub(1, Ordering::Relaxed);
        }
        // The head of the next request may have begun.
        let phase = if self.activity.is_in_head.load(Ordering::Relaxed) { Phase::Head } else { Phase::Idle };
        self.activity.phase.store(phase, self.activity.now_millis());
        self.activity.active_requests.fetch_sub(1, Ordering::Relaxed);
    }
}
