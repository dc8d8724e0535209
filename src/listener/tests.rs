//! Listeners on real sockets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::addr::PeerAddr;
use crate::config::{self, Config, ListenAddresses, ListenOn};
use crate::discovery::{self, Interface, View};
use crate::metrics::ListenerMetrics;
use crate::shutdown::Shutdown;
use crate::testing::{new_namespace_command, report_skipped, run_in_own_process, run_ip};

/// The time after which a test fails. A test that passes takes much less.
const DEADLINE: Duration = Duration::from_secs(20);

/// The one address that may be an agent's.
const AGENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 9));

/// Listeners, and the connections that they accepted.
struct Harness {
    view: watch::Sender<Arc<View>>,
    bound: watch::Receiver<Arc<Vec<ListenerAddress>>>,
    accepted: mpsc::UnboundedReceiver<Accepted>,
    metrics: ListenerMetrics,
    shutdown: Shutdown,
}

impl Harness {
    fn open(listen: &[(ListenAddresses, u16)], change: impl FnOnce(&mut Config)) -> Result<Self, Error> {
        let view = watch::Sender::new(Arc::default());
        let mut config = Config::default();
        config.listen.on =
            listen.iter().map(|(addresses, port)| ListenOn { addresses: addresses.clone(), port: *port }).collect();
        change(&mut config);
        let (sender, accepted) = mpsc::unbounded_channel();
        let (metrics, shutdown) = (ListenerMetrics::default(), Shutdown::new());
        let bound = start(&config, view.subscribe(), &shutdown, &limits(&config, &metrics), move |connection| {
            drop(sender.send(connection))
        })?;
        Ok(Self { view, bound, accepted, metrics, shutdown })
    }

    /// Opens one listener on 127.0.0.1; returns its address too.
    fn on_loopback(change: impl FnOnce(&mut Config)) -> (Self, SocketAddr) {
        let harness = Self::open(&[(exact_address("127.0.0.1"), 0)], change).unwrap();
        let address = harness.bound.borrow()[0].address;
        (harness, address)
    }

    fn set_addresses(&self, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.view.send_replace(Arc::new(View {
            interfaces: vec![Interface { name: "lo".into(), addresses }],
            ..View::default()
        }));
    }

    async fn wait_until_listening_on(&mut self, expected: &[&str]) {
        let expected: BTreeSet<IpAddr> = expected.iter().map(|address| address.parse().unwrap()).collect();
        wait_until_bound(&mut self.bound, |bound| {
            bound.iter().map(|bound| bound.address.ip()).collect::<BTreeSet<_>>() == expected
        })
        .await;
    }

    async fn next_accepted(&mut self) -> Accepted {
        in_time(self.accepted.recv()).await.expect("the listener is open")
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.shutdown.begin();
    }
}

fn tls_listener(address: SocketAddr) -> ListenerAddress {
    ListenerAddress { address, kind: ListenerKind::Tls }
}

fn exact_address(address: &str) -> ListenAddresses {
    ListenAddresses::Address(address.parse().unwrap())
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the deadline has passed")
}

