//! How many connections there may be: all together, from one client at once, and from one client a second.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::addr::PeerAddr;
use crate::config::Config;
use crate::metrics::{Doors, Refusal};

/// How many clients are remembered before those that no longer matter are first looked for.
const ROOM: usize = 1024;

/// The limits, and who is counted against them. Every door shares one.
#[derive(Debug)]
pub struct Limits {
    slots: Arc<Semaphore>,
    terms: ArcSwap<ClientTerms>,
    clients: Mutex<Clients>,
    metrics: Doors,
}

/// What one client may do.
#[derive(Debug)]
struct ClientTerms {
    per_client: usize,
    rate: u32,
    /// Trusted proxies bring many clients from one address, and limit them themselves.
    proxies: Vec<IpNet>,
}

impl ClientTerms {
    fn new(config: &Config) -> Self {
        Self {
            per_client: config.limits.max_connections_per_client,
            rate: config.limits.connection_rate_per_client,
            proxies: config.external.trusted_proxies.clone(),
        }
    }
}

/// Lets a connection be; given back when dropped. It must live as long as the connection does, upgrades included.
#[derive(Debug)]
pub struct Permit {
    guest: Guest,
    _slot: OwnedSemaphorePermit,
}

/// A connection counted against its client's limit.
#[derive(Debug)]
struct Guest {
    client: Option<IpAddr>,
    limits: Arc<Limits>,
}

#[derive(Debug, Default)]
struct Clients {
    known: HashMap<IpAddr, Client>,
    /// How many may be known before those of no account are forgotten.
    room: usize,
}

/// What is remembered of a client.
#[derive(Debug)]
struct Client {
    open: usize,
    /// When, at the steady rate, its next connection is due: the theoretical arrival time of GCRA (ITU-T I.371).
    due: Instant,
}

