//! Hundreds of containers that start and stop, with the sidecar as a process.

use crate::harness::start_process;
use std::time::Duration;

use serde_json::json;
use tokio::time::{sleep, timeout};

use loopgate_test_support::fake_docker::{FakeDocker, container};

/// Containers in each wave.
const CONTAINERS: u16 = 500;

#[tokio::test(flavor = "multi_thread")]
async fn waves_of_containers_leave_no_memory_behind() {
    let docker = FakeDocker::start();
    let sidecar = start_process(&[&format!("--docker=unix://{}", docker.socket().display())], "").await;
    // The sidecar may keep what it allocates in the first waves: tables, and the allocator's
    // reserves.
    for _ in 0..2 {
        start_and_stop_all(&docker).await;
    }
    let before = sidecar.process().memory();
    for _ in 0..6 {
        start_and_stop_all(&docker).await;
    }
    let grown = sidecar.process().memory().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more after {} containers", 6 * CONTAINERS);
    assert_eq!(docker.subscriber_count(), 1);
}

/// Starts all containers, stops them, and waits until the sidecar has listed containers again.
async fn start_and_stop_all(docker: &FakeDocker) {
    let id = |n: u16| format!("{n:064x}");
    for n in 0..CONTAINERS {
        let labels = json!({"loopgate.agent": "address", "com.docker.compose.project": "p"});
        docker.run_container(container(&id(n), labels, &[("front", &format!("10.200.{}.{}", n / 250, n % 250 + 1))]));
        if n % 25 == 0 {
            wait_for_next_list(docker).await;
        }
    }
    for n in 0..CONTAINERS {
        docker.stop_container(&id(n));
    }
    wait_for_next_list(docker).await;
}

/// Waits until the sidecar lists containers again.
async fn wait_for_next_list(docker: &FakeDocker) {
    let before = docker.request_count("/containers/json");
    let next = async {
        while docker.request_count("/containers/json") == before {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), next).await.expect("the sidecar lists containers again");
}
