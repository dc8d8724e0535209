//! Takes snapshots of the running sidecar: [`Status`], the facts of readiness, and the health
//! gauges.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use tracing::{info, warn};

use super::ready::{GatewayError, ReadinessFacts, why_not_ready};
use super::state::AdminState;
use super::status::{self, Lanes, MAX_LISTED_CONNECTIONS, NotAgent, Status};
use crate::config::AgentSourceKind;
use crate::discovery::{self, AgentKind, NamespaceState, SourceState, View};
use crate::error_chain::error_chain;
use crate::fingerprint::Fingerprint;
use crate::lane::{AgentBasis, Lane, WhyExternal};
use crate::listener::{ListenerAddress, ListenerKind, plan};
use crate::metrics::health::{Health, ProofLabels};
use crate::pki::{self, ServerIdentity};
use crate::proxy::ConnectionInfo;

/// The time limit for connecting to the gateway when readiness is checked.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// Collects the facts on which readiness depends. Connects to the gateway to do so, and logs if
/// that became possible or impossible.
pub(super) async fn collect_readiness_facts(state: &AdminState) -> ReadinessFacts {
    let gateway_error = probe_gateway(state).await;
    let now = OffsetDateTime::now_utc();
    let identity = Arc::clone(&state.served.borrow());
    ReadinessFacts {
        listeners: state.bound.borrow().iter().filter(|bound| bound.kind.leads_to_gateway()).count(),
        not_listening: unmatched_listen_values(state),
        certificate_valid: identity.not_before <= now && now < identity.not_after,
        certificate_problem: certificate_problem(state),
        gateway_error,
        orphaned: state.view.borrow().namespace != NamespaceState::Attached,
        stopping: state.shutdown.has_begun(),
    }
}

/// Returns why loopgate can't use the gateway; `None` if it can.
async fn probe_gateway(state: &AdminState) -> Option<GatewayError> {
    let unreachable = connect_error(state.gateway).await;
    log_gateway_change(state, unreachable.as_deref());
    let detector = state.proxy.tls_detector();
    if let Some(error) = unreachable {
        // When the gateway runs again, it may have another configuration and expect TLS.
        detector.suspect_tls();
        return Some(GatewayError::Unreachable(error));
    }
    detector.detect_tls().await.then_some(GatewayError::Tls)
}

/// Connects to `address`. Returns the error, or `None` on success.
async fn connect_error(address: SocketAddr) -> Option<String> {
    match tokio::time::timeout(GATEWAY_TIMEOUT, tokio::net::TcpStream::connect(address)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {GATEWAY_TIMEOUT:?}")),
    }
}

/// Returns the status of each port forward of `listen.forward`. Connects to each target to do so.
async fn probe_port_forwards(state: &AdminState, bound: &[ListenerAddress]) -> Vec<status::PortForwardStatus> {
    let each = state.listen.forward.iter().map(|forward| async move {
        let target = SocketAddr::new(state.gateway.ip(), forward.target);
        let error = connect_error(target).await;
        status::PortForwardStatus {
            listening: addresses_of_kind(bound, ListenerKind::PortForward(*forward)),
            target: target.to_string(),
            reachable: error.is_none(),
            error,
        }
    });
    join_all(each).await
}

/// Returns the addresses in `bound` of the listeners of this kind.
fn addresses_of_kind(bound: &[ListenerAddress], kind: ListenerKind) -> Vec<String> {
    bound.iter().filter(|bound| bound.kind == kind).map(|bound| bound.address.to_string()).collect()
}

/// Logs that the gateway became unreachable (`error`), or can be reached again. Logs each change
/// only once, because health checks call this function every few seconds.
fn log_gateway_change(state: &AdminState, error: Option<&str>) {
    let (gateway, was_lost) = (state.gateway, state.gateway_lost.swap(error.is_some(), Ordering::Relaxed));
    match error {
        Some(error) if !was_lost => warn!(%gateway, error, "the gateway can't be reached"),
        None if was_lost => info!(%gateway, "the gateway can be reached again"),
        _ => {}
    }
}

/// Returns the values of `listen.on` and `listen.plain` that no local address matches.
fn unmatched_listen_values(state: &AdminState) -> Vec<String> {
    plan::find_unmatched_values(&state.listen, &state.view.borrow().interfaces).map(|(_, on)| on.to_string()).collect()
}

