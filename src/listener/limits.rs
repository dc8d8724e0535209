//! How many connections there may be: all together, from one client at once, and from one client a second.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::{BoxFuture, FutureExt};
use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::addr::PeerAddr;
use crate::config::Config;
use crate::metrics::{Doors, Refusal};

/// How many clients are remembered before those that no longer matter are first looked for.
const ROOM: usize = 1024;
/// Of so many places one is kept for agents, so that a crowd outside does not shut them out.
const KEPT: usize = 16;
/// How many clients may wait for a place, and how many agents besides. They are accepted already: what stays in the kernel's queue can't be
/// told apart, and agents would have to wait behind it.
pub const WAITING: usize = 256;

/// The limits, and who is counted against them. Every door shares one.
pub struct Limits {
    /// Places that anybody may take.
    places: Arc<Semaphore>,
    /// Those that agents may take besides.
    kept: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    agents_waiting: Arc<Semaphore>,
    may_be_agents: Box<dyn Fn(IpAddr) -> bool + Send + Sync>,
    terms: ArcSwap<ClientTerms>,
    clients: Mutex<Clients>,
    metrics: Doors,
}

/// What comes of a connection that no limit of its client's is against.
pub(super) enum Admission {
    /// There is a place for it.
    Now(Permit),
    /// It has to wait for one.
    Later(BoxFuture<'static, Permit>),
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits").field("places", &self.places).field("kept", &self.kept).finish_non_exhaustive()
    }
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
    _place: OwnedSemaphorePermit,
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
    /// No connections yet. `may_be_agents` tells whether one from an address may turn out to be an agent's.
    pub fn new(config: &Config, metrics: Doors, may_be_agents: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        let places = config.limits.max_connections.min(Semaphore::MAX_PERMITS);
        let kept = places / KEPT;
        Self {
            places: Arc::new(Semaphore::new(places - kept)),
            kept: Arc::new(Semaphore::new(kept)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            agents_waiting: Arc::new(Semaphore::new(WAITING)),
            may_be_agents: Box::new(may_be_agents),
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

    /// Counts a connection from `peer`.
    ///
    /// # Errors
    /// A limit of its client's is against it, or too many wait for a place already.
    pub(super) fn admit(self: &Arc<Self>, peer: PeerAddr) -> Result<Admission, Refusal> {
        self.place(peer).inspect_err(|refusal| self.metrics.refuse(*refusal))
    }

    fn place(self: &Arc<Self>, peer: PeerAddr) -> Result<Admission, Refusal> {
        let guest = self.enter(peer)?;
        let places = Arc::clone(&self.places);
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            return Ok(Admission::Now(self.permit(guest, place)));
        }
        let kept = (self.may_be_agents)(peer.ip()).then(|| Arc::clone(&self.kept));
        if let Some(Ok(place)) = kept.clone().map(Semaphore::try_acquire_owned) {
            return Ok(Admission::Now(self.permit(guest, place)));
        }
        let room = if kept.is_some() { &self.agents_waiting } else { &self.waiting };
        let waiting = Arc::clone(room).try_acquire_owned().map_err(|_| Refusal::Full)?;
        let limits = Arc::clone(self);
        let later = async move {
            let place = match kept {
                None => places.acquire_owned().await,
                Some(kept) => tokio::select! {
                    place = places.acquire_owned() => place,
                    place = kept.acquire_owned() => place,
                },
            };
            drop(waiting);
            limits.permit(guest, place.expect("the semaphores are never closed"))
        };
        Ok(Admission::Later(later.boxed()))
    }

    fn permit(&self, guest: Guest, place: OwnedSemaphorePermit) -> Permit {
        self.metrics.accepted.inc();
        self.metrics.open.inc();
        Permit { guest, _place: place }
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
    use std::net::Ipv4Addr;

    use futures_util::poll;

    use super::*;

    const AGENT: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 18, 0, 9));

    fn peer(ip: &str) -> PeerAddr {
        PeerAddr::new((ip.parse::<IpAddr>().unwrap(), 5000).into())
    }

    fn limits(change: impl FnOnce(&mut Config)) -> Arc<Limits> {
        let mut config = Config::default();
        change(&mut config);
        Arc::new(Limits::new(&config, Doors::default(), |peer| peer == AGENT))
    }

    /// In at once.
    fn now(limits: &Arc<Limits>, ip: &str) -> Result<Permit, Refusal> {
        match limits.admit(peer(ip))? {
            Admission::Now(permit) => Ok(permit),
            Admission::Later(_) => panic!("{ip} has to wait"),
        }
    }

    /// In once there is a place.
    fn later(limits: &Arc<Limits>, ip: &str) -> BoxFuture<'static, Permit> {
        match limits.admit(peer(ip)).unwrap() {
            Admission::Now(_) => panic!("{ip} does not have to wait"),
            Admission::Later(place) => place,
        }
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
            let held = now(&limits, first).unwrap();
            assert_eq!(now(&limits, second).is_ok(), admitted, "{first} {second}");
            drop(held);
            assert!(now(&limits, second).is_ok(), "{second} once {first} has left");
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
        let _first = now(&limits, "172.18.0.9").unwrap();
        assert!(now(&limits, "172.18.0.9").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_comes_too_often_is_refused_until_it_slows_down() {
        let limits = limits(|config| config.limits.connection_rate_per_client = 10);
        for n in 0..10 {
            assert!(now(&limits, "172.18.0.3").is_ok(), "connection {n} of the first ten");
        }
        assert_eq!(now(&limits, "172.18.0.3").unwrap_err(), Refusal::ClientRate);
        assert!(now(&limits, "172.18.0.4").is_ok(), "another client");
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(now(&limits, "172.18.0.3").is_ok(), "a tenth of a second later");
        assert_eq!(now(&limits, "172.18.0.3").unwrap_err(), Refusal::ClientRate);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_no_longer_matter_are_forgotten() {
        let limits = limits(|config| config.limits.connection_rate_per_client = 1);
        for n in 0..100_000_u32 {
            let ip = IpAddr::V4(n.into());
            drop(limits.admit(PeerAddr::new((ip, 1).into())));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let known = limits.clients().known.len();
        assert!(known <= 2 * ROOM, "{known} clients are remembered, of whom 1000 matter");
    }

    #[tokio::test]
    async fn at_the_limit_of_all_a_connection_waits() {
        let limits = limits(|config| config.limits.max_connections = 1);
        let held = now(&limits, "172.18.0.3").unwrap();
        let mut waiting = later(&limits, "172.18.0.4");
        assert!(poll!(&mut waiting).is_pending());
        drop(held);
        drop(waiting.await);
        assert_eq!(limits.metrics.open.get(), 0);
    }

    #[tokio::test]
    async fn places_are_kept_for_agents() {
        let limits = limits(|config| config.limits.max_connections = 32);
        let mut crowd: Vec<Permit> = (0..30).map(|_| now(&limits, "203.0.113.7").unwrap()).collect();
        let mut outsider = later(&limits, "203.0.113.7");
        assert!(poll!(&mut outsider).is_pending());
        let agents = [now(&limits, "172.18.0.9").unwrap(), now(&limits, "172.18.0.9").unwrap()];
        let mut agent = later(&limits, "172.18.0.9");
        assert!(poll!(&mut agent).is_pending());
        drop(agents);
        assert!(poll!(&mut outsider).is_pending(), "what agents leave is for agents");
        drop(agent.await);
        crowd.pop();
        drop(outsider.await);
        drop(crowd);
        assert_eq!((limits.places.available_permits(), limits.kept.available_permits()), (30, 2));
    }

    #[tokio::test]
    async fn so_many_may_wait_and_no_more() {
        let limits = limits(|config| config.limits.max_connections = 1);
        let _held = now(&limits, "172.18.0.3").unwrap();
        let mut waiting: Vec<_> = (0..WAITING).map(|_| later(&limits, "172.18.0.4")).collect();
        assert_eq!(now(&limits, "172.18.0.5").unwrap_err(), Refusal::Full);
        drop(later(&limits, "172.18.0.9"));
        // Who has gone does not wait.
        waiting.pop();
        drop(later(&limits, "172.18.0.5"));
        drop(waiting);
        assert_eq!(limits.clients().known.len(), 1, "only the one who came in is remembered");
    }
}
