//! The running sidecar: starts every part of it, reloads the configuration, and stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::certificate_names::follow_names;
use super::error::Error;
use super::metrics::Metrics;
use super::span_exporter::SpanExporter;
use super::tls_reloader::{self, TlsReloader};
use super::{gateway_token, parts};
use crate::admin::reload::{self, Outcome};
use crate::admin::status::SandboxStatus;
use crate::admin::{self, Admin, AdminState};
use crate::config::{self, Config, live};
use crate::discovery::docker::engine::Engine;
use crate::discovery::{self, NamespaceState, View};
use crate::error_chain::error_chain;
use crate::fingerprint::Fingerprint;
use crate::listener::{self, ConnectionLimits, ListenerAddress, ListenerKind};
use crate::metrics::health::Health;
use crate::metrics::{DiscoveryMetrics, ListenerMetrics};
use crate::pki::{self, Pki, ServerIdentity};
use crate::proxy::{Proxy, ProxyDependencies};
use crate::shutdown::Shutdown;
use crate::workers::{self, Workers};

/// The time for which the start waits for the first list of containers or pods.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(2);

/// The time that connections get to end after they were aborted.
const ABORT_GRACE: Duration = Duration::from_millis(200);

/// A running sidecar.
pub struct Sidecar {
    /// The configuration in use.
    config: Arc<ArcSwap<Config>>,
    proxy: Arc<Proxy>,
    tls: Arc<TlsReloader>,
    limits: Arc<ConnectionLimits>,
    /// Why the last reload was rejected.
    config_problem: watch::Sender<Option<String>>,
    pki: Pki,
    view: watch::Receiver<Arc<View>>,
    bound: watch::Receiver<Arc<Vec<ListenerAddress>>>,
    shutdown: Shutdown,
    _workers: Workers,
    span_exporter: SpanExporter,
    /// The shutdown of discovery, the TLS reloader and the admin listener. It begins after all
    /// connections have ended: until then open connections can lose their lane, and `/readyz` says
    /// that the sidecar is stopping.
    late_shutdown: Shutdown,
}

impl Sidecar {
    /// Starts every part of the sidecar, and begins to accept connections. Must be called within a
    /// Tokio runtime.
    ///
    /// # Errors
    /// If an address in `config` can't be bound, a file can't be read, or a certificate can't be
    /// made.
    pub async fn start(config: Config) -> Result<Self, Error> {
        Self::start_in_sandbox(config, reload::channel().0, SandboxStatus::default()).await
    }

    /// Starts like [`Sidecar::start`]. The admin listener sends requests for a reload to `reload`,
    /// and shows `sandbox` as the restrictions of this process.
    ///
    /// # Errors
    /// As [`Sidecar::start`].
    pub(super) async fn start_in_sandbox(
        config: Config,
        reload: mpsc::Sender<reload::Request>,
        sandbox: SandboxStatus,
    ) -> Result<Self, Error> {
        let started_at = SystemTime::now();
        let (shutdown, late_shutdown) = (Shutdown::new(), Shutdown::new());
        let admin = config.admin.map(admin::bind).transpose()?;
        let token = gateway_token::read_inherited(&config)?;
        parts::warn_of_unreadable_files(&config);
        parts::warn_of_shared_own_addresses(&config);
        let discovery_metrics = DiscoveryMetrics::default();
        let (view, engine) = start_discovery(&config, &discovery_metrics, &late_shutdown).await;

        parts::verify_client_ca(&config)?;
        let names = follow_names(&config, view.clone(), &late_shutdown);
        let pki = pki::open(&config.tls, &config.state_dir, names, &late_shutdown)?;
        let newest = pki.identity();
        let served = Arc::clone(&newest.borrow());
        let tls_config = tls_reloader::server_config(&served, &config)?;

        let span_exporter = SpanExporter::new(&config)?;
        let enrolment = parts::create_enrolment(&config, &pki, view.clone(), engine.clone());
        let metrics = Metrics::new(discovery_metrics, enrolment.metrics().clone(), span_exporter.recorder());
        let workers = Workers::start(workers::worker_count())
            .map_err(|source| Error::Io { doing: "starting the workers", source })?;
        let devices = parts::open_devices(&config)?;
        parts::start_unpairing_removed(&config, engine, devices.clone(), view.clone(), &shutdown);
        let proxy_dependencies = ProxyDependencies {
            view: view.clone(),
            tls: tls_config,
            token,
            enrol: parts::serve_enrolments(enrolment),
            devices,
            traffic: Arc::clone(&metrics.traffic),
            workers: workers.pool().clone(),
        };
        let (proxy, limits) = start_proxy(&config, proxy_dependencies, &metrics.listener, &shutdown, &late_shutdown);
        let server = Arc::clone(&proxy);
        let serve = move |accepted| server.serve(accepted);
        let bound = listener::start(&config, view.clone(), &shutdown, &limits, serve)?;
        parts::start_keeping_paired(&config, &shutdown);

        let config = Arc::new(ArcSwap::from_pointee(config));
        let tls = Arc::new(TlsReloader::new(newest, served, Arc::clone(&config), Arc::clone(&proxy)));
        late_shutdown.spawn(Arc::clone(&tls).follow_certificates(late_shutdown.clone()));
        let sidecar = Self {
            config,
            proxy,
            tls,
            limits,
            config_problem: watch::Sender::new(None),
            pki,
            view,
            bound,
            shutdown,
            _workers: workers,
            span_exporter,
            late_shutdown,
        };
        if let Some(admin) = admin {
            let registry = metrics.build_registry(sidecar.config().discovery);
            sidecar.serve_admin(admin, registry, reload, started_at, sandbox);
        }
        sidecar.log_start();
        Ok(sidecar)
    }

