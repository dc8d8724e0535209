//! The Unix signals that the sidecar handles: SIGTERM and SIGINT stop it, SIGHUP reloads the
//! configuration.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Handlers of the signals that stop the sidecar.
pub(super) struct StopSignals {
    term: Signal,
    int: Signal,
}

/// The handler of SIGHUP.
pub(super) struct Hangup(Signal);

impl StopSignals {
    /// Installs the handlers. Must be called within a Tokio runtime.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next SIGTERM or SIGINT.
    pub(super) async fn recv(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

impl Hangup {
    /// Installs the handler. Must be called within a Tokio runtime.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for the next SIGHUP.
    pub(super) async fn recv(&mut self) {
        self.0.recv().await;
    }
}