/// Returns why a newer certificate than the served one could not be loaded or made, or the client
/// CA could not be read again; `None` if there is no such problem.
fn certificate_problem(state: &AdminState) -> Option<String> {
    state
        .serving_problem
        .borrow()
        .clone()
        .or_else(|| state.pki_problem.borrow().as_ref().map(|problem| error_chain(&**problem)))
}

/// Sets the gauges of `health` to the present state. Called at each scrape.
pub(super) fn set_gauges(state: &AdminState, facts: &ReadinessFacts, health: &Health) {
    let view = Arc::clone(&state.view.borrow());
    let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    health.ready.set(i64::from(why_not_ready(facts).is_empty()));
    health.gateway_up.set(i64::from(facts.gateway_error.is_none()));
    health.listeners.set(number(facts.listeners));
    health.certificate_expiry.set(state.served.borrow().not_after.unix_timestamp());
    health.certificate_problem.set(i64::from(facts.certificate_problem.is_some()));
    health.config_problem.set(i64::from(state.config_problem.borrow().is_some()));
    let enabled = |source| i64::from(view.source == source && view.source_state != SourceState::Off);
    health.docker_enabled.set(enabled(AgentSourceKind::Docker));
    health.kubernetes_enabled.set(enabled(AgentSourceKind::Kubernetes));
    let agents = agents_status(&view, &HashMap::new());
    for proof in ["attested", "address"] {
        let those = agents.iter().filter(|agent| agent.proof == proof).count();
        health.agents.get_or_create(&ProofLabels { proof }).set(number(those));
    }
    health.not_agents.set(number(view.not_agents.len()));
    health.start_time.set(OffsetDateTime::from(state.started_at).unix_timestamp());
}

/// Takes a snapshot of the whole sidecar. Connects to the gateway, and to the targets of port
/// forwards, to do so.
pub(super) async fn collect_status(state: &AdminState) -> Status {
    let bound = Arc::clone(&state.bound.borrow());
    let (facts, forwards) = tokio::join!(collect_readiness_facts(state), probe_port_forwards(state, &bound));
    let view = Arc::clone(&state.view.borrow());
    let mut connections = state.proxy.connections();
    connections.sort_by_key(|(connection, _)| connection.number);
    let mut lanes = Lanes::default();
    let mut by_agent: HashMap<String, usize> = HashMap::new();
    for (connection, _) in &connections {
        match &*connection.lane {
            Lane::External(_) => lanes.external += 1,
            Lane::Agent(lane) => {
                lanes.agent += 1;
                if let AgentBasis::Address(agent) | AgentBasis::Attested(agent) = &lane.basis {
                    *by_agent.entry(agent.id.clone()).or_default() += 1;
                }
            }
        }
    }
    let not_ready = why_not_ready(&facts);
    let now = SystemTime::now();
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        started: format_rfc3339(state.started_at.into()),
        uptime_seconds: seconds_since(state.started_at, now),
        ready: not_ready.is_empty(),
        not_ready,
        listening: addresses_of_kind(&bound, ListenerKind::Tls),
        listening_plain: addresses_of_kind(&bound, ListenerKind::Plain),
        not_listening: facts.not_listening,
        gateway: status::GatewayStatus {
            address: state.gateway.to_string(),
            reachable: facts.gateway_error.is_none(),
            error: facts.gateway_error.map(|error| error.to_string()),
        },
        forwards,
        config_problem: state.config_problem.borrow().clone(),
        certificate: certificate_status(&state.served.borrow(), facts.certificate_problem),
        discovery: discovery_status(&view),
        agents: agents_status(&view, &by_agent),
        not_agents: view
            .not_agents
            .iter()
            .map(|(name, why)| NotAgent { container: name.clone(), why: why.to_string() })
            .collect(),
        lanes,
        connections: connections
            .iter()
            .take(MAX_LISTED_CONNECTIONS)
            .map(|(connection, why)| connection_status(connection, why.as_ref(), now))
            .collect(),
        sandbox: Some(state.sandbox.clone()),
    }
}

/// Converts the served `identity` for `status`. `problem` is why a newer one is not served.
fn certificate_status(identity: &ServerIdentity, problem: Option<String>) -> status::CertificateStatus {
    let leaf = identity.certified_key.cert.first();
    status::CertificateStatus {
        names: identity.names.iter().map(ToString::to_string).collect(),
        not_before: format_rfc3339(identity.not_before),
        not_after: format_rfc3339(identity.not_after),
        expires_in_seconds: (identity.not_after - OffsetDateTime::now_utc()).whole_seconds(),
        fingerprint: leaf.map(|leaf| Fingerprint::of(leaf).to_string()).unwrap_or_default(),
        public_key: leaf.and_then(|leaf| pki::public_key_pin(leaf)).unwrap_or_default(),
        ca_fingerprint: identity.ca.as_ref().map(|ca| Fingerprint::of(ca).to_string()),
        problem,
    }
}