impl Limits {
    /// No connections yet.
    pub fn new(config: &Config, metrics: Doors) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(config.limits.max_connections.min(Semaphore::MAX_PERMITS))),
            terms: ArcSwap::from_pointee(ClientTerms::new(config)),
            clients: Mutex::new(Clients { known: HashMap::new(), room: ROOM }),
            metrics,
        }
    }

    /// Goes by `config` from now on, as far as single clients are concerned.
    pub fn renew(&self, config: &Config) {
        self.terms.store(Arc::new(ClientTerms::new(config)));
    }

    /// What is counted at the doors.
    pub(super) fn metrics(&self) -> &Doors {
        &self.metrics
    }

    /// Counts a connection from `peer`. At the limit of all connections it waits until one ends; a client's own limit refuses at once.
    ///
    /// A door waits here with one accepted connection in hand rather than with a slot before `accept`, since an idle door would keep
    /// that slot from the others. The clients behind it queue in the kernel's backlog either way.
    pub async fn admit(self: &Arc<Self>, peer: PeerAddr) -> Result<Permit, Refusal> {
        let guest = self.enter(peer).inspect_err(|refusal| self.metrics.refuse(*refusal))?;
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("the semaphore is never closed");
        self.metrics.accepted.inc();
        self.metrics.open.inc();
        Ok(Permit { guest, _slot: slot })
    }

    fn enter(self: &Arc<Self>, peer: PeerAddr) -> Result<Guest, Refusal> {
        let terms = self.terms.load();
        if terms.proxies.iter().any(|proxies| proxies.contains(&peer.ip())) {
            return Ok(Guest { client: None, limits: Arc::clone(self) });
        }
        let client = client(peer.ip());
        self.clients().enter(client, Instant::now(), terms.per_client, terms.rate)?;
        Ok(Guest { client: Some(client), limits: Arc::clone(self) })
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clients {
    fn enter(&mut self, client: IpAddr, now: Instant, per_client: usize, rate: u32) -> Result<(), Refusal> {
        if self.known.len() >= self.room {
            self.known.retain(|_, client| client.matters(now));
            self.room = ROOM.max(2 * self.known.len());
            self.known.shrink_to(self.room);
        }
        let client = self.known.entry(client).or_insert(Client { open: 0, due: now });
        if client.open >= per_client {
            return Err(Refusal::ClientConnections);
        }
        if rate > 0 {
            let apart = Duration::from_secs(1) / rate;
            let due = client.due.max(now);
            // As many as one second's worth may come at once.
            if due - now > apart * (rate - 1) {
                return Err(Refusal::ClientRate);
            }
            client.due = due + apart;
        }
        client.open += 1;
        Ok(())
    }

    fn leave(&mut self, client: IpAddr, now: Instant) {
        if let Some(known) = self.known.get_mut(&client) {
            known.open -= 1;
            if !known.matters(now) {
                self.known.remove(&client);
            }
        }
    }
}

impl Client {
    /// Says whether forgetting it would make a difference.
    fn matters(&self, now: Instant) -> bool {
        self.open > 0 || self.due > now
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(client) = self.client {
            self.limits.clients().leave(client, Instant::now());
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.guest.limits.metrics.open.dec();
    }
}

/// Who counts as one client: an IPv4 address, or an IPv6 /64, all of whose addresses one host can take (RFC 4291 section 2.5.1).
fn client(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(ip: &str) -> PeerAddr {
        PeerAddr::new((ip.parse::<IpAddr>().unwrap(), 5000).into())
    }

    fn limits(change: impl FnOnce(&mut Config)) -> Arc<Limits> {
        let mut config = Config::default();
        change(&mut config);
        Arc::new(Limits::new(&config, Doors::default()))
    }

    #[tokio::test]
    async fn a_client_has_its_limit_and_others_are_not_touched() {
        let limits = limits(|config| config.limits.max_connections_per_client = 1);
        let table = [
            ("172.18.0.3", "172.18.0.3", false),
            ("172.18.0.3", "::ffff:172.18.0.3", false),
            ("172.18.0.3", "172.18.0.4", true),
            ("fd00::1", "fd00::2", false),
            ("fd00::1", "fd00:0:0:1::1", true),
            ("127.0.0.1", "127.0.0.1", false),
        ];
        for (first, second, admitted) in table {
            let held = limits.admit(peer(first)).await.unwrap();
            assert_eq!(limits.admit(peer(second)).await.is_ok(), admitted, "{first} {second}");
            drop(held);
            assert!(limits.admit(peer(second)).await.is_ok(), "{second} once {first} has left");
        }
        assert_eq!(limits.clients().known.len(), 0, "nobody is remembered");
        assert_eq!(limits.metrics.open.get(), 0);
    }

    #[tokio::test]
    async fn a_trusted_proxy_brings_many() {
        let limits = limits(|config| {
            config.limits.max_connections_per_client = 1;
            config.external.trusted_proxies = vec!["172.18.0.9/32".parse().unwrap()];
        });
        let _first = limits.admit(peer("172.18.0.9")).await.unwrap();
        assert!(limits.admit(peer("172.18.0.9")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_comes_too_often_is_refused_until_it_slows_down() {
        let limits = limits(|config| config.limits.connection_rate_per_client = 10);
        for n in 0..10 {
            assert!(limits.admit(peer("172.18.0.3")).await.is_ok(), "connection {n} of the first ten");
        }
        assert_eq!(limits.admit(peer("172.18.0.3")).await.unwrap_err(), Refusal::ClientRate);
        assert!(limits.admit(peer("172.18.0.4")).await.is_ok(), "another client");
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(limits.admit(peer("172.18.0.3")).await.is_ok(), "a tenth of a second later");
        assert_eq!(limits.admit(peer("172.18.0.3")).await.unwrap_err(), Refusal::ClientRate);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_no_longer_matter_are_forgotten() {
        let limits = limits(|config| config.limits.connection_rate_per_client = 1);
        for n in 0..100_000_u32 {
            let ip = IpAddr::V4(n.into());
            drop(limits.admit(PeerAddr::new((ip, 1).into())).await);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let known = limits.clients().known.len();
        assert!(known <= 2 * ROOM, "{known} clients are remembered, of whom 1000 matter");
    }

    #[tokio::test]
    async fn at_the_limit_of_all_a_connection_waits() {
        let limits = limits(|config| config.limits.max_connections = 1);
        let held = limits.admit(peer("172.18.0.3")).await.unwrap();
        let mut waiting = std::pin::pin!(limits.admit(peer("172.18.0.4")));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(held);
        assert!(waiting.await.is_ok());
    }
}
