//! Plain HTTP of trusted proxies (`--listen-plain`).

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use loopgate::config::{Config, ListenAddresses, ListenOn, PathRule};
use loopgate::listener::ListenerKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{
    AGENT, EXTERNAL_SOURCE, Harness, OUTSIDER, Protocol, TRUSTED_PROXY, TlsClient, request_text, start_process,
};
use loopgate_test_support::fake_gateway::ReceivedRequest;
use loopgate_test_support::raw_http::RawHttp;
use loopgate_test_support::sidecar::free_address;

const SOON: Duration = Duration::from_secs(10);

/// Starts a sidecar with a listener for plain HTTP; returns it, and a client of that listener.
async fn start(change: impl FnOnce(&mut Config)) -> (Harness, TlsClient) {
    let harness = Harness::start_with(|config| {
        let addresses = ListenAddresses::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));
        config.listen.plain = vec![ListenOn { addresses, port: 0 }];
        change(config);
    })
    .await;
    let mut client = (*harness).clone();
    client.address = harness.sidecar.listener_addresses(ListenerKind::Plain)[0];
    (harness, client)
}

async fn connect_plain(client: &TlsClient, source: &str) -> RawHttp<TcpStream> {
    RawHttp::new(client.connect_tcp(source).await)
}

/// Fails unless `received` came by the external lane and states this client and scheme.
fn assert_stated(received: &ReceivedRequest, client: &str, scheme: &str) {
    assert_eq!(received.source(), EXTERNAL_SOURCE);
    assert_eq!(received.field("x-forwarded-for"), Some(client));
    assert_eq!(received.field("x-forwarded-proto"), Some(scheme));
    assert_eq!(received.field("x-forwarded-host"), Some("gateway.example:18789"));
}

/// Fails unless the connection is closed without a response.
async fn assert_closed(mut stream: TcpStream, name: &str) {
    let mut received = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut received)).await.unwrap_or_else(|_| panic!("{name}: still open"));
    assert!(received.is_empty(), "{name}: {received:?}");
}

#[tokio::test]
async fn a_trusted_proxy_states_client_scheme_and_user() {
    let (harness, client) = start(|config| {
        config.external.identity_headers = vec![http::HeaderName::from_static("x-user")];
        config.external.serve_ca = true;
    })
    .await;
    let mut proxy = connect_plain(&client, TRUSTED_PROXY).await;
    for (proto, scheme) in [
        ("", "http"),
        ("X-Forwarded-Proto: https\r\n", "https"),
        ("X-Forwarded-Proto: HTTPS\r\n", "https"),
        ("X-Forwarded-Proto: wss\r\n", "https"),
        ("X-Forwarded-Proto: http\r\n", "http"),
        ("X-Forwarded-Proto: https\r\nX-Forwarded-Proto: https\r\n", "http"),
        ("X-Forwarded-Proto: ftp\r\n", "http"),
    ] {
        let fields =
            format!("X-Forwarded-For: 127.0.0.1, 203.0.113.9\r\nX-User: ann\r\nX-Real-IP: 127.0.0.1\r\n{proto}");
        let answer = proxy.send_request(request_text("GET /", &fields)).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"), "{proto:?}");
        let received = harness.gateway.requests().pop().unwrap();
        assert_stated(&received, "203.0.113.9", scheme);
        assert_eq!((received.field("x-user"), received.field("x-real-ip")), (Some("ann"), None));
    }
    // A CA that was received over plain HTTP can't be trusted, so this listener does not serve it.
    assert_eq!(proxy.send_request(request_text("GET /.well-known/loopgate/ca.pem", "")).await.text(), "hello");
    let echoed = proxy.send_request(format!("{}body", request_text("POST /echo", "Content-Length: 4\r\n"))).await;
    assert_eq!(echoed.text(), "body");
}

#[tokio::test]
async fn any_other_peer_is_closed_before_a_byte_is_read() {
    let (harness, client) = start(|_| {}).await;
    for source in [OUTSIDER, AGENT, "127.0.0.1"] {
        assert_closed(client.connect_tcp(source).await, source).await;
        let mut stream = client.connect_tcp(source).await;
        let _ = stream.write_all(request_text("GET /", "X-Forwarded-For: 203.0.113.9\r\n").as_bytes()).await;
        // The connection ends with a reset, because the request was not read, or with a FIN.
        assert_eq!(timeout(SOON, stream.read(&mut [0])).await.unwrap().unwrap_or(0), 0, "{source}");
    }
    assert_eq!(harness.gateway.connections(), 0);
    for source in [OUTSIDER, AGENT, TRUSTED_PROXY] {
        assert_eq!(
            harness.send_request(Protocol::H1, source, "GET /", &[]).await.0,
            200,
            "{source}: with TLS as before"
        );
    }
}

/// The peer is a trusted proxy whose address would otherwise make it an agent: by `agents.cidrs`,
/// or as an address of the sidecar's own.
#[tokio::test]
async fn a_trusted_proxy_is_never_an_agent_over_plain_http() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "secret-token").unwrap();
    let (harness, client) = start(|config| {
        config.agents.cidrs =
            vec![format!("{TRUSTED_PROXY}/32").parse().unwrap(), format!("{AGENT}/32").parse().unwrap()];
        config.external.trusted_proxies.push("127.0.0.1/32".parse().unwrap());
        config.listen.own_addresses = loopgate::config::OwnAddresses::Agent;
        config.agents.inherit_token = true;
        config.gateway.token_file = Some(token.path().to_owned());
    })
    .await;
    for source in [TRUSTED_PROXY, "127.0.0.1"] {
        let mut proxy = connect_plain(&client, source).await;
        for fields in ["", "X-Forwarded-For: 127.0.0.9\r\n", "Connection: X-Forwarded-For\r\n"] {
            assert_eq!(proxy.send_request(request_text("GET /", fields)).await.status(), 200);
            let received = harness.gateway.requests().pop().unwrap();
            assert_stated(&received, "192.0.2.1", "http");
            assert_eq!(received.field("authorization"), None);
        }
    }
}

