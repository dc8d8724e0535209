//! Doors on real sockets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::*;
use crate::config::{self, ListenOn};
use crate::discovery::{self, Interface};
use crate::testing::{in_own_process, ip, namespace_maker, skipped};

/// Far longer than anything here takes; nothing waits for it unless it has failed.
const DEADLINE: Duration = Duration::from_secs(20);

/// Who may be an agent.
const AGENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 9));

/// Doors, and who came in by them.
struct House {
    view: watch::Sender<Arc<View>>,
    bound: watch::Receiver<Arc<Vec<SocketAddr>>>,
    came: mpsc::UnboundedReceiver<Accepted>,
    metrics: Doors,
    shutdown: Shutdown,
}

impl House {
    fn open(listen: &[(ListenAddresses, u16)], change: impl FnOnce(&mut Config)) -> Result<Self, Error> {
        let view = watch::Sender::new(Arc::default());
        let mut config = Config::default();
        config.listen.on = listen.iter().map(|(addresses, port)| ListenOn { addresses: addresses.clone(), port: *port }).collect();
        change(&mut config);
        let (arrive, came) = mpsc::unbounded_channel();
        let (metrics, shutdown) = (Doors::default(), Shutdown::new());
        let bound = follow(&config, view.subscribe(), &shutdown, &limits(&config, &metrics), move |accepted| drop(arrive.send(accepted)))?;
        Ok(Self { view, bound, came, metrics, shutdown })
    }

    /// A house with one door on 127.0.0.1, and where it is.
    fn on_loopback(change: impl FnOnce(&mut Config)) -> (Self, SocketAddr) {
        let house = Self::open(&[(exactly("127.0.0.1"), 0)], change).unwrap();
        let door = house.bound.borrow()[0];
        (house, door)
    }

    fn addresses_are_now(&self, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.view.send_replace(Arc::new(View { interfaces: vec![Interface { name: "lo".into(), addresses }], ..View::default() }));
    }

    async fn doors(&mut self, expected: &[&str]) {
        let expected: BTreeSet<IpAddr> = expected.iter().map(|address| address.parse().unwrap()).collect();
        bound_becomes(&mut self.bound, |bound| bound.iter().map(SocketAddr::ip).collect::<BTreeSet<_>>() == expected).await;
    }

    async fn arrival(&mut self) -> Accepted {
        in_time(self.came.recv()).await.expect("the door is kept")
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.shutdown.begin();
    }
}

