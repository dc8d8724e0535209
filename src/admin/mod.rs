//! The front desk: `/healthz`, `/readyz`, `/metrics`, `/status` and a page, from snapshots that other rooms publish; it changes nothing.

pub mod client;
mod host;
mod look;
mod page;
mod ready;
mod routes;
pub mod status;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::config::ListenOn;
use crate::discovery::View;
use crate::metrics::health::Health;
use crate::pki::{self, Identity};
use crate::proxy::Proxy;
use crate::shutdown::Shutdown;

/// How long a connection may take, from its request's first byte to its answer's last: those who never read would else keep a place for good.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at once; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 64;

/// Why the desk can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its address can't be listened on.
    #[error("binding the admin address {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// What the desk can look at.
pub struct Desk {
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// Where to listen.
    pub listen: Vec<ListenOn>,
    /// The addresses listened on.
    pub bound: watch::Receiver<Arc<Vec<SocketAddr>>>,
    /// The certificate that is served.
    pub served: watch::Receiver<Arc<Identity>>,
    /// Why the newest certificate is not the one that is served.
    pub serving_problem: watch::Receiver<Option<String>>,
    /// Why there is no newer certificate.
    pub pki_problem: watch::Receiver<Option<Arc<pki::Error>>>,
    /// Whether the gateway was out of reach at the last look.
    pub gateway_lost: AtomicBool,
    /// Who is who.
    pub view: watch::Receiver<Arc<View>>,
    /// Who is connected.
    pub proxy: Arc<Proxy>,
    /// Everything that is counted.
    pub registry: Registry,
    /// Why the configuration is not that of the file.
    pub config_problem: watch::Receiver<Option<String>>,
    /// The gauges in it that the desk sets.
    pub health: Health,
    /// Since when the sidecar runs.
    pub started: SystemTime,
    /// Whether the end has begun.
    pub shutdown: Shutdown,
}

/// A bound admin listener.
#[derive(Debug)]
pub struct Admin(TcpListener);

/// Listens on `address`; connections wait until [`Admin::serve`].
///
/// # Errors
/// The address is taken or not this machine's.
pub fn bind(address: SocketAddr) -> Result<Admin, Error> {
    let failed = |source| Error::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Admin(listener))
}

impl Admin {
    /// Answers until `shutdown`. Must be called within a Tokio runtime.
    pub fn serve(self, desk: Desk, shutdown: &Shutdown) {
        let ending = shutdown.clone();
        let desk = Arc::new(desk);
        shutdown.spawn(async move {
            let listener = match tokio::net::TcpListener::from_std(self.0) {
                Ok(listener) => listener,
                Err(error) => return warn!("the admin listener can't be used: {error}"),
            };
            let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let stream = tokio::select! {
                    () = ending.begun() => return,
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => stream,
                        Err(error) => {
                            debug!("accepting an admin connection: {error}");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            continue;
                        }
                    },
                };
                let desk = Arc::clone(&desk);
                let over = ending.clone();
                ending.spawn(async move {
                    let service = service_fn(move |request| routes::answer(Arc::clone(&desk), request));
                    // One answer each: what is asked for in advance and never read waits for nothing.
                    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        result = timeout(PATIENCE, connection) => match result {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => debug!("admin connection: {error}"),
                            Err(_) => debug!("admin connection: not over within {PATIENCE:?}"),
                        },
                        () = over.begun() => {}
                    }
                    drop(place);
                });
            }
        });
    }
}