#[tokio::test]
async fn the_rules_for_external_clients_apply_over_plain_http() {
    let (harness, client) = start(|config| {
        config.external.deny = vec!["203.0.113.0/24".parse().unwrap()];
        config.external.scopes = vec!["operator.read".into()];
        config.external.paths = vec![PathRule::deny("/closed")];
    })
    .await;
    let mut proxy = connect_plain(&client, TRUSTED_PROXY).await;
    let denied = "X-Forwarded-For: 203.0.113.9\r\n";
    for (line, fields, status) in
        [("GET /", "", 200), ("GET /", denied, 403), ("GET /closed/x", "", 403), ("GET /v1/models", "", 403)]
    {
        assert_eq!(proxy.send_request(request_text(line, fields)).await.status(), status, "{line} {fields}");
    }
    assert_eq!(harness.gateway.requests().pop().unwrap().field("x-openclaw-scopes"), Some("operator.read"));
    let ambiguous = request_text("POST /", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n";
    assert_eq!(proxy.send_request(ambiguous).await.status(), 400);
    assert!(proxy.read_rest().await.is_empty(), "the connection ends after the refusal");
}

#[tokio::test]
async fn a_websocket_over_plain_http_ends_with_the_trust_in_its_proxy() {
    let (harness, client) = start(|_| {}).await;
    let stream = client.connect_tcp(TRUSTED_PROXY).await;
    let (mut socket, _) = client_async("ws://gateway.example:18789/ws", stream).await.unwrap();
    let mut idle = connect_plain(&client, TRUSTED_PROXY).await;
    assert_eq!(idle.send_request(request_text("GET /", "")).await.status(), 200);
    for size in [0, 125, 65_536, 1_000_000] {
        let message = Message::binary(vec![7; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    let mut config = (*harness.sidecar.config()).clone();
    config.external.trusted_proxies = vec![format!("{OUTSIDER}/32").parse().unwrap()];
    harness.sidecar.reload(Ok(config), |_| {});
    assert!(timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap().is_close());
    assert!(timeout(SOON, idle.read_rest()).await.unwrap().is_empty());
    assert_closed(client.connect_tcp(TRUSTED_PROXY).await, "the former proxy").await;
    assert_eq!(connect_plain(&client, OUTSIDER).await.send_request(request_text("GET /", "")).await.status(), 200);
}

/// The listener for plain HTTP accepts no TLS, no PROXY header and no HTTP/2, so no agent can enrol
/// there.
#[tokio::test]
async fn the_plain_listener_speaks_only_http_1() {
    let (harness, client) = start(|config| {
        config.listen.proxy_protocol = true;
        config.limits.head_timeout = Duration::from_secs(1);
    })
    .await;
    for alpn in ["http/1.1", "h2", std::str::from_utf8(loopgate::enrolment_protocol::ALPN).unwrap()] {
        assert!(client.handshake(client.connect_tcp(TRUSTED_PROXY).await, alpn).await.is_err(), "{alpn}");
    }
    for bytes in
        ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PROXY TCP4 203.0.113.5 198.51.100.1 4096 443\r\nGET / HTTP/1.1\r\n\r\n"]
    {
        let mut proxy = connect_plain(&client, TRUSTED_PROXY).await;
        proxy.send(bytes).await.unwrap();
        let answer = String::from_utf8(timeout(SOON, proxy.read_rest()).await.unwrap()).unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 505"),
            "{answer}"
        );
    }
    let mut slow = connect_plain(&client, TRUSTED_PROXY).await;
    slow.send("GET / HTTP/1.1\r\nHost: ").await.unwrap();
    assert_eq!(slow.read_response().await.unwrap().status(), 408);
    assert_eq!(harness.gateway.requests().len(), 0);
}

#[tokio::test]
async fn status_and_metrics_name_the_listener_and_what_it_refused() {
    let address = free_address();
    let flags =
        [&format!("--listen-plain={address}"), "--trusted-proxy=127.0.0.7", &format!("--admin={}", free_address())];
    let sidecar = start_process(&flags, "").await;
    let mut client = (*sidecar.sidecar).clone();
    client.address = address;
    assert_eq!(connect_plain(&client, TRUSTED_PROXY).await.send_request(request_text("GET /", "")).await.status(), 200);
    assert_closed(client.connect_tcp(OUTSIDER).await, "an outsider").await;
    let sidecar = sidecar.sidecar;
    let (status, metrics) =
        tokio::task::spawn_blocking(move || (sidecar.status_json(), sidecar.admin_get("/metrics", "localhost")))
            .await
            .unwrap();
    assert_eq!(status["listening_plain"], serde_json::json!([address.to_string()]), "{status:#}");
    assert_eq!(status["listening"].as_array().unwrap().len(), 1, "{status:#}");
    assert!(metrics.contains("loopgate_connections_denied_total{reason=\"not_trusted_proxy\"} 1"), "{metrics}");
}
