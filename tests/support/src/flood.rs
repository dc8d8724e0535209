//! Floods of HTTP/2 requests. Each request is kept open for as long as the sidecar allows, and
//! replaced when it ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::raw_h2::*;
use crate::tasks::Tasks;
use crate::tls_client::{Tls, TlsClient};

/// How often a flood sends the next frames of its streams, and new streams in place of those that
/// have ended.
const TICK: Duration = Duration::from_secs(1);

/// What each stream of a flood does.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// Requests the path, and reads nothing of the response.
    Unread,
    /// Requests the path, and reads this many bytes a second.
    ReadSlowly(u32),
    /// Sends a body to the path, a byte a second.
    SendSlowly,
}

/// The settings of a flood.
#[derive(Clone, Debug)]
pub struct Flood {
    /// The addresses that its connections come from, in turn.
    pub sources: Vec<String>,
    /// The number of its connections.
    pub connections: usize,
    /// The number of streams on each connection.
    pub streams: usize,
    /// What each stream does.
    pub stream: Stream,
    /// The path of all requests.
    pub path: String,
}

/// What a flood has done so far.
#[derive(Debug, Default)]
pub struct Count {
    requests: AtomicUsize,
    responses: AtomicUsize,
    ended: AtomicUsize,
    closed: AtomicUsize,
}

impl Count {
    /// Returns the number of requests that were sent.
    pub fn request_count(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Returns the number of responses that have begun with the status 200.
    pub fn response_count(&self) -> usize {
        self.responses.load(Ordering::Relaxed)
    }

    /// Returns the number of requests that have ended, with a response or a reset.
    pub fn ended_count(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that the sidecar closed.
    pub fn closed_count(&self) -> usize {
        self.closed.load(Ordering::Relaxed)
    }
}

/// A running flood. It ends when it is dropped.
pub struct RunningFlood {
    /// What it has done so far.
    pub count: Arc<Count>,
    _end: mpsc::Sender<()>,
    _thread: JoinHandle<()>,
}

impl Flood {
    /// Starts the flood against the sidecar of `client`, in a new thread.
    pub fn start(self, client: &TlsClient) -> RunningFlood {
        let (client, count) = (client.without_tickets(), Arc::new(Count::default()));
        let (end, ended) = mpsc::channel(1);
        let counted = Arc::clone(&count);
        let thread = thread::spawn(move || self.run(&client, &counted, ended));
        RunningFlood { count, _end: end, _thread: thread }
    }

    /// Runs the flood in this thread until the sender of `ended` is dropped.
    pub fn run(self, client: &TlsClient, count: &Arc<Count>, mut ended: mpsc::Receiver<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = Tasks::default();
        runtime.block_on(async {
            for number in 0..self.connections {
                let flood = self.clone();
                let (client, count) = (client.from(&self.sources[number % self.sources.len()]), Arc::clone(count));
                tasks.spawn(async move {
                    loop {
                        flood.run_connection(&client, &count).await;
                        count.closed.fetch_add(1, Ordering::Relaxed);
                        sleep(TICK).await;
                    }
                });
            }
            ended.recv().await;
        });
    }

    /// Keeps one connection full of streams until it ends.
    async fn run_connection(&self, client: &TlsClient, count: &Count) {
        let Ok(stream) = client.connect("h2").await else { return };
        let (mut read, mut write) = tokio::io::split(stream);
        let (events, mut frames) = mpsc::unbounded_channel();
        let reading = async {
            while let Some(frame) = next_frame(&mut read).await {
                if events.send(frame).is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = reading => {}
            _ = self.send(&mut write, &mut frames, count) => {}
        }
    }

    /// Sends the frames of a connection's streams, until a write fails.
    async fn send(
        &self,
        write: &mut WriteHalf<Tls>,
        frames: &mut mpsc::UnboundedReceiver<Frame>,
        count: &Count,
    ) -> io::Result<()> {
        write.write_all(&[PREFACE, &settings(&[(INITIAL_WINDOW, 0)])].concat()).await?;
        let (mut open, mut next): (Vec<u32>, u32) = (Vec::new(), 1);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut bytes = Vec::new();
            while let Ok(event) = frames.try_recv() {
                let ends =
                    event.kind == RST_STREAM || matches!(event.kind, DATA | HEADERS) && event.flags & END_STREAM != 0;
                if let (true, Some(at)) = (ends, open.iter().position(|stream| *stream == event.stream)) {
                    open.swap_remove(at);
                    count.ended.fetch_add(1, Ordering::Relaxed);
                }
                // 0x88 is `:status: 200` in the static table of HPACK.
                if event.kind == HEADERS && event.payload.first() == Some(&0x88) {
                    count.responses.fetch_add(1, Ordering::Relaxed);
                }
                if event.kind == PING && event.flags & ACK == 0 {
                    bytes.extend(frame(PING, ACK, 0, &event.payload));
                }
            }
            for stream in &open {
                bytes.extend(self.stream.next_frame_of(*stream));
            }
            while open.len() < self.streams {
                bytes.extend(self.stream.first_frame(next, &self.path));
                open.push(next);
                next += 2;
                count.requests.fetch_add(1, Ordering::Relaxed);
            }
            write.write_all(&bytes).await?;
            write.flush().await?;
        }
    }
}

impl Stream {
    /// Returns the first frame of the stream with the id `stream`.
    fn first_frame(self, stream: u32, path: &str) -> Vec<u8> {
        match self {
            Self::Unread | Self::ReadSlowly(_) => {
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &request_block("GET", path, &[]))
            }
            Self::SendSlowly => {
                frame(HEADERS, END_HEADERS, stream, &request_block("POST", path, &[("content-length", "1000000")]))
            }
        }
    }

    /// Returns what the stream with the id `stream` sends each second.
    fn next_frame_of(self, stream: u32) -> Vec<u8> {
        match self {
            Self::Unread => Vec::new(),
            Self::ReadSlowly(bytes) => frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()),
            Self::SendSlowly => frame(DATA, 0, stream, b"."),
        }
    }
}
