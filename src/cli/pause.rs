//! `loopgate pause`: owns a network namespace for others to join, and does nothing else.

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::error::Error;

/// Holds a network namespace open until a signal comes
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Waits for SIGTERM or SIGINT.
pub fn run(_: &Args) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.and_then(|runtime| runtime.block_on(wait())).map_err(Error::io("waiting for a signal"))
}

async fn wait() -> std::io::Result<()> {
    // PID 1 gets no signal that it has no handler for, so these two are what makes `docker stop` prompt.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child = signal(SignalKind::child())?;
    loop {
        // Also before the first signal: a child may have ended before there was a handler.
        reap();
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = child.recv() => {}
        }
    }
}

/// Takes the status of all children that have ended: a PID 1 inherits every orphan of its PID namespace.
fn reap() {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