async fn wait_until(condition: impl Fn() -> bool) {
    in_time(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

async fn wait_until_bound(
    bound: &mut watch::Receiver<Arc<Vec<ListenerAddress>>>,
    expected: impl Fn(&[ListenerAddress]) -> bool,
) {
    let reached = tokio::time::timeout(DEADLINE, bound.wait_for(|bound| expected(bound))).await.map(drop);
    assert!(reached.is_ok(), "the listeners are {:?}", *bound.borrow());
}

/// Waits until `address` refuses connections.
async fn wait_until_listener_closes(address: SocketAddr) {
    in_time(async { while TcpStream::connect(address).await.is_ok() {} }).await;
}

/// Waits until the other side has closed `client`.
async fn wait_until_closed(client: &mut TcpStream) {
    // The other side closes with an end of stream or a reset.
    assert_eq!(in_time(client.read(&mut [0])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn an_exact_address_is_bound_and_its_real_port_reported() {
    let (mut harness, address) = Harness::on_loopback(|_| {});
    assert_ne!(address.port(), 0);
    let client = TcpStream::connect(address).await.unwrap();
    let accepted = harness.next_accepted().await;
    assert_eq!(accepted.peer, PeerAddr::new(client.local_addr().unwrap()));
    assert_eq!(accepted.local, address);
    assert_eq!(harness.metrics.connections_open.get(), 1);
    drop(accepted);
    assert_eq!(harness.metrics.connections_open.get(), 0);
    assert_eq!(harness.metrics.connections_accepted.get(), 1);
}

#[tokio::test]
async fn an_exact_address_that_cannot_be_bound_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for address in ["127.0.0.1", "192.0.2.1"] {
        let error = Harness::open(&[(exact_address(address), port)], |_| {}).map(drop).unwrap_err();
        assert_eq!(error.to_string(), format!("can't listen on {address}:{port} (listen.on)"));
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[tokio::test]
async fn the_gateways_own_address_is_refused() {
    let error = Harness::open(&[(exact_address("127.0.0.1"), 18789)], |_| {}).map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "can't listen on 127.0.0.1:18789 (listen.on): it would take the gateway's own address 127.0.0.1:18789"
    );
}

#[tokio::test]
async fn listeners_follow_the_addresses_in_the_view() {
    let mut harness =
        Harness::open(&[(ListenAddresses::Network("127.66.0.0/16".parse().unwrap()), 0)], |_| {}).unwrap();
    harness.wait_until_listening_on(&[]).await;
    harness.set_addresses(&["127.66.0.1/32", "127.67.0.1/32"]);
    harness.wait_until_listening_on(&["127.66.0.1"]).await;
    let first = harness.bound.borrow()[0].address;
    let _client = TcpStream::connect(first).await.unwrap();
    let stays = harness.next_accepted().await;
    harness.set_addresses(&["127.66.0.2/32"]);
    harness.wait_until_listening_on(&["127.66.0.2"]).await;
    wait_until_listener_closes(first).await;
    assert_eq!(harness.metrics.connections_open.get(), 1, "a connection outlives its listener");
    drop(stays);
}

#[tokio::test]
async fn an_address_in_use_is_tried_again() {
    let taken = std::net::TcpListener::bind("127.68.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut harness =
        Harness::open(&[(ListenAddresses::Network("127.68.0.0/16".parse().unwrap()), port)], |_| {}).unwrap();
    harness.set_addresses(&["127.68.0.1/32", "127.68.0.2/32"]);
    harness.wait_until_listening_on(&["127.68.0.2"]).await;
    drop(taken);
    harness.wait_until_listening_on(&["127.68.0.1", "127.68.0.2"]).await;
}

#[tokio::test]
async fn a_client_at_its_limit_is_refused_until_a_connection_ends() {
    let (mut harness, address) = Harness::on_loopback(|config| config.limits.max_connections_per_client = 1);
    let _first = TcpStream::connect(address).await.unwrap();
    let accepted = harness.next_accepted().await;
    let mut second = TcpStream::connect(address).await.unwrap();
    wait_until_closed(&mut second).await;
    let refused = harness.metrics.connections_refused.clone();
    let reason = crate::metrics::RefusedLabels { reason: crate::metrics::AcceptRefusal::ClientConnections };
    assert_eq!(refused.get_or_create(&reason).get(), 1);
    drop(accepted);
    let _third = TcpStream::connect(address).await.unwrap();
    harness.next_accepted().await;
}

#[tokio::test]
async fn at_the_total_limit_connections_of_every_listener_wait() {
    let listen = [(exact_address("127.0.0.1"), 0), (exact_address("127.0.0.2"), 0)];
    let mut harness = Harness::open(&listen, |config| config.limits.max_connections = 1).unwrap();
    let bound = harness.bound.borrow().clone();
    let mut clients = Vec::new();
    for address in [bound[0], bound[1], bound[0], bound[1]].map(|bound| bound.address) {
        clients.push(TcpStream::connect(address).await.unwrap());
    }
    for _ in &clients {
        let accepted = harness.next_accepted().await;
        assert_eq!(harness.metrics.connections_open.get(), 1);
        assert!(harness.accepted.try_recv().is_err(), "only one connection is served at a time");
        drop(accepted);
    }
}

#[tokio::test]
async fn an_agent_is_admitted_before_others_that_wait() {
    let (mut harness, address) = Harness::on_loopback(|config| config.limits.max_connections = 16);
    let mut others = Vec::new();
    for _ in 0..40 {
        others.push(TcpStream::connect(address).await.unwrap());
    }
    let mut admitted = Vec::new();
    for _ in 0..15 {
        admitted.push(harness.next_accepted().await);
    }
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((AGENT, 0).into()).unwrap();
    let _agent = socket.connect(address).await.unwrap();
    let agent = harness.next_accepted().await;
    assert_eq!(agent.peer.ip(), AGENT);
    assert!(harness.accepted.try_recv().is_err(), "no other connection is admitted");
    drop(admitted);
    for _ in 0..15 {
        assert_ne!(harness.next_accepted().await.peer.ip(), AGENT);
    }
}

#[tokio::test]
async fn the_unspecified_address_takes_both_families_and_reports_ipv4_as_ipv4() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return eprintln!("SKIPPED: no IPv6 here");
    }
    let mut harness = Harness::open(&[(exact_address("::"), 0)], |_| {}).unwrap();
    let port = harness.bound.borrow()[0].address.port();
    for address in ["127.0.0.1", "::1"] {
        let ip: IpAddr = address.parse().unwrap();
        let _client = TcpStream::connect((ip, port)).await.unwrap();
        let accepted = harness.next_accepted().await;
        assert_eq!((accepted.peer.ip(), accepted.local.ip()), (ip, ip));
    }
}

#[tokio::test]
async fn at_shutdown_the_listeners_close() {
    let (mut harness, address) = Harness::on_loopback(|_| {});
    harness.shutdown.begin();
    harness.wait_until_listening_on(&[]).await;
    assert_eq!(harness.shutdown.wait_for_tasks(DEADLINE).await, 0);
    wait_until_listener_closes(address).await;
}

#[test]
fn at_the_file_descriptor_limit_a_listener_waits_and_recovers() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    // The limit applies to the whole process, so the test runs in a process of its own.
    run_in_own_process(
        &[],
        "listener::tests::at_the_file_descriptor_limit_a_listener_waits_and_recovers",
        async || {
            let (mut harness, address) = Harness::on_loopback(|_| {});
            let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
            let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
            client.connect(&address.into()).unwrap();
            let failures = harness.metrics.accept_failures.clone();
            wait_until(|| failures.get() > 1).await;
            drop(files);
            harness.next_accepted().await;
        },
    );
}

#[test]
fn in_a_real_namespace_listeners_follow_addresses_that_come_and_go() {
    let Some(unshare) = new_namespace_command() else { return report_skipped("no network namespace may be made here") };
    run_in_own_process(
        unshare,
        "listener::tests::in_a_real_namespace_listeners_follow_addresses_that_come_and_go",
        async || {
            let shutdown = Shutdown::new();
            let mut config = Config::default();
            config.docker.engine = config::Engine::Off;
            let view = discovery::start(&config, None, &crate::metrics::DiscoveryMetrics::default(), &shutdown);
            let (sender, mut accepted) = mpsc::unbounded_channel();
            let serve = move |accepted: Accepted| sender.send(accepted.local).unwrap_or_default();
            let mut bound =
                start(&config, view, &shutdown, &limits(&config, &ListenerMetrics::default()), serve).unwrap();
            assert!(bound.borrow().is_empty(), "a namespace with only loopback has no listener");

            run_ip("link add left type veth peer name right");
            run_ip("address add 10.9.0.5/24 dev left");
            run_ip("link set left up");
            let v4: SocketAddr = "10.9.0.5:18443".parse().unwrap();
            wait_until_bound(&mut bound, |bound| bound == [tls_listener(v4)]).await;
            let _client = TcpStream::connect(v4).await.unwrap();
            assert_eq!(in_time(accepted.recv()).await, Some(v4));

            if std::path::Path::new("/proc/sys/net/ipv6/conf/left").exists() {
                run_ip("address add fd09::5/64 dev left");
                // With its other end up the link has a carrier, and duplicate address detection
                // ends a second later.
                run_ip("link set right up");
                let v6: SocketAddr = "[fd09::5]:18443".parse().unwrap();
                wait_until_bound(&mut bound, |bound| bound == [tls_listener(v4), tls_listener(v6)]).await;
            }

            run_ip("address add 10.9.0.6/24 dev left");
            wait_until_bound(&mut bound, |bound| {
                bound.len() >= 2 && bound[1] == tls_listener("10.9.0.6:18443".parse().unwrap())
            })
            .await;
            run_ip("address delete 10.9.0.6/24 dev left");
            wait_until_bound(&mut bound, |bound| !bound.contains(&tls_listener("10.9.0.6:18443".parse().unwrap())))
                .await;
            assert!(TcpStream::connect(v4).await.is_ok(), "the other listeners stay open");

            run_ip("link delete left");
            wait_until_bound(&mut bound, <[ListenerAddress]>::is_empty).await;
            shutdown.begin();
            assert_eq!(shutdown.wait_for_tasks(DEADLINE).await, 0);
        },
    );
}

fn limits(config: &Config, metrics: &ListenerMetrics) -> Arc<ConnectionLimits> {
    Arc::new(ConnectionLimits::new(config, MAX_WAITING, metrics.clone(), |peer| peer == AGENT))
}
