//! Handshakes at a fixed rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::tasks::Tasks;
use crate::tls_client::TlsClient;

/// The time limit of a handshake.
const LIMIT: Duration = Duration::from_secs(10);
/// The number of handshakes that may run at once.
const CONCURRENT: usize = 256;

/// Handshakes at a fixed rate, until this is dropped.
pub struct RunningHandshakes {
    count: Arc<AtomicUsize>,
    _end: mpsc::Sender<()>,
    _thread: JoinHandle<()>,
}

impl RunningHandshakes {
    /// Starts `rate` handshakes a second by `clients` and from `sources`, in turn, in a thread of
    /// its own.
    pub fn start(clients: Vec<TlsClient>, sources: Vec<String>, rate: u32) -> Self {
        let count = Arc::<AtomicUsize>::default();
        let (end, mut ended) = mpsc::channel::<()>(1);
        let ends = Arc::clone(&count);
        let run = async move {
            let limit = Arc::new(Semaphore::new(CONCURRENT));
            let tasks = Tasks::default();
            let mut ticks = interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let turns = clients.iter().cycle().zip(sources.iter().cycle());
            for (client, source) in turns {
                let permit = tokio::select! {
                    _ = ended.recv() => return,
                    (_, permit) = async { (ticks.tick().await, Arc::clone(&limit).acquire_owned().await) } => permit,
                };
                let (client, ends) = (client.from(source), Arc::clone(&ends));
                tasks.spawn(async move {
                    let _permit = permit;
                    let _ = timeout(LIMIT, handshake(&client)).await;
                    ends.fetch_add(1, Ordering::Relaxed);
                });
            }
        };
        let thread = thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run)
        });
        Self { count, _end: end, _thread: thread }
    }

    /// Returns the number of handshakes that have ended so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

/// Does a full handshake, and ends the connection. Returns when the sidecar has closed the
/// connection, and so has no more work with it.
pub async fn handshake(client: &TlsClient) {
    if let Ok(mut stream) = client.connect("http/1.1").await {
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}
