//! Attacks on a running sidecar, each for some seconds: what they cost, and how others fare
//! meanwhile. Every test prints what it measured.
//!
//! The limits of time are generous, for machines that do other things at the same time;
//! `tests/bench` holds loopgate to the strict ones.

mod chains;
mod file_descriptors;
mod floods;
mod uploads;
mod websockets;

use std::time::Duration;

use loopgate_test_support::latency::{Latencies, measure_in_thread};
use loopgate_test_support::process::Process;
use loopgate_test_support::requirements::{exclusively, report};
use loopgate_test_support::sidecar::AGENT;
use loopgate_test_support::tls_client::TlsClient;

const MIB: u64 = 1 << 20;
/// External clients that attack nobody.
const OUTSIDER: &str = "127.0.0.4";
/// What an agent's and another outsider's requests may take at the 99th percentile. Without other
/// load it is 100 ms and 1 s.
const AGENT_P99: Duration = Duration::from_secs(1);
const OUTSIDER_P99: Duration = Duration::from_secs(3);

/// Runs one attack at a time.
fn attack<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    exclusively(name, || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test());
        Ok(())
    });
}

/// So many addresses of attackers.
fn attackers(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("127.0.1.{}", number + 1)).collect()
}

/// How an agent and another outsider fare for `time`.
struct Bystanders {
    agent: Latencies,
    outsider: Latencies,
}

impl Bystanders {
    async fn watch(client: &TlsClient, time: Duration) -> Self {
        let [agent, outsider] = [AGENT, OUTSIDER].map(|source| measure_in_thread(client, source, "/", time));
        tokio::time::sleep(time).await;
        let [agent, outsider] = [agent, outsider].map(|thread| tokio::task::spawn_blocking(|| thread.join().unwrap()));
        let bystanders = Self { agent: agent.await.unwrap(), outsider: outsider.await.unwrap() };
        report(format_args!("  agent: {}", bystanders.agent));
        report(format_args!("  another outsider: {}", bystanders.outsider));
        bystanders
    }

    /// Fails if the attack kept the agent or the outsider from their responses.
    fn assert_served(&self) {
        for (who, latencies, limit) in
            [("an agent", &self.agent, AGENT_P99), ("an outsider", &self.outsider, OUTSIDER_P99)]
        {
            assert!(latencies.count() > 10 && latencies.failed == 0, "{who}: {latencies}");
            assert!(latencies.p99() < limit, "{who}: {latencies}");
        }
    }
}

/// The resident memory of the sidecar, and what it may become.
struct Memory<'a> {
    process: &'a Process,
    before: u64,
}

impl<'a> Memory<'a> {
    /// Notes how much there is now, after a few requests: what a first request costs is no attack's.
    async fn before_attack(client: &TlsClient, process: &'a Process) -> Self {
        Bystanders::watch(client, Duration::from_millis(500)).await;
        Self { process, before: process.memory() }
    }

    /// What it has grown by, in bytes.
    fn grown(&self) -> u64 {
        self.process.memory().saturating_sub(self.before)
    }

    /// Fails if it grew by more than 64 MiB.
    fn assert_bounded(&self) {
        let grown = self.grown();
        report(format_args!("  loopgate: {} MiB before, grew by {} MiB", self.before / MIB, grown / MIB));
        assert!(grown < 64 * MIB, "loopgate grew by {} MiB", grown / MIB);
    }
}
