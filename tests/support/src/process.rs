//! A process of the test's own, with its output kept in a file. It is killed on drop.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The time limit of a wait. It is longer than any step of a process in a test.
const PATIENCE: Duration = Duration::from_secs(30);
/// The interval at which a process and its output are polled.
const INTERVAL: Duration = Duration::from_millis(10);

/// A running process.
pub struct Process {
    child: Mutex<Child>,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, and appends its standard output and standard error to the file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("a log file");
        let err = out.try_clone().expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { child: Mutex::new(child), name: name.into(), log: log.into() }
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// Returns the process id as a value of the crate `nix`.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.lock().unwrap().id()).expect("a process id"))
    }

    /// Returns everything that the process has written so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the lines that the process has written so far.
    pub fn log_lines(&self) -> Vec<String> {
        self.output().lines().map(str::to_owned).collect()
    }

    /// Waits for a line of the output that contains `text`, and returns that line.
    pub async fn wait_for_log(&self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(line) = self.line_with(text, start) {
                return line;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Does the same as [`Process::wait_for_log`] for code that blocks.
    pub fn wait_for_log_blocking(&self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(line) = self.line_with(text, start) {
                return line;
            }
            thread::sleep(INTERVAL);
        }
    }

    fn line_with(&self, text: &str, start: Instant) -> Option<String> {
        // The status is read before the output, because a process that has ended has written all of
        // its output.
        let ended = self.try_exit_status();
        let output = self.output();
        // A line without a newline is still being written.
        let lines = output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let found = lines.into_iter().find(|line| line.contains(text)).map(str::to_owned);
        if found.is_none() {
            if let Some(status) = ended {
                panic!("{} ended ({status}) without {text:?}:\n{}", self.name, self.end_of_output());
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{} did not write {text:?} in {PATIENCE:?}:\n{}",
                self.name,
                self.end_of_output()
            );
        }
        found
    }

    /// Waits until `ready` is true. If the process ends before, or `limit` passes, the test fails
    /// with the end of its output.
    pub fn wait_until(&self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.try_exit_status() {
                panic!("{} ended ({status}) before this was true: {what}\n{}", self.name, self.end_of_output());
            }
            assert!(
                start.elapsed() < limit,
                "{}: not true after {limit:?}: {what}\n{}",
                self.name,
                self.end_of_output()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("own child");
    }

    /// Waits until the process has ended.
    pub async fn wait_for_exit(&self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_exit_status() {
                return status;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{} still runs after {PATIENCE:?}:\n{}",
                self.name,
                self.end_of_output()
            );
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Sends SIGTERM and waits for the end; longer than `limit` fails the test.
    pub fn stop(&self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_exit_status() {
                return status;
            }
            assert!(
                start.elapsed() < limit,
                "{} still runs {limit:?} after SIGTERM:\n{}",
                self.name,
                self.end_of_output()
            );
            thread::sleep(INTERVAL);
        }
    }

    /// Returns the resident memory in bytes.
    pub fn memory(&self) -> u64 {
        memory(self.id()).0
    }

    /// Returns the CPU time that the running threads have used so far.
    pub fn cpu_time(&self) -> Duration {
        cpu(self.id())
    }

    /// Returns the number of open file descriptors.
    pub fn open_file_count(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).expect("a running process").count()
    }

    fn try_exit_status(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().expect("own child")
    }

    fn end_of_output(&self) -> String {
        let output = self.output();
        let from = output.lines().count().saturating_sub(40);
        output.lines().skip(from).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Returns the resident memory of a process in bytes, now and at its highest (`/proc/PID/status`).
pub fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("a field of /proc/PID/status");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("kibibytes") * 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Returns the CPU time that the running threads of a process have used so far
/// (`/proc/PID/task/TID/schedstat`, in nanoseconds).
pub fn cpu(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a running process").flatten();
    let statistics = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    let nanoseconds = statistics.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).sum();
    Duration::from_nanos(nanoseconds)
}
