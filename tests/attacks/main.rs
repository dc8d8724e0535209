//! Attacks on a running sidecar that last some seconds each: their cost in memory and CPU time, and
//! whether other clients are served meanwhile. Every test prints its measurements.
//!
//! The limits of latency are generous, because the machine may run other programs at the same time.
//! `tests/bench` has strict limits.

mod chains;
mod file_descriptors;
mod floods;
mod uploads;
mod websockets;

use std::time::Duration;

use loopgate_test_support::latency::{Latencies, measure_in_thread};
use loopgate_test_support::process::Process;
use loopgate_test_support::requirements::{print_now, run_exclusively};
use loopgate_test_support::sidecar::AGENT;
use loopgate_test_support::tls_client::TlsClient;

const MIB: u64 = 1 << 20;
/// The address of external clients that take no part in the attack.
const OUTSIDER: &str = "127.0.0.4";
/// The latency allowed for an agent's requests at the 99th percentile; `tests/bench` allows 100 ms.
const AGENT_P99: Duration = Duration::from_secs(1);
/// The latency allowed for another outsider's requests at the 99th percentile; `tests/bench` allows
/// 1 s.
const OUTSIDER_P99: Duration = Duration::from_secs(3);

/// Runs the test of one attack. No two of them run at the same time.
fn attack<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    run_exclusively("attacks", name, || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test());
        Ok(())
    });
}

/// `count` addresses of attackers.
fn attackers(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("127.0.1.{}", number + 1)).collect()
}

/// The latencies of an agent and of an outsider during an attack.
struct Bystanders {
    agent: Latencies,
    outsider: Latencies,
}

impl Bystanders {
    /// Sends requests as both for `time`, and measures them.
    async fn measure(client: &TlsClient, time: Duration) -> Self {
        let [agent, outsider] = [AGENT, OUTSIDER].map(|source| measure_in_thread(client, source, "/", time));
        tokio::time::sleep(time).await;
        let [agent, outsider] = [agent, outsider].map(|thread| tokio::task::spawn_blocking(|| thread.join().unwrap()));
        let bystanders = Self { agent: agent.await.unwrap(), outsider: outsider.await.unwrap() };
        print_now(format_args!("  agent: {}", bystanders.agent));
        print_now(format_args!("  another outsider: {}", bystanders.outsider));
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

/// The sidecar's resident memory before an attack, to compare with that during it.
struct Memory<'a> {
    process: &'a Process,
    before: u64,
}

impl<'a> Memory<'a> {
    /// Reads the memory after a few requests, so that the cost of the first request isn't counted.
    async fn before_attack(client: &TlsClient, process: &'a Process) -> Self {
        Bystanders::measure(client, Duration::from_millis(500)).await;
        Self { process, before: process.memory() }
    }

    /// Returns how much the memory has grown, in bytes.
    fn growth(&self) -> u64 {
        self.process.memory().saturating_sub(self.before)
    }

    /// Fails if the memory has grown by 64 MiB or more.
    fn assert_bounded(&self) {
        let grown = self.growth();
        print_now(format_args!("  loopgate: {} MiB before, grew by {} MiB", self.before / MIB, grown / MIB));
        assert!(grown < 64 * MIB, "loopgate grew by {} MiB", grown / MIB);
    }
}
