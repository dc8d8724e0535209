//! What the admin listener reads.

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

/// Everything that the admin listener reads to answer.
pub struct AdminState {
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// Where the options ask to listen.
    pub listen: Listen,
    /// The addresses listened on.
    pub bound: watch::Receiver<Arc<Vec<ListenerAddress>>>,
    /// The certificate that is served.
    pub served: watch::Receiver<Arc<ServerIdentity>>,
    /// Why the newest certificate is not the one that is served.
    pub serving_problem: watch::Receiver<Option<String>>,
    /// Why there is no newer certificate.
    pub pki_problem: watch::Receiver<Option<Arc<pki::Error>>>,
    /// Whether the gateway could not be reached at the last readiness check.
    pub gateway_lost: AtomicBool,
    /// What discovery knows.
    pub view: watch::Receiver<Arc<View>>,
    /// The proxy, which lists open connections.
    pub proxy: Arc<Proxy>,
    /// All metrics.
    pub registry: Registry,
    /// Where requests to reload are sent.
    pub reload: mpsc::Sender<reload::Request>,
    /// Why the last reload was rejected.
    pub config_problem: watch::Receiver<Option<String>>,
    /// The gauges of `registry` that are set at each scrape.
    pub health: Health,
    /// When the sidecar started.
    pub started: SystemTime,
    /// The restrictions of this process.
    pub sandbox: SandboxStatus,
    /// Tells whether the sidecar is stopping.
    pub shutdown: Shutdown,
}
