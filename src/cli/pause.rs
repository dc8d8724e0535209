//! `loopgate pause`: owns a network namespace for others to join, and does nothing else.

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::error::Error;

/// Holds a network namespace open until a signal comes
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Holds the namespace until SIGTERM or SIGINT.
pub fn run(_: &Args) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.and_then(|runtime| runtime.block_on(wait_for_signal())).map_err(Error::io("waiting for a signal"))
}

/// Reaps children until SIGTERM or SIGINT arrives.
async fn wait_for_signal() -> std::io::Result<()> {
    // The kernel sends PID 1 no signal without a handler, so `docker stop` would wait for its
    // timeout without these.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child = signal(SignalKind::child())?;
    loop {
        // This also runs before the first signal, because a child may have ended before the handler
        // was installed.
        reap_children();
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = child.recv() => {}
        }
    }
}

/// Reaps all children that have ended. PID 1 is the parent of every orphan in its PID namespace.
fn reap_children() {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
