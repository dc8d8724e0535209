//! The roll of live connections: who is on which lane, and who has lost the right to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

use super::calls::Calls;
use crate::addr::{PeerAddr, canonical};
use crate::discovery::View;
use crate::labels::Protocol;
use crate::lane::{Evidence, Issuer, Lane, Policy, WhyExternal, decide, why_external};

/// Every connection that was given a lane.
#[derive(Debug, Default)]
pub struct Roll {
    next: AtomicU64,
    entries: Mutex<HashMap<u64, Present>>,
}

/// A connection on the roll.
#[derive(Clone, Debug)]
pub struct Present {
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
    calls: Calls,
}

impl Present {
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
    pub(super) fn has_lost_its_lane(&self, view: &View, policy: &Policy) -> bool {
        let Lane::Agent(before) = &*self.lane else { return false };
        !matches!(decide(&self.evidence, view, policy, unix(self.since)), Ok(Lane::Agent(now)) if now.is_same(before))
    }

    /// Whether it is on the external lane and the rules deny it now, or don't let it speak for others any more. What it might gain, it
    /// gains with its next connection.
    pub(super) fn has_lost_its_say(&self, view: &View, policy: &Policy) -> bool {
        let Lane::External(before) = &*self.lane else { return false };
        match decide(&self.evidence, view, policy, unix(self.since)) {
            // Another client than before was stated by a proxy that is not trusted any more.
            Ok(Lane::External(now)) => (before.trusted_proxy && !now.trusted_proxy) || before.client != now.client,
            Ok(Lane::Agent(_)) => before.trusted_proxy || before.client != canonical(self.evidence.peer),
            Err(_) => true,
        }
    }

    /// Whether a CA of the operator's vouches for it.
    pub(super) fn has_operators_word(&self) -> bool {
        self.evidence.certificate.as_ref().is_some_and(|certificate| certificate.issuer == Issuer::Operator)
    }
}

impl Roll {
    /// Puts a connection on the roll until the [`Entry`] is dropped.
    ///
    /// `draining` is cancelled when all connections are to end.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: PeerAddr,
        lane: Arc<Lane>,
        protocol: Protocol,
        evidence: Evidence,
        draining: &CancellationToken,
    ) -> Entry {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let calls = Calls::new(draining);
        let evidence = Arc::new(evidence);
        let present = Present { number, peer, lane, protocol, since: SystemTime::now(), evidence, calls: calls.clone() };
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(number, present);
        Entry { number, calls, roll: Arc::clone(self) }
    }

    /// Revokes the connections that have `lost` the right to be as they are; returns how many those are.
    pub(super) fn revoke(&self, lost: impl Fn(&Present) -> bool) -> usize {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = entries.values().filter(|present| !present.calls.is_revoked() && lost(present));
        lost.inspect(|present| present.calls.revoke()).count()
    }

    /// Everybody present, in no order.
    pub fn present(&self) -> Vec<Present> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// `time` in seconds since the Unix epoch.
pub(super) fn unix(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// A connection's place on the roll.
#[derive(Debug)]
pub(super) struct Entry {
    number: u64,
    calls: Calls,
    roll: Arc<Roll>,
}

impl Entry {
    /// Its number, which the log shows too.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What may be called out to the connection.
    pub(super) fn calls(&self) -> &Calls {
        &self.calls
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roll.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
