//! What the requests of one connection share.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::close_signal::CloseSignal;
use super::downstream::activity::Activity;
use super::downstream::head_tracker::HeadTracker;
use super::request_end::RequestEnd;
use super::shared::{ConnectionSettings, Shared};
use super::upstream::budget::{ClientBudget, Exhausted, GatewayPermit, Purpose};
use crate::addr::PeerAddr;
use crate::labels::Protocol;
use crate::lane::{Lane, Target};

/// What requests need to know of their connection, once it has a lane.
pub(super) struct ConnectionContext {
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Arc<ConnectionSettings>,
    pub(super) lane: Arc<Lane>,
    /// The address at the gateway that the connection's requests go to.
    pub(super) target: Arc<Target>,
    pub(super) peer: PeerAddr,
    /// The local address that the client connected to.
    pub(super) local: SocketAddr,
    pub(super) protocol: Protocol,
    /// The connection's number, as in the log and in `status`.
    pub(super) number: u64,
    /// The time at which the certificate expires that gave the connection its lane or its user;
    /// `None` if none did.
    pub(super) expires: Option<SystemTime>,
    /// The request budget of the connection's peer. The clients that a trusted proxy names have
    /// their own budgets.
    pub(super) budget: Arc<ClientBudget>,
    pub(super) activity: Arc<Activity>,
    pub(super) head_tracker: Arc<HeadTracker>,
    pub(super) close_signal: CloseSignal,
    /// Why loopgate closed the connection. Set before the connection's requests are dropped, so
    /// that they report it; not set if the client closed the connection.
    pub(super) closed_by: OnceLock<RequestEnd>,
    /// HTTP/1.1: the latest upgrade that a request asked for and that was not granted.
    pub(super) refused_upgrade: Mutex<Option<OnUpgrade>>,
}

impl ConnectionContext {
    /// Returns whether the certificate that gave the connection its lane or its user has expired.
    /// Such a connection takes no new request.
    pub(super) fn has_certificate_expired(&self) -> bool {
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

    /// Returns the end of requests that are still open when the connection ends.
    pub(super) fn end_of_open_requests(&self) -> RequestEnd {
        let unless_closed = if self.head_tracker.is_closed_for_client_fault() {
            RequestEnd::ConnectionClosed
        } else {
            RequestEnd::ClientGone
        };
        self.closed_by.get().copied().unwrap_or(unless_closed)
    }

    /// Waits for a permit to send a request to the gateway, for at most `limits.gateway_wait` after
    /// `received_at`, when the request was received. `client` is the external client, `None` for an
    /// agent. Returns the permit and the time at which it was granted.
    ///
    /// # Errors
    /// No permit was free in time, or too many requests wait already.
    pub(super) async fn acquire_permit(
        &self,
        client: Option<IpAddr>,
        purpose: Purpose,
        received_at: Instant,
    ) -> Result<(GatewayPermit, Instant), Exhausted> {
        let other;
        let budget = match client.filter(|client| self.assigned_client() != Some(*client)) {
            // The client that a trusted proxy names, or a web page on an agent's connection.
            Some(client) => {
                other = self.shared.upstream.budgets().for_client(client);
                &other
            }
            None => &self.budget,
        };
        if let Some(permit) = budget.try_acquire(purpose) {
            return Ok((permit, received_at));
        }
        // Boxed, because it is seldom needed: the future of each request reserves memory for every
        // future it awaits.
        let permit = Box::pin(budget.wait_for_permit(purpose, received_at + self.settings.limits.gateway_wait)).await?;
        Ok((permit, Instant::now()))
    }

    /// Returns the external client that the connection was assigned; `None` on the agent lane.
    fn assigned_client(&self) -> Option<IpAddr> {
        match &*self.lane {
            Lane::External(lane) => Some(lane.client),
            Lane::Agent(_) => None,
        }
    }
}
