//! The threads that carry traffic. Each has a single-threaded runtime, so that a connection stays
//! on one thread.
//!
//! tokio's multi-threaded scheduler moves tasks to any idle thread. For a proxy, with its many
//! short tasks, that costs more than it gains: each batch of events wakes another thread, and
//! caches, locks and freed memory move with the task.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// Returns the number of worker threads: `TOKIO_WORKER_THREADS`, or the number of processors
/// available to this process.
pub fn worker_count() -> usize {
    let configured =
        std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|text| text.parse().ok()).filter(|count| *count > 0);
    configured.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get))
}

/// Returns the index of the worker that calls this function, or 0 on a thread that is not a worker.
pub fn current_index() -> usize {
    INDEX.get()
}

/// The worker threads. Dropping this value ends them and drops the tasks that still run on them.
#[derive(Debug)]
pub struct Workers {
    pool: WorkerPool,
    _stop: DropGuard,
}

/// Runs tasks on the workers. Clones refer to the same workers.
#[derive(Clone, Debug)]
pub struct WorkerPool(Arc<[Worker]>);

struct Worker {
    tasks: mpsc::UnboundedSender<BoxFuture<'static, ()>>,
    connections: Arc<AtomicUsize>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("connections", &self.connections).finish_non_exhaustive()
    }
}

/// The slot of one connection on a worker. It counts as one of the worker's connections until it is
/// dropped.
#[derive(Debug)]
pub struct WorkerSlot {
    worker: usize,
    connections: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` threads. `count` must not be 0.
    ///
    /// # Errors
    /// If the operating system refuses to create a thread or its event queue. The threads that were
    /// started end.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let pool: io::Result<Vec<_>> = (0..count).map(|index| Worker::start(index, stop.clone())).collect();
        let stop = stop.drop_guard();
        Ok(Self { pool: WorkerPool(pool?.into()), _stop: stop })
    }

    /// Returns the pool that runs tasks on these threads.
    pub fn pool(&self) -> &WorkerPool {
        &self.pool
    }
}

impl Worker {
    /// Starts the thread with this index, which ends when `stop` is cancelled.
    fn start(index: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tasks, inbox) = mpsc::unbounded_channel();
        thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            INDEX.set(index);
            runtime.block_on(run_tasks(inbox, stop));
            // Dropping the runtime would wait for a blocking call in progress.
            runtime.shutdown_background();
        })?;
        Ok(Self { tasks, connections: Arc::default() })
    }
}

/// Spawns the tasks of `inbox` on this thread's runtime. Returns when `stop` is cancelled, or all
/// senders are dropped.
#[expect(clippy::disallowed_methods, reason = "the caller of `WorkerPool::spawn_on` tracks its task")]
async fn run_tasks(mut inbox: mpsc::UnboundedReceiver<BoxFuture<'static, ()>>, stop: CancellationToken) {
    let spawn_all = async {
        while let Some(task) = inbox.recv().await {
            tokio::spawn(task);
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = spawn_all => {}
    }
}

impl WorkerPool {
    /// Returns the number of workers.
    pub fn worker_count(&self) -> usize {
        self.0.len()
    }

    /// Reserves a slot for a connection on the worker that has the fewest.
    pub fn reserve_slot(&self) -> WorkerSlot {
        let connections = |worker: &Worker| worker.connections.load(Ordering::Relaxed);
        let (worker, least) =
            self.0.iter().enumerate().min_by_key(|(_, worker)| connections(worker)).expect("there is a worker");
        least.connections.fetch_add(1, Ordering::Relaxed);
        WorkerSlot { worker, connections: Arc::clone(&least.connections) }
    }

    /// Runs `task` in the runtime of the worker with the index `worker`. The task is dropped if the
    /// workers have ended.
    ///
    /// # Panics
    /// If there is no worker with this index.
    pub fn spawn_on(&self, worker: usize, task: impl Future<Output = ()> + Send + 'static) {
        let _ = self.0[worker].tasks.send(Box::pin(task));
    }
}

impl WorkerSlot {
    /// Returns the index of the worker that the connection is assigned to.
    pub fn worker_index(&self) -> usize {
        self.worker
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_go_to_the_worker_with_the_fewest_and_stay_there() {
        let workers = Workers::start(3).unwrap();
        let pool = workers.pool();
        let mut slots: Vec<_> = (0..6).map(|_| pool.reserve_slot()).collect();
        let (sender, mut indexes) = mpsc::unbounded_channel();
        for slot in &slots {
            let sender = sender.clone();
            pool.spawn_on(slot.worker_index(), async move {
                tokio::task::yield_now().await;
                sender.send(current_index()).unwrap();
            });
        }
        let mut found = Vec::new();
        for _ in &slots {
            found.push(indexes.recv().await.unwrap());
        }
        found.sort_unstable();
        assert_eq!(found, [0, 0, 1, 1, 2, 2]);
        let free = slots.remove(4).worker;
        assert_eq!(pool.reserve_slot().worker, free);
    }

    #[tokio::test]
    async fn dropping_the_workers_drops_their_tasks() {
        let workers = Workers::start(1).unwrap();
        let pool = workers.pool().clone();
        let (held, mut gone) = mpsc::channel::<()>(1);
        pool.spawn_on(0, async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(workers);
        assert_eq!(gone.recv().await, None);
    }
}
