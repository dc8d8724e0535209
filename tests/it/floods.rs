//! Floods of requests: how many reach the gateway, and which clients wait. `tests/attacks` measures
//! their effect on time and memory.

use std::time::Duration;

use tokio::time::timeout;

use crate::harness::{AGENT, Harness, OUTSIDER, PROTOCOLS, Protocol, TRUSTED_PROXY, h2_request, request_text};

/// Another external client.
const OTHER: &str = "127.0.0.4";
/// The time limit of steps that should take no time.
const SOON: Duration = Duration::from_secs(10);

/// A sidecar that lets external clients have `requests` requests and WebSockets at the gateway.
async fn start_with_limit(requests: usize) -> Harness {
    Harness::start_with(|config| {
        config.limits.gateway_requests = requests;
        config.limits.gateway_websockets = requests;
        config.limits.gateway_wait = Duration::from_secs(2);
    })
    .await
}

#[tokio::test]
async fn a_flood_of_one_client_does_not_keep_others_from_the_gateway() {
    let harness = start_with_limit(8).await;
    let mut flooder = harness.connect_h2(OUTSIDER).await;
    let mut flood = Vec::new();
    for _ in 0..50 {
        flooder = flooder.ready().await.unwrap();
        flood.push(flooder.send_request(h2_request("GET /held", &[]), true).unwrap().0);
    }
    harness.gateway.wait_for_requests(4).await;
    for protocol in PROTOCOLS {
        for source in [OTHER, AGENT] {
            assert_eq!(
                timeout(SOON, harness.send_request(protocol, source, "GET /", &[])).await.unwrap().0,
                200,
                "{source}"
            );
        }
        // A new connection of the flooding client gets no further request to the gateway.
        let refused = timeout(SOON, harness.send_request(protocol, OUTSIDER, "GET /", &[])).await.unwrap();
        assert!(refused.0 == 503 && refused.1.contains("too_many_requests"), "{refused:?}");
    }
    let refused = harness.connect_h1(OUTSIDER).await.send_request(request_text("GET /", "")).await;
    assert_eq!((refused.status(), refused.field("retry-after")), (503, Some("1")));
    assert_eq!(harness.gateway.requests().len(), 8, "half of the limit, and four requests of other clients");
    // The other 46 requests have been refused, or will be when their wait ends.
    for response in flood.into_iter().take(4) {
        harness.gateway.release_held(1);
        assert_eq!(response.await.unwrap().status(), 200);
    }
    assert_eq!(harness.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
}

#[tokio::test]
async fn a_waiting_request_is_sent_when_another_one_ends() {
    let harness = start_with_limit(2).await;
    let held = harness.send_request(Protocol::H1, OUTSIDER, "GET /held", &[]);
    let waiting = async {
        harness.gateway.wait_for_requests(1).await;
        let waiting = harness.send_request(Protocol::H2, OUTSIDER, "GET /echo", &[]);
        let release = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(harness.gateway.requests().len(), 1);
            harness.gateway.release_held(1);
        };
        tokio::join!(waiting, release).0
    };
    let (held, waiting) = timeout(SOON, async { tokio::join!(held, waiting) }).await.unwrap();
    assert_eq!((held.0, waiting.0), (200, 200));
}

#[tokio::test]
async fn clients_of_a_trusted_proxy_have_a_share_each() {
    let harness = start_with_limit(4).await;
    let mut proxy = harness.connect_h2(TRUSTED_PROXY).await;
    let mut flood = Vec::new();
    for _ in 0..10 {
        proxy = proxy.ready().await.unwrap();
        flood.push(proxy.send_request(h2_request("GET /held", &[("x-forwarded-for", "203.0.113.5")]), true).unwrap().0);
    }
    harness.gateway.wait_for_requests(2).await;
    let stated = [("x-forwarded-for", "203.0.113.6")];
    let other = timeout(SOON, harness.send_request(Protocol::H1, TRUSTED_PROXY, "GET /", &stated)).await.unwrap();
    assert_eq!((other.0, harness.gateway.requests().len()), (200, 3));
}

#[tokio::test]
async fn websockets_are_limited_apart_from_requests() {
    let harness = start_with_limit(2).await;
    for protocol in PROTOCOLS {
        let socket = harness.open_websocket(protocol, OUTSIDER, "/ws").await;
        let refused = timeout(SOON, harness.connect_h1(OUTSIDER).await.send_request(upgrade())).await.unwrap();
        assert!(refused.status() == 503 && refused.text().contains("too_many_requests"), "{refused:?}");
        assert_eq!(harness.send_request(protocol, OUTSIDER, "GET /", &[]).await.0, 200);
        drop(harness.open_websocket(protocol, OTHER, "/ws").await);
        drop(socket);
        let again = timeout(SOON, async {
            while harness.connect_h1(OUTSIDER).await.ask_head(upgrade()).await.status() != 101 {}
        });
        again.await.expect("a WebSocket that has ended makes room");
    }
}

fn upgrade() -> String {
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    request_text("GET /ws", &format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{key}"))
}
