//! Resets HTTP/2 streams that their client does not read, and runs the tasks of streams.
//!
//! A connection on which the client reads nothing is closed as a whole. But a client may read other
//! responses and leave one unread, which holds a connection to the gateway for as long. The stream
//! of that response is reset.
//!
//! Workaround: [hyper#1628](https://github.com/hyperium/hyper/issues/1628). Delete when hyper has a
//! write timeout for a stream.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::labels::LaneKind;
use crate::proxy::lazy_timer::LazyTimer;
use crate::shutdown::Shutdown;

/// A stream may be left unread for this many times the limit of a whole connection: with a slow
/// client, a stream waits while others are read.
const STREAM_FACTOR: u32 = 5;

tokio::task_local! {
    static STREAM: Arc<StreamStall>;
}

/// The stall timer of one stream: the time since which the client has not read the data that waits
/// for it.
///
/// The tasks that use it run on the thread of one worker, so the atomics need no ordering.
#[derive(Debug)]
pub struct StreamStall {
    epoch: Instant,
    /// The time since which data wait for the client, in milliseconds after `epoch`, plus one; 0 if
    /// none wait.
    since: AtomicU64,
    /// Whether the request is sent to the gateway on the external lane.
    is_external: AtomicBool,
    /// Whether the stream of a tunnel must be reset ([`Self::reset_stream`]).
    must_reset: AtomicBool,
    /// Whether the stall timer has expired, which also resets the stream.
    is_expired: AtomicBool,
    waker: AtomicWaker,
}

impl StreamStall {
    fn new() -> Self {
        Self {
            epoch: Instant::now(),
            since: AtomicU64::new(0),
            is_external: AtomicBool::new(false),
            must_reset: AtomicBool::new(false),
            is_expired: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    /// Returns the timer of the stream on whose task this is called; `None` on other tasks.
    pub fn of_current_task() -> Option<Arc<Self>> {
        STREAM.try_with(Arc::clone).ok()
    }

    /// Starts the timer at `now`: data wait for the client. `lane` is the request's.
    pub fn start_timer(&self, now: Instant, lane: LaneKind) {
        self.is_external.store(lane == LaneKind::External, Ordering::Relaxed);
        let now = u64::try_from((now - self.epoch).as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(now + 1, Ordering::Relaxed);
    }

    /// Stops the timer: the client has read everything.
    pub fn stop_timer(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Makes the next poll of the stream's tasks end them, so that `h2` resets the stream with
    /// CANCEL.
    pub fn reset_stream(&self) {
        self.must_reset.store(true, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Returns whether the stream was reset because the client read nothing for too long.
    pub fn is_expired(&self) -> bool {
        self.is_expired.load(Ordering::Relaxed)
    }

    /// Returns the time since which data wait for the client; `None` if none wait.
    fn stalled_since(&self) -> Option<Instant> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.epoch + Duration::from_millis(since))
    }
}

/// Runs the tasks of the streams of one connection, each with a stall timer.
#[derive(Clone, Debug)]
pub struct StreamExecutor {
    shutdown: Shutdown,
    limits: StreamLimits,
}

/// The times for which a stream may be left unread.
#[derive(Clone, Copy, Debug)]
struct StreamLimits {
    agent: Duration,
    external: Duration,
}

impl StreamExecutor {
    /// Creates the executor of a connection that may be left unread for `stall`. Each of its
    /// streams may be left unread for five times as long, but for at most `external_limit` if its
    /// request is sent to the gateway on the external lane.
    pub fn new(shutdown: &Shutdown, stall: Duration, external_limit: Duration) -> Self {
        let agent = stall.saturating_mul(STREAM_FACTOR);
        Self { shutdown: shutdown.clone(), limits: StreamLimits { agent, external: agent.min(external_limit) } }
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        // hyper spawns the task that writes to an upgraded stream on the task of the stream: both
        // share a timer.
        let stall = StreamStall::of_current_task().unwrap_or_else(|| Arc::new(StreamStall::new()));
        let guarded = StallGuarded { task, stall: Arc::clone(&stall), limits: self.limits, timer: None };
        self.shutdown.spawn(STREAM.scope(stall, guarded));
    }
}

pin_project! {
    /// A stream's task. It ends when the client has read nothing for too long: `h2` resets a stream
    /// that is dropped before its end.
    struct StallGuarded<F> {
        #[pin]
        task: F,
        stall: Arc<StreamStall>,
        limits: StreamLimits,
        // Created when something is left unread for the first time.
        timer: Option<LazyTimer>,
    }
}

impl<F: Future<Output = ()>> Future for StallGuarded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        this.stall.waker.register(cx.waker());
        // This is checked before the task is polled: the task would end the stream with END_STREAM.
        if this.stall.must_reset.load(Ordering::Relaxed) || this.task.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(since) = this.stall.stalled_since() else { return Poll::Pending };
        let is_external = this.stall.is_external.load(Ordering::Relaxed);
        let limit = if is_external { this.limits.external } else { this.limits.agent };
        let timer = this.timer.get_or_insert_with(|| LazyTimer::new(limit));
        timer.poll_due(cx, Some(since + limit)).map(|_| this.stall.is_expired.store(true, Ordering::Relaxed))
    }
}
