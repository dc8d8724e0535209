//! A process of the test's own, with its output kept for the report, ended on drop.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running process.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts it, with both of its outputs in the file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("a log file");
        let err = out.try_clone().expect("a log file");
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { child, name: name.into(), log: log.into() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` says so; a process that ends before, or takes longer than `limit`, fails the test with its last words.
    pub fn wait_until(&mut self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait().expect("own child") {
                panic!("{} ended ({status}) before it was {what}:\n{}", self.name, self.last_words());
            }
            assert!(start.elapsed() < limit, "{} is not {what} after {limit:?}:\n{}", self.name, self.last_words());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks it to end by SIGTERM and waits; longer than `limit` fails the test.
    pub fn stop(&mut self, limit: Duration) -> ExitStatus {
        kill(self.pid(), Signal::SIGTERM).expect("own child");
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("own child") {
                return status;
            }
            assert!(start.elapsed() < limit, "{} still runs {limit:?} after SIGTERM:\n{}", self.name, self.last_words());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn last_words(&self) -> String {
        let output = self.output();
        let from = output.lines().count().saturating_sub(40);
        output.lines().skip(from).collect::<Vec<_>>().join("\n")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of a process in bytes, now and at its highest (`/proc/PID/status`).
pub fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("a field of /proc/PID/status");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("kibibytes") * 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}
