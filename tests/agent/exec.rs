//! The command `loopgate exec`, with a shell script as the command that it runs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use loopgate::shutdown::Shutdown;
use loopgate_test_support::sidecar::loopgate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sidecar::{Sidecar, TestCa};

/// A fake sidecar that runs on its own thread.
struct Harness {
    authority: TestCa,
    sidecar: Sidecar,
    _runtime: tokio::runtime::Runtime,
}

impl Harness {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let authority = TestCa::new();
        let sidecar = runtime.block_on(Sidecar::start(&authority, "127.0.0.1:0".parse().unwrap(), &Shutdown::new()));
        Self { authority, sidecar, _runtime: runtime }
    }

    /// `loopgate exec` with the sidecar's address and credentials, additional `flags` and this
    /// command.
    fn exec(&self, flags: &[&str], command: &[&str]) -> Command {
        let (cert, key) = self.authority.write_client_certificate("agent");
        let mut exec = loopgate(["exec", "--listen", "127.0.0.1:0", "--server-name", "localhost"]);
        exec.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/nowhere");
        exec.arg("--sidecar").arg(self.sidecar.address.to_string()).arg("--ca").arg(self.authority.ca());
        exec.arg("--cert").arg(cert).arg("--key").arg(key);
        exec.args(flags).arg("--").args(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        exec
    }

    /// Runs a shell script with `loopgate exec`.
    fn sh(&self, script: &str) -> Output {
        self.exec(&[], &["sh", "-c", script]).output().unwrap()
    }
}

/// Starts `command` and waits until its script prints `ready`.
fn spawn_until_ready(mut command: Command) -> Child {
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "{}", read_all(child.stderr.as_mut().unwrap()));
    child
}

/// Reads to the end.
fn read_all(from: &mut impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

/// Sends `signal` to `child`, and returns its exit status.
fn exit_after_signal(mut child: Child, signal: Signal) -> ExitStatus {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    child.wait().unwrap()
}

#[test]
fn exec_returns_the_exit_status_of_its_command() {
    let harness = Harness::new();
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)] {
        let output = harness.sh(script);
        assert_eq!(output.status.code(), Some(status), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for (program, status) in [("/no/such/program", 127), ("/dev/null", 126)] {
        let output = harness.exec(&[], &[program]).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{program}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(program));
    }
}

#[test]
fn the_commands_environment_names_the_gateway_on_loopback() {
    let harness = Harness::new();
    let script = "echo \"$GATEWAY ${OPENCLAW_GATEWAY_URL-unset} ws://127.0.0.1:$OPENCLAW_GATEWAY_PORT\"";
    let mut command = harness.exec(&["--env", "GATEWAY"], &["sh", "-c", script]);
    let output = command.env("OPENCLAW_GATEWAY_URL", "wss://elsewhere").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[1], "unset", "{text}");
    assert_eq!(words[0], words[2], "{text}");
}

#[test]
fn signals_reach_the_command_and_its_children() {
    let harness = Harness::new();
    let script = "trap 'exit 42' TERM; trap 'exit 43' INT; sh -c 'trap \"exit 0\" TERM INT; echo ready; while :; do \
                  sleep 0.05; done'; exit 1";
    for (signal, status) in [(Signal::SIGTERM, 42), (Signal::SIGINT, 43)] {
        let child = spawn_until_ready(harness.exec(&[], &["sh", "-c", script]));
        assert_eq!(exit_after_signal(child, signal).code(), Some(status), "{signal}");
    }
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_after_the_grace_period() {
    let harness = Harness::new();
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let child = spawn_until_ready(harness.exec(&["--grace", "100ms"], &["sh", "-c", script]));
    assert_eq!(exit_after_signal(child, Signal::SIGTERM).code(), Some(137));
}

#[test]
fn exec_without_a_gateway_fails_with_the_reason() {
    let harness = Harness::new();
    let output = harness.exec(&["--wait", "300ms", "--sidecar", "127.0.0.1:1"], &["true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "a flag given twice is refused");
    let mut command = harness.exec(&["--wait", "300ms", "--hold", "0"], &["true"]);
    std::fs::remove_file(harness.authority.ca()).unwrap();
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("can't read the CA file"), "{text}");
    assert!(text.contains("loopgate: the gateway does not answer within 300ms"), "{text}");
}

#[test]
fn contradictory_options_are_refused_at_once() {
    let harness = Harness::new();
    let fingerprint = "00".repeat(32);
    for (flags, what) in [
        (vec!["--server-fingerprint", fingerprint.as_str()], "--server-fingerprint: is of no use beside --ca"),
        (vec!["--server-fingerprint", "00"], "not a SHA-256 fingerprint"),
        (vec!["--env", "A=B"], "is not the name of an environment variable"),
    ] {
        let output = harness.exec(&flags, &["true"]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(what), "{text}");
    }
}
