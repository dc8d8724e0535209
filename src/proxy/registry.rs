//! The roll of live connections: who is on which lane, and who has lost the right to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

use super::close_signal::CloseSignal;
use crate::addr::{PeerAddr, canonical};
use crate::discovery::View;
use crate::labels::Protocol;
use crate::lane::{Evidence, Issuer, Lane, Policy, WhyExternal, decide, why_external};

/// Every connection that was given a lane.
#[derive(Debug, Default)]
pub struct Registry {
    next: AtomicU64,
    entries: Mutex<HashMap<u64, ConnectionInfo>>,
}

/// A connection on the registry.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Its number, as in the log.
    pub number: u64,
    /// Its far end.
    pub peer: PeerAddr,
    /// Its lane.
    pub lane: Arc<Lane>,
    /// What its client speaks.
    pub protocol: Protocol,
    /// Since when.
    pub since: SystemTime,
    evidence: Arc<Evidence>,
    close_signal: CloseSignal,
}

impl ConnectionInfo {
    /// Why it is external, if anybody might expect it to be an agent.
    pub(super) fn why_external(&self, view: &View, policy: &Policy) -> Option<WhyExternal> {
        match &*self.lane {
            Lane::Agent(_) => None,
            Lane::External(_) => why_external(&self.evidence, view, policy, unix(self.since)),
        }
    }

    /// Whether it is on the agent lane and its evidence does not give it that lane any more.
    ///
    /// The evidence is judged by the clock of its own time, since a certificate that ends meanwhile ends no connection.
    pub(super) fn has_lost_agent_lane(&self, view: &View, policy: &Policy) -> bool {
        let Lane::Agent(before) = &*self.lane else { return false };
        !matches!(decide(&self.evidence, view, policy, unix(self.since)), Ok(Lane::Agent(now)) if now.is_same(before))
    }

    /// Whether it is on the external lane and the rules deny it now, or don't let it speak for others any more. What it might gain, it
    /// gains with its next connection.
    pub(super) fn is_denied_externally(&self, view: &View, policy: &Policy) -> bool {
        let Lane::External(before) = &*self.lane else { return false };
        match decide(&self.evidence, view, policy, unix(self.since)) {
            // Another client than before was stated by a proxy that is not trusted any more.
            Ok(Lane::External(now)) => (before.trusted_proxy && !now.trusted_proxy) || before.client != now.client,
            Ok(Lane::Agent(_)) => before.trusted_proxy || before.client != canonical(self.evidence.peer),
            Err(_) => true,
        }
    }

    /// Whether a CA of the operator's vouches for it.
    pub(super) fn has_operator_certificate(&self) -> bool {
        self.evidence.certificate.as_ref().is_some_and(|certificate| certificate.issuer == Issuer::Operator)
    }
}

impl Registry {
    /// Puts a connection on the roll until the [`RegistryGuard`] is dropped.
    ///
    /// `draining` is cancelled when all connections are to end.
    pub(super) fn register(
        self: &Arc<Self>,
        peer: PeerAddr,
        lane: Arc<Lane>,
        protocol: Protocol,
        evidence: Evidence,
        draining: &CancellationToken,
    ) -> RegistryGuard {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let close_signal = CloseSignal::new(draining);
        let evidence = Arc::new(evidence);
        let present =
            ConnectionInfo { number, peer, lane, protocol, since: SystemTime::now(), evidence, close_signal: close_signal.clone() };
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(number, present);
        RegistryGuard { number, close_signal, registry: Arc::clone(self) }
    }

    /// Revokes the connections that have `lost` the right to be as they are; returns how many those are.
    pub(super) fn revoke(&self, lost: impl Fn(&ConnectionInfo) -> bool) -> usize {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = entries.values().filter(|present| !present.close_signal.is_revoked() && lost(present));
        lost.inspect(|present| present.close_signal.revoke()).count()
    }

    /// Everybody present, in no order.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// `time` in seconds since the Unix epoch.
pub(super) fn unix(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// A connection's place on the registry.
#[derive(Debug)]
pub(super) struct RegistryGuard {
    number: u64,
    close_signal: CloseSignal,
    registry: Arc<Registry>,
}

impl RegistryGuard {
    /// Its number, which the log shows too.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What may be called out to the connection.
    pub(super) fn close_signal(&self) -> &CloseSignal {
        &self.close_signal
    }
}

impl Drop for RegistryGuard {
    fn drop(&mut self) {
        self.registry.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
