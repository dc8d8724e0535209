//! Threads that carry traffic, each with a single-threaded runtime of its own: what belongs to a connection never crosses threads.
//!
//! tokio's multi-threaded scheduler moves tasks to whichever thread is free. For a proxy, whose tasks are short and many, that costs more
//! than it gains: another thread is woken for each batch of events, and caches, locks and freed memory travel with the task.

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

/// How many threads carry traffic: `TOKIO_WORKER_THREADS`, or as many as there are processors for this process.
pub fn count() -> usize {
    let wanted = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|text| text.parse().ok()).filter(|count| *count > 0);
    wanted.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get))
}

/// Which worker this thread is, from 0; 0 too where it is none.
pub fn index() -> usize {
    INDEX.get()
}

/// The threads; they end, with whatever still runs on them, when this is dropped.
#[derive(Debug)]
pub struct Workers {
    crew: Crew,
    _stop: DropGuard,
}

/// Hands tasks to the workers.
#[derive(Clone, Debug)]
pub struct Crew(Arc<[Worker]>);

struct Worker {
    tasks: mpsc::UnboundedSender<BoxFuture<'static, ()>>,
    seated: Arc<AtomicUsize>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("seated", &self.seated).finish_non_exhaustive()
    }
}

/// A connection's place on a worker; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    worker: usize,
    seated: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// The operating system has no room for a thread or for its event queue.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let crew: io::Result<Vec<_>> = (0..count).map(|index| Worker::start(index, stop.clone())).collect();
        let stop = stop.drop_guard();
        Ok(Self { crew: Crew(crew?.into()), _stop: stop })
    }

    /// Who hands tasks to them.
    pub fn crew(&self) -> &Crew {
        &self.crew
    }
}

impl Worker {
    fn start(index: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tasks, inbox) = mpsc::unbounded_channel();
        thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            INDEX.set(index);
            runtime.block_on(work(inbox, stop));
            // Not dropped: that would wait for a blocking call, should one be under way.
            runtime.shutdown_background();
        })?;
        Ok(Self { tasks, seated: Arc::default() })
    }
}

#[expect(clippy::disallowed_methods, reason = "whoever hands over a task tracks it")]
async fn work(mut inbox: mpsc::UnboundedReceiver<BoxFuture<'static, ()>>, stop: CancellationToken) {
    let all = async {
        while let Some(task) = inbox.recv().await {
            tokio::spawn(task);
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = all => {}
    }
}

impl Crew {
    /// How many workers there are.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// A place on the worker that has the fewest connections.
    pub fn seat(&self) -> Seat {
        let seated = |worker: &Worker| worker.seated.load(Ordering::Relaxed);
        let (worker, least) = self.0.iter().enumerate().min_by_key(|(_, worker)| seated(worker)).expect("there is a worker");
        least.seated.fetch_add(1, Ordering::Relaxed);
        Seat { worker, seated: Arc::clone(&least.seated) }
    }

    /// Runs `task` on that worker, within its runtime. Once the workers have ended it is dropped.
    ///
    /// # Panics
    /// There is no such worker.
    pub fn run(&self, worker: usize, task: impl Future<Output = ()> + Send + 'static) {
        let _ = self.0[worker].tasks.send(Box::pin(task));
    }
}

impl Seat {
    /// Which worker it is on.
    pub fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seated.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_go_where_the_fewest_are_and_stay_there() {
        let workers = Workers::start(3).unwrap();
        let crew = workers.crew();
        let mut seats: Vec<_> = (0..6).map(|_| crew.seat()).collect();
        let (told, mut at) = mpsc::unbounded_channel();
        for seat in &seats {
            let told = told.clone();
            crew.run(seat.worker(), async move {
                tokio::task::yield_now().await;
                told.send(index()).unwrap();
            });
        }
        let mut found = Vec::new();
        for _ in &seats {
            found.push(at.recv().await.unwrap());
        }
        found.sort_unstable();
        assert_eq!(found, [0, 0, 1, 1, 2, 2]);
        let free = seats.remove(4).worker;
        assert_eq!(crew.seat().worker, free);
    }

    #[tokio::test]
    async fn they_end_with_what_runs_on_them() {
        let workers = Workers::start(1).unwrap();
        let crew = workers.crew().clone();
        let (held, mut gone) = mpsc::channel::<()>(1);
        crew.run(0, async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(workers);
        assert_eq!(gone.recv().await, None);
    }
}
