//! Closed-loop load: a number of clients at the same time, a warm-up, and a window in which their
//! work is counted.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::peer::Running;

/// The pause after a client's failure, so that it does not send requests in a tight loop.
const REST: Duration = Duration::from_millis(10);

/// The clients' work in the window so far.
#[derive(Default)]
pub struct Tally {
    units: Cell<u64>,
    latencies: RefCell<Vec<u64>>,
    failed: Cell<u64>,
}

impl Tally {
    /// Counts `units` of work.
    pub fn add(&self, units: u64) {
        self.units.set(self.units.get() + units);
    }

    /// Counts one unit of work that took `time`.
    pub fn took(&self, time: Duration) {
        self.add(1);
        self.latencies.borrow_mut().push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn forget(&self) {
        self.units.set(0);
        self.latencies.borrow_mut().clear();
    }
}

/// The clients' work in a window, and the side's CPU time for it.
pub struct Window {
    /// Units of work.
    pub units: u64,
    /// The length of the window.
    pub time: Duration,
    /// The side's CPU time in the window.
    pub cpu: Duration,
    /// The number of failures of clients, including those in the warm-up.
    pub failed: u64,
    latencies: Vec<u64>,
}

impl Window {
    /// The CPU time for `units` of work, in microseconds.
    pub fn cpu_each(&self, units: u64) -> f64 {
        self.cpu.as_secs_f64() * 1e6 * units as f64 / self.units as f64
    }

    /// The number of times per second that `units` of work were done.
    pub fn rate(&self, units: u64) -> f64 {
        self.units as f64 / units as f64 / self.time.as_secs_f64()
    }

    /// The latency at the quantile `share` (0 to 1), in microseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.latencies.get(at).map_or(f64::NAN, |nanoseconds| *nanoseconds as f64 / 1e3)
    }
}

/// Runs `clients` copies of `client`, and counts their work in `time`, after a warm-up of a quarter
/// of it.
///
/// A client ends only if it has failed, and is started again.
pub async fn drive<F>(
    running: &Running,
    time: Duration,
    clients: usize,
    client: impl Fn(Rc<Tally>) -> F + Clone + 'static,
) -> Window
where
    F: Future<Output = io::Result<()>> + 'static,
{
    let tally = Rc::<Tally>::default();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (tally, client) = (Rc::clone(&tally), client.clone());
        tasks.spawn_local(async move {
            loop {
                if let Err(error) = client(Rc::clone(&tally)).await {
                    if tally.failed.get() == 0 {
                        eprintln!("    a client failed: {error}");
                    }
                    tally.failed.set(tally.failed.get() + 1);
                    tokio::time::sleep(REST).await;
                }
            }
        });
    }
    tokio::time::sleep(time / 4).await;
    let (cpu, began) = (running.cpu(), Instant::now());
    tally.forget();
    tokio::time::sleep(time).await;
    let (units, cpu, time) = (tally.units.get(), running.cpu() - cpu, began.elapsed());
    let mut latencies = tally.latencies.take();
    tasks.shutdown().await;
    latencies.sort_unstable();
    Window { units, time, cpu, failed: tally.failed.get(), latencies }
}
