//! HTTP between a downstream connection and the gateway.
//!
//! `connection` carries one from its first byte to its last, `request` one request; `upstream` owns the way to the gateway, and `tunnel`
//! joins what is left after a `101`.

mod activity;
mod body;
mod client_authorization;
pub mod close_signal;
mod connection;
mod error;
mod h1_request_guard;
mod h2_flood_guard;
mod h2_stream_stall;
mod read_after_reset;
mod registry;
mod request;
pub mod tunnel;
mod upstream;
mod websocket_frames;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::BoxFuture;
use http::HeaderValue;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use crate::addr::PeerAddr;
use crate::config::{Config, Limits, TraceparentUse};
use crate::discovery::View;
use crate::lane::{Rules, WhyExternal, may_be_agent};
use crate::listener::Accepted;
use crate::metrics::traffic::Traffic;
use crate::shutdown::Shutdown;
use crate::tls;
use crate::workers::WorkerPool;

pub use error::Error;
#[cfg(any(test, fuzzing))]
pub(crate) use h1_request_guard::H1RequestGuard;
pub use registry::ConnectionInfo;
use registry::Registry;
pub use upstream::MAX_IDLE;

/// How often idle connections to the gateway are looked through.
const SWEEP: Duration = Duration::from_secs(5);

/// Takes over a connection that negotiated [`tls::ENROL`] instead of HTTP, until it is over.
pub type Enrol = Box<dyn Fn(tls::Stream<TcpStream>, PeerAddr) -> BoxFuture<'static, ()> + Send + Sync>;

/// What a connection takes from the configuration when it begins, and keeps.
#[derive(Debug)]
struct Settings {
    limits: Limits,
    proxy_protocol: bool,
    log_access: bool,
    traceparent: TraceparentUse,
}

impl Settings {
    fn new(config: &Config) -> Self {
        Self {
            limits: config.limits.clone(),
            proxy_protocol: config.listen.proxy_protocol,
            log_access: config.log.access,
            traceparent: config.log.traceparent,
        }
    }
}

/// What every connection shares.
pub struct Proxy {
    rules: ArcSwap<Rules>,
    /// Tells that the rules are others.
    rules_changed: Arc<Notify>,
    terms: ArcSwap<tls::TlsServerConfig>,
    view: watch::Receiver<Arc<View>>,
    registry: Arc<Registry>,
    upstream: upstream::Upstream,
    settings: ArcSwap<Settings>,
    token: ArcSwapOption<HeaderValue>,
    enrol: Enrol,
    traffic: Arc<Traffic>,
    pool: WorkerPool,
    shutdown: Shutdown,
}

impl Proxy {
    /// A proxy that decides by `view` and shakes hands by `terms`. `token` is the `Authorization` that attested agents inherit;
    /// `enrol` serves those that have no certificate yet. Connections are carried by `pool`.
    ///
    /// Its own tasks end with `shutdown`. Must be called within a Tokio runtime.
    #[expect(clippy::too_many_arguments, reason = "one place makes it, with everything at hand")]
    pub fn new(
        config: &Config,
        view: watch::Receiver<Arc<View>>,
        terms: tls::TlsServerConfig,
        token: Option<HeaderValue>,
        enrol: Enrol,
        traffic: Arc<Traffic>,
        pool: WorkerPool,
        shutdown: &Shutdown,
    ) -> Arc<Self> {
        if !config.gateway.address.ip().is_loopback() {
            warn!(gateway = %config.gateway.address, "the gateway is not on loopback: everybody is external to it, agents included");
        }
        let proxy = Arc::new(Self {
            rules: ArcSwap::from_pointee(Rules::new(config, config.gateway.address)),
            rules_changed: Arc::default(),
            terms: ArcSwap::from_pointee(terms),
            view,
            registry: Arc::default(),
            upstream: upstream::Upstream::new(config, Arc::clone(&traffic), pool.size(), shutdown),
            settings: ArcSwap::from_pointee(Settings::new(config)),
            token: ArcSwapOption::from(token.map(Arc::new)),
            enrol,
            traffic,
            pool,
            shutdown: shutdown.clone(),
        });
        shutdown.spawn(Arc::clone(&proxy).run_background());
        proxy
    }

    /// Whether a connection from `peer` may turn out to be an agent's.
    pub fn may_be_agents(&self, peer: IpAddr) -> bool {
        may_be_agent(peer, &self.view.borrow(), self.rules.load().policy())
    }

    /// Serves a connection on a task of its own, on one of the workers.
    pub fn serve(self: &Arc<Self>, accepted: Accepted) {
        let Accepted { stream, peer, permit, .. } = accepted;
        // It leaves this thread's event queue for that of its worker.
        match stream.into_std() {
            Ok(stream) => {
                let slot = self.pool.assign();
                let worker = slot.worker();
                let accepted = connection::AcceptedConnection { stream, peer, held: (permit, slot) };
                self.pool.run(worker, self.shutdown.track(connection::serve(Arc::clone(self), accepted)));
            }
            Err(error) => debug!(%peer, %error, "connection lost"),
        }
    }

    /// Shakes hands by `terms` from now on. Where they believe other authorities, those whom the former ones vouched for must come again.
    pub fn update_tls(&self, terms: tls::TlsServerConfig) {
        let terms = Arc::new(terms);
        let before = self.terms.swap(Arc::clone(&terms));
        if !before.trusts_same_client_cas(&terms) {
            self.count_lost(self.registry.revoke(ConnectionInfo::has_operator_certificate));
        }
    }

    /// Attested agents inherit `token` from now on.
    pub fn update_token(&self, token: Option<HeaderValue>) {
        self.token.store(token.map(Arc::new));
    }

    /// Goes by `config` from now on, as far as it concerns requests and lanes. Connections that are open keep their limits, and are
    /// closed where they have lost their rights.
    pub fn update(&self, config: &Config) {
        self.settings.store(Arc::new(Settings::new(config)));
        self.rules.store(Arc::new(Rules::new(config, config.gateway.address)));
        self.rules_changed.notify_waiters();
        self.review();
        self.review_external();
    }

    /// Who is connected, in no order, and why those who might expect to be agents are none.
    pub fn connections(&self) -> Vec<(ConnectionInfo, Option<WhyExternal>)> {
        let (view, rules) = (Arc::clone(&self.view.borrow()), self.rules.load());
        let explained = |present: ConnectionInfo| {
            let why = present.why_external(&view, rules.policy());
            (present, why)
        };
        self.registry.connections().into_iter().map(explained).collect()
    }

    /// Closes agent-lane connections that are not an agent's any more.
    fn review(&self) {
        let view = self.view.borrow().for_established();
        let rules = self.rules.load();
        self.count_lost(self.registry.revoke(|present| present.has_lost_agent_lane(&view, rules.policy())));
    }

    /// Closes external connections that the rules deny by now.
    fn review_external(&self) {
        let (view, rules) = (Arc::clone(&self.view.borrow()), self.rules.load());
        self.count_lost(self.registry.revoke(|present| present.is_denied_externally(&view, rules.policy())));
    }

    fn count_lost(&self, lost: usize) {
        if lost > 0 {
            info!(connections = lost, "connections lost the right to be as they are");
            self.traffic.lane_changes.inc_by(lost as u64);
        }
    }

    async fn run_background(self: Arc<Self>) {
        let mut view = self.view.clone();
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                () = self.shutdown.begun() => return,
                changed = view.changed() => match changed {
                    Ok(()) => self.review(),
                    Err(_) => return,
                },
                _ = sweep.tick() => self.upstream.sweep(),
            }
        }
    }
}
