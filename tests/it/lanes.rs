//! The requests of each lane, as the gateway receives them.

use std::collections::HashMap;

use bytes::Bytes;
use http::HeaderMap;
use tokio::net::TcpListener;

use crate::harness::{
    AGENT, Harness, OUTSIDER, PROTOCOLS, Protocol, TRUSTED_PROXY, UNKNOWN_CLIENT, h2_request, read_whole_body,
    request_text,
};
use loopgate_test_support::fake_gateway::ReceivedRequest;
pub use loopgate_test_support::lanes::assert_external;
use loopgate_test_support::lanes::assert_local;
use loopgate_test_support::raw_http::RawHttp;
use loopgate_test_support::requirements::report_not_run;

/// Forged headers that a gateway might believe.
const FORGED: [(&str, &str); 16] = [
    ("x-forwarded-for", "127.0.0.1"),
    ("x-forwarded-for", "10.9.9.9"),
    ("x-forwarded-proto", "http"),
    ("x-forwarded-host", "localhost"),
    ("x-forwarded-user", "root"),
    ("x-forwarded-prefix", "/"),
    ("x_forwarded_for", "127.0.0.1"),
    ("x-forwarded_for", "127.0.0.1"),
    ("forwarded", "for=127.0.0.1"),
    ("x-real-ip", "127.0.0.1"),
    ("x_real_ip", "127.0.0.1"),
    ("via", "1.1 me"),
    ("tailscale-user-login", "root"),
    ("tailscale_user_login", "root"),
    ("x-openclaw-scopes", "operator.admin"),
    ("x_openclaw_scopes", "operator.admin"),
];

/// Fails unless `received` is a request on the agent lane.
pub fn assert_is_agents_request(received: &ReceivedRequest, harness: &Harness) {
    assert_local(received, &harness.gateway);
}

#[tokio::test]
async fn an_outsider_is_remote_to_the_gateway_whatever_it_sends() {
    let harness = Harness::start().await;
    for protocol in PROTOCOLS {
        let mut fields = FORGED.to_vec();
        fields.extend([("origin", "https://page.example"), ("x-own", "kept")]);
        assert_eq!(harness.send_request(protocol, OUTSIDER, "GET /", &fields).await, (200, "hello".into()));
        let received = harness.gateway.requests().pop().unwrap();
        assert_external(&received, UNKNOWN_CLIENT);
        assert_eq!(received.field("origin"), Some("https://page.example"), "{protocol:?}");
        assert_eq!(received.field("x-own"), Some("kept"));
        assert_eq!(received.start_line(), "GET / HTTP/1.1");
    }
}

#[tokio::test]
async fn an_agent_is_local_to_the_gateway() {
    let harness = Harness::start().await;
    for protocol in PROTOCOLS {
        assert_eq!(harness.send_request(protocol, AGENT, "GET /a?b=c", &FORGED).await, (200, "hello".into()));
        let received = harness.gateway.requests().pop().unwrap();
        assert_is_agents_request(&received, &harness);
        assert_eq!(received.start_line(), "GET /a?b=c HTTP/1.1");
    }
}

