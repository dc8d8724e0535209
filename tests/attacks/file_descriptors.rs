//! As many connections as the limit of open files allows.

use std::time::Duration;

use loopgate_test_support::raw_http::RawHttp;
use loopgate_test_support::sidecar::{AGENT, Launch, free_address};
use loopgate_test_support::tls_client::{Protocol, request_text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::{OUTSIDER, attack};

#[test]
fn at_the_open_file_limit_agents_still_connect_and_readiness_is_true() {
    attack("connections up to the limit of open files", at_the_limit);
}

async fn at_the_limit() {
    let admin = free_address();
    let sidecar =
        Launch::new().after_setup("ulimit -n 256").flags(&[&format!("--admin={admin}")]).start_with_gateway().await;
    let client = &sidecar;
    let mut open = Vec::new();
    while let Ok(socket) = timeout(Duration::from_secs(1), client.open_websocket(Protocol::H1, OUTSIDER, "/ws")).await {
        open.push(socket);
        assert!(open.len() < 256, "no connection was refused");
    }
    assert!(open.len() > 32, "{} connections only", open.len());
    // Additional connections wait or are refused.
    let mut waiting = Vec::new();
    for _ in 0..100 {
        waiting.push(client.connect_tcp(OUTSIDER).await);
    }
    sleep(Duration::from_millis(200)).await;

    let agent = async {
        let stream = client.handshake(client.connect_tcp(AGENT).await, "http/1.1").await.unwrap();
        RawHttp::new(stream).send_request(request_text("GET /", "")).await.status()
    };
    assert_eq!(timeout(Duration::from_secs(10), agent).await.expect("an agent connects"), 200);
    let mut stream = TcpStream::connect(admin).await.unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
