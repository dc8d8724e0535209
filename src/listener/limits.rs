//! Limits on connections: their total, and for each client their number and the rate of new ones.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use futures_util::future::{BoxFuture, FutureExt};
use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::info;

use crate::addr::{PeerAddr, address_or_v6_prefix};
use crate::audit;
use crate::config::Config;
use crate::metrics::{AcceptRefusal, ListenerMetrics};
use crate::token_bucket::{Rate, TokenBucket};

#[cfg(test)]
mod tests;

/// Idle clients are removed from the table when it has at least this many entries.
const MIN_TABLE: usize = 1024;
/// One in this many permits is reserved for agents, so that other clients can't take all permits.
const RESERVED_ONE_IN: usize = 16;
/// The most connections that may wait for a permit. The same number of agents' connections may wait
/// in addition.
///
/// Waiting connections have been accepted: if they waited in the kernel's queue, agents would wait
/// behind all other clients.
pub const MAX_WAITING: usize = 256;

/// The connection limits and the connections counted against them. All listeners share one.
pub struct ConnectionLimits {
    /// Permits that any client may take.
    shared_permits: Arc<Semaphore>,
    /// Further permits that only agents may take.
    reserved_permits: Arc<Semaphore>,
    /// The places in which connections may wait for a permit.
    queue: Arc<Semaphore>,
    /// The places for connections that may be agents'.
    agent_queue: Arc<Semaphore>,
    may_be_agent: Box<dyn Fn(IpAddr) -> bool + Send + Sync>,
    per_client: ArcSwap<ClientLimits>,
    clients: Mutex<ClientTable>,
    metrics: ListenerMetrics,
}

/// When a connection that is within its client's limits gets its permit.
pub(super) enum PermitGrant {
    /// The connection has a permit.
    Now(ConnectionPermit),
    /// The connection has to wait for a permit.
    Later(BoxFuture<'static, ConnectionPermit>),
}

impl fmt::Debug for ConnectionLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionLimits")
            .field("shared_permits", &self.shared_permits)
            .field("reserved_permits", &self.reserved_permits)
            .finish_non_exhaustive()
    }
}

/// The limits for each single client.
#[derive(Debug)]
struct ClientLimits {
    connections: usize,
    /// The rate of new connections; `None` for no limit.
    rate: Option<Rate>,
    /// The trusted proxies, which are exempt: many clients connect through one address, and the
    /// proxy limits them itself.
    exempt: Vec<IpNet>,
}

impl ClientLimits {
    fn new(config: &Config) -> Self {
        let rate = config.limits.connection_rate_per_client;
        Self {
            connections: config.limits.max_connections_per_client,
            rate: (rate > 0).then(|| Rate::per_second(rate)),
            exempt: config.external.trusted_proxies.clone(),
        }
    }
}

/// The permit for one connection, returned when dropped. It must be held until the connection ends,
/// tunnels included.
#[derive(Debug)]
pub struct ConnectionPermit {
    client: ClientGuard,
    _permit: OwnedSemaphorePermit,
}

/// Counts one connection against its client's limit until it is dropped.
#[derive(Debug)]
struct ClientGuard {
    /// `None` for a client that is exempt.
    client: Option<IpAddr>,
    limits: Arc<ConnectionLimits>,
}

#[derive(Debug, Default)]
struct ClientTable {
    clients: HashMap<IpAddr, ClientEntry>,
    /// The number of entries at which idle clients are removed the next time.
    clean_at: usize,
}

/// The open connections of a client, and the rate of its new ones.
#[derive(Debug)]
struct ClientEntry {
    open: usize,
    bucket: TokenBucket,
}

impl ConnectionLimits {
    /// Creates limits without connections. At most `max_waiting` connections wait for a permit, and
    /// in addition the same number of agents' connections. `may_be_agent` returns whether a
    /// connection from an address may get the agent lane.
    pub fn new(
        config: &Config,
        max_waiting: usize,
        metrics: ListenerMetrics,
        may_be_agent: impl Fn(IpAddr) -> bool + Send + Sync + 'static,
    ) -> Self {
        let total = config.limits.max_connections.min(Semaphore::MAX_PERMITS);
        let reserved = total / RESERVED_ONE_IN;
        Self {
            shared_permits: Arc::new(Semaphore::new(total - reserved)),
            reserved_permits: Arc::new(Semaphore::new(reserved)),
            queue: Arc::new(Semaphore::new(max_waiting)),
            agent_queue: Arc::new(Semaphore::new(max_waiting)),
            may_be_agent: Box::new(may_be_agent),
            per_client: ArcSwap::from_pointee(ClientLimits::new(config)),
            clients: Mutex::new(ClientTable { clients: HashMap::new(), clean_at: MIN_TABLE }),
            metrics,
        }
    }

    /// Applies the per-client limits of `config` to new connections. The total stays as it was.
    pub fn apply_config(&self, config: &Config) {
        self.per_client.store(Arc::new(ClientLimits::new(config)));
    }

    /// Returns the listeners' metrics.
    pub(super) fn metrics(&self) -> &ListenerMetrics {
        &self.metrics
    }

