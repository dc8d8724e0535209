//! Which connections are accepted: the address lists, the limits, the PROXY protocol, and a process
//! that runs out of file descriptors.

use std::time::Duration;

use loopgate::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{
    AGENT, Harness, OUTSIDER, PROTOCOLS, Protocol, TRUSTED_PROXY, UNKNOWN_CLIENT, request_text, start_process,
};
use crate::lanes::assert_external;
use loopgate_test_support::raw_http::RawHttp;
use loopgate_test_support::sidecar::Launch;

const SOON: Duration = Duration::from_secs(10);
/// Another client than [`OUTSIDER`].
const OTHER: &str = "127.0.0.4";

/// Fails unless the connection is closed without a response.
async fn assert_closed(mut stream: TcpStream, name: &str) {
    let mut received = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut received)).await.unwrap_or_else(|_| panic!("{name}: still open"));
    assert!(received.is_empty(), "{name}: {received:?}");
}

fn net(address: &str) -> ipnet::IpNet {
    format!("{address}/32").parse().unwrap()
}

#[tokio::test]
async fn denied_clients_are_closed_before_the_handshake() {
    let deny: fn(&mut Config) = |config| config.external.deny = vec![net(OUTSIDER)];
    let allow: fn(&mut Config) = |config| config.external.allow = vec![net(OTHER)];
    let both: fn(&mut Config) = |config| {
        config.external.deny = vec![net(OUTSIDER)];
        config.external.allow = vec![net(OUTSIDER), net(OTHER)];
    };
    for (name, change) in [("deny", deny), ("allow", allow), ("deny beats allow", both)] {
        let harness = Harness::start_with(change).await;
        assert_closed(harness.connect_tcp(OUTSIDER).await, name).await;
        for protocol in PROTOCOLS {
            assert_eq!(harness.send_request(protocol, OTHER, "GET /", &[]).await.0, 200, "{name}");
            assert_eq!(
                harness.send_request(protocol, AGENT, "GET /", &[]).await.0,
                200,
                "{name}: the lists apply to external clients only"
            );
        }
    }
}

#[tokio::test]
async fn a_plain_http_client_gets_a_response_that_names_https() {
    let harness = Harness::start_with(|_| {}).await;
    for client in [OUTSIDER, AGENT] {
        let mut client = RawHttp::new(harness.connect_tcp(client).await);
        client.send(request_text("POST /", "Content-Length: 100000\r\n") + &"x".repeat(100_000)).await.unwrap();
        let answer = client.read_response().await.unwrap();
        assert_eq!((answer.status(), answer.field("connection")), (400, Some("close")));
        assert!(answer.text().contains("https://"), "{}", answer.text());
        assert!(client.read_rest().await.is_empty());
    }
    assert_eq!(harness.gateway.connections(), 0, "the gateway receives nothing");
}

