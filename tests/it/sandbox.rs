//! The restrictions that `loopgate run` puts on its own process.

use std::fs;

use loopgate_test_support::sidecar::free_address;

use crate::harness::{OUTSIDER, PROTOCOLS, start_process};

/// The values of a field of `/proc/PID/status`, of every thread of the process.
fn status_of_threads(pid: u32, field: &str) -> Vec<(String, String)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap().path());
    let read = |thread: std::path::PathBuf| {
        let status = fs::read_to_string(thread.join("status")).unwrap();
        let name = fs::read_to_string(thread.join("comm")).unwrap().trim().to_owned();
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap_or_default();
        (name, value.trim().to_owned())
    };
    threads.map(read).collect()
}

#[tokio::test]
async fn every_thread_refuses_system_calls_and_can_get_no_privileges() {
    let sidecar = start_process(&[], "").await;
    assert_eq!(sidecar.send_request(PROTOCOLS[0], OUTSIDER, "GET /", &[]).await.0, 200);
    let threads = status_of_threads(sidecar.process().id(), "Seccomp");
    assert!(threads.iter().any(|(name, _)| name.starts_with("worker-")), "{threads:?}");
    assert!(threads.iter().all(|(_, mode)| mode == "2"), "{threads:?}");
    assert!(status_of_threads(sidecar.process().id(), "NoNewPrivs").iter().all(|(_, set)| set == "1"));
    let line = sidecar.process().wait_for_log("restricted this process").await;
    assert!(line.contains("\"seccomp\":true"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_whether_seccomp_is_in_force() {
    for (flag, seccomp) in [("--sandbox=auto", true), ("--sandbox=off", false)] {
        let admin = format!("--admin={}", free_address());
        let sidecar = start_process(&[flag, &admin], "").await;
        let status = tokio::task::block_in_place(|| sidecar.status_json());
        assert_eq!(status["sandbox"]["seccomp"], seccomp, "{status}");
        assert!(status["sandbox"]["problem"].is_null() || seccomp, "{status}");
    }
}

#[tokio::test]
async fn without_the_sandbox_there_are_no_restrictions() {
    let sidecar = start_process(&["--sandbox=off"], "").await;
    assert!(status_of_threads(sidecar.process().id(), "Seccomp").iter().all(|(_, mode)| mode == "0"));
    assert!(!sidecar.process().output().contains("restricted this process"));
}
