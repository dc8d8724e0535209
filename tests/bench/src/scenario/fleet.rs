//! Pods that are created and deleted on a fake API server: a thousand in one namespace with one
//! sidecar, then a thousand in a hundred namespaces with a sidecar for each. The API server runs in
//! this process, so its work is not counted.

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use loopgate_test_support::fake_kubernetes::{FakeKubernetes, pod};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Sample, start::median};
use crate::peer::{Options, Peer, Running, Surroundings, free_address};

const PODS: usize = 1000;
const NAMESPACES: usize = 100;
/// The number of pods that are replaced in a second, in all namespaces together.
const CHURN: u32 = 50;
/// How many times the test measures how long it takes until a new pod is known.
const PROBES: usize = 20;
/// The pause between the start and a measurement of memory, so that memory that is freed with a
/// delay is freed.
const SETTLE: Duration = Duration::from_secs(3);

pub(super) async fn measure(
    peer: Peer,
    around: &Surroundings,
    config: &Arc<ClientConfig>,
    time: Duration,
) -> io::Result<Sample> {
    let mut measures = one_namespace(peer, around, config, time).await?;
    measures.extend(many_namespaces(peer, around, config, time).await?);
    Ok(Sample::new(measures, 0))
}

async fn one_namespace(
    peer: Peer,
    around: &Surroundings,
    config: &Arc<ClientConfig>,
    time: Duration,
) -> io::Result<Vec<(&'static str, f64)>> {
    let namespaces = Rc::new(vec![Namespace::with(PODS)]);
    let admin = free_address()?;
    let began = Instant::now();
    let running = around.start_with(&namespaces[0].followed(0, Some(admin)), peer, config).await?;
    known(admin, PODS).await?;
    let listed = began.elapsed().as_secs_f64() * 1e3;
    tokio::time::sleep(SETTLE).await;
    let memory = memory(&[&running])?;

    let mut churn = JoinSet::new();
    churn.spawn_local(replace(Rc::clone(&namespaces)));
    let cpu = running.cpu();
    tokio::time::sleep(time).await;
    let busy = (running.cpu() - cpu).as_secs_f64() * 1e3 / time.as_secs_f64();

    let mut judged = Vec::new();
    for _ in 0..PROBES {
        let began = Instant::now();
        namespaces[0].kubernetes.put_pod(pod("probe", Some("address"), &["10.255.0.1"]));
        known(admin, PODS + 1).await?;
        judged.push(began.elapsed().as_secs_f64() * 1e3);
        namespaces[0].kubernetes.delete_pod("probe");
        while addresses(admin).await? > PODS {}
    }
    churn.shutdown().await;
    let longest = judged.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        ("ms from exec until 1,000 pods are known", listed),
        ("PSS KiB, 1,000 pods", memory),
        ("CPU ms/s, 1,000 pods, 50 replaced/s", busy),
        ("ms until a new pod is known, median", median(judged)),
        ("ms until a new pod is known, longest", longest),
    ])
}

async fn many_namespaces(
    peer: Peer,
    around: &Surroundings,
    config: &Arc<ClientConfig>,
    time: Duration,
) -> io::Result<Vec<(&'static str, f64)>> {
    let namespaces: Rc<Vec<Namespace>> = Rc::new((0..NAMESPACES).map(|_| Namespace::with(PODS / NAMESPACES)).collect());
    let mut sidecars = Vec::new();
    for (number, namespace) in namespaces.iter().enumerate() {
        sidecars.push(around.start_with(&namespace.followed(number, None), peer, config).await?);
    }
    let sidecars: Vec<&Running> = sidecars.iter().collect();
    tokio::time::sleep(SETTLE).await;
    let each = memory(&sidecars)? / NAMESPACES as f64;
    let spent = || sidecars.iter().map(|sidecar| sidecar.cpu()).sum::<Duration>();

    let mut churn = JoinSet::new();
    churn.spawn_local(replace(Rc::clone(&namespaces)));
    let cpu = spent();
    tokio::time::sleep(time).await;
    let busy = (spent() - cpu).as_secs_f64() * 1e3 / time.as_secs_f64();
    churn.shutdown().await;
    Ok(vec![("PSS KiB each, 100 sidecars of 10 pods", each), ("CPU ms/s together, 100 sidecars, 50 replaced/s", busy)])
}

/// A namespace with agents that are admitted by their address.
pub(super) struct Namespace {
    kubernetes: FakeKubernetes,
    pods: usize,
    /// The number of pods that were created so far.
    created: Cell<usize>,
}

impl Namespace {
    pub(super) fn with(pods: usize) -> Self {
        let namespace = Self { kubernetes: FakeKubernetes::start(), pods, created: Cell::new(0) };
        (0..pods).for_each(|_| namespace.create_pod());
        namespace
    }

    /// Returns the options of a sidecar that follows the namespace's pods.
    pub(super) fn followed(&self, number: usize, admin: Option<SocketAddr>) -> Options {
        let arguments = [
            ("--log-level", "warn".into()),
            ("--discovery", "kubernetes".into()),
            ("--kubernetes-api", self.kubernetes.address().into()),
            ("--kubernetes-credentials", self.kubernetes.credentials().into()),
        ];
        let arguments = arguments.into_iter().flat_map(|(flag, value)| [OsString::from(flag), value]).collect();
        Options { number, admin, arguments, ..Options::default() }
    }

    fn create_pod(&self) {
        let number = self.created.replace(self.created.get() + 1);
        let address = format!("10.{}.{}.{}", number >> 16 & 127, number >> 8 & 255, number & 255);
        self.kubernetes.put_pod(pod(&format!("agent-{number}"), Some("address"), &[&address]));
    }

    /// Deletes the oldest pod and creates another.
    fn replace_one(&self) {
        self.kubernetes.delete_pod(&format!("agent-{}", self.created.get() - self.pods));
        self.create_pod();
    }
}

/// Replaces [`CHURN`] pods a second, in one namespace after the other.
async fn replace(namespaces: Rc<Vec<Namespace>>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CHURN);
    for namespace in namespaces.iter().cycle() {
        ticks.tick().await;
        namespace.replace_one();
    }
}

/// Returns the memory of all sidecars together, in KiB.
fn memory(sidecars: &[&Running]) -> io::Result<f64> {
    let bytes: io::Result<u64> =
        sidecars.iter().filter_map(|sidecar| sidecar.tree.as_ref()).map(crate::process::Tree::memory).sum();
    Ok(bytes? as f64 / 1024.0)
}

/// Waits until the sidecar knows this number of agents' addresses.
pub(super) async fn known(admin: SocketAddr, count: usize) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while addresses(admin).await? < count {
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("{count} pods are not known after 30 s")));
        }
    }
    Ok(())
}

/// Returns the number of agents' addresses that the sidecar knows, from its metrics.
async fn addresses(admin: SocketAddr) -> io::Result<usize> {
    let answer = scrape(admin).await?;
    let count = answer.lines().find_map(|line| line.strip_prefix("loopgate_discovery_agent_addresses ")?.parse().ok());
    count.ok_or_else(|| io::Error::other("no loopgate_discovery_agent_addresses in the metrics"))
}

/// Returns the sidecar's metrics.
pub(super) async fn scrape(admin: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
