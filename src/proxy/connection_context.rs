//! What the requests of one connection share.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::close_signal::CloseSignal;
use super::downstream::activity::Activity;
use super::downstream::head_tracker::HeadTracker;
use super::request_end::RequestEnd;
use super::shared::{ConnectionSettings, Shared};
use super::upstream::budget::{ClientBudget, Exhausted, GatewayPermit, Purpose};
use crate::addr::PeerAddr;
use crate::labels::{LaneKind, Protocol};
use crate::lane::{Lane, Target};

/// A connection that has a lane: plain data for the requests on it.
pub(super) struct ConnectionContext {
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Arc<ConnectionSettings>,
    pub(super) lane: Arc<Lane>,
    /// Where its requests go.
    pub(super) target: Arc<Target>,
    pub(super) peer: PeerAddr,
    /// The address that the client connected to.
    pub(super) local: SocketAddr,
    pub(super) protocol: Protocol,
    /// The connection's number, as in the log and in `status`.
    pub(super) number: u64,
    /// When the certificate that gave the connection its lane or its user expires.
    pub(super) expires: Option<SystemTime>,
    /// What limits the requests of the connection's own client; a trusted proxy's clients have theirs.
    pub(super) budget: Arc<ClientBudget>,
    pub(super) activity: Arc<Activity>,
    pub(super) head_tracker: Arc<HeadTracker>,
    pub(super) close_signal: CloseSignal,
    /// Why the connection was closed, where its client did not close it. Set before its requests are dropped.
    pub(super) closed_by: OnceLock<RequestEnd>,
    /// HTTP/1.1: the last upgrade that was asked for and not granted.
    pub(super) refused_upgrade: Mutex<Option<OnUpgrade>>,
}

impl ConnectionContext {
    /// Returns whether the certificate on which the connection depends has expired, so that it must
    /// carry no new request.
    pub(super) fn has_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= SystemTime::now())
    }

    /// Replaces the upgrade that was asked for and not granted.
    pub(super) fn set_refused_upgrade(&self, upgrade: Option<OnUpgrade>) {
        *self.refused_upgrade.lock().unwrap_or_else(PoisonError::into_inner) = upgrade;
    }

    /// Takes the upgrade that was asked for and not granted.
    pub(super) fn take_refused_upgrade(&self) -> Option<OnUpgrade> {
        self.refused_upgrade.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns how a request ends that the connection takes with it as it ends.
    pub(super) fn end_of_open_requests(&self) -> RequestEnd {
        let unless_closed =
            if self.head_tracker.is_closing() { RequestEnd::ConnectionClosed } else { RequestEnd::ClientGone };
        self.closed_by.get().copied().unwrap_or(unless_closed)
    }

    /// Waits until `client`, `None` for an agent, may have one more request at the gateway. The
    /// request was received at `started`. Returns the permit, and the moment at which it was granted.
    ///
    /// # Errors
    /// No permit was free within `limits.gateway_wait`.
    pub(super) async fn acquire_permit(
        &self,
        client: Option<IpAddr>,
        purpose: Purpose,
        started: Instant,
    ) -> Result<(GatewayPermit, Instant), Exhausted> {
        let other;
        let budget = match client.filter(|client| self.own_client() != Some(*client)) {
            // A client that a trusted proxy names, or a page on an agent's connection.
            Some(client) => {
                other = self.shared.upstream.budgets().for_client(client);
                &other
            }
            None => &self.budget,
        };
        if let Some(permit) = budget.try_acquire(purpose) {
            return Ok((permit, started));
        }
        // Boxed like all that is seldom needed: each request carries the room for what it awaits.
        let permit = Box::pin(budget.wait(purpose, started + self.settings.limits.gateway_wait)).await?;
        Ok((permit, Instant::now()))
    }

    /// How long the client may read nothing of a response before its request at the gateway ends. Agents are limited by
    /// `limits.stall_timeout` alone.
    pub(super) fn gateway_stall_timeout(&self) -> Duration {
        match self.lane.kind() {
            LaneKind::External => self.settings.limits.gateway_stall,
            LaneKind::Agent => Duration::MAX,
        }
    }

    /// The external client of the connection; `None` on the agent lane.
    fn own_client(&self) -> Option<IpAddr> {
        match &*self.lane {
            Lane::External(lane) => Some(lane.client),
            Lane::Agent(_) => None,
        }
    }
}
