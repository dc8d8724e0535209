//! Further ports of the gateway that the sidecar forwards to (`--forward`).

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use loopgate::config::{Config, PathRule, PortForward};
use loopgate::listener::ListenerKind;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{
    AGENT, Harness, OUTSIDER, PROTOCOLS, Protocol, TRUSTED_PROXY, TlsClient, UNKNOWN_CLIENT, request_text,
    start_process,
};
use crate::lanes::{assert_external, assert_is_agents_request};
use loopgate_test_support::fake_gateway::FakeGateway;
use loopgate_test_support::lanes::assert_local;
use loopgate_test_support::sidecar::free_address;

/// A sidecar with a port forward to `target_gateway`, and a client of the forwarded port.
struct Forwarding {
    harness: Harness,
    target_gateway: FakeGateway,
    client: TlsClient,
}

async fn start(change: impl FnOnce(&mut Config)) -> Forwarding {
    let target_gateway = FakeGateway::start().await;
    let forward = PortForward { port: 0, target: target_gateway.address.port() };
    let harness = Harness::start_with(|config| {
        config.listen.forward = vec![forward];
        change(config);
    })
    .await;
    let mut client = (*harness).clone();
    client.address = harness.sidecar.listener_addresses(ListenerKind::PortForward(forward))[0];
    Forwarding { harness, target_gateway, client }
}

#[tokio::test]
async fn a_forwarded_port_has_the_same_lanes() {
    let Forwarding { harness, target_gateway, client } = start(|config| config.external.serve_ca = true).await;
    assert_ne!(client.address, harness.sidecar.tls_addresses()[0]);
    for protocol in PROTOCOLS {
        assert_eq!(client.send_request(protocol, AGENT, "GET /a?b=c", &[]).await, (200, "hello".into()));
        let received = target_gateway.requests().pop().unwrap();
        assert_local(&received, &target_gateway);
        assert_eq!(received.start_line(), "GET /a?b=c HTTP/1.1");
        client.send_request(protocol, OUTSIDER, "GET /", &[("x-forwarded-for", "127.0.0.1")]).await;
        assert_external(&target_gateway.requests().pop().unwrap(), UNKNOWN_CLIENT);
        client.send_request(protocol, AGENT, "GET /", &[("origin", "https://page.example")]).await;
        assert_external(&target_gateway.requests().pop().unwrap(), UNKNOWN_CLIENT);
        client.send_request(protocol, TRUSTED_PROXY, "GET /", &[("x-forwarded-for", "203.0.113.9")]).await;
        assert_external(&target_gateway.requests().pop().unwrap(), "203.0.113.9");
    }
    let page = client.send_request(Protocol::H2, OUTSIDER, "GET /.well-known/loopgate/ca.pem", &[]).await;
    assert_eq!(page, (200, "hello".into()), "only the gateway's own port serves the CA");
    assert_eq!(harness.gateway.connections(), 0);
}

#[tokio::test]
async fn connections_to_one_port_never_carry_requests_for_another() {
    let Forwarding { harness, target_gateway, client } = start(|_| {}).await;
    for source in [OUTSIDER, AGENT] {
        let (mut near, mut far) = (harness.connect_h1(source).await, client.connect_h1(source).await);
        for _ in 0..5 {
            assert_eq!(near.send_request(request_text("GET /near", "")).await.status(), 200);
            assert_eq!(far.send_request(request_text("GET /far", "")).await.status(), 200);
        }
    }
    let paths =
        |gateway: &FakeGateway| gateway.requests().iter().map(|r| r.start_line().to_owned()).collect::<Vec<_>>();
    assert_eq!(paths(&harness.gateway), ["GET /near HTTP/1.1"; 10]);
    assert_eq!(paths(&target_gateway), ["GET /far HTTP/1.1"; 10]);
}

