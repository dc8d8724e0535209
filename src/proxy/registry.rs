//! The registry of open connections: their lanes, and which of them are no longer authorized.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::close_signal::CloseSignal;
use crate::addr::{PeerAddr, canonical};
use crate::discovery::View;
use crate::labels::Protocol;
use crate::lane::{
    AgentBasis, Certificate, ConnectionEvidence, Denied, Issuer, Lane, LanePolicy, WhyExternal, why_external,
};

/// All open connections that were assigned a lane.
#[derive(Debug, Default)]
pub(super) struct Registry {
    next_number: AtomicU64,
    connections: Mutex<HashMap<u64, ConnectionInfo>>,
}

/// An open connection: what `status` shows of it, and what its lane was decided by.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The connection's number, as in the log.
    pub number: u64,
    /// The remote address.
    pub peer: PeerAddr,
    /// The lane that the connection was assigned.
    pub lane: Arc<Lane>,
    /// The version of HTTP that the connection speaks.
    pub protocol: Protocol,
    /// The time at which the connection was registered.
    pub since: SystemTime,
    evidence: Arc<ConnectionEvidence>,
    close_signal: CloseSignal,
}

impl ConnectionInfo {
    /// Returns why an external connection is not an agent's, if the operator might expect that it
    /// is one.
    pub(super) fn why_external(&self, view: &View, policy: &LanePolicy) -> Option<WhyExternal> {
        match (&*self.lane, &*self.evidence) {
            (Lane::External(_), ConnectionEvidence::Tls(evidence)) => {
                why_external(evidence, view, policy, unix_seconds(self.since))
            }
            (Lane::Agent(_), _) | (Lane::External(_), ConnectionEvidence::Plain(_)) => None,
        }
    }

    /// Returns why a connection on the agent lane must close; `None` if it is not on that lane or
    /// may stay.
    ///
    /// The decision is made for the time at which the connection was registered, so that an expired
    /// certificate is not a reason: `connection/lifetime.rs` lets the open requests of such a
    /// connection finish.
    pub(super) fn why_lost_agent_lane(&self, view: &View, policy: &LanePolicy) -> Option<String> {
        let (Lane::Agent(before), ConnectionEvidence::Tls(evidence)) = (&*self.lane, &*self.evidence) else {
            return None;
        };
        let now = self.evidence.decide_lane(view, policy, unix_seconds(self.since));
        if matches!(now, Ok(Lane::Agent(now)) if now.grants_the_same(before)) {
            return None;
        }
        // Checked first: `why_external` would report the certificate of a removed container as
        // stolen.
        let is_discovered = matches!(before.basis, AgentBasis::Address(_) | AgentBasis::Attested(_));
        let peer = canonical(evidence.peer);
        if is_discovered && !view.agents.contains_key(&peer) && !view.last_known.contains_key(&peer) {
            return Some("its container (or pod) is gone, or lost its label or its address".to_owned());
        }
        let why = why_external(evidence, view, policy, unix_seconds(self.since)).map(|why| why.to_string());
        Some(why.unwrap_or_else(|| "the agent is gone, or its basis, scope cap or user has changed".to_owned()))
    }

    /// Returns why an external connection must close because of its scope cap: the connection would
    /// get another cap now.
    pub(super) fn why_lost_scope_cap(&self, view: &View, policy: &LanePolicy) -> Option<&'static str> {
        let Lane::External(before) = &*self.lane else { return None };
        let changed = match self.evidence.decide_lane(view, policy, unix_seconds(self.since)).ok()? {
            Lane::External(now) => before.scopes != now.scopes,
            Lane::Agent(now) => before.scopes != now.as_external.scopes,
        };
        changed.then_some("its scope cap has changed")
    }

    /// Returns why an external connection must close: the rules deny its client, they no longer
    /// trust the proxy that named the client, or the client's certificate no longer names its user.
    /// `None` if the connection may stay, even if a new connection would get more rights: an open
    /// connection never gains a right.
    pub(super) fn why_lost_external_lane(&self, view: &View, policy: &LanePolicy) -> Option<&'static str> {
        let Lane::External(before) = &*self.lane else { return None };
        let decided = self.evidence.decide_lane(view, policy, unix_seconds(self.since)).and_then(|now| match now {
            Lane::External(now) => Ok(Some(now)),
            // A new connection would be an agent's, to which the lists do not apply. This one stays
            // external, so they apply to it.
            Lane::Agent(_) => policy.check_access_lists(before.client).map(|()| None),
        });
        let untrusted = match decided {
            Ok(Some(now)) if before.user.is_some() && before.user != now.user => {
                return Some("its certificate no longer names its user");
            }
            Ok(Some(now)) => (before.is_trusted_proxy && !now.is_trusted_proxy) || before.client != now.client,
            Ok(None) => before.is_trusted_proxy || before.client != canonical(self.evidence.peer()),
            Err(Denied::NotTrustedProxy) => true,
            Err(Denied::InDenyList) => return Some("external.deny lists its client"),
            Err(Denied::NotInAllowList) => return Some("external.allow does not list its client"),
        };
        untrusted.then_some("its proxy is no longer trusted")
    }

    /// Returns whether the connection has a certificate that a CA of `tls.client_ca` issued.
    pub(super) fn has_operator_certificate(&self) -> bool {
        self.has_certificate_where(|certificate| certificate.issuer == Issuer::Operator)
    }

    /// Returns whether the connection has a certificate that satisfies `condition`.
    pub(super) fn has_certificate_where(&self, condition: impl FnOnce(&Certificate) -> bool) -> bool {
        self.evidence.certificate().is_some_and(condition)
    }

    /// Returns the name of a discovered agent, the URI of an agent with a certificate, or else the
    /// basis of the agent lane; `None` on the external lane.
    fn agent_name(&self) -> Option<&str> {
        let Lane::Agent(lane) = &*self.lane else { return None };
        Some(match &lane.basis {
            AgentBasis::Address(agent) | AgentBasis::Attested(agent) => &agent.name,
            AgentBasis::Certificate(uri) => uri,
            other => other.label(),
        })
    }
}

