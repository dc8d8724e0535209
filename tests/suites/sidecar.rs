//! `loopgate run` on loopback, before a gateway at a given address.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::process::Process;

/// A running sidecar.
pub struct Sidecar {
    process: Process,
    pub door: SocketAddr,
    directory: TempDir,
}

impl Sidecar {
    /// Starts it, and comes back when it is ready.
    pub fn start(gateway: SocketAddr, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (door, admin) = (free(), free());
        let built = env!("CARGO_BIN_EXE_loopgate").into();
        let mut command = Command::new(std::env::var_os("TEST_BINARY").unwrap_or(built));
        command.args(["run", "--log-level", "warn"]);
        command.args(Some("--docker=off").filter(|_| !flags.iter().any(|flag| flag.starts_with("--docker"))));
        command.args(["--gateway", &gateway.to_string(), "--listen", &door.to_string(), "--admin", &admin.to_string()]);
        command.arg("--state-dir").arg(directory.path().join("state")).args(flags);
        fs::create_dir(directory.path().join("state")).unwrap();
        let mut process = Process::start("loopgate", command, &directory.path().join("log"));
        process.wait_until("ready", Duration::from_secs(30), || {
            let url = format!("http://{admin}/readyz");
            Command::new("curl").args(["--fail", "--silent", "--output", "/dev/null", "--max-time", "2", &url]).status().unwrap().success()
        });
        Self { process, door, directory }
    }

    /// The certificate of its authority.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("state/ca.pem")
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Its resident memory in bytes.
    pub fn memory(&self) -> u64 {
        crate::process::memory(self.process.id()).0
    }

    /// How many file descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// Tells it to read its files again.
    pub fn hang_up(&self) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Ends it as Docker would; it must come to a clean end.
    pub fn stop(mut self) {
        let status = self.process.stop(Duration::from_secs(15));
        assert!(status.success(), "loopgate ended with {status} on SIGTERM:\n{}", self.log());
    }
}