#[tokio::test]
async fn every_client_is_remote_to_a_gateway_that_is_not_on_loopback() {
    // Connecting a UDP socket sends no packet, but selects the address that packets would be sent
    // from. Without a network there is none, and the test can't run.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = match probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()) {
        Ok(own) => own,
        Err(error) => return report_not_run(format_args!("this machine has no network: {error}")),
    };
    let listener = TcpListener::bind((own.ip(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let harness = Harness::start_with(|config| {
        config.gateway.address = address;
        config.gateway.allow_remote = true;
    })
    .await;
    let gateway = async || {
        let (stream, peer) = listener.accept().await.unwrap();
        let mut wire = RawHttp::new(stream);
        let head = wire.read_head().await.unwrap();
        wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello").await.unwrap();
        (peer, head)
    };
    for source in [OUTSIDER, AGENT] {
        let mut client = harness.connect_h1(source).await;
        let ((peer, head), answer) = tokio::join!(gateway(), client.send_request(request_text("GET /", "")));
        assert_eq!((answer.status(), peer.ip()), (200, own.ip()), "{source}");
        assert_eq!(head.field("x-forwarded-for"), Some(UNKNOWN_CLIENT), "{source}");
    }
}

#[tokio::test]
async fn a_web_page_on_an_agents_connection_is_remote_and_the_agent_stays_local() {
    let harness = Harness::start().await;
    let mut agent = harness.connect_h1(AGENT).await;
    for number in 0..3 {
        agent.send_request(request_text("GET /", "")).await;
        agent.send_request(request_text("GET /", "Origin: http://evil.example\r\n")).await;
        let received = harness.gateway.requests();
        assert_is_agents_request(&received[2 * number], &harness);
        assert_external(&received[2 * number + 1], UNKNOWN_CLIENT);
    }
    let mut agent = harness.connect_h2(AGENT).await;
    for (fields, external) in [(&[][..], false), (&[("origin", "null")], true), (&[], false)] {
        let (response, _) = agent.send_request(h2_request("GET /", fields), true).unwrap();
        read_whole_body(response.await.unwrap().body_mut()).await.unwrap();
        let received = harness.gateway.requests().pop().unwrap();
        if external {
            assert_external(&received, UNKNOWN_CLIENT)
        } else {
            assert_is_agents_request(&received, &harness)
        }
    }
}

#[tokio::test]
async fn only_a_trusted_proxy_states_its_client() {
    let harness =
        Harness::start_with(|config| config.external.identity_headers = vec![http::HeaderName::from_static("x-user")])
            .await;
    let fields = [("X-Forwarded-For", "127.0.0.1, 203.0.113.9"), ("X-User", "ann"), ("x_user", "eve")];
    for protocol in PROTOCOLS {
        harness.send_request(protocol, TRUSTED_PROXY, "GET /", &fields).await;
        let received = harness.gateway.requests().pop().unwrap();
        assert_external(&received, "203.0.113.9");
        assert_eq!(received.field("x-user"), Some("ann"));
        assert_eq!(received.field("x_user"), None, "{protocol:?}");
        harness.send_request(protocol, OUTSIDER, "GET /", &fields).await;
        let received = harness.gateway.requests().pop().unwrap();
        assert_external(&received, UNKNOWN_CLIENT);
        assert_eq!(received.field("x-user"), None);
    }
}

#[tokio::test]
async fn fields_listed_by_connection_are_removed_but_never_loopgates_own() {
    let harness = Harness::start().await;
    let listed = "Connection: X-Forwarded-For, x-own\r\nConnection: X-Forwarded-Host\r\nConnection: close, Host\r\n";
    let fields =
        format!("{listed}X-Own: 1\r\nTE: trailers\r\nKeep-Alive: 5\r\nProxy-Authorization: Basic x\r\nX-Kept: 1\r\n");
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send_request(request_text("GET /", &fields)).await;
    let received = harness.gateway.requests().pop().unwrap();
    assert_external(&received, UNKNOWN_CLIENT);
    assert_eq!(received.field_names(), ["host", "x-kept", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]);
}

#[tokio::test]
async fn trailers_obey_the_rules_for_headers() {
    let harness = Harness::start().await;
    let trailers =
        "X-Forwarded-For: 127.0.0.1\r\nX-Sum: 4\r\nAuthorization: Bearer x\r\nHost: y\r\nContent-Length: 9\r\n";
    let body = format!("4\r\nbody\r\n0\r\n{trailers}\r\n");
    for source in [OUTSIDER, AGENT] {
        let mut client = harness.connect_h1(source).await;
        for named in ["Trailer: X-Sum, X-Forwarded-For\r\n", ""] {
            let head = request_text("POST /echo", &format!("Transfer-Encoding: chunked\r\n{named}"));
            assert_eq!(client.send_request(format!("{head}{body}")).await.text(), "body");
            assert_eq!(harness.gateway.requests().pop().unwrap().trailers, "x-sum: 4\r\n");
        }

        let mut client = harness.connect_h2(source).await;
        let (response, mut stream) = client.send_request(h2_request("POST /echo", &[]), false).unwrap();
        stream.send_data(Bytes::from_static(b"body"), false).unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in
            [("x-forwarded-for", "127.0.0.1"), ("x-sum", "4"), ("authorization", "Bearer x"), ("host", "y")]
        {
            map.append(name, value.parse().unwrap());
        }
        stream.send_trailers(map).unwrap();
        assert_eq!(read_whole_body(response.await.unwrap().body_mut()).await.unwrap(), b"body");
        assert_eq!(harness.gateway.requests().pop().unwrap().trailers, "x-sum: 4\r\n");
    }
}

#[tokio::test]
async fn a_gateway_connection_is_reused_for_consecutive_requests() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    for _ in 0..10 {
        client.send_request(request_text("GET /", "")).await;
        client.send_request(format!("{}body", request_text("POST /echo", "Content-Length: 4\r\n"))).await;
    }
    assert_eq!(harness.gateway.connections(), 1);
    // Another worker may serve a new connection, and each worker has its own connections to the
    // gateway.
    let threads = std::thread::available_parallelism().unwrap().get();
    for _ in 0..2 * threads {
        assert_eq!(harness.send_request(Protocol::H2, OUTSIDER, "GET /", &[]).await.0, 200);
    }
    assert!(harness.gateway.connections() <= threads, "{}", harness.gateway.connections());
}

#[tokio::test]
async fn connections_to_the_gateway_never_change_lanes() {
    let harness = Harness::start().await;
    let mut clients = Vec::new();
    for (source, protocol) in [
        (OUTSIDER, Protocol::H1),
        (AGENT, Protocol::H1),
        (TRUSTED_PROXY, Protocol::H1),
        (OUTSIDER, Protocol::H2),
        (AGENT, Protocol::H2),
    ] {
        for number in 0..4 {
            let harness = &harness;
            clients.push(async move {
                let who = format!("X-Who: {source}\r\n");
                if protocol == Protocol::H1 {
                    let mut client = harness.connect_h1(source).await;
                    for _ in 0..20 {
                        let line = if number % 2 == 0 { "GET /" } else { "GET /nothing" };
                        client.send_request(request_text(line, &who)).await;
                    }
                } else {
                    let client = harness.connect_h2(source).await;
                    let requests = (0..20).map(|_| {
                        let mut client = client.clone();
                        async move {
                            let (response, _) =
                                client.send_request(h2_request("GET /", &[("x-who", source)]), true).unwrap();
                            read_whole_body(response.await.unwrap().body_mut()).await.unwrap();
                        }
                    });
                    futures_util::future::join_all(requests).await;
                }
            });
        }
    }
    futures_util::future::join_all(clients).await;
    let mut sources = HashMap::new();
    let received = harness.gateway.requests();
    assert_eq!(received.len(), 400);
    for received in &received {
        assert_eq!(*sources.entry(received.connection).or_insert(received.peer), received.peer);
        match received.field("x-who") {
            Some(AGENT) => assert_is_agents_request(received, &harness),
            _ => assert_external(received, UNKNOWN_CLIENT),
        }
    }
}