impl Registry {
    /// Registers a connection, until the returned guard is dropped. `draining` is cancelled when
    /// loopgate shuts down.
    pub(super) fn register(
        self: &Arc<Self>,
        peer: PeerAddr,
        lane: Arc<Lane>,
        protocol: Protocol,
        evidence: ConnectionEvidence,
        draining: &CancellationToken,
    ) -> RegistryGuard {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let close_signal = CloseSignal::new(draining);
        let (since, evidence) = (SystemTime::now(), Arc::new(evidence));
        let info = ConnectionInfo { number, peer, lane, protocol, since, evidence, close_signal: close_signal.clone() };
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).insert(number, info);
        RegistryGuard { number, close_signal, registry: Arc::clone(self) }
    }

    /// Closes the connections for which `why_lost` returns a reason, and logs it; returns how many
    /// those are.
    pub(super) fn revoke_where<R: Into<String>>(&self, why_lost: impl Fn(&ConnectionInfo) -> Option<R>) -> usize {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let mut revoked = 0;
        for connection in connections.values().filter(|connection| !connection.close_signal.is_revoked()) {
            let Some(reason) = why_lost(connection) else { continue };
            let (number, peer, lane, reason): (_, _, _, String) =
                (connection.number, connection.peer, connection.lane.kind().label(), reason.into());
            info!(
                connection = number, %peer, lane, agent = connection.agent_name(), reason,
                "closing a connection that is no longer authorized"
            );
            connection.close_signal.revoke();
            revoked += 1;
        }
        revoked
    }

    /// Returns all connections, in no particular order.
    pub(super) fn connections(&self) -> Vec<ConnectionInfo> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Returns `time` in seconds since the Unix epoch; 0 if it is before that.
pub(super) fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Removes a connection from the registry when it is dropped.
#[derive(Debug)]
pub(super) struct RegistryGuard {
    number: u64,
    close_signal: CloseSignal,
    registry: Arc<Registry>,
}

impl RegistryGuard {
    /// Returns the number that identifies the connection in logs and `status`.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Returns the signal that tells the connection to close.
    pub(super) fn close_signal(&self) -> &CloseSignal {
        &self.close_signal
    }
}

impl Drop for RegistryGuard {
    fn drop(&mut self) {
        self.registry.connections.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::discovery::{Agent, AgentKind};
    use crate::lane::{Evidence, ProxyHeader};

    /// A change of the view or of the configuration.
    type Change = fn(&mut View, &mut Config);

    const CONTAINER_GONE: &str = "its container (or pod) is gone, or lost its label or its address";

    fn view(peer: &str, kind: AgentKind) -> View {
        let mut view = View::default();
        let (id, name) = ("aaa".into(), "worker".into());
        let agent = Arc::new(Agent { id, name, project: None, service: None, kind, scopes: None });
        view.agents.insert(peer.parse().unwrap(), agent);
        view
    }

    #[test]
    fn why_a_connection_of_an_agent_is_closed() {
        let peer = "172.18.0.3";
        let gone: Change = |view, _| view.agents.clear();
        let unconfirmed: Change = |view, _| view.last_known = std::mem::take(&mut view.agents);
        let trusted: Change = |_, config| config.external.trusted_proxies = vec!["172.18.0.3/32".parse().unwrap()];
        let table: [(AgentKind, Change, Option<&str>); 6] = [
            (AgentKind::Attested, |_, _| {}, None),
            (AgentKind::Attested, gone, Some(CONTAINER_GONE)),
            (AgentKind::Address, gone, Some(CONTAINER_GONE)),
            (AgentKind::Attested, unconfirmed, Some("Docker is unreachable, so worker can't be confirmed as an agent")),
            (
                AgentKind::Attested,
                trusted,
                Some("worker is in external.trusted_proxies, and a trusted proxy is never an agent"),
            ),
            (
                AgentKind::Address,
                |_, config| config.gateway.address = "10.0.0.1:1".parse().unwrap(),
                Some("the gateway is not on loopback, so every client is external"),
            ),
        ];
        for (kind, change, expected) in table {
            let (mut view, mut config) = (view(peer, kind), Config::default());
            let certificate = (kind == AgentKind::Attested).then(|| Certificate {
                issuer: Issuer::Loopgate,
                serial: Vec::new(),
                uris: vec!["spiffe://loopgate.local/docker/p/s/aaa".into()],
                user: None,
                not_after: i64::MAX,
            });
            let evidence = ConnectionEvidence::Tls(Evidence {
                peer: peer.parse().unwrap(),
                proxy_header: ProxyHeader::Local,
                certificate,
            });
            let lane = evidence.decide_lane(&view, &LanePolicy::new(&config), unix_seconds(SystemTime::now())).unwrap();
            assert_eq!(lane.kind().label(), "agent", "{kind:?}");
            let registry = Arc::new(Registry::default());
            let addr = PeerAddr::new(format!("{peer}:1").parse().unwrap());
            let guard = registry.register(addr, Arc::new(lane), Protocol::H1, evidence, &CancellationToken::new());
            change(&mut view, &mut config);
            let why = registry.connections()[0].why_lost_agent_lane(&view, &LanePolicy::new(&config));
            assert_eq!(why.as_deref(), expected, "{kind:?}");
            drop(guard);
        }
    }
}
