//! The interface of the proxy: serves accepted connections, applies new configurations, and lists
//! open connections.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::connection;
use super::connection::establish::AcceptedConnection;
use super::downstream::window_budget::WindowBudget;
use super::registry::ConnectionInfo;
use super::shared::{ConnectionSettings, Enrol, LaneBufferBudgets, Shared};
use super::tunnel::first_message_budget::FirstMessageBudget;
use super::upstream::send::Upstream;
use crate::config::Config;
use crate::discovery::View;
use crate::lane::{RequestRules, Target, WhyExternal};
use crate::listener::Accepted;
use crate::metrics::traffic::Traffic;
use crate::openclaw::devices::Devices;
use crate::openclaw::tls_detector::TlsDetector;
use crate::shutdown::Shutdown;
use crate::tls;
use crate::workers::WorkerPool;

/// The interval at which idle connections to the gateway are searched for expired ones.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What a [`Proxy`] gets from other modules.
pub struct ProxyDependencies {
    /// The containers and pods, and this namespace's addresses: lanes are decided by them.
    pub view: watch::Receiver<Arc<View>>,
    /// The TLS settings until the first [`Proxy::update_tls`].
    pub tls: tls::TlsServerConfig,
    /// The `Authorization` that loopgate adds to requests of agents with a certificate.
    pub token: Option<HeaderValue>,
    /// Serves agents that ask for a certificate.
    pub enrol: Enrol,
    /// The devices of agents; `None` if devices are not bound to agents.
    pub devices: Option<Arc<Devices>>,
    /// The metrics of connections and requests.
    pub traffic: Arc<Traffic>,
    /// The threads that serve connections.
    pub workers: WorkerPool,
}

/// The proxy between downstream connections and the gateway.
pub struct Proxy {
    shared: Arc<Shared>,
    workers: WorkerPool,
}

impl Proxy {
    /// Creates a proxy. Its connections are asked to end when `shutdown` begins.
    pub fn new(config: &Config, dependencies: ProxyDependencies, shutdown: &Shutdown) -> Arc<Self> {
        let ProxyDependencies { view, tls, token, enrol, devices, traffic, workers } = dependencies;
        if !config.gateway.address.ip().is_loopback() {
            warn!(
                gateway = %config.gateway.address,
                "the gateway is not on loopback: every client is external to it, agents included"
            );
        }
        let shared = Arc::new(Shared {
            rules: ArcSwap::from_pointee(RequestRules::new(config)),
            gateway: Arc::new(Target::for_gateway(config.gateway.address)),
            rules_changed: Arc::default(),
            tls: ArcSwap::from_pointee(tls),
            view,
            registry: Arc::default(),
            upstream: Upstream::new(config, Arc::clone(&traffic), workers.worker_count(), shutdown),
            window_budget: WindowBudget::new(config.limits.buffered),
            first_message_budget: FirstMessageBudget::new(config.limits.buffered),
            tunnel_buffer_budgets: LaneBufferBudgets::new(config.limits.buffered),
            settings: ArcSwap::from_pointee(ConnectionSettings::new(config)),
            token: ArcSwapOption::from(token.map(Arc::new)),
            enrol,
            devices: devices.map(|devices| (devices, config.agents.bind_devices)),
            traffic,
            shutdown: shutdown.clone(),
        });
        Arc::new(Self { shared, workers })
    }

    /// Starts two tasks, which run until `shutdown` begins: one checks open connections again at
    /// each change of the view, the other closes expired idle connections to the gateway.
    /// `shutdown` must begin only after the connections have ended. Must be called within a Tokio
    /// runtime.
    pub fn spawn_background_tasks(&self, shutdown: &Shutdown) {
        shutdown.spawn(recheck_on_view_changes(Arc::clone(&self.shared), shutdown.clone()));
        shutdown.spawn(close_idle_upstreams(Arc::clone(&self.shared), shutdown.clone()));
    }