    /// Starts the admin listener, which serves `registry` and the state of this sidecar.
    fn serve_admin(
        &self,
        admin: Admin,
        mut registry: Registry,
        reload: mpsc::Sender<reload::Request>,
        started_at: SystemTime,
        sandbox: SandboxStatus,
    ) {
        let health = Health::default();
        health.register(&mut registry);
        let config = self.config();
        let state = AdminState {
            gateway: config.gateway.address,
            gateway_lost: AtomicBool::new(false),
            listen: config.listen.clone(),
            bound: self.bound.clone(),
            served: self.tls.served_identity(),
            serving_problem: self.tls.problem(),
            pki_problem: self.pki.problem(),
            view: self.view.clone(),
            proxy: Arc::clone(&self.proxy),
            registry,
            health,
            reload,
            config_problem: self.config_problem.subscribe(),
            started_at,
            sandbox,
            shutdown: self.shutdown.clone(),
        };
        admin.serve(state, &self.late_shutdown);
    }

    /// Logs the version, the addresses and the certificate's fingerprint.
    fn log_start(&self) {
        let fingerprint = self
            .identity()
            .certified_key
            .cert
            .first()
            .map(|leaf| Fingerprint::of(leaf).to_string())
            .unwrap_or_default();
        let listening: Vec<_> = self.tls_addresses().iter().map(ToString::to_string).collect();
        let (version, gateway) = (env!("CARGO_PKG_VERSION"), self.config.load().gateway.address);
        info!(version, %gateway, listening = listening.join(","), fingerprint, "loopgate is running");
    }

