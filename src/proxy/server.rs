//! The interface of the proxy: accepts connections, takes new configurations, and lists who is connected.

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
use super::shared::{ConnectionSettings, Enrol, LaneBuffers, Shared};
use super::tunnel::first_message::FirstMessageBudget;
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

/// How often connections to the gateway that have been idle for too long are closed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What a [`Proxy`] needs of the other parts of the sidecar.
pub struct ProxyParts {
    /// By which lanes are assigned.
    pub view: watch::Receiver<Arc<View>>,
    /// How TLS is terminated until the first [`Proxy::update_tls`].
    pub tls: tls::TlsServerConfig,
    /// The `Authorization` that attested agents inherit.
    pub token: Option<HeaderValue>,
    /// Serves agents that have no certificate yet.
    pub enrol: Enrol,
    /// The agents' devices; `None` where devices are not bound.
    pub devices: Option<Arc<Devices>>,
    /// Counts connections and requests.
    pub traffic: Arc<Traffic>,
    /// The threads that connections run on.
    pub workers: WorkerPool,
}

/// The proxy between downstream connections and the gateway.
pub struct Proxy {
    shared: Arc<Shared>,
    workers: WorkerPool,
}

impl Proxy {
    /// Creates a proxy of `parts`. Connections are asked to end when `shutdown` begins.
    pub fn new(config: &Config, parts: ProxyParts, shutdown: &Shutdown) -> Arc<Self> {
        let ProxyParts { view, tls, token, enrol, devices, traffic, workers } = parts;
        if !config.gateway.address.ip().is_loopback() {
            warn!(
                gateway = %config.gateway.address,
                "the gateway is not on loopback: every client is external to it, agents included"
            );
        }
        let shared = Arc::new(Shared {
            rules: ArcSwap::from_pointee(RequestRules::new(config)),
            gateway: Arc::new(Target::gateway(config.gateway.address)),
            rules_changed: Arc::default(),
            tls: ArcSwap::from_pointee(tls),
            view,
            registry: Arc::default(),
            upstream: Upstream::new(config, Arc::clone(&traffic), workers.size(), shutdown),
            windows: WindowBudget::new(config.limits.buffered),
            first_messages: FirstMessageBudget::new(config.limits.buffered),
            tunnel_buffers: LaneBuffers::new(config.limits.buffered),
            settings: ArcSwap::from_pointee(ConnectionSettings::new(config)),
            token: ArcSwapOption::from(token.map(Arc::new)),
            enrol,
            devices: devices.map(|devices| (devices, config.agents.bind_devices)),
            traffic,
            shutdown: shutdown.clone(),
        });
        Arc::new(Self { shared, workers })
    }

    /// Checks open connections again at each change of the view until `shutdown` begins. It must
    /// begin only once these connections have ended. Must be called within a Tokio runtime.
    pub fn spawn_recheck(&self, shutdown: &Shutdown) {
        shutdown.spawn(recheck(Arc::clone(&self.shared), shutdown.clone()));
    }

    /// Returns whether a connection from `peer` may turn out to be an agent's.
    pub fn may_be_agent(&self, peer: IpAddr) -> bool {
        self.shared.may_be_agent(peer)
    }

    /// Serves a connection on a task of its own, on the worker with the fewest connections.
    pub fn serve(&self, accepted: Accepted) {
        let Accepted { stream, peer, local, kind, permit } = accepted;
        // Moves the socket from this thread's event queue to that of its worker.
        match stream.into_std() {
            Ok(stream) => {
                let slot = self.workers.assign();
                let worker = slot.worker();
                let accepted = AcceptedConnection::new(stream, (peer, local), kind, permit, slot);
                self.workers
                    .run(worker, self.shared.shutdown.track(connection::serve(Arc::clone(&self.shared), accepted)));
            }
            Err(error) => debug!(%peer, %error, "connection lost before it reached its worker"),
        }
    }

    /// Uses `tls` for new handshakes. Where it trusts other client authorities, connections that
    /// the former ones vouched for are closed, and so are those whose certificate is revoked.
    pub fn update_tls(&self, tls: tls::TlsServerConfig) {
        let tls = Arc::new(tls);
        let before = self.shared.tls.swap(Arc::clone(&tls));
        if !before.trusts_same_client_cas(&tls) {
            let reason = "tls.client_ca changed";
            let revoked =
                self.shared.registry.revoke(|connection| connection.has_operator_certificate().then_some(reason));
            self.shared.count_revoked(revoked);
        }
        let reason = "its certificate is revoked (loopgate cert revoke)";
        let revoked = self
            .shared
            .registry
            .revoke(|connection| connection.has_certificate(|certificate| tls.revokes(certificate)).then_some(reason));
        self.shared.count_revoked(revoked);
    }

    /// Adds `token` to requests of agents that show a certificate from now on.
    pub fn update_token(&self, token: Option<HeaderValue>) {
        self.shared.token.store(token.map(Arc::new));
    }

    /// Applies the part of `config` that concerns requests and lanes. Open connections keep their
    /// timeouts and sizes, but the new rules count for them at once; those that the rules deny are
    /// closed.
    pub fn update(&self, config: &Config) {
        self.shared.settings.store(Arc::new(ConnectionSettings::new(config)));
        self.shared.rules.store(Arc::new(RequestRules::new(config)));
        self.shared.rules_changed.notify_waiters();
        self.shared.recheck_lanes_and_caps();
        self.shared.revoke_denied_clients();
    }

    /// Returns what finds out whether the gateway speaks TLS.
    pub fn tls_detector(&self) -> &TlsDetector {
        self.shared.upstream.tls_detector()
    }

    /// Returns all open connections, in no order, and why those that might be expected to be agents are external.
    pub fn connections(&self) -> Vec<(ConnectionInfo, Option<WhyExternal>)> {
        let (view, rules) = (Arc::clone(&self.shared.view.borrow()), self.shared.rules.load());
        let explain = |connection: ConnectionInfo| {
            let why = connection.why_external(&view, rules.policy());
            (connection, why)
        };
        self.shared.registry.connections().into_iter().map(explain).collect()
    }
}

/// Checks open connections again after each change of the view, and closes idle connections to the gateway.
async fn recheck(shared: Arc<Shared>, shutdown: Shutdown) {
    let mut view = shared.view.clone();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            changed = view.changed() => match changed {
                Ok(()) => shared.recheck_lanes_and_caps(),
                Err(_) => return,
            },
            _ = sweep.tick() => shared.upstream.sweep(),
        }
    }
}