#[tokio::test]
async fn a_forwarded_port_shares_the_rules_and_limits_of_the_gateways_own() {
    let Forwarding { harness, target_gateway, client } = start(|config| {
        config.external.deny = vec!["127.0.0.5/32".parse().unwrap()];
        config.external.paths = vec![PathRule::deny("/closed")];
        config.limits.gateway_requests = 1;
        config.limits.gateway_wait = Duration::from_millis(100);
    })
    .await;
    assert!(client.handshake(client.connect_tcp("127.0.0.5").await, "http/1.1").await.is_err());
    assert_eq!(client.send_request(Protocol::H1, OUTSIDER, "GET /closed", &[]).await.0, 403);
    assert_eq!(
        client.send_request(Protocol::H1, AGENT, "GET /closed", &[]).await.0,
        200,
        "path rules apply to the external lane only"
    );
    assert_eq!(client.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
    let mut busy = harness.connect_h1(OUTSIDER).await;
    busy.send(request_text("GET /stalls", "")).await.unwrap();
    while harness.gateway.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (status, text) = client.send_request(Protocol::H2, OUTSIDER, "GET /", &[]).await;
    assert!(status == 503 && text.contains("too_many_requests"), "{status} {text}");
    assert_eq!(client.send_request(Protocol::H2, AGENT, "GET /", &[]).await.0, 200, "agents do not wait");
    assert_eq!(target_gateway.requests().len(), 3);
}

/// On the gateway's own port, the second message would wait for the answer to the first. A scope
/// cap can be checked only in a `connect`, so a WebSocket of a capped client that sends another
/// message is closed.
#[tokio::test]
async fn a_websocket_to_a_forwarded_port_may_speak_any_protocol_unless_a_cap_applies() {
    let Forwarding { harness: _running, target_gateway, client } =
        start(|config| config.agents.scopes = vec!["operator.read".into()]).await;
    for protocol in PROTOCOLS {
        let mut socket = client.open_websocket(protocol, OUTSIDER, "/ws").await;
        assert_external(&target_gateway.requests().pop().unwrap(), UNKNOWN_CLIENT);
        for text in ["one", "two"] {
            socket.feed(Message::text(text)).await.unwrap();
        }
        socket.flush().await.unwrap();
        for text in ["one", "two"] {
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text), "{protocol:?}");
        }
        let mut socket = client.open_websocket(protocol, AGENT, "/ws").await;
        socket.send(Message::text("one")).await.unwrap();
        assert!(socket.next().await.unwrap().unwrap().is_close(), "{protocol:?}");
    }
}

#[tokio::test]
async fn an_unreachable_forward_target_does_not_affect_the_gateway() {
    let unreachable = free_address();
    let Forwarding { harness, .. } = start(|config| {
        config.listen.forward.push(PortForward { port: 0, target: unreachable.port() });
        config.limits.gateway_wait = Duration::from_millis(200);
    })
    .await;
    let mut client = (*harness).clone();
    client.address = harness
        .sidecar
        .listener_addresses(ListenerKind::PortForward(PortForward { port: 0, target: unreachable.port() }))[0];
    let begun = Instant::now();
    let (status, _) = client.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await;
    assert!(status == 503 && begun.elapsed() < Duration::from_secs(10), "{status} after {:?}", begun.elapsed());
    assert_eq!(harness.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
    let received = harness.gateway.requests().pop().unwrap();
    assert_external(&received, UNKNOWN_CLIENT);
    harness.send_request(Protocol::H1, AGENT, "GET /", &[]).await;
    assert_is_agents_request(&harness.gateway.requests().pop().unwrap(), &harness);
}

#[tokio::test]
async fn the_status_names_a_forward_target_that_does_not_answer() {
    let target_gateway = FakeGateway::start().await;
    let (listen, unreachable) = (free_address(), free_address());
    let up = format!("--forward={}:{}", listen.port(), target_gateway.address.port());
    let down = format!("--forward=0:{}", unreachable.port());
    let admin = format!("--admin={}", free_address());
    let sidecar = start_process(&[&up, &down, &admin], "").await;
    let running = sidecar.sidecar;
    let mut client = (*running).clone();
    client.address = listen;
    assert_eq!(client.send_request(Protocol::H2, OUTSIDER, "GET /", &[]).await.0, 200);
    let status = tokio::task::spawn_blocking(move || running.status_json()).await.unwrap();
    let forwards = status["forwards"].as_array().unwrap();
    let shown: Vec<_> =
        forwards.iter().map(|forward| (forward["target"].as_str(), forward["reachable"].as_bool())).collect();
    let (target, unreachable) = (target_gateway.address.to_string(), unreachable.to_string());
    assert_eq!(shown, [(Some(target.as_str()), Some(true)), (Some(unreachable.as_str()), Some(false))], "{status:#}");
    assert_eq!(forwards[0]["listening"], serde_json::json!([listen.to_string()]));
    assert_eq!(status["listening"].as_array().unwrap().len(), 1, "{status:#}");
}
