//! Floods against the real gateway: how much its memory grows, and whether an agent and another
//! outsider are served meanwhile.

use std::time::Duration;

use crate::gateway::OpenClaw;
use crate::openclaw::directory;
use crate::sidecar::{self, URL};
use loopgate_test_support::flood::{Flood, RunningFlood, Stream};
use loopgate_test_support::latency::{Latencies, measure_blocking};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::process::memory;
use loopgate_test_support::requirements::{Missing, print_now, run_exclusively};
use loopgate_test_support::tls_client::TlsClient;

const MIB: u64 = 1 << 20;
/// How long the attack lasts: longer than the 15 s for which an unread request is kept
/// (`limits.gateway_stall`).
const TIME: Duration = Duration::from_secs(20);
/// The time between two readings of the memory of the gateway and of the sidecar.
const INTERVAL: Duration = Duration::from_millis(200);
/// The most files that the two attackers may get from the gateway within [`TIME`]. They may have 84
/// requests there at once. After 15 s those that are not read are reset. The first 4 of each
/// attacker may be replaced, and after the fifth each may have 4 at once.
const FILES: usize = 84 + 2 * (4 + 4);
/// A path that costs the gateway little.
const CHEAP: &str = "/healthz";

#[test]
fn openclaw_2026_2_19_survives_unread_files_and_slow_readers() {
    run_exclusively("real", "OpenClaw 2026.2.19 under unread files and slow readers", || flood_gateway("2026.2.19"));
}

#[test]
fn openclaw_2026_9_6_survives_unread_files_and_slow_readers() {
    run_exclusively("real", "OpenClaw 2026.9.6 under unread files and slow readers", || flood_gateway("2026.9.6"));
}

fn flood_gateway(version: &'static str) -> Result<(), Missing> {
    let directory = directory(&format!("flood-{version}"));
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, version, &directory)?;
    let gateway = openclaw.start(&["127.0.0.2"]);
    let sidecar = sidecar::start(&network, &directory, &[]);
    let client = sidecar.clone().expecting_address();
    let (path, size) = openclaw.largest_page_file();
    print_now(format_args!("  {URL}{path}, {:.1} MB", size as f64 / 1e6));

    // A first request, so that its cost isn't counted. A client that reads gets the whole file.
    let mut curl = network.command(Host::External, "curl");
    curl.args(["--silent", "--fail", "--output", "/dev/null", "--write-out", "%{size_download}", "--cacert"])
        .arg(sidecar.ca_file());
    let output = curl.arg(format!("{URL}{path}")).output().expect("curl");
    assert_eq!(String::from_utf8_lossy(&output.stdout), size.to_string());
    let quiet = Bystanders::measure(&network, &client, Duration::from_secs(2), || {});
    print_now(format_args!("  before: {quiet}"));

    let before = [gateway.id(), sidecar.process().id()].map(|pid| memory(pid).0);
    let floods = start(&network, &client, path);
    let mut highest = before;
    let bystanders = Bystanders::measure(&network, &client, TIME, || {
        for (highest, pid) in highest.iter_mut().zip([gateway.id(), sidecar.process().id()]) {
            *highest = memory(pid).0.max(*highest);
        }
    });
    let [growth, own_growth] = [0, 1].map(|at| highest[at].saturating_sub(before[at]) / MIB);
    let requests: usize = floods.iter().map(|flood| flood.count.request_count()).sum();
    let files: usize = floods.iter().map(|flood| flood.count.response_count()).sum();
    print_now(format_args!(
        "  {requests} hostile requests, {files} at the gateway; it grew from {} MiB by {growth} MiB, loopgate by {own_growth} MiB",
        before[0] / MIB
    ));
    print_now(format_args!("  {bystanders}"));
    assert!(requests >= 25 * 100 + 15 * 90, "that was no flood");
    assert!(files <= FILES, "the gateway got {files} of the hostile requests");
    // Node.js frees a file some time after its request has ended, so its heap can hold twice as
    // much.
    let largest_growth = 2 * FILES as u64 * size / MIB;
    assert!(growth < largest_growth, "the gateway grew by {growth} MiB; at most {largest_growth} are expected");
    assert!(own_growth < 64, "loopgate grew by {own_growth} MiB");
    bystanders.assert_served();
    drop(floods);
    sidecar.stop();
    Ok(())
}

/// 25 connections with 100 files that are not read, and 15 with 90 that are read slowly, from
/// another address.
fn start(network: &Network, client: &TlsClient, path: String) -> [RunningFlood; 2] {
    let client = client.clone();
    let flood = move || {
        let flood = |source: &str, connections, streams, stream| {
            Flood { sources: vec![source.into()], connections, streams, stream, path: path.clone() }.start(&client)
        };
        [flood("172.18.1.0", 25, 100, Stream::Unread), flood("172.18.1.1", 15, 90, Stream::ReadSlowly(1000))]
    };
    // The threads of a flood inherit the network namespace of the thread that starts it.
    network.run_on(Host::External, flood).join().expect("two floods")
}

/// The latencies of an agent and of an outsider.
struct Bystanders {
    agent: Latencies,
    outsider: Latencies,
}

impl Bystanders {
    /// Sends requests as both for `time` and measures them; calls `sample` every [`INTERVAL`]
    /// meanwhile.
    fn measure(network: &Network, client: &TlsClient, time: Duration, mut sample: impl FnMut()) -> Self {
        let start = |host: Host| {
            let client = client.clone();
            network.run_on(host, move || measure_blocking(&client, host.address(), CHEAP, time))
        };
        let (agent, outsider) = (start(Host::Agent), start(Host::External));
        while !(agent.is_finished() && outsider.is_finished()) {
            sample();
            std::thread::sleep(INTERVAL);
        }
        Self { agent: agent.join().expect("latencies"), outsider: outsider.join().expect("latencies") }
    }

    /// Fails if the flood kept the agent or the outsider from their responses. The limits are
    /// generous; `tests/bench` has strict ones.
    fn assert_served(&self) {
        for (latencies, limit) in [(&self.agent, Duration::from_secs(1)), (&self.outsider, Duration::from_secs(3))] {
            assert!(latencies.count() > 20 && latencies.failed == 0 && latencies.p99() < limit, "{self}");
        }
    }
}

impl std::fmt::Display for Bystanders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "agent: {}; another outsider: {}", self.agent, self.outsider)
    }
}
