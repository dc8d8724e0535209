//! The waker of a connection to the gateway, which the client's task drives.
//!
//! One task polls hyper's connection, the response and its body, one after the other. They wake each other through
//! hyper's channels, each time for what that task polls next in any case: it would be polled once more for each piece
//! of a body, and twice for each request. A connection that was idle would also wake the task that used it last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Passes wakes on to the task that drives a connection, except for those from inside its own poll.
#[derive(Debug)]
pub struct DriveWaker {
    waker: Waker,
    state: Arc<WakeState>,
}

#[derive(Debug)]
struct WakeState {
    /// Whether the connection is to be polled.
    is_woken: AtomicBool,
    /// Whether the task is polling it, or what comes over it.
    is_polled: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for WakeState {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::SeqCst);
        if !self.is_polled.load(Ordering::SeqCst) {
            self.wake_task();
        }
    }
}

impl WakeState {
    fn wake_task(&self) {
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.wake_by_ref();
        }
    }

    /// Has wakes go to the task of `cx` from now on.
    fn set_task(&self, cx: &Context<'_>) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *task {
            Some(task) => task.clone_from(cx.waker()),
            None => *task = Some(cx.waker().clone()),
        }
    }
}

impl DriveWaker {
    /// Creates the waker of a connection that was not polled yet.
    pub fn new() -> Self {
        let (is_woken, is_polled) = (AtomicBool::new(true), AtomicBool::new(false));
        let state = Arc::new(WakeState { is_woken, is_polled, task: Mutex::new(None) });
        Self { waker: Waker::from(Arc::clone(&state)), state }
    }

    /// Has the connection wake no task until one polls it again.
    pub fn clear_task(&self) {
        *self.state.task.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Has the connection be polled the next time.
    pub fn mark_woken(&self) {
        self.state.is_woken.store(true, Ordering::SeqCst);
    }

    /// Returns whether the connection is to be polled now, and the context for that.
    pub fn take_wake_context(&self) -> Option<Context<'_>> {
        self.state.is_woken.swap(false, Ordering::SeqCst).then(|| Context::from_waker(&self.waker))
    }

    /// Calls `poll`, which polls the connection as long as [`Self::take_wake_context`] says so, and what comes over it.
    /// The task of `cx` is woken later if `poll` is pending.
    pub fn poll<T>(&self, cx: &Context<'_>, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        self.state.set_task(cx);
        self.state.is_polled.store(true, Ordering::SeqCst);
        let result = poll();
        self.state.is_polled.store(false, Ordering::SeqCst);
        // The connection has yielded.
        if result.is_pending() && self.state.is_woken.load(Ordering::SeqCst) {
            cx.waker().wake_by_ref();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_task_is_woken_for_what_it_does_not_poll_itself() {
        let drive = DriveWaker::new();
        let tasks = [Arc::new(Count::default()), Arc::new(Count::default())];
        let woken = || tasks.each_ref().map(|task| task.0.load(Ordering::Relaxed));
        let [one, two] = tasks.each_ref().map(|task| Waker::from(Arc::clone(task)));
        let mut kept = None;
        let polled = drive.poll(&Context::from_waker(&one), || {
            let cx = drive.take_wake_context().expect("it was not polled yet");
            cx.waker().wake_by_ref();
            kept = Some(cx.waker().clone());
            assert!(drive.take_wake_context().is_some() && drive.take_wake_context().is_none());
            Poll::<()>::Pending
        });
        assert_eq!((polled, woken()), (Poll::Pending, [0, 0]), "it was polled again for its own wake");
        let kept = kept.unwrap();
        kept.wake_by_ref();
        assert_eq!(woken(), [1, 0]);
        let polled = drive.poll(&Context::from_waker(&two), || {
            assert!(drive.take_wake_context().is_some());
            kept.wake_by_ref();
            Poll::Ready(())
        });
        assert_eq!((polled, woken()), (Poll::Ready(()), [1, 0]), "who got a result asks for the next");
        let polled = drive.poll(&Context::from_waker(&two), || Poll::<()>::Pending);
        assert_eq!((polled, woken()), (Poll::Pending, [1, 1]), "it was woken and not polled");
        kept.wake_by_ref();
        assert_eq!(woken(), [1, 2], "the last task drives it");
        drive.clear_task();
        kept.wake_by_ref();
        assert_eq!(woken(), [1, 2], "no task drives it");
        assert!(drive.take_wake_context().is_some() && drive.take_wake_context().is_none());
        drive.mark_woken();
        assert!(drive.take_wake_context().is_some());
    }
}
