//! Background tasks of a fake or a client.

use std::mem::take;
use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;

/// A set of tasks. They are aborted when the last clone of the set is dropped.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    /// Starts a task in the current runtime.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock().unwrap();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Aborts every task and waits until all have ended.
    pub async fn abort_all(&self) {
        let mut tasks = take(&mut *self.0.lock().unwrap());
        tasks.shutdown().await;
    }
}