#[tokio::test]
async fn unfinished_handshakes_time_out_and_use_no_memory() {
    let sidecar = start_process(&["--handshake-timeout=1s"], "").await;
    assert_eq!(sidecar.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
    let before = sidecar.process().memory();
    // A ClientHello with a large length, which arrives byte by byte.
    let hello = [&[22, 3, 1, 0x3f, 0, 1, 0, 0x3e, 0xfc, 3, 3][..], &[7; 200]].concat();
    let unfinished = (0..300).map(|number| {
        let (sidecar, hello) = (&sidecar, &hello);
        async move {
            let begun = tokio::time::Instant::now();
            let mut stream = sidecar.connect_tcp(OTHER).await;
            for byte in hello.iter().take(if number % 2 == 0 { 0 } else { 200 }) {
                if stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let mut received = Vec::new();
            let _ = timeout(SOON, stream.read_to_end(&mut received)).await.expect("the connection is closed");
            begun.elapsed()
        }
    });
    let another_client = async {
        for protocol in PROTOCOLS.iter().cycle().take(20) {
            assert_eq!(sidecar.send_request(*protocol, OUTSIDER, "GET /", &[]).await.0, 200);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (durations, ()) = tokio::join!(futures_util::future::join_all(unfinished), another_client);
    assert!(durations.iter().all(|duration| (Duration::from_millis(900)..SOON).contains(duration)), "{durations:?}");
    let grown = sidecar.process().memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
}

#[tokio::test]
async fn the_lists_apply_to_clients_that_a_proxy_names() {
    let harness = Harness::start_with(|config| config.external.deny = vec!["203.0.113.0/24".parse().unwrap()]).await;
    for protocol in PROTOCOLS {
        assert_eq!(
            harness.send_request(protocol, TRUSTED_PROXY, "GET /", &[("x-forwarded-for", "203.0.113.5")]).await.0,
            403
        );
        assert_eq!(
            harness.send_request(protocol, TRUSTED_PROXY, "GET /", &[("x-forwarded-for", "198.51.100.5")]).await.0,
            200
        );
    }
    assert_eq!(harness.gateway.requests().len(), 2);
}

/// Waits until a connection of [`OUTSIDER`] is accepted: only an attempt shows whether the slot of
/// a closed connection is free again.
async fn wait_for_free_slot(harness: &Harness) {
    let accepted = async {
        while harness.handshake(harness.connect_tcp(OUTSIDER).await, "http/1.1").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, accepted).await.expect("the slot becomes free");
}

#[tokio::test]
async fn connections_per_client_are_limited() {
    let harness = Harness::start_with(|config| config.limits.max_connections_per_client = 2).await;
    let mut first = harness.connect_h1(OUTSIDER).await;
    let second = harness.connect_h2(OUTSIDER).await;
    assert_closed(harness.connect_tcp(OUTSIDER).await, "the third").await;
    assert_eq!(harness.send_request(Protocol::H1, OTHER, "GET /", &[]).await.0, 200);
    assert_eq!(first.send_request(request_text("GET /", "Connection: close\r\n")).await.status(), 200);
    assert!(first.read_rest().await.is_empty());
    drop(first);
    wait_for_free_slot(&harness).await;
    drop(second);
}

#[tokio::test]
async fn an_enrolment_counts_as_a_connection_until_it_ends() {
    let harness = Harness::start_with(|config| config.limits.max_connections_per_client = 1).await;
    let alpn = std::str::from_utf8(loopgate::enrolment_protocol::ALPN).unwrap();
    // For some seconds the sidecar waits for an agent to be discovered at this address.
    let mut enrolment = harness.handshake(harness.connect_tcp(OUTSIDER).await, alpn).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let second = harness.handshake(harness.connect_tcp(OUTSIDER).await, "http/1.1").await;
    assert!(second.is_err(), "a second connection was accepted during the enrolment");
    let mut refusal = String::new();
    timeout(SOON, enrolment.read_to_string(&mut refusal)).await.expect("the enrolment ends").unwrap();
    assert!(refusal.contains("not-an-agent"), "{refusal}");
    wait_for_free_slot(&harness).await;
}

#[tokio::test]
async fn new_connections_per_client_are_rate_limited() {
    let harness = Harness::start_with(|config| config.limits.connection_rate_per_client = 2).await;
    let mut refused = 0;
    for _ in 0..10 {
        let arrived = harness.handshake(harness.connect_tcp(OUTSIDER).await, "http/1.1").await;
        refused += usize::from(arrived.is_err());
    }
    assert!((5..=8).contains(&refused), "{refused} of 10 were refused");
    assert_eq!(harness.send_request(Protocol::H1, OTHER, "GET /", &[]).await.0, 200);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(harness.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
}

#[tokio::test]
async fn a_connection_beyond_the_total_limit_waits() {
    let harness = Harness::start_with(|config| config.limits.max_connections = 2).await;
    let (first, _second) = (harness.connect_h1(OUTSIDER).await, harness.connect_h1(OTHER).await);
    let third = harness.send_request(Protocol::H1, AGENT, "GET /", &[]);
    let mut third = std::pin::pin!(third);
    assert!(timeout(Duration::from_millis(300), third.as_mut()).await.is_err(), "the third connection waits");
    drop(first);
    assert_eq!(timeout(SOON, third).await.unwrap().0, 200);
}

#[tokio::test]
async fn many_outsiders_do_not_exclude_agents() {
    let harness = Harness::start_with(|config| config.limits.max_connections = 16).await;
    let mut crowd = Vec::new();
    for _ in 0..15 {
        crowd.push(harness.connect_h1(OUTSIDER).await);
    }
    let waiting = harness.send_request(Protocol::H1, OTHER, "GET /", &[]);
    let mut waiting = std::pin::pin!(waiting);
    assert!(timeout(Duration::from_millis(300), waiting.as_mut()).await.is_err(), "another outsider waits");
    assert_eq!(timeout(SOON, harness.send_request(Protocol::H1, AGENT, "GET /", &[])).await.unwrap().0, 200);
    crowd.pop();
    assert_eq!(timeout(SOON, waiting).await.unwrap().0, 200);
}

async fn start_with_proxy_protocol() -> Harness {
    Harness::start_with(|config| {
        config.listen.proxy_protocol = true;
        config.limits.handshake_timeout = Duration::from_secs(1);
        config.external.deny = vec![net("203.0.113.66")];
        config.external.trusted_proxies.push(net("127.0.0.8"));
        config.external.identity_headers = vec![http::HeaderName::from_static("x-auth-user")];
    })
    .await
}

/// A header of version 2 (section 2.2 of the specification) with this command, family and address
/// block.
fn v2_header(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[0x20 | command, family][..], &length, addresses].concat()
}

#[tokio::test]
async fn a_trusted_proxy_states_its_client_before_the_handshake() {
    let harness = start_with_proxy_protocol().await;
    let v4 = [&[203, 0, 113, 5, 198, 51, 100, 1][..], &[0x10, 0, 1, 0xbb]].concat();
    let v6 =
        [&"2001:db8::5".parse::<std::net::Ipv6Addr>().unwrap().octets()[..], &[0; 16], &[0x10, 0, 1, 0xbb]].concat();
    let loopback = [&[127, 0, 0, 9, 127, 0, 0, 1][..], &[0x10, 0, 1, 0xbb]].concat();
    let mut of_a_proxy = v4.clone();
    of_a_proxy[..4].copy_from_slice(&[127, 0, 0, 8]);
    for (name, header, client, believed) in [
        ("v1", b"PROXY TCP4 203.0.113.5 198.51.100.1 4096 443\r\n".to_vec(), "203.0.113.5", false),
        ("v1, IPv6", b"PROXY TCP6 2001:db8::5 2001:db8::1 4096 443\r\n".to_vec(), "2001:db8::5", false),
        ("v1 of an unknown client", b"PROXY UNKNOWN\r\n".to_vec(), UNKNOWN_CLIENT, false),
        (
            "v1 of an agent's address",
            format!("PROXY TCP4 {AGENT} 127.0.0.1 4096 443\r\n").into_bytes(),
            UNKNOWN_CLIENT,
            false,
        ),
        ("v2", v2_header(1, 0x11, &v4), "203.0.113.5", false),
        ("v2, IPv6", v2_header(1, 0x21, &v6), "2001:db8::5", false),
        (
            "v2 with more than addresses",
            v2_header(1, 0x11, &[&v4[..], &[0x04, 0, 1, 0]].concat()),
            "203.0.113.5",
            false,
        ),
        ("v2 of the proxy itself", v2_header(0, 0, &[]), UNKNOWN_CLIENT, true),
        ("v2 of another proxy", v2_header(1, 0x11, &of_a_proxy), UNKNOWN_CLIENT, true),
        ("v2 of an agent's address", v2_header(1, 0x11, &loopback), UNKNOWN_CLIENT, false),
    ] {
        for in_pieces in [false, true] {
            let mut stream = harness.connect_tcp(TRUSTED_PROXY).await;
            if in_pieces {
                for byte in &header {
                    stream.write_all(&[*byte]).await.unwrap();
                }
            } else {
                stream.write_all(&header).await.unwrap();
            }
            let tls = harness.handshake(stream, "http/1.1").await.unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut wire = RawHttp::new(tls);
            assert_eq!(wire.send_request(request_text("GET /", "")).await.status(), 200, "{name}");
            assert_external(harness.gateway.requests().last().unwrap(), client);
            // The client sends these fields inside TLS, so they count only where the client is
            // itself a trusted proxy.
            let claims = "X-Forwarded-For: 203.0.114.77\r\nX-Auth-User: admin\r\nX-Forwarded-Host: evil.example\r\n";
            assert_eq!(wire.send_request(request_text("GET /", claims)).await.status(), 200, "{name}");
            let received = harness.gateway.requests().pop().unwrap();
            let stated = ["x-forwarded-for", "x-auth-user", "x-forwarded-host"].map(|name| received.field(name));
            let expected = if believed {
                [Some("203.0.114.77"), Some("admin"), Some("evil.example")]
            } else {
                [Some(client), None, Some("gateway.example:18789")]
            };
            assert_eq!(stated, expected, "{name}");
        }
    }
}

#[tokio::test]
async fn only_a_proxy_sends_a_proxy_header_and_a_malformed_one_closes_the_connection() {
    let harness = start_with_proxy_protocol().await;
    let v1 = b"PROXY TCP4 203.0.113.5 198.51.100.1 4096 443\r\n".to_vec();
    for (name, source, header) in [
        ("an outsider", OUTSIDER, v1.clone()),
        ("an agent", AGENT, v1.clone()),
        ("a denied client", TRUSTED_PROXY, b"PROXY TCP4 203.0.113.66 198.51.100.1 4096 443\r\n".to_vec()),
        ("two headers", TRUSTED_PROXY, [v1.clone(), v1.clone()].concat()),
        ("no header", TRUSTED_PROXY, Vec::new()),
        ("no end", TRUSTED_PROXY, [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat()),
        ("no address", TRUSTED_PROXY, b"PROXY TCP4 203.0.113 198.51.100.1 4096 443\r\n".to_vec()),
        ("another family", TRUSTED_PROXY, b"PROXY TCP4 2001:db8::5 2001:db8::1 4096 443\r\n".to_vec()),
        ("UDP", TRUSTED_PROXY, v2_header(1, 0x12, &[0; 12])),
        ("too few bytes", TRUSTED_PROXY, v2_header(1, 0x11, &[0; 4])),
        ("another version", TRUSTED_PROXY, [b"\r\n\r\n\0\r\nQUIT\n", &[0x11, 0x11, 0, 0][..]].concat()),
        ("HTTP", TRUSTED_PROXY, request_text("GET /", "").into_bytes()),
    ] {
        let mut stream = harness.connect_tcp(source).await;
        stream.write_all(&header).await.unwrap();
        let arrived = timeout(SOON, harness.handshake(stream, "http/1.1")).await.expect(name);
        assert!(arrived.is_err(), "{name}");
    }
    assert!(harness.gateway.requests().is_empty());
    for source in [OUTSIDER, AGENT] {
        assert_eq!(harness.send_request(Protocol::H2, source, "GET /", &[]).await.0, 200, "they need no PROXY header");
    }
}

#[tokio::test]
async fn with_few_file_descriptors_new_connections_wait_and_are_served_later() {
    let sidecar =
        Launch::new().after_setup("ulimit -n 64").flags(&["--handshake-timeout=60s"]).start_with_gateway().await;
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200);
    let files = format!("/proc/{}/fd", sidecar.process().pid());
    let open_files = || std::fs::read_dir(&files).unwrap().count();
    let before = open_files();
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(sidecar.connect_tcp(OTHER).await);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(client.send_request(request_text("GET /", "")).await.status(), 200, "an open connection is served");
    drop(crowd);
    // A new connection may be refused until the connections of the crowd are closed.
    let served = async {
        while open_files() > before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, served).await.expect("the crowd's connections are closed");
    for protocol in PROTOCOLS {
        assert_eq!(timeout(SOON, sidecar.send_request(protocol, OUTSIDER, "GET /", &[])).await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn the_open_file_limit_is_raised_to_its_maximum() {
    let sidecar = Launch::new().after_setup("ulimit -Sn 64; ulimit -Hn 512").flags(&[]).start_with_gateway().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", sidecar.process().pid())).unwrap();
    let open = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(
        open.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>(),
        [512, 512],
        "soft and hard"
    );
    let line = sidecar.process().wait_for_log("allows fewer connections than limits.max_connections").await;
    // 128 descriptors are reserved, 32 are for waiting connections and 32 for agents; each
    // connection needs two.
    assert!(line.contains("\"limit\":512") && line.contains("\"allowed\":160"), "{line}");
}
