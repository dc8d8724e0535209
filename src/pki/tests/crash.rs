//! Tests that kill processes at any time, and start several processes at the same time, on one
//! state directory.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::managed::{Managed, RotateKey};
use super::{create_home, handshake, load_at_start, now, read_files};

/// The environment variable with the state directory of a child process.
const STATE_VARIABLE: &str = "TEST_STATE";
/// The environment variable that makes a child process rotate its key until it is killed.
const ROTATE_VARIABLE: &str = "TEST_ROTATE";

/// Starts a sidecar once. The other tests run this test in child processes, as a sidecar on their
/// state directory.
#[test]
fn a_sidecar_starts() {
    let home = create_home();
    let state = std::env::var_os(STATE_VARIABLE).map_or(home.state.clone(), Into::into);
    load_at_start(&state, "localhost").unwrap();
    while std::env::var_os(ROTATE_VARIABLE).is_some() {
        Managed::open(&state, now()).unwrap().rotate(RotateKey::Replace, now()).unwrap();
    }
    assert_eq!(read_files(&state).len(), 4);
}

fn sidecar(state: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "pki::tests::crash::a_sidecar_starts", "--test-threads=1"]).env(STATE_VARIABLE, state);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}

fn kill_and_reap(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Asserts that the next start works and removes only temporary files.
fn assert_recovers(state: &Path) {
    let before = read_files(state);
    let identity = load_at_start(state, "localhost").unwrap().identity;
    let after = read_files(state);
    handshake(&identity, identity.ca.as_ref().unwrap(), "localhost").unwrap();
    for (name, content) in before.iter().filter(|(name, _)| !name.starts_with("server.pem")) {
        assert_eq!(after.get(name), Some(content), "{name}");
    }
    assert!(!state.read_dir().unwrap().any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with(".new-")));
}

#[test]
fn processes_that_start_at_once_on_nothing_end_with_one_ca_and_one_key() {
    let home = create_home();
    let children: Vec<_> = (0..6).map(|_| sidecar(&home.state).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_recovers(&home.state);
}

#[test]
fn threads_without_locks_end_with_one_ca_too() {
    let home = create_home();
    // The lock file is replaced by something that can't be locked, so only the atomic creation of
    // files is left.
    fs::create_dir_all(home.state.join(".lock")).unwrap();
    let cas: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> =
            (0..8).map(|_| scope.spawn(|| load_at_start(&home.state, "localhost").unwrap().identity.ca)).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(cas.iter().all(|ca| ca == &cas[0]));
}

#[test]
fn every_step_of_the_first_start_is_completed_by_the_next() {
    let steps = ["ca.key", "ca.pem", "server.key", "server.pem"];
    for done in 0..=steps.len() {
        let home = create_home();
        load_at_start(&home.state, "localhost").unwrap();
        for name in &steps[done..] {
            fs::remove_file(home.state.join(name)).unwrap();
        }
        fs::write(home.state.join(".new-abc-server.pem"), b"half").unwrap();
        assert_recovers(&home.state);
    }
}

#[test]
fn every_step_of_a_rotation_to_a_new_key_is_completed_or_forgotten_by_the_next_start() {
    let home = create_home();
    load_at_start(&home.state, "localhost").unwrap();
    let old = read_files(&home.state);
    Managed::open(&home.state, now()).unwrap().rotate(RotateKey::Replace, now()).unwrap();
    let new = read_files(&home.state);
    assert_ne!(new["server.key"], old["server.key"]);

    // The first case is a kill before the new key replaces the old one: the old pair is complete,
    // and the next chain is not needed. The second case is a kill after that: the next chain
    // belongs to the new key.
    for (key, chain) in [(&old, &old), (&new, &old)] {
        fs::write(home.state.join("server.key"), &key["server.key"]).unwrap();
        fs::write(home.state.join("server.pem"), &chain["server.pem"]).unwrap();
        fs::write(home.state.join("server.pem.next"), &new["server.pem"]).unwrap();
        assert_recovers(&home.state);
        assert_eq!(read_files(&home.state)["server.pem"], key["server.pem"]);
    }
}

#[test]
fn a_sidecar_killed_at_any_moment_leaves_a_directory_that_the_next_start_can_use() {
    for round in 0..12 {
        let home = create_home();
        fs::create_dir(&home.state).unwrap();
        let child = sidecar(&home.state).env(ROTATE_VARIABLE, "1").spawn().unwrap();
        // The process is killed at different times: in the first half of the rounds during the
        // first start, later during a rotation.
        let milestone = if round < 6 { ".lock" } else { "server.pem" };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !home.state.join(milestone).exists() {
            assert!(Instant::now() < deadline, "no {milestone}");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(700 * round));
        kill_and_reap(child);
        assert_recovers(&home.state);
    }
}