    /// Counts a connection from `peer`; returns its permit, or a future of it. Counts refusals and
    /// writes them to the audit log.
    ///
    /// # Errors
    /// The client is at one of its limits, or too many connections wait for a permit.
    pub(super) fn take_permit(self: &Arc<Self>, peer: PeerAddr) -> Result<PermitGrant, AcceptRefusal> {
        self.take_permit_unreported(peer).inspect_err(|refusal| {
            self.metrics.count_refusal(*refusal);
            info!(
                target: audit::TARGET, kind = "refusal", at = "accept", %peer, reason = refusal.label(),
                "connection refused"
            );
        })
    }

    /// Counts a connection from `peer`, and takes a permit, or a place in the queue for one. A peer
    /// that may be an agent can use the reserved permits too. Neither counts nor logs refusals.
    fn take_permit_unreported(self: &Arc<Self>, peer: PeerAddr) -> Result<PermitGrant, AcceptRefusal> {
        let client = self.count_client(peer)?;
        let shared = Arc::clone(&self.shared_permits);
        if let Ok(permit) = Arc::clone(&shared).try_acquire_owned() {
            return Ok(PermitGrant::Now(self.issue_permit(client, permit)));
        }
        let reserved = (self.may_be_agent)(peer.ip()).then(|| Arc::clone(&self.reserved_permits));
        if let Some(Ok(permit)) = reserved.clone().map(Semaphore::try_acquire_owned) {
            return Ok(PermitGrant::Now(self.issue_permit(client, permit)));
        }
        let queue = if reserved.is_some() { &self.agent_queue } else { &self.queue };
        let queue_place = Arc::clone(queue).try_acquire_owned().map_err(|_| AcceptRefusal::Full)?;
        let limits = Arc::clone(self);
        let later = async move {
            let permit = match reserved {
                None => shared.acquire_owned().await,
                Some(reserved) => tokio::select! {
                    permit = shared.acquire_owned() => permit,
                    permit = reserved.acquire_owned() => permit,
                },
            };
            drop(queue_place);
            limits.issue_permit(client, permit.expect("the semaphores are never closed"))
        };
        Ok(PermitGrant::Later(later.boxed()))
    }

    /// Returns the permit of a connection that `client` counts. Counts the connection as accepted
    /// and as open.
    fn issue_permit(&self, client: ClientGuard, permit: OwnedSemaphorePermit) -> ConnectionPermit {
        self.metrics.connections_accepted.inc();
        self.metrics.connections_open.inc();
        ConnectionPermit { client, _permit: permit }
    }

    /// Counts a connection against its client's limits; returns the guard that uncounts it. A
    /// trusted proxy is not counted.
    ///
    /// # Errors
    /// The client is at one of its limits.
    fn count_client(self: &Arc<Self>, peer: PeerAddr) -> Result<ClientGuard, AcceptRefusal> {
        let limits = self.per_client.load();
        if limits.exempt.iter().any(|network| network.contains(&peer.ip())) {
            return Ok(ClientGuard { client: None, limits: Arc::clone(self) });
        }
        let client = address_or_v6_prefix(peer.ip());
        self.lock_clients().try_add_connection(client, Instant::now(), &limits)?;
        Ok(ClientGuard { client: Some(client), limits: Arc::clone(self) })
    }

    fn lock_clients(&self) -> std::sync::MutexGuard<'_, ClientTable> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientTable {
    /// Counts one more connection of `client`. Before, removes idle clients if the table is large.
    ///
    /// # Errors
    /// The client has reached its limit of connections, or the limit of their rate.
    fn try_add_connection(&mut self, client: IpAddr, now: Instant, limits: &ClientLimits) -> Result<(), AcceptRefusal> {
        if self.clients.len() >= self.clean_at {
            self.clients.retain(|_, client| !client.is_removable(now));
            self.clean_at = MIN_TABLE.max(2 * self.clients.len());
            self.clients.shrink_to(self.clean_at);
        }
        let client = self.clients.entry(client).or_insert(ClientEntry { open: 0, bucket: TokenBucket::full(now) });
        if client.open >= limits.connections {
            return Err(AcceptRefusal::ClientConnections);
        }
        if limits.rate.is_some_and(|rate| !client.bucket.try_take(rate, now)) {
            return Err(AcceptRefusal::ClientRate);
        }
        client.open += 1;
        Ok(())
    }

    /// Uncounts a connection of `client` that has ended, and removes the client if it is idle.
    fn remove_connection(&mut self, client: IpAddr, now: Instant) {
        if let Some(known) = self.clients.get_mut(&client) {
            known.open -= 1;
            if known.is_removable(now) {
                self.clients.remove(&client);
            }
        }
    }
}

impl ClientEntry {
    /// Returns whether the entry equals a new one, so that it can be removed.
    fn is_removable(&self, now: Instant) -> bool {
        self.open == 0 && self.bucket.is_full(now)
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        if let Some(client) = self.client {
            self.limits.lock_clients().remove_connection(client, Instant::now());
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.client.limits.metrics.connections_open.dec();
    }
}
