//! Builds the sidecar out of the other modules: binds first, then serves.

mod certificate_names;
mod descriptors;
mod gateway_token;
mod sidecar;
mod signals;
mod tls_reloader;

use std::io;

use tracing::warn;

use crate::admin;
use crate::config::{self, Config};
use crate::discovery;
use crate::listener;
#[cfg(feature = "otel")]
use crate::otel;
use crate::pki;
use crate::tls;
pub use sidecar::Sidecar;
use signals::Signals;

/// Why the sidecar could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{doing}")]
    Io {
        /// The operation.
        doing: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The server certificate can't be loaded or made.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// The certificate can't be served, or the operator's client CA can't be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// An address can't be listened on.
    #[error(transparent)]
    Listener(#[from] listener::Error),
    /// The admin address can't be listened on.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The gateway's token can't be read.
    #[error(transparent)]
    Token(#[from] gateway_token::Error),
    /// Spans can't be sent.
    #[cfg(feature = "otel")]
    #[error(transparent)]
    Otel(#[from] otel::Error),
    /// The container that owned this network namespace runs again, in another one.
    #[error(
        "the owner of this network namespace has restarted in a new one; exiting, so that the restart policy attaches the sidecar to it"
    )]
    Orphaned,
}

impl Error {
    /// Returns the exit status of the process.
    pub fn status(&self) -> u8 {
        if matches!(self, Self::Orphaned) { discovery::EXIT_ORPHANED } else { 1 }
    }
}

/// Runs the sidecar until SIGTERM or SIGINT. This thread runs background tasks and accepts connections; worker threads serve them.
///
/// At each SIGHUP it applies the configuration that `load` returns, and calls `set_log` with the new log options.
///
/// # Errors
/// If the sidecar can't start, or must be restarted in another network namespace.
pub fn run(config: Config, load: impl Fn() -> Result<Config, config::Error>, set_log: impl Fn(&config::Log)) -> Result<(), Error> {
    let doing = |doing| move |source| Error::Io { doing, source };
    descriptors::raise_limit(config.limits.max_connections);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(doing("starting the runtime"))?;
    runtime.block_on(async {
        let mut signals = Signals::new().map_err(doing("listening for signals"))?;
        let sidecar = Sidecar::start(config).await?;
        let ended = tokio::select! {
            () = signals.until_stop(|| sidecar.reload(load(), &set_log)) => Ok(()),
            () = sidecar.orphaned() => Err(Error::Orphaned),
        };
        // An orphaned namespace has no interfaces, so there are no clients to drain.
        if ended.is_ok() {
            tokio::select! {
                () = sidecar.stop() => {}
                () = signals.stop_again() => warn!("second stop signal: aborting open connections"),
            }
        }
        ended
    })
}