    /// Returns the addresses on which the sidecar listens for TLS now.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.listener_addresses(ListenerKind::Tls)
    }

    /// Returns the addresses of the listeners of this kind that are open now.
    pub fn listener_addresses(&self, kind: ListenerKind) -> Vec<SocketAddr> {
        self.bound.borrow().iter().filter(|bound| bound.kind == kind).map(|bound| bound.address).collect()
    }

    /// Returns the configuration in use.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Returns the certificate and CA that are served to clients.
    pub fn identity(&self) -> Arc<ServerIdentity> {
        Arc::clone(&self.tls.served_identity().borrow())
    }

    /// Resolves when the container that owns this network namespace runs in another one, or could
    /// not be found for 60 s. Never resolves after discovery has ended.
    pub(super) async fn wait_until_orphaned(&self) {
        let mut view = self.view.clone();
        let is_replaced = view.wait_for(|view| view.namespace == NamespaceState::Replaced).await.is_ok();
        if !is_replaced {
            std::future::pending::<()>().await;
        }
    }

    /// Has the certificate files read again, and applies the options of `wanted` that can change
    /// without a restart: `set_log` applies those of `log`. Connections stay open unless the new
    /// configuration no longer authorizes them.
    ///
    /// If `wanted` is an error, or TLS can't be served with it, the configuration in use stays, and
    /// the outcome, the log and `status` have the reason.
    pub fn reload(&self, wanted: Result<Config, config::Error>, set_log: impl Fn(&config::Log)) -> Outcome {
        info!("reloading the configuration and the certificate files");
        self.pki.check_files_now();
        let running = self.config.load_full();
        let applied = wanted.map_err(|error| error_chain(&error)).and_then(|wanted| {
            let (config, needs_restart) = live::merge_reloaded(&running, wanted);
            tls_reloader::server_config(&self.pki.identity().borrow().clone(), &config)
                .map_err(|error| error_chain(&error))?;
            Ok((config, needs_restart))
        });
        let applied = applied.map_err(|error| error.replace('\n', "; "));
        self.config_problem.send_replace(applied.as_ref().err().cloned());
        match applied {
            Ok((config, needs_restart)) => {
                let changed = live::changed_tables(&running, &config);
                self.apply_config(config, &changed, &needs_restart, set_log);
                let owned = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
                Outcome { applied: owned(changed), needs_restart: owned(needs_restart), error: None }
            }
            Err(error) => {
                error!(error, "reload rejected, old configuration still in use");
                Outcome { error: Some(error), ..Outcome::default() }
            }
        }
    }

    /// Makes `config` the running configuration. `changed` are the tables that differ from the
    /// previous one, and `needs_restart` the keys whose change has no effect yet.
    fn apply_config(&self, config: Config, changed: &[&str], needs_restart: &[&str], set_log: impl Fn(&config::Log)) {
        set_log(&config.log);
        if !needs_restart.is_empty() {
            warn!(keys = needs_restart.join(", "), "these changed options take effect only after a restart");
        }
        if changed.contains(&"listen") {
            parts::warn_of_shared_own_addresses(&config);
        }
        let config = Arc::new(config);
        self.config.store(Arc::clone(&config));
        self.tls.serve_newest();
        self.limits.apply_config(&config);
        self.proxy.apply_config(&config);
        match gateway_token::read_inherited(&config) {
            Ok(token) => self.proxy.update_token(token),
            Err(error) => error!(
                error = error_chain(&error),
                "can't use the gateway's token as it is now; keeping what was read before"
            ),
        }
        info!(changed = changed.join(", "), "configuration reloaded");
    }

    /// Returns whether [`Sidecar::stop`] has been called.
    pub fn is_stopping(&self) -> bool {
        self.shutdown.has_begun()
    }

    /// Stops the sidecar: accepts no new connection, lets requests finish, and sends WebSockets a
    /// close frame. Connections that are left after `limits.drain_timeout` abort themselves.
    /// Resolves when all connections have ended, at the latest [`ABORT_GRACE`] after that timeout,
    /// and then the last spans were sent, for which at most 5 s are waited (`BATCH_TIMEOUT` in
    /// `otel`).
    pub async fn stop(&self) {
        info!("stopping");
        self.shutdown.begin();
        let left = self.shutdown.wait_for_tasks(self.config.load().limits.drain_timeout).await;
        if left > 0 {
            // The aborted connections get time to log how each of their requests ended.
            self.shutdown.wait_for_tasks(ABORT_GRACE).await;
            warn!(left, "drain timeout reached; aborted the connections that were left (limits.drain_timeout)");
        }
        self.span_exporter.stop().await;
        self.late_shutdown.begin();
        info!("stopped");
    }

    /// Ends a [`Sidecar::stop`] that is in progress: aborts all connections, and waits briefly so
    /// that each of their requests is logged.
    pub async fn abort(&self) {
        self.shutdown.abort();
        self.shutdown.wait_for_tasks(ABORT_GRACE).await;
        self.span_exporter.stop().await;
    }
}

/// Starts discovery, and waits for the first list of agents, for at most [`DISCOVERY_TIMEOUT`].
/// Returns the view, and the Docker Engine if discovery uses one.
async fn start_discovery(
    config: &Config,
    metrics: &DiscoveryMetrics,
    shutdown: &Shutdown,
) -> (watch::Receiver<Arc<View>>, Option<Engine>) {
    let engine = discovery::docker_engine(config, shutdown);
    let mut view = discovery::start(config, engine.clone(), metrics, shutdown);
    // Listeners and the certificate need the agents, addresses and names that discovery finds. If
    // discovery does not answer in time, the sidecar starts without agents and names, which grants
    // nothing.
    discovery::wait_until_ready(&mut view, DISCOVERY_TIMEOUT).await;
    (view, engine)
}

/// Starts the proxy, and creates the limits on connections. Raises the open-file limit; if that
/// allows fewer connections than `limits.max_connections`, their number is the limit.
fn start_proxy(
    config: &Config,
    dependencies: ProxyDependencies,
    metrics: &ListenerMetrics,
    shutdown: &Shutdown,
    late_shutdown: &Shutdown,
) -> (Arc<Proxy>, Arc<ConnectionLimits>) {
    let capacity = super::descriptors::raise_open_file_limit(config.limits.max_connections);
    let mut config = config.clone();
    config.limits.max_connections = capacity.connections;
    let proxy = Proxy::new(&config, dependencies, shutdown);
    proxy.spawn_background_tasks(late_shutdown);
    let agent_check = Arc::clone(&proxy);
    let may_be_agent = move |peer| agent_check.may_be_agent(peer);
    let limits = ConnectionLimits::new(&config, capacity.waiting_connections, metrics.clone(), may_be_agent);
    (proxy, Arc::new(limits))
}
