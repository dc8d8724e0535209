//! The state of the sidecar that the admin listener reads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

use super::reload;
use super::status::SandboxStatus;
use crate::config::Listen;
use crate::discovery::View;
use crate::listener::ListenerAddress;
use crate::metrics::health::Health;
use crate::pki::{self, ServerIdentity};
use crate::proxy::Proxy;
use crate::shutdown::Shutdown;

/// The state of the sidecar, from which the admin listener makes its responses.
pub struct AdminState {
    /// The gateway's address.
    pub gateway: SocketAddr,
    /// The options for the sidecar's listeners.
    pub listen: Listen,
    /// The addresses that the sidecar listens on now.
    pub bound: watch::Receiver<Arc<Vec<ListenerAddress>>>,
    /// The certificate that new handshakes use.
    pub served: watch::Receiver<Arc<ServerIdentity>>,
    /// Why TLS handshakes don't use the newest certificate; `None` if they do.
    pub serving_problem: watch::Receiver<Option<String>>,
    /// Why the certificate could not be renewed or read again; `None` if that succeeded.
    pub pki_problem: watch::Receiver<Option<Arc<pki::Error>>>,
    /// Whether the gateway could not be reached at the last readiness check.
    pub gateway_lost: AtomicBool,
    /// The latest view of discovery.
    pub view: watch::Receiver<Arc<View>>,
    /// The proxy, which knows the open connections.
    pub proxy: Arc<Proxy>,
    /// The registry of all metrics.
    pub registry: Registry,
    /// The channel for requests to reload the configuration.
    pub reload: mpsc::Sender<reload::Request>,
    /// Why the last reload was rejected; `None` if it was not.
    pub config_problem: watch::Receiver<Option<String>>,
    /// The gauges of `registry` that are set at each scrape.
    pub health: Health,
    /// The time at which the sidecar started.
    pub started_at: SystemTime,
    /// The restrictions of this process.
    pub sandbox: SandboxStatus,
    /// The shutdown of the sidecar, which has begun if the sidecar is stopping.
    pub shutdown: Shutdown,
}
