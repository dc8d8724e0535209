//! A minimal init process: runs one child, passes signals on to it, returns its exit status, and
//! reaps orphaned processes.

use std::future::poll_fn;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::task::Poll;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, getpid, tcgetpgrp, tcsetpgrp};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

/// The signals that are passed on to the child.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Handlers of the signals in [`PASSED_ON`] and of SIGCHLD, which replace the default actions.
#[derive(Debug)]
pub struct Signals {
    passed_on: Vec<(Signal, unix::Signal)>,
    child: unix::Signal,
}

impl Signals {
    /// Registers the signal handlers.
    ///
    /// # Errors
    /// A handler can't be registered.
    pub fn install() -> io::Result<Self> {
        let register = |signal: Signal| Ok((signal, unix::signal(SignalKind::from_raw(signal as i32))?));
        let passed_on = PASSED_ON.into_iter().map(register).collect::<io::Result<_>>()?;
        Ok(Self { passed_on, child: unix::signal(SignalKind::child())? })
    }

    /// Waits for a signal that should end this process: SIGTERM, SIGINT, SIGHUP or SIGQUIT.
    pub async fn wait_for_termination(&mut self) -> Signal {
        loop {
            let signal = next_signal(&mut self.passed_on).await;
            if matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT) {
                return signal;
            }
        }
    }
}

/// Waits for one of `signals`, and returns it.
async fn next_signal(signals: &mut [(Signal, unix::Signal)]) -> Signal {
    poll_fn(|context| {
        let ready =
            signals.iter_mut().find_map(|(signal, stream)| stream.poll_recv(context).is_ready().then_some(*signal));
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Returns the exit status that shells report for a process that `signal` killed.
pub fn exit_status_of(signal: Signal) -> u8 {
    128_u8.saturating_add(signal as u8)
}

/// The error of a command that can't be run.
#[derive(Debug, thiserror::Error)]
#[error("can't run {program}")]
pub struct SpawnError {
    program: String,
    source: io::Error,
}

impl SpawnError {
    /// The exit status that shells report: 127 if the program does not exist, 126 if it can't be
    /// run.
    pub fn exit_status(&self) -> u8 {
        if self.source.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

/// Runs `command` as the leader of a new process group, and returns its exit status.
///
/// Signals are passed on to the group. The group is killed if the command still runs `grace` after
/// the first SIGTERM. All other children of this process are reaped too: as PID 1 it inherits
/// orphans.
///
/// # Errors
/// The command can't be run.
pub async fn run_command(mut command: Command, signals: &mut Signals, grace: Duration) -> Result<u8, SpawnError> {
    let child = command.process_group(0).spawn();
    let program = command.get_program().to_string_lossy().into_owned();
    let child = child.map_err(|source| SpawnError { program, source })?;
    let child = Pid::from_raw(i32::try_from(child.id()).expect("process ids are small"));
    // The command's environment may hold secrets, and is no longer needed.
    drop(command);
    debug!(pid = %child, "started the command");
    give_terminal_to(child);

    let mut deadline = None;
    loop {
        if let Some(status) = reap_children(child) {
            return Ok(status);
        }
        let overdue = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = signals.child.recv() => {}
            signal = next_signal(&mut signals.passed_on) => {
                debug!(%signal, "passing a signal on to the command");
                signal_group(child, signal);
                if signal == Signal::SIGTERM && deadline.is_none() {
                    deadline = Some(Instant::now() + grace);
                }
            }
            () = overdue => {
                warn!(?grace, "the command did not end after SIGTERM; killing it");
                signal_group(child, Signal::SIGKILL);
                deadline = None;
            }
        }
    }
}

fn signal_group(group: Pid, signal: Signal) {
    if let Err(error) = killpg(group, signal) {
        warn!(%signal, %error, "can't pass a signal on to the command");
    }
}

/// Reaps all children that have exited, and returns the exit status of `child` if `child` has
/// exited. If `child` was stopped, stops this process too.
fn reap_children(child: Pid) -> Option<u8> {
    let mut status = None;
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => status = Some(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => status = Some(exit_status_of(signal)),
            Ok(WaitStatus::Stopped(pid, _)) if pid == child => stop_with_child(child),
            Ok(WaitStatus::StillAlive) => return status,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return status,
        }
    }
}

/// Makes the process group of `child` the foreground group of the terminal and continues it, if
/// this process is in the foreground of one.
fn give_terminal_to(child: Pid) {
    let stdin = io::stdin();
    if stdin.is_terminal() && tcgetpgrp(&stdin) == Ok(getpgrp()) && tcsetpgrp(&stdin, child).is_ok() {
        // The child may have been stopped because it read from the terminal while it was in the
        // background.
        let _ = killpg(child, Signal::SIGCONT);
    }
}

/// Stops this process after its child was stopped on a terminal (Ctrl-Z), so that the shell shows
/// its prompt. When the shell continues this process, continues the child.
fn stop_with_child(child: Pid) {
    if getpid().as_raw() == 1 || !io::stdin().is_terminal() {
        return;
    }
    let _ = kill(getpid(), Signal::SIGSTOP);
    give_terminal_to(child);
    let _ = killpg(child, Signal::SIGCONT);
}
