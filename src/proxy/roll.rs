//! The roll of live connections: who is on which lane, and who has lost the right to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

use crate::addr::PeerAddr;
use crate::discovery::View;
use crate::lane::{Evidence, Lane, Policy, WhyExternal, decide, why_external};

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
    /// `http/1.1` or `h2`.
    pub protocol: &'static str,
    /// Since when.
    pub since: SystemTime,
    evidence: Arc<Evidence>,
    revoked: CancellationToken,
}

impl Present {
    /// Why it is external, if anybody might expect it to be an agent.
    pub(super) fn why_external(&self, view: &View, policy: &Policy) -> Option<WhyExternal> {
        match &*self.lane {
            Lane::Agent(_) => None,
            Lane::External(_) => why_external(&self.evidence, view, policy, unix(self.since)),
        }
    }
}

impl Roll {
    /// Puts a connection on the roll until the [`Entry`] is dropped.
    pub(super) fn enter(self: &Arc<Self>, peer: PeerAddr, lane: Arc<Lane>, protocol: &'static str, evidence: Evidence) -> Entry {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let revoked = CancellationToken::new();
        let evidence = Arc::new(evidence);
        let present = Present { number, peer, lane, protocol, since: SystemTime::now(), evidence, revoked: revoked.clone() };
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(number, present);
        Entry { number, revoked, roll: Arc::clone(self) }
    }

    /// Revokes every agent-lane connection whose evidence does not give it that lane any more; returns how many those are.
    ///
    /// External connections are left alone: what they might gain, they gain with their next connection. The evidence is judged by the
    /// clock of its own time, since a certificate that ends meanwhile ends no connection.
    pub(super) fn review(&self, view: &View, policy: &Policy) -> usize {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = entries.values().filter(|present| {
            let Lane::Agent(before) = &*present.lane else { return false };
            !present.revoked.is_cancelled()
                && !matches!(decide(&present.evidence, view, policy, unix(present.since)), Ok(Lane::Agent(now)) if now.is_same(before))
        });
        lost.inspect(|present| present.revoked.cancel()).count()
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
    revoked: CancellationToken,
    roll: Arc<Roll>,
}

impl Entry {
    /// Its number, which the log shows too.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Cancelled when the connection has lost the right to its lane.
    pub(super) fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roll.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
