//! Builds the sidecar out of the other modules: binds first, then serves.

mod certificate_names;
mod descriptors;
mod error;
mod gateway_token;
mod sidecar;
mod signals;
mod tls_reloader;

use tracing::warn;

use crate::config::{self, Config};
pub use error::Error;
pub use sidecar::Sidecar;
use signals::Signals;

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
