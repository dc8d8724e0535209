//! Tests with connections at the limits.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::poll;

use super::*;

const AGENT: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 18, 0, 9));

fn peer(ip: &str) -> PeerAddr {
    PeerAddr::new((ip.parse::<IpAddr>().unwrap(), 5000).into())
}

fn limits(change: impl FnOnce(&mut Config)) -> Arc<ConnectionLimits> {
    let mut config = Config::default();
    change(&mut config);
    Arc::new(ConnectionLimits::new(&config, MAX_WAITING, ListenerMetrics::default(), |peer| peer == AGENT))
}

/// Returns the permit of a connection that gets one at once.
fn take_now(limits: &Arc<ConnectionLimits>, ip: &str) -> Result<ConnectionPermit, AcceptRefusal> {
    match limits.take_permit(peer(ip))? {
        PermitGrant::Now(permit) => Ok(permit),
        PermitGrant::Later(_) => panic!("{ip} has to wait"),
    }
}

/// Returns the future permit of a connection that has to wait.
fn take_later(limits: &Arc<ConnectionLimits>, ip: &str) -> BoxFuture<'static, ConnectionPermit> {
    match limits.take_permit(peer(ip)).unwrap() {
        PermitGrant::Now(_) => panic!("{ip} does not have to wait"),
        PermitGrant::Later(permit) => permit,
    }
}

#[tokio::test]
async fn a_client_at_its_limit_does_not_affect_others() {
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
        let held = take_now(&limits, first).unwrap();
        assert_eq!(take_now(&limits, second).is_ok(), admitted, "{first} {second}");
        drop(held);
        assert!(take_now(&limits, second).is_ok(), "{second} once {first} has left");
    }
    assert_eq!(limits.lock_clients().clients.len(), 0, "no client is remembered");
    assert_eq!(limits.metrics.connections_open.get(), 0);
}

#[tokio::test]
async fn a_trusted_proxy_is_exempt() {
    let limits = limits(|config| {
        config.limits.max_connections_per_client = 1;
        config.external.trusted_proxies = vec!["172.18.0.9/32".parse().unwrap()];
    });
    let _first = take_now(&limits, "172.18.0.9").unwrap();
    assert!(take_now(&limits, "172.18.0.9").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_client_above_its_rate_is_refused_until_it_slows_down() {
    let limits = limits(|config| config.limits.connection_rate_per_client = 10);
    for n in 0..10 {
        assert!(take_now(&limits, "172.18.0.3").is_ok(), "connection {n} of the first ten");
    }
    assert_eq!(take_now(&limits, "172.18.0.3").unwrap_err(), AcceptRefusal::ClientRate);
    assert!(take_now(&limits, "172.18.0.4").is_ok(), "another client is not affected");
    tokio::time::advance(Duration::from_millis(100)).await;
    assert!(take_now(&limits, "172.18.0.3").is_ok(), "a tenth of a second later the rate allows one more");
    assert_eq!(take_now(&limits, "172.18.0.3").unwrap_err(), AcceptRefusal::ClientRate);
}

#[tokio::test(start_paused = true)]
async fn idle_clients_are_forgotten() {
    let limits = limits(|config| config.limits.connection_rate_per_client = 1);
    for n in 0..100_000_u32 {
        let ip = IpAddr::V4(n.into());
        drop(limits.take_permit(PeerAddr::new((ip, 1).into())));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    let known = limits.lock_clients().clients.len();
    assert!(known <= 2 * MIN_TABLE, "{known} clients are remembered, though only 1000 are not idle");
}

#[tokio::test]
async fn at_the_total_limit_a_connection_waits() {
    let limits = limits(|config| config.limits.max_connections = 1);
    let held = take_now(&limits, "172.18.0.3").unwrap();
    let mut waiting = take_later(&limits, "172.18.0.4");
    assert!(poll!(&mut waiting).is_pending());
    drop(held);
    drop(waiting.await);
    assert_eq!(limits.metrics.connections_open.get(), 0);
}

#[tokio::test]
async fn permits_are_reserved_for_agents() {
    let limits = limits(|config| config.limits.max_connections = 32);
    let mut others: Vec<ConnectionPermit> = (0..30).map(|_| take_now(&limits, "203.0.113.7").unwrap()).collect();
    let mut outsider = take_later(&limits, "203.0.113.7");
    assert!(poll!(&mut outsider).is_pending());
    let agents = [take_now(&limits, "172.18.0.9").unwrap(), take_now(&limits, "172.18.0.9").unwrap()];
    let mut agent = take_later(&limits, "172.18.0.9");
    assert!(poll!(&mut agent).is_pending());
    drop(agents);
    assert!(poll!(&mut outsider).is_pending(), "a reserved permit goes to an agent");
    drop(agent.await);
    others.pop();
    drop(outsider.await);
    drop(others);
    assert_eq!((limits.shared_permits.available_permits(), limits.reserved_permits.available_permits()), (30, 2));
}

#[tokio::test]
async fn the_number_of_waiting_connections_is_limited() {
    let limits = limits(|config| config.limits.max_connections = 1);
    let _held = take_now(&limits, "172.18.0.3").unwrap();
    let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| take_later(&limits, "172.18.0.4")).collect();
    assert_eq!(take_now(&limits, "172.18.0.5").unwrap_err(), AcceptRefusal::Full);
    // An agent has a queue of its own.
    drop(take_later(&limits, "172.18.0.9"));
    // A connection that was dropped no longer counts as waiting.
    waiting.pop();
    drop(take_later(&limits, "172.18.0.5"));
    drop(waiting);
    assert_eq!(limits.lock_clients().clients.len(), 1, "only the client with a permit is remembered");
}
