//! The admin listener. It serves `/healthz`, `/readyz`, `/metrics`, `/status` and an HTML page, all
//! from snapshots that other modules publish, and `/reload`.

pub mod client;
mod host;
mod page;
mod ready;
pub mod reload;
mod routes;
mod snapshot;
mod state;
pub mod status;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::error_chain::error_chain;
use crate::shutdown::Shutdown;
pub use state::AdminState;

/// The time limit of a connection. Without it, a client that never reads would occupy one of
/// [`MAX_CONNECTIONS`] for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest number of concurrent connections. Further ones wait in the kernel's accept queue.
const MAX_CONNECTIONS: usize = 64;

/// Why the admin listener can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is in use, or is not one of this machine.
    #[error("can't listen on the admin address {address}")]
    Bind {
        /// The value of `admin`.
        address: SocketAddr,
        /// The error of bind(2).
        source: io::Error,
    },
}

/// A bound admin listener.
#[derive(Debug)]
pub struct Admin(TcpListener);

/// Begins to listen on `address`. Connections wait until [`Admin::serve`] accepts them.
///
/// # Errors
/// If the address is in use, or is not an address of this machine.
pub fn bind(address: SocketAddr) -> Result<Admin, Error> {
    let failed = |source| Error::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Admin(listener))
}

impl Admin {
    /// Starts a task that serves connections until `shutdown` begins, at most [`MAX_CONNECTIONS`]
    /// at once and each for at most [`CONNECTION_TIMEOUT`]. Must be called within a Tokio runtime.
    pub fn serve(self, state: AdminState, shutdown: &Shutdown) {
        let task_shutdown = shutdown.clone();
        let state = Arc::new(state);
        shutdown.spawn(async move {
            let listener = match tokio::net::TcpListener::from_std(self.0) {
                Ok(listener) => listener,
                Err(error) => {
                    return warn!(%error, "can't start the admin listener; health, metrics and status are not served");
                }
            };
            let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            loop {
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
                let (stream, peer) = tokio::select! {
                    () = task_shutdown.wait_until_begun() => return,
                    accepted = listener.accept() => match accepted {
                        Ok(accepted) => accepted,
                        Err(error) => {
                            debug!(%error, "can't accept an admin connection");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            continue;
                        }
                    },
                };
                let state = Arc::clone(&state);
                let connection_shutdown = task_shutdown.clone();
                task_shutdown.spawn(async move {
                    let service = service_fn(move |request| routes::respond(Arc::clone(&state), peer, request));
                    // With one request per connection, a client can't queue up work with pipelined
                    // requests.
                    let connection =
                        http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        result = timeout(CONNECTION_TIMEOUT, connection) => match result {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => debug!(%peer, error = error_chain(&error), "admin connection failed"),
                            Err(_) => {
                                let limit = CONNECTION_TIMEOUT;
                                debug!(%peer, ?limit, "closed an admin connection that took too long");
                            }
                        },
                        () = connection_shutdown.wait_until_begun() => {}
                    }
                    drop(permit);
                });
            }
        });
    }
}
