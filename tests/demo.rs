//! The command `loopgate demo`: its output, its listener, and its exit.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use loopgate_test_support::sidecar::loopgate;
use loopgate_test_support::tls_client::TlsClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn demo(arguments: &[&str]) -> Command {
    loopgate([&["demo"], arguments].concat())
}

/// A running `loopgate demo`, and the values that it printed.
struct Running {
    child: Child,
    url: String,
    ca: String,
    fingerprint: String,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = demo(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut value_after = |word: &str| {
            let line = lines.by_ref().map(Result::unwrap).find(|line| line.trim_start().starts_with(word));
            let line = line.unwrap_or_else(|| panic!("{word} is not printed"));
            line.trim_start().strip_prefix(word).unwrap().trim().to_owned()
        };
        value_after("All 16 checks passed.");
        let (url, ca, fingerprint) = (value_after("URL"), value_after("CA"), value_after("Fingerprint"));
        // From here on the command's standard output is a closed pipe, which must not end the
        // command.
        Self { child, url, ca, fingerprint }
    }

    fn address(&self) -> SocketAddr {
        self.url.strip_prefix("https://").and_then(|rest| rest.strip_suffix('/')).unwrap().parse().unwrap()
    }

    /// Sends a GET request from the address `from`, and verifies the certificate with the printed
    /// CA and fingerprint.
    fn get(&self, from: Ipv4Addr, path: &str) -> String {
        let client =
            TlsClient::with_ca_file(self.address(), Path::new(&self.ca)).expecting_address().from(&from.to_string());
        let mut stream = client.connect_blocking();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let leaf = &stream.conn.peer_certificates().unwrap()[0];
        assert_eq!(loopgate::fingerprint::Fingerprint::of(leaf).to_string(), self.fingerprint);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        answer
    }

    /// Sends `signal`, waits for the exit, and returns the status.
    fn signal_and_wait(mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(!Path::new(&self.ca).exists(), "the temporary directory still exists");
                return status;
            }
            assert!(Instant::now() < deadline, "the command does not exit");
            std::thread::yield_now();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn demo_once_checks_both_lanes_in_every_protocol_and_exits_with_0() {
    let output = demo(&["--once"]).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && err.is_empty(), "{out}{err}");
    assert!(out.contains("All 16 checks passed."), "{out}");
    for word in [
        "agent lane",
        "external lane",
        "HTTP/1.1",
        "HTTP/2",
        "WebSocket, h1",
        "WebSocket, h2",
        "127.77.",
        "127.0.0.2",
        "192.0.2.1",
    ] {
        assert!(out.contains(word), "{word}: {out}");
    }
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
    assert!(!out.contains('\x1b'), "colours in a pipe: {out}");
}

#[test]
fn demo_serves_clients_until_a_signal_and_exits_with_0() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let running = Running::start(&[]);
        let page = running.get(Ipv4Addr::LOCALHOST, "/");
        assert!(page.contains("<h1>remote</h1>") && page.contains("text/html"), "{page}");
        let outsider = running.get(Ipv4Addr::LOCALHOST, "/json");
        assert!(
            outsider.contains(r#""judged": "remote""#) && outsider.contains(r#""from": "127.0.0.2:"#),
            "{outsider}"
        );
        let agent = running.get(Ipv4Addr::new(127, 0, 0, 9), "/json");
        assert!(agent.contains(r#""judged": "local""#) && !agent.contains("x-forwarded"), "{agent}");
        assert_eq!(running.signal_and_wait(signal).code(), Some(0));
    }
}

#[test]
fn demo_listens_on_the_given_address() {
    for listen in ["0.0.0.0:0", "127.0.0.5:0"] {
        let running = Running::start(&["--listen", listen]);
        running.get(Ipv4Addr::LOCALHOST, "/json");
        assert_eq!(running.signal_and_wait(Signal::SIGINT).code(), Some(0));
    }
}

#[test]
fn demo_survives_a_closed_pipe() {
    let mut child = demo(&["--once"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn demo_fails_on_an_address_in_use_and_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = demo(&["--once", "--listen", &address]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    let last = err.lines().last().unwrap_or_default();
    assert!(last.starts_with("loopgate: ") && last.contains(&address), "{err}");
}
