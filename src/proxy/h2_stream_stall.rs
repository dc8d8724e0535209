//! The streams of an HTTP/2 connection, each on a task of its own.
//!
//! A connection on which nothing is taken is closed as a whole. But one response may be left lying while others are taken, and holds a
//! connection to the gateway for as long: its stream is reset.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use crate::shutdown::Shutdown;

/// How much longer than a whole connection one stream may be left lying: streams wait for each other where a client is slow.
const PATIENCE: u32 = 5;

tokio::task_local! {
    static STREAM_STALL: Arc<StreamStall>;
}

/// Since when a stream's client has not taken what is there for it.
#[derive(Debug)]
pub(super) struct StreamStall {
    epoch: Instant,
    /// Milliseconds after `epoch`, plus one; 0 where nothing is there to be taken.
    since: AtomicU64,
}

impl StreamStall {
    /// That of the stream whose task this is; `None` on any other.
    pub(super) fn current() -> Option<Arc<Self>> {
        STREAM_STALL.try_with(Arc::clone).ok()
    }

    pub(super) fn begin(&self, now: Instant) {
        let now = u64::try_from((now - self.epoch).as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(now + 1, Ordering::Relaxed);
    }

    pub(super) fn mark_drained(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn since(&self) -> Option<Instant> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.epoch + Duration::from_millis(since))
    }
}

/// Where hyper runs the streams of a connection.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    shutdown: Shutdown,
    patience: Duration,
}

impl StreamExecutor {
    /// Those of a connection that may itself be left lying for `stall`.
    pub(super) fn new(shutdown: &Shutdown, stall: Duration) -> Self {
        Self { shutdown: shutdown.clone(), patience: stall.saturating_mul(PATIENCE) }
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let debt = Arc::new(StreamStall { epoch: Instant::now(), since: AtomicU64::new(0) });
        let watched = StallGuarded { stream, debt: Arc::clone(&debt), patience: self.patience, timer: None };
        self.shutdown.spawn(STREAM_STALL.scope(debt, watched));
    }
}

pin_project! {
    /// A stream's task, which is over when its client has not taken anything for too long: what is dropped unfinished is reset.
    struct StallGuarded<F> {
        #[pin]
        stream: F,
        debt: Arc<StreamStall>,
        patience: Duration,
        // Only where something was left lying, and not moved before it is due.
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for StallGuarded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(since) = this.debt.since() else { return Poll::Pending };
        let due = since + *this.patience;
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        ready!(timer.as_mut().poll(cx));
        if due <= Instant::now() {
            return Poll::Ready(());
        }
        timer.as_mut().reset(due);
        timer.as_mut().poll(cx)
    }
}
