//! Attacks: the CPU time and memory of a side, the backend's memory, and the latencies of two other
//! clients. One of them has an agent's address.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use loopgate_test_support::flood::{Flood, Stream};
use loopgate_test_support::handshakes::{RunningHandshakes, handshake};
use loopgate_test_support::hostile_chain::{SHAPES, hostile_chain};
use loopgate_test_support::latency::{Latencies, measure_in_thread};
use loopgate_test_support::raw_h2::{DATA, END_HEADERS, HEADERS, RawH2, frame, request_block};
use loopgate_test_support::tls_client::TlsClient;
use rustls::ClientConfig;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

use super::Sample;
use crate::backend::Backend;
use crate::peer::{AGENT, Peer, Purpose, Running, Surroundings, free_address};
use crate::process::Tree;
use crate::tls::CA_NAME;

const MIB: f64 = 1_048_576.0;
/// The address of a client that takes no part in the attack.
const OUTSIDER: &str = "127.0.0.4";
/// The length of an attack, in windows.
const WINDOWS: u32 = 4;
/// The interval at which memory is read.
const INTERVAL: Duration = Duration::from_millis(200);
/// The lengths of the chains, in certificates.
const LENGTHS: [usize; 5] = [3, 4, 11, 20, 60];
/// The number of handshakes with each chain whose CPU time is measured.
const HANDSHAKES: u32 = 50;
/// How long the backend is down.
const OUTAGE: Duration = Duration::from_secs(5);
/// The number of connections that are opened at the same time.
const OPENING: usize = 32;

/// A kind of attack.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attack {
    Chains,
    Unread,
    Slow,
    Uploads,
    /// This number of idle connections, and new connections meanwhile.
    Connections(usize),
}

impl Attack {
    pub(super) async fn measure(
        self,
        peer: Peer,
        around: &Surroundings,
        config: &Arc<ClientConfig>,
        window: Duration,
    ) -> io::Result<Sample> {
        let purpose = if matches!(self, Self::Chains) { Purpose::CertificateAttack } else { Purpose::Attack };
        let backend = Backend::start(free_address()?)?;
        let running = around.start_for(purpose, backend.address, peer, config).await?;
        let client = TlsClient::new(running.target.address, around.certificate.ca.clone()).without_tickets();
        // The first requests come before the measurement, so that their cost does not count as the
        // attack's.
        Bystanders::watch(&client, Duration::from_millis(500), || {}).await?;
        let tree = running.tree.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let before = [tree.memory()?, backend.tree().memory()?];
        let attacked = Attacked { running, backend, client, time: window * WINDOWS, before };
        match self {
            Self::Chains => attacked.chains().await,
            Self::Unread => attacked.flooded(&[(25, 100, Stream::Unread, "/file/3500000")]).await,
            Self::Slow => {
                let downloads = (15, 90, Stream::ReadSlowly(1000), "/file/3500000");
                attacked.flooded(&[(25, 90, Stream::SendSlowly, "/upload"), downloads]).await
            }
            Self::Uploads => attacked.uploads().await,
            Self::Connections(idle) => attacked.connections(idle).await,
        }
    }
}

/// A side that will be attacked.
struct Attacked {
    running: Running,
    backend: Backend,
    client: TlsClient,
    time: Duration,
    /// The memory of the side and of the backend before the attack.
    before: [u64; 2],
}

