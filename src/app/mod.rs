//! Builds, reloads and stops the sidecar.

mod certificate_names;
mod config_file;
mod descriptors;
mod error;
mod gateway_token;
mod metrics;
mod parts;
mod sandbox;
mod sidecar;
mod signals;
mod span_exporter;
mod tls_reloader;
mod unpair;

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::pin;

use tokio::sync::mpsc;
use tracing::warn;

use crate::admin::reload;
use crate::config::{self, Config};
use config_file::ConfigFile;
pub use error::Error;
pub use sidecar::Sidecar;
use signals::{Hangup, StopSignals};

/// How the sidecar reads the configuration again while it runs.
pub struct Reload<L, S> {
    /// The configuration file. A change of it causes a reload.
    pub file: Option<PathBuf>,
    /// Loads the configuration from all its sources.
    pub load: L,
    /// Applies the log options to the process.
    pub set_log: S,
}

/// Runs the sidecar until SIGTERM or SIGINT. This thread runs background tasks and accepts
/// connections; worker threads serve them.
///
/// The configuration is loaded again at each SIGHUP, at each `POST /reload`, and when its file
/// changes.
///
/// # Errors
/// If the sidecar can't start, or must be restarted in another network namespace.
pub fn run<L, S>(config: Config, reload: Reload<L, S>) -> Result<(), Error>
where
    L: Fn() -> Result<Config, config::Error>,
    S: Fn(&config::Log),
{
    let doing = |doing| move |source| Error::Io { doing, source };
    let restricted = sandbox::apply(&config)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(doing("starting the runtime"))?;
    runtime.block_on(async {
        let mut stop = StopSignals::install().map_err(doing("listening for signals"))?;
        let hangup = Hangup::install().map_err(doing("listening for signals"))?;
        let file = ConfigFile::new(reload.file.clone());
        let (send, requests) = reload::channel();
        let sidecar = Sidecar::start_in_sandbox(config, send, restricted).await?;
        let mut reloads = pin!(reload_when_asked(&sidecar, &reload, hangup, file, requests));
        let ended = tokio::select! {
            () = stop.recv() => Ok(()),
            never = &mut reloads => match never {},
            () = sidecar.wait_until_orphaned() => Err(Error::Orphaned),
        };
        // An orphaned namespace has no interfaces, so there are no clients to drain.
        if ended.is_ok() {
            tokio::select! {
                () = sidecar.stop() => {}
                // Reloads go on during the shutdown, so that a client that is denied now loses its
                // connections.
                never = reloads => match never {},
                () = stop.recv() => {
                    warn!("second stop signal: aborting open connections");
                    sidecar.abort().await;
                }
            }
        }
        ended
    })
}

/// Reloads at each SIGHUP, each request to the admin listener and each change of the file.
async fn reload_when_asked<L, S>(
    sidecar: &Sidecar,
    reload: &Reload<L, S>,
    mut hangup: Hangup,
    mut file: ConfigFile,
    mut requests: mpsc::Receiver<reload::Request>,
) -> Infallible
where
    L: Fn() -> Result<Config, config::Error>,
    S: Fn(&config::Log),
{
    loop {
        let request = tokio::select! {
            () = hangup.recv() => None,
            () = file.changed() => None,
            Some(request) = requests.recv() => Some(request),
        };
        // The file is marked before it is read, so that a change in between causes another reload.
        file.mark_read();
        let outcome = sidecar.reload((reload.load)(), &reload.set_log);
        if let Some(request) = request {
            // An error means that the client has closed its connection.
            let _ = request.send(outcome);
        }
    }
}
