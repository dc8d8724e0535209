//! The data that all connections share, and the checks of open connections against it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::BoxFuture;
use http::HeaderValue;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use super::downstream::window_budget::WindowBudget;
use super::registry::Registry;
use super::tunnel::buffers::TunnelBufferBudget;
use super::tunnel::first_message_budget::FirstMessageBudget;
use super::upstream::send::Upstream;
use crate::addr::PeerAddr;
use crate::config::{BindDevices, Config, Limits, TraceparentUse};
use crate::discovery::View;
use crate::labels::LaneKind;
use crate::lane::{RequestRules, Target, may_be_agent};
use crate::listener::ListenerKind;
use crate::metrics::traffic::Traffic;
use crate::openclaw::devices::Devices;
use crate::shutdown::Shutdown;
use crate::tls;

/// Serves a connection that negotiated [`tls::ENROLMENT_ALPN`] instead of HTTP, until it ends.
pub type Enrol = Box<dyn Fn(tls::Stream<TcpStream>, PeerAddr) -> BoxFuture<'static, ()> + Send + Sync>;

/// The options that a connection reads when it is accepted. A reload does not change them for open
/// connections.
#[derive(Debug)]
pub(super) struct ConnectionSettings {
    pub(super) limits: Limits,
    pub(super) proxy_protocol: bool,
    pub(super) log_access: bool,
    pub(super) traceparent: TraceparentUse,
}

impl ConnectionSettings {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            limits: config.limits.clone(),
            proxy_protocol: config.listen.proxy_protocol,
            log_access: config.log.access,
            traceparent: config.log.traceparent,
        }
    }
}

/// The memory for tunnels, separate for each lane: external clients can't use up the agents' part.
pub(super) struct LaneBufferBudgets {
    agent: Arc<TunnelBufferBudget>,
    external: Arc<TunnelBufferBudget>,
}

impl LaneBufferBudgets {
    pub(super) fn new(buffered: usize) -> Self {
        Self { agent: TunnelBufferBudget::new(buffered), external: TunnelBufferBudget::new(buffered) }
    }

    pub(super) fn for_lane(&self, lane: LaneKind) -> &Arc<TunnelBufferBudget> {
        match lane {
            LaneKind::Agent => &self.agent,
            LaneKind::External => &self.external,
        }
    }
}

/// The data that all connections share.
pub(super) struct Shared {
    pub(super) rules: ArcSwap<RequestRules>,
    /// The gateway, to which all requests go, except those on a listener of a port forward.
    pub(super) gateway: Arc<Target>,
    /// Notified after `rules` was replaced.
    pub(super) rules_changed: Arc<Notify>,
    pub(super) tls: ArcSwap<tls::TlsServerConfig>,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) registry: Arc<Registry>,
    pub(super) upstream: Upstream,
    /// The memory for the flow-control windows of HTTP/2 connections.
    pub(super) window_budget: Arc<WindowBudget>,
    /// The memory for first messages of WebSockets that are not complete or not answered yet.
    pub(super) first_message_budget: Arc<FirstMessageBudget>,
    /// The memory for bytes that tunnels have read and not written yet.
    pub(super) tunnel_buffer_budgets: LaneBufferBudgets,
    pub(super) settings: ArcSwap<ConnectionSettings>,
    /// The `Authorization` field that loopgate adds to requests of agents with a certificate.
    pub(super) token: ArcSwapOption<HeaderValue>,
    pub(super) enrol: Enrol,
    /// The devices of agents, and whether the external lane refuses them; `None` if devices are not
    /// checked.
    pub(super) devices: Option<(Arc<Devices>, BindDevices)>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) shutdown: Shutdown,
}

impl Shared {
    /// Returns whether a connection from `peer` may get the agent lane.
    pub(super) fn may_be_agent(&self, peer: IpAddr) -> bool {
        may_be_agent(peer, &self.view.borrow(), self.rules.load().policy())
    }

    /// Returns the target of requests on a listener of this kind.
    pub(super) fn target_of(&self, kind: ListenerKind) -> Arc<Target> {
        match kind {
            ListenerKind::Tls | ListenerKind::Plain => Arc::clone(&self.gateway),
            ListenerKind::PortForward(forward) => {
                let ip = self.gateway.address().ip();
                Arc::new(Target::for_port_forward(SocketAddr::new(ip, forward.target)))
            }
        }
    }

    /// Closes connections that lost the agent lane, and external ones whose scope cap changed. A
    /// source that can't be reached takes no lane ([`View::for_established`]).
    pub(super) fn recheck_lanes_and_caps(&self) {
        let view = self.view.borrow().for_established();
        let rules = self.rules.load();
        self.count_revoked(
            self.registry.revoke_where(|connection| connection.why_lost_agent_lane(&view, rules.policy())),
        );
        // A container may connect before it is discovered: its scope cap is then not known yet.
        self.count_revoked(
            self.registry.revoke_where(|connection| connection.why_lost_scope_cap(&view, rules.policy())),
        );
    }

    /// Closes external connections that the current rules no longer permit.
    ///
    /// Uses the view for new connections: while discovery's source can't be reached, an address
    /// whose agent's grace has elapsed counts as external, so that the lists apply to it. An
    /// external connection has no agent lane that it could lose by this.
    pub(super) fn revoke_denied_clients(&self) {
        let (view, rules) = (Arc::clone(&self.view.borrow()), self.rules.load());
        self.count_revoked(
            self.registry.revoke_where(|connection| connection.why_lost_external_lane(&view, rules.policy())),
        );
    }

    /// Counts `revoked` connections in the metrics.
    pub(super) fn count_revoked(&self, revoked: usize) {
        self.traffic.connections_revoked.inc_by(revoked as u64);
    }
}
