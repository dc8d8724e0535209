//! How everything ends: one token goes down, tracked tasks come back, one deadline cuts what is left.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TrackedFuture;

/// Handed to whoever starts tasks; clones share one token and one count.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// A shutdown that nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything to end; repeating it changes nothing.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Says whether the end was asked for.
    pub fn has_begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Resolves once the end was asked for.
    pub async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// A token that is cancelled when the end is asked for.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs `task` on the current runtime and waits for it in [`Shutdown::finished`].
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns: here the task is tracked")]
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.track(task));
    }

    /// Waits in [`Shutdown::finished`] for `task`, which is to run elsewhere.
    pub fn track<F: Future>(&self, task: F) -> TrackedFuture<F> {
        self.tasks.track_future(task)
    }

    /// How many tasks are still running.
    pub fn remaining(&self) -> usize {
        self.tasks.len()
    }

    /// Waits until every task has ended, `deadline` at most; returns how many had not.
    pub async fn finished(&self, deadline: Duration) -> usize {
        self.tasks.close();
        let _ = tokio::time::timeout(deadline, self.tasks.wait()).await;
        self.tasks.len()
    }
}

/// So that hyper's own tasks, which HTTP/2 needs, are tracked too.
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
    async fn a_task_that_heeds_the_token_is_waited_for() {
        let shutdown = Shutdown::new();
        let told = shutdown.clone();
        shutdown.spawn(async move { told.begun().await });
        shutdown.begin();
        assert_eq!(shutdown.finished(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_is_counted() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending());
        shutdown.begin();
        assert_eq!(shutdown.finished(Duration::from_secs(1)).await, 1);
    }
}