impl Attacked {
    fn tree(&self) -> io::Result<&Tree> {
        self.running.tree.as_ref().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    async fn chains(&self) -> io::Result<Sample> {
        let normal = self.cpu_each(&self.client).await;
        let (mut worst, mut hostile) = (Duration::ZERO, Vec::new());
        for (chain, key) in
            SHAPES.into_iter().flat_map(|shape| LENGTHS.map(|length| hostile_chain(shape, length, CA_NAME)))
        {
            let client = self.client.with_certificate(chain, key).without_tickets();
            worst = worst.max(self.cpu_each(&client).await);
            hostile.push(client);
        }
        let _one = RunningHandshakes::start(hostile.clone(), vec!["127.0.0.5".into()], 30);
        let _many = RunningHandshakes::start(hostile, attackers(100), 300);
        let mut sample = self.watch().await?;
        sample.add([
            ("CPU µs/handshake", normal.as_secs_f64() * 1e6),
            ("CPU µs/handshake, worst chain", worst.as_secs_f64() * 1e6),
            ("times a handshake, worst chain", worst.as_secs_f64() / normal.as_secs_f64()),
        ]);
        Ok(sample)
    }

    /// Returns the CPU time of a handshake: the mean of [`HANDSHAKES`] handshakes, one after the
    /// other.
    async fn cpu_each(&self, client: &TlsClient) -> Duration {
        let before = self.running.cpu();
        for _ in 0..HANDSHAKES {
            handshake(client).await;
        }
        (self.running.cpu() - before) / HANDSHAKES
    }

    /// Starts these floods, each from its own address, and measures. A flood has a number of
    /// connections and a number of streams on each.
    async fn flooded(&self, floods: &[(usize, usize, Stream, &str)]) -> io::Result<Sample> {
        let flood = |(source, (connections, streams, stream, path)): (String, &(usize, usize, Stream, &str))| {
            let flood = Flood {
                sources: vec![source],
                connections: *connections,
                streams: *streams,
                stream: *stream,
                path: (*path).into(),
            };
            flood.start(&self.client)
        };
        let _floods: Vec<_> = attackers(floods.len()).into_iter().zip(floods).map(flood).collect();
        self.watch().await
    }

    /// Uploads while the backend is down. The latencies are measured after it has started again,
    /// while the uploads are still open.
    async fn uploads(mut self) -> io::Result<Sample> {
        let address = self.backend.address;
        let cpu = self.running.cpu();
        drop(self.backend);
        let outage = Instant::now();
        let (sources, head, data, streams) =
            (attackers(3), request_block("POST", "/upload", &[]), vec![0; 8 * 1024], [1, 3, 5, 7]);
        let (mut uploads, mut sent) = (Vec::new(), 0);
        for number in 0..60 {
            let mut client = RawH2::connect(&self.client, &sources[number % sources.len()], &[]).await;
            client.send(&streams.map(|stream| frame(HEADERS, END_HEADERS, stream, &head)).concat()).await;
            // Each client sends as much as the flow-control windows allow.
            let (mut stream_window, mut window) = client.read_windows().await;
            while stream_window >= data.len() && window >= streams.len() * data.len() {
                let bytes = streams.map(|stream| frame(DATA, 0, stream, &data)).concat();
                if timeout(INTERVAL, client.send(&bytes)).await.is_err() {
                    break;
                }
                (stream_window, window) = (stream_window - data.len(), window - streams.len() * data.len());
                sent += streams.len() * data.len();
            }
            uploads.push(client);
        }
        let tree = self.running.tree.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let mut most = tree.memory()?;
        while outage.elapsed() < OUTAGE {
            sleep(INTERVAL).await;
            most = most.max(tree.memory()?);
        }
        let cpu_away = (self.running.cpu() - cpu).as_secs_f64() * 1e3 / outage.elapsed().as_secs_f64();
        self.backend = Backend::start(address)?;
        let back = Instant::now();
        self.before[1] = self.backend.tree().memory()?;
        while Bystanders::watch(&self.client, Duration::from_millis(1), || {}).await?.failed() > 0 {
            if back.elapsed() > Duration::from_secs(30) {
                return Err(io::Error::other("no answer 30 s after the backend came back"));
            }
        }
        let first = back.elapsed().as_secs_f64() * 1e3;
        let mut sample = self.watch_from(most).await?;
        sample.add([
            ("MiB sent", sent as f64 / MIB),
            ("CPU ms/s while the backend is away", cpu_away),
            ("ms to the first answer afterwards", first),
        ]);
        Ok(sample)
    }

    async fn connections(&self, idle: usize) -> io::Result<Sample> {
        let sources = attackers(8);
        let mut opening = JoinSet::new();
        let (mut open, mut failed) = (Vec::with_capacity(idle), 0);
        for number in 0..idle {
            let client = self.client.from(&sources[number % sources.len()]);
            opening.spawn(async move { timeout(Duration::from_secs(10), client.connect("http/1.1")).await });
            while opening.len() >= OPENING || number + 1 == idle && !opening.is_empty() {
                match opening.join_next().await {
                    Some(Ok(Ok(Ok(stream)))) => open.push(stream),
                    _ => failed += 1,
                }
            }
        }
        let new = RunningHandshakes::start(vec![self.client.clone()], attackers(8), 1000);
        let mut sample = self.watch().await?;
        let rate = new.count() as f64 / self.time.as_secs_f64();
        sample.add([("idle", open.len() as f64), ("new/s", rate)]);
        sample.failed += failed;
        Ok(sample)
    }

    /// Measures for the time of a running attack.
    async fn watch(&self) -> io::Result<Sample> {
        self.watch_from(self.before[0]).await
    }

    /// Does the same, if the side's memory has already been `most`.
    async fn watch_from(&self, most: u64) -> io::Result<Sample> {
        let (tree, backend) = (self.tree()?, self.backend.tree());
        let (cpu, start) = (self.running.cpu(), Instant::now());
        let mut most = [most, self.before[1]];
        let bystanders = Bystanders::watch(&self.client, self.time, || {
            for (most, tree) in most.iter_mut().zip([tree, &backend]) {
                *most = tree.memory().unwrap_or_default().max(*most);
            }
        })
        .await?;
        let cpu = (self.running.cpu() - cpu).as_secs_f64() * 1e3 / start.elapsed().as_secs_f64();
        let more = |at: usize| most[at].saturating_sub(self.before[at]) as f64 / MIB;
        let measures = vec![
            ("agent p50 ms", bystanders.agent.p50().as_secs_f64() * 1e3),
            ("agent p99 ms", bystanders.agent.p99().as_secs_f64() * 1e3),
            ("outsider p99 ms", bystanders.outsider.p99().as_secs_f64() * 1e3),
            ("CPU ms/s", cpu),
            ("MiB more", more(0)),
            ("MiB more, backend", more(1)),
        ];
        Ok(Sample::new(measures, bystanders.failed()))
    }
}

/// The latencies of an agent and of another outsider.
struct Bystanders {
    agent: Latencies,
    outsider: Latencies,
}

impl Bystanders {
    /// Measures both for `time`, and calls `poll` meanwhile.
    async fn watch(client: &TlsClient, time: Duration, mut poll: impl FnMut()) -> io::Result<Self> {
        let threads = [AGENT, OUTSIDER].map(|source| measure_in_thread(client, source, "/", time));
        while !threads.iter().all(std::thread::JoinHandle::is_finished) {
            poll();
            sleep(INTERVAL.min(time)).await;
        }
        let [agent, outsider] =
            threads.map(|thread| spawn_blocking(|| thread.join().map_err(|_| io::Error::other("a client panicked"))));
        Ok(Self { agent: agent.await??, outsider: outsider.await?? })
    }

    fn failed(&self) -> u64 {
        (self.agent.failed + self.outsider.failed) as u64
    }
}

fn attackers(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("127.0.1.{}", number + 1)).collect()
}