    /// Returns whether a connection from `peer` may get the agent lane.
    pub fn may_be_agent(&self, peer: IpAddr) -> bool {
        self.shared.may_be_agent(peer)
    }

    /// Starts to serve a connection on the worker with the fewest connections.
    pub fn serve(&self, accepted: Accepted) {
        let Accepted { stream, peer, local, kind, permit } = accepted;
        // Removes the socket from this thread's event queue. The worker adds it to its own queue.
        match stream.into_std() {
            Ok(stream) => {
                let slot = self.workers.reserve_slot();
                let worker = slot.worker_index();
                let accepted = AcceptedConnection::new(stream, (peer, local), kind, permit, slot);
                self.workers.spawn_on(
                    worker,
                    self.shared.shutdown.track_task(connection::serve(Arc::clone(&self.shared), accepted)),
                );
            }
            Err(error) => debug!(%peer, %error, "can't hand a connection to a worker; closed it"),
        }
    }

    /// Uses `tls` for new handshakes. Closes open connections whose certificate is revoked, and, if
    /// the CAs of `tls.client_ca` changed, all with a certificate of such a CA.
    pub fn update_tls(&self, tls: tls::TlsServerConfig) {
        let tls = Arc::new(tls);
        let before = self.shared.tls.swap(Arc::clone(&tls));
        if !before.trusts_same_client_cas(&tls) {
            let reason = "tls.client_ca changed";
            let revoked =
                self.shared.registry.revoke_where(|connection| connection.has_operator_certificate().then_some(reason));
            self.shared.count_revoked(revoked);
        }
        let reason = "its certificate is revoked (loopgate cert revoke)";
        let revoked = self.shared.registry.revoke_where(|connection| {
            connection.has_certificate_where(|certificate| tls.revokes(certificate)).then_some(reason)
        });
        self.shared.count_revoked(revoked);
    }

    /// Sets the `Authorization` for new requests of agents with a certificate.
    pub fn update_token(&self, token: Option<HeaderValue>) {
        self.shared.token.store(token.map(Arc::new));
    }

    /// Applies the part of `config` that concerns requests and lanes. Open connections keep their
    /// limits and timeouts, but the new rules apply to their next requests. Open connections that
    /// the rules deny are closed, and so are those whose lane or scope cap they change.
    pub fn apply_config(&self, config: &Config) {
        self.shared.settings.store(Arc::new(ConnectionSettings::new(config)));
        self.shared.rules.store(Arc::new(RequestRules::new(config)));
        self.shared.rules_changed.notify_waiters();
        self.shared.recheck_lanes_and_caps();
        self.shared.revoke_denied_clients();
    }

    /// Returns the detector that finds out whether the gateway speaks TLS.
    pub fn tls_detector(&self) -> &TlsDetector {
        self.shared.upstream.tls_detector()
    }

    /// Returns all open connections, in no particular order. Each external one that the operator
    /// might expect to be an agent's comes with the reason why it is not.
    pub fn connections(&self) -> Vec<(ConnectionInfo, Option<WhyExternal>)> {
        let (view, rules) = (Arc::clone(&self.shared.view.borrow()), self.shared.rules.load());
        let explain = |connection: ConnectionInfo| {
            let why = connection.why_external(&view, rules.policy());
            (connection, why)
        };
        self.shared.registry.connections().into_iter().map(explain).collect()
    }
}

/// Checks open connections again after each change of the view.
async fn recheck_on_view_changes(shared: Arc<Shared>, shutdown: Shutdown) {
    let mut view = shared.view.clone();
    loop {
        tokio::select! {
            () = shutdown.wait_until_begun() => return,
            changed = view.changed() => match changed {
                Ok(()) => shared.recheck_lanes_and_caps(),
                Err(_) => return,
            },
        }
    }
}

/// Closes connections to the gateway that have been idle for too long.
async fn close_idle_upstreams(shared: Arc<Shared>, shutdown: Shutdown) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.wait_until_begun() => return,
            _ = interval.tick() => shared.upstream.close_idle(),
        }
    }
}