fn exactly(address: &str) -> ListenAddresses {
    ListenAddresses::Address(address.parse().unwrap())
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

async fn until(condition: impl Fn() -> bool) {
    in_time(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

async fn bound_becomes(bound: &mut watch::Receiver<Arc<Vec<SocketAddr>>>, expected: impl Fn(&[SocketAddr]) -> bool) {
    let reached = tokio::time::timeout(DEADLINE, bound.wait_for(|bound| expected(bound))).await.map(drop);
    assert!(reached.is_ok(), "in the end there are {:?}", *bound.borrow());
}

/// Waits until `door` no longer answers.
async fn is_shut(door: SocketAddr) {
    in_time(async { while TcpStream::connect(door).await.is_ok() {} }).await;
}

/// Waits until the other side has closed `client`.
async fn is_closed(client: &mut TcpStream) {
    // Closed with an end of stream or a reset, whichever comes first.
    assert_eq!(in_time(client.read(&mut [0])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_named_address_tells_its_real_port_and_who_comes() {
    let (mut house, door) = House::on_loopback(|_| {});
    assert_ne!(door.port(), 0);
    let client = TcpStream::connect(door).await.unwrap();
    let accepted = house.arrival().await;
    assert_eq!(accepted.peer, PeerAddr::new(client.local_addr().unwrap()));
    assert_eq!(accepted.local, door);
    assert_eq!(house.metrics.open.get(), 1);
    drop(accepted);
    assert_eq!(house.metrics.open.get(), 0);
    assert_eq!(house.metrics.accepted.get(), 1);
}

#[tokio::test]
async fn a_named_address_that_cannot_be_had_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for address in ["127.0.0.1", "192.0.2.1"] {
        let error = House::open(&[(exactly(address), port)], |_| {}).map(drop).unwrap_err();
        assert_eq!(error.to_string(), format!("binding {address}:{port}"));
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[tokio::test]
async fn the_gateways_own_address_is_refused() {
    let error = House::open(&[(exactly("127.0.0.1"), 18789)], |_| {}).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "listening on 127.0.0.1:18789 would take the gateway's own address 127.0.0.1:18789");
}

#[tokio::test]
async fn doors_follow_the_addresses_in_the_view() {
    let mut house = House::open(&[(ListenAddresses::Network("127.66.0.0/16".parse().unwrap()), 0)], |_| {}).unwrap();
    house.doors(&[]).await;
    house.addresses_are_now(&["127.66.0.1/32", "127.67.0.1/32"]);
    house.doors(&["127.66.0.1"]).await;
    let first = house.bound.borrow()[0];
    let _client = TcpStream::connect(first).await.unwrap();
    let stays = house.arrival().await;
    house.addresses_are_now(&["127.66.0.2/32"]);
    house.doors(&["127.66.0.2"]).await;
    is_shut(first).await;
    assert_eq!(house.metrics.open.get(), 1, "the connection through the old door lives on");
    drop(stays);
}

#[tokio::test]
async fn an_address_that_is_taken_for_now_is_tried_again() {
    let taken = std::net::TcpListener::bind("127.68.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut house = House::open(&[(ListenAddresses::Network("127.68.0.0/16".parse().unwrap()), port)], |_| {}).unwrap();
    house.addresses_are_now(&["127.68.0.1/32", "127.68.0.2/32"]);
    house.doors(&["127.68.0.2"]).await;
    drop(taken);
    house.doors(&["127.68.0.1", "127.68.0.2"]).await;
}

#[tokio::test]
async fn a_client_at_its_limit_is_turned_away_until_it_leaves() {
    let (mut house, door) = House::on_loopback(|config| config.limits.max_connections_per_client = 1);
    let _first = TcpStream::connect(door).await.unwrap();
    let accepted = house.arrival().await;
    let mut second = TcpStream::connect(door).await.unwrap();
    is_closed(&mut second).await;
    let refused = house.metrics.refused.clone();
    let reason = crate::metrics::RefusedLabels { reason: crate::metrics::Refusal::ClientConnections };
    assert_eq!(refused.get_or_create(&reason).get(), 1);
    drop(accepted);
    let _third = TcpStream::connect(door).await.unwrap();
    house.arrival().await;
}

#[tokio::test]
async fn at_the_limit_of_all_clients_wait_their_turn_at_every_door() {
    let doors = [(exactly("127.0.0.1"), 0), (exactly("127.0.0.2"), 0)];
    let mut house = House::open(&doors, |config| config.limits.max_connections = 1).unwrap();
    let bound = house.bound.borrow().clone();
    let mut clients = Vec::new();
    for door in [bound[0], bound[1], bound[0], bound[1]] {
        clients.push(TcpStream::connect(door).await.unwrap());
    }
    for _ in &clients {
        let accepted = house.arrival().await;
        assert_eq!(house.metrics.open.get(), 1);
        assert!(house.came.try_recv().is_err(), "one at a time");
        drop(accepted);
    }
}

#[tokio::test]
async fn an_agent_comes_in_past_a_crowd_that_waits() {
    let (mut house, door) = House::on_loopback(|config| config.limits.max_connections = 16);
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(TcpStream::connect(door).await.unwrap());
    }
    let mut inside = Vec::new();
    for _ in 0..15 {
        inside.push(house.arrival().await);
    }
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((AGENT, 0).into()).unwrap();
    let _agent = socket.connect(door).await.unwrap();
    let agent = house.arrival().await;
    assert_eq!(agent.peer.ip(), AGENT);
    assert!(house.came.try_recv().is_err(), "nobody else comes in");
    drop(inside);
    for _ in 0..15 {
        assert_ne!(house.arrival().await.peer.ip(), AGENT);
    }
}

#[tokio::test]
async fn the_unspecified_address_takes_both_families_and_folds_them() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return eprintln!("SKIPPED: no IPv6 here");
    }
    let mut house = House::open(&[(exactly("::"), 0)], |_| {}).unwrap();
    let port = house.bound.borrow()[0].port();
    for address in ["127.0.0.1", "::1"] {
        let ip: IpAddr = address.parse().unwrap();
        let _client = TcpStream::connect((ip, port)).await.unwrap();
        let accepted = house.arrival().await;
        assert_eq!((accepted.peer.ip(), accepted.local.ip()), (ip, ip));
    }
}

#[tokio::test]
async fn at_the_end_the_doors_close() {
    let (mut house, door) = House::on_loopback(|_| {});
    house.shutdown.begin();
    house.doors(&[]).await;
    assert_eq!(house.shutdown.finished(DEADLINE).await, 0);
    is_shut(door).await;
}

#[test]
fn at_the_file_descriptor_limit_a_door_waits_and_recovers() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    // The limit is the whole process's, so the story has one of its own.
    in_own_process(&[], "listener::stories::at_the_file_descriptor_limit_a_door_waits_and_recovers", async || {
        let (mut house, door) = House::on_loopback(|_| {});
        let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        let hogs: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        client.connect(&door.into()).unwrap();
        let failures = house.metrics.accept_failures.clone();
        until(|| failures.get() > 1).await;
        drop(hogs);
        house.arrival().await;
    });
}

#[test]
fn in_a_real_namespace_addresses_that_come_and_go_open_and_close_doors() {
    let Some(unshare) = namespace_maker() else { return skipped("no network namespace may be made here") };
    in_own_process(unshare, "listener::stories::in_a_real_namespace_addresses_that_come_and_go_open_and_close_doors", async || {
        let shutdown = Shutdown::new();
        let mut config = Config::default();
        config.docker.engine = config::Engine::Off;
        let view = discovery::start(&config, &crate::metrics::Discovery::default(), &shutdown);
        let (arrive, mut came) = mpsc::unbounded_channel();
        let serve = move |accepted: Accepted| arrive.send(accepted.local).unwrap_or_default();
        let mut bound = follow(&config, view, &shutdown, &limits(&config, &Doors::default()), serve).unwrap();
        assert!(bound.borrow().is_empty(), "a namespace with loopback alone has no door");

        ip("link add left type veth peer name right");
        ip("address add 10.9.0.5/24 dev left");
        ip("link set left up");
        let v4: SocketAddr = "10.9.0.5:18789".parse().unwrap();
        bound_becomes(&mut bound, |bound| bound == [v4]).await;
        let _client = TcpStream::connect(v4).await.unwrap();
        assert_eq!(in_time(came.recv()).await, Some(v4));

        if std::path::Path::new("/proc/sys/net/ipv6/conf/left").exists() {
            ip("address add fd09::5/64 dev left");
            // With its far end up the link has a carrier, and duplicate address detection ends a second later.
            ip("link set right up");
            let v6: SocketAddr = "[fd09::5]:18789".parse().unwrap();
            bound_becomes(&mut bound, |bound| bound == [v4, v6]).await;
        }

        ip("address add 10.9.0.6/24 dev left");
        bound_becomes(&mut bound, |bound| bound.len() >= 2 && bound[1] == "10.9.0.6:18789".parse().unwrap()).await;
        ip("address delete 10.9.0.6/24 dev left");
        bound_becomes(&mut bound, |bound| !bound.contains(&"10.9.0.6:18789".parse().unwrap())).await;
        assert!(TcpStream::connect(v4).await.is_ok(), "the others are not touched");

        ip("link delete left");
        bound_becomes(&mut bound, <[SocketAddr]>::is_empty).await;
        shutdown.begin();
        assert_eq!(shutdown.finished(DEADLINE).await, 0);
    });
}

fn limits(config: &Config, metrics: &Doors) -> Arc<Limits> {
    Arc::new(Limits::new(config, metrics.clone(), |peer| peer == AGENT))
}
