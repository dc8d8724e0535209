//! The CPU time and the memory of a process and its descendants, as the kernel counts them.

use std::fs;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// A process and its descendants at one moment.
#[derive(Clone, Debug)]
pub struct Tree(Vec<Pid>);

impl Tree {
    /// Finds `root` and its descendants.
    pub fn of(root: u32) -> Self {
        let mut found = vec![Pid::from_raw(i32::try_from(root).expect("a pid"))];
        let mut next = 0;
        while let Some(parent) = found.get(next).copied() {
            found.extend(children(parent));
            next += 1;
        }
        Self(found)
    }

    /// Returns the user and system CPU time of all threads so far. The clock of
    /// clock_getcpuclockid(3) counts nanoseconds, and `/proc/PID/stat` only ticks.
    pub fn cpu(&self) -> Duration {
        let clocks = self.0.iter().filter_map(|pid| clock_getcpuclockid(*pid).ok());
        clocks.filter_map(|clock| clock.now().ok()).map(Duration::from).sum()
    }

    /// Returns the CPU time so far of the first process's main thread.
    ///
    /// # Errors
    /// The process has ended, or the kernel has no such statistics.
    pub fn main_thread_cpu(&self) -> io::Result<Duration> {
        let root = self.0[0];
        let account = fs::read_to_string(format!("/proc/{root}/task/{root}/schedstat"))?;
        let spent = account.split_whitespace().next().and_then(|nanoseconds| nanoseconds.parse().ok());
        spent.map(Duration::from_nanos).ok_or_else(|| io::Error::other("schedstat without a time"))
    }

    /// Returns the memory in bytes: the sum of the proportional set sizes, in which shared pages
    /// count once.
    ///
    /// # Errors
    /// One of the processes has ended.
    pub fn memory(&self) -> io::Result<u64> {
        self.0.iter().map(|pid| pss(*pid)).sum()
    }
}

fn children(parent: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect::<Vec<_>>()
        })
        .collect()
}

fn pss(pid: Pid) -> io::Result<u64> {
    let account = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = account
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("smaps_rollup without Pss"))
}

/// Returns the monotonic clock in nanoseconds, which is the same for all processes of a machine.
pub fn monotonic() -> u64 {
    let now = ClockId::CLOCK_MONOTONIC.now().expect("every Linux has this clock");
    u64::try_from(Duration::from(now).as_nanos()).expect("less than 584 years of uptime")
}
