//! Graceful shutdown: a token asks all tasks to end, a tracker waits for them, and a deadline
//! limits the wait.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TrackedFuture;

/// Spawns tracked tasks and asks them to end. Clones share one token and one tracker.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    tokens: Arc<Tokens>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct Tokens {
    /// Cancelled when the shutdown begins.
    begun: CancellationToken,
    /// Cancelled when the tasks must end at once.
    aborted: CancellationToken,
}

impl Shutdown {
    /// Returns a shutdown that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks all tasks to end. Further calls have no effect.
    pub fn begin(&self) {
        self.tokens.begun.cancel();
    }

    /// Asks all tasks to end at once, whatever they wait for.
    pub fn abort(&self) {
        self.tokens.begun.cancel();
        self.tokens.aborted.cancel();
    }

    /// Resolves once [`Shutdown::abort`] was called.
    pub fn wait_until_aborted(&self) -> WaitForCancellationFuture<'_> {
        self.tokens.aborted.cancelled()
    }

    /// Returns whether the shutdown has begun.
    pub fn has_begun(&self) -> bool {
        self.tokens.begun.is_cancelled()
    }

    /// Resolves once the shutdown has begun.
    pub async fn wait_until_begun(&self) {
        self.tokens.begun.cancelled().await;
    }

    /// Returns a token that is cancelled when the shutdown begins.
    pub fn cancellation_token(&self) -> &CancellationToken {
        &self.tokens.begun
    }

    /// Spawns `task` on the current runtime; [`Shutdown::wait_for_tasks`] waits for it.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns, since here the task is tracked")]
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.track_task(task));
    }

    /// Spawns `task` as [`Shutdown::spawn`] does, and drops it when the shutdown begins.
    pub fn spawn_until_begun<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let begun = self.cancellation_token().clone();
        self.spawn(async move {
            tokio::select! { () = begun.cancelled() => {}, () = task => {} }
        });
    }

    /// Wraps `task`, which another executor runs, so that [`Shutdown::wait_for_tasks`] waits for
    /// it.
    pub fn track_task<F: Future>(&self, task: F) -> TrackedFuture<F> {
        self.tasks.track_future(task)
    }

    /// Returns the number of tasks that still run.
    pub fn running_task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Waits until every task has ended, but at most for `limit`. Returns the number of tasks that
    /// still run.
    pub async fn wait_for_tasks(&self, limit: Duration) -> usize {
        self.tasks.close();
        let _ = tokio::time::timeout(limit, self.tasks.wait()).await;
        self.tasks.len()
    }
}

/// Tracks the tasks that hyper spawns for HTTP/2.
impl<F> hyper::rt::Executor<F> for Shutdown
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wait_waits_for_a_task_that_ends_with_the_token() {
        let shutdown = Shutdown::new();
        let observed = shutdown.clone();
        shutdown.spawn(async move { observed.wait_until_begun().await });
        shutdown.begin();
        assert_eq!(shutdown.wait_for_tasks(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test]
    async fn a_shutdown_drops_the_tasks_that_were_spawned_until_it_begins() {
        let shutdown = Shutdown::new();
        shutdown.spawn_until_begun(std::future::pending());
        shutdown.begin();
        assert_eq!(shutdown.wait_for_tasks(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn wait_counts_a_task_that_ignores_the_token() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending());
        shutdown.begin();
        assert_eq!(shutdown.wait_for_tasks(Duration::from_secs(1)).await, 1);
    }
}
