//! The binary as a sidecar on loopback, with a gateway behind it that only listens.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The binary, in an environment without a variable of ours.
pub fn loopgate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loopgate"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LOOPGATE_") {
            command.env_remove(name);
        }
    }
    command
}

/// A port that nobody has, for now.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A sidecar that runs.
pub struct Sidecar {
    child: Child,
    pub gateway: Option<TcpListener>,
    pub admin: SocketAddr,
    pub door: SocketAddr,
    pub state: TempDir,
}

impl Sidecar {
    /// Starts one, and waits until its desk answers.
    pub fn start(more: &[&str]) -> Self {
        Self::logging_to(Stdio::null(), more)
    }

    /// The same with its log.
    pub fn logging_to(log: impl Into<Stdio>, more: &[&str]) -> Self {
        let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
        let (admin, door, state) = (free_port(), free_port(), tempfile::tempdir().unwrap());
        let given = [
            ("--gateway", gateway.local_addr().unwrap().to_string()),
            ("--admin", admin.to_string()),
            ("--listen", door.to_string()),
            ("--state-dir", state.path().to_str().unwrap().to_owned()),
        ];
        let mut arguments = vec!["run", "--docker", "off"];
        arguments.extend(given.iter().flat_map(|(name, value)| [*name, value.as_str()]));
        arguments.extend(more);
        let child = loopgate(&arguments).stderr(log).spawn().unwrap();
        let sidecar = Self { child, gateway: Some(gateway), admin, door, state };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(admin).is_err() || !sidecar.get("/healthz", "localhost").starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < deadline, "the sidecar does not start");
            std::thread::yield_now();
        }
        sidecar
    }

    /// The whole answer to `GET path` of the desk.
    pub fn get(&self, path: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Runs `loopgate status` against it.
    pub fn status(&self, arguments: &[&str]) -> Output {
        loopgate(&[&["status"], arguments].concat()).env("LOOPGATE_ADMIN", self.admin.to_string()).output().unwrap()
    }

    /// What `loopgate status --json` says.
    pub fn json(&self) -> serde_json::Value {
        let output = self.status(&["--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Looks until `seen` holds.
    pub fn wait_for(&self, seen: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.json();
            if seen(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:#}");
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