/// Converts the state of discovery in `view` for `status`.
fn discovery_status(view: &View) -> status::DiscoveryStatus {
    let since = match view.source_state {
        SourceState::Live { since } | SourceState::Disconnected { since, .. } => Some(since),
        SourceState::Off | SourceState::Connecting { .. } => None,
    };
    let label_of =
        |source| if view.source == source { view.source_state.label() } else { SourceState::Off.label() }.to_owned();
    let namespace = match view.namespace {
        NamespaceState::Attached => "attached",
        NamespaceState::Orphaned => "orphaned",
        NamespaceState::Replaced => "left",
    };
    status::DiscoveryStatus {
        docker: label_of(AgentSourceKind::Docker),
        kubernetes: label_of(AgentSourceKind::Kubernetes),
        for_seconds: since.map(|since| (Instant::now() - since).as_secs()),
        error: view.source_state.error().map(Into::into),
        owner: view.owner.as_ref().map(|owner| owner.name.clone()),
        project: view.owner.as_ref().and_then(|owner| owner.project.clone()),
        namespace: namespace.into(),
        own_addresses: view.non_loopback_addresses().filter(|ip| !is_link_local(ip)).map(|ip| ip.to_string()).collect(),
        own_names: view.own_names.iter().cloned().collect(),
    }
}

/// Returns the agents in `view`, sorted by name, with their numbers of `connections` by agent id.
/// An agent has one entry, even if it has several addresses.
fn agents_status(view: &View, connections: &HashMap<String, usize>) -> Vec<status::AgentStatus> {
    let mut agents: Vec<status::AgentStatus> = Vec::new();
    for (ip, agent) in &view.agents {
        match agents.iter_mut().find(|known| known.id == agent.id) {
            Some(known) => known.addresses.push(ip.to_string()),
            None => agents.push(status::AgentStatus {
                container: agent.name.clone(),
                id: agent.id.clone(),
                service: agent.service.clone(),
                addresses: vec![ip.to_string()],
                proof: proof_label(agent).into(),
                scopes: agent.scopes.clone(),
                connections: connections.get(&agent.id).copied().unwrap_or_default(),
            }),
        }
    }
    agents.sort_by(|a, b| a.container.cmp(&b.container));
    agents
}

fn proof_label(agent: &discovery::Agent) -> &'static str {
    match agent.kind {
        AgentKind::Attested => "attested",
        AgentKind::Address => "address",
    }
}

/// Converts an open connection for `status`. `why` is the reason why it is not an agent's.
fn connection_status(
    connection: &ConnectionInfo,
    why: Option<&WhyExternal>,
    now: SystemTime,
) -> status::ConnectionStatus {
    let (basis, who, source) = match &*connection.lane {
        Lane::Agent(lane) => {
            let who = match &lane.basis {
                AgentBasis::Address(agent) | AgentBasis::Attested(agent) => Some(agent.name.clone()),
                AgentBasis::Certificate(uri) => Some(uri.clone()),
                AgentBasis::OwnAddress | AgentBasis::Cidr => None,
            };
            (Some(lane.basis.label().to_owned()), who, Some(lane.source.to_string()))
        }
        Lane::External(lane) => {
            let user = lane.user.as_ref().map(|user| String::from_utf8_lossy(user.as_bytes()).into_owned());
            (None, user, None)
        }
    };
    status::ConnectionStatus {
        number: connection.number,
        peer: connection.peer.to_string(),
        lane: connection.lane.kind().label().into(),
        basis,
        who,
        source,
        protocol: connection.protocol.label().into(),
        since: format_rfc3339(connection.since.into()),
        for_seconds: seconds_since(connection.since, now),
        why_not_agent: why.map(ToString::to_string),
    }
}

/// Returns whether `ip` is an IPv6 link-local address. `status` omits these, because clients can
/// use them only with a zone.
fn is_link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn format_rfc3339(time: OffsetDateTime) -> String {
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_else(|_| whole.to_string())
}

fn seconds_since(since: SystemTime, now: SystemTime) -> u64 {
    now.duration_since(since).unwrap_or_default().as_secs()
}
