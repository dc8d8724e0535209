//! Streaming of bodies: complete, in pieces, in both directions, and responses that have none.

use std::time::Duration;

use bytes::Bytes;
use loopgate::config::PathRule;
use tokio::time::timeout;

use crate::harness::{Harness, OUTSIDER, h2_request, read_whole_body, request_text};
use loopgate_test_support::fake_gateway::pattern_byte;

/// The time limit of each step. It is longer than any step takes, so that only a hang fails.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_gateways_100_continue_reaches_the_client() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text("POST /echo", "Expect: 100-continue\r\nContent-Length: 4\r\n")).await.unwrap();
    assert_eq!(client.read_head().await.unwrap().start_line(), "HTTP/1.1 100 Continue");
    assert_eq!(client.send_request("body").await.text(), "body");
}

#[tokio::test]
async fn a_body_is_not_sent_to_a_gateway_that_refuses_it() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text("POST /unwelcome", "Expect: 100-continue\r\nContent-Length: 4\r\n")).await.unwrap();
    let response = client.read_response().await.unwrap();
    // If the connection were used again, the next request could be taken for the body.
    assert_eq!((response.status(), response.field("connection")), (417, Some("close")));
    assert!(client.read_rest().await.is_empty());
    assert!(harness.gateway.requests()[0].body.is_empty());
}

#[tokio::test]
async fn a_refusal_instead_of_100_continue_closes_the_connection() {
    let harness = Harness::start_with(|config| config.external.paths = vec![PathRule::deny("/")]).await;
    let expect = "Expect: 100-continue\r\n";
    for (fields, connection) in [(format!("{expect}Content-Length: 4\r\n"), Some("close")), (expect.to_owned(), None)] {
        let response = harness.connect_h1(OUTSIDER).await.send_request(request_text("POST /", &fields)).await;
        assert_eq!((response.status(), response.field("connection")), (403, connection), "{fields}");
    }
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /events", "Accept: text/event-stream\r\n")).await.unwrap();
    let head = client.read_head().await.unwrap();
    assert_eq!(head.field("content-type"), Some("text/event-stream"));
    for number in 0..3 {
        harness.gateway.release_held(1);
        let event = timeout(SOON, client.read_chunk()).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(event).unwrap(), format!("data: event {number}\n"));
    }
    assert_eq!(client.read_chunk().await.unwrap(), b"");

    let mut client = harness.connect_h2(OUTSIDER).await;
    let (response, _) = client.send_request(h2_request("GET /events", &[]), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    for number in 0..3 {
        harness.gateway.release_held(1);
        let event = timeout(SOON, body.data()).await.unwrap().unwrap().unwrap();
        assert_eq!(event, format!("data: event {number}\n").as_bytes());
    }
    assert_eq!(read_whole_body(&mut body).await.unwrap(), b"");
}

#[tokio::test]
async fn trailers_of_the_gateway_reach_the_client() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    let response = client.send_request(request_text("GET /trailers", "TE: trailers\r\n")).await;
    assert_eq!((response.text().as_str(), response.trailers.to_ascii_lowercase().as_str()), ("body", "x-sum: 4\r\n"));
    let mut client = harness.connect_h2(OUTSIDER).await;
    let (response, _) = client.send_request(h2_request("GET /trailers", &[("te", "trailers")]), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(read_whole_body(&mut body).await.unwrap(), b"body");
    assert_eq!(body.trailers().await.unwrap().unwrap()["x-sum"], "4");
}

#[tokio::test]
async fn responses_without_a_body_keep_the_connection_usable() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    for _ in 0..2 {
        client.send(request_text("HEAD /", "")).await.unwrap();
        let head = client.read_head().await.unwrap();
        assert_eq!((head.status(), head.field("content-length")), (200, Some("5")));
        let nothing = client.send_request(request_text("GET /nothing", "")).await;
        assert_eq!(
            (nothing.status(), nothing.field("content-length"), nothing.field("transfer-encoding")),
            (204, None, None)
        );
        let same = client.send_request(request_text("GET /same", "If-None-Match: \"a\"\r\n")).await;
        assert_eq!((same.status(), same.field("etag")), (304, Some("\"a\"")));
        assert_eq!(client.send_request(request_text("GET /", "")).await.text(), "hello");
    }
    assert_eq!(harness.gateway.connections(), 1);
}

#[tokio::test]
async fn an_http_1_0_client_gets_a_response_and_a_close() {
    let harness = Harness::start().await;
    for path in ["/", "/events", "/to-the-end"] {
        harness.gateway.release_held(3);
        let mut client = harness.connect_h1(OUTSIDER).await;
        client.send(format!("GET {path} HTTP/1.0\r\nHost: gateway.example\r\n\r\n")).await.unwrap();
        let head = client.read_head().await.unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(head.field("transfer-encoding"), None, "{path}");
        let body = String::from_utf8(timeout(SOON, client.read_rest()).await.unwrap()).unwrap();
        assert!(
            ["hello", "until the end", "data: event 0\ndata: event 1\ndata: event 2\n"].contains(&body.as_str()),
            "{body}"
        );
    }
    let received = harness.gateway.requests();
    assert!(received.iter().all(|received| received.start_line().ends_with("HTTP/1.1")));
}

#[tokio::test]
async fn hop_by_hop_fields_of_the_gateway_are_not_forwarded() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h1(OUTSIDER).await;
    let response = client.send_request(request_text("GET /hop", "")).await;
    let names = response.field_names();
    assert_eq!(names.iter().filter(|name| *name != "date").collect::<Vec<_>>(), ["x-kept", "content-length"]);
    let required = client.send_request(request_text("GET /upgrade-required", "")).await;
    assert_eq!(
        (required.status(), required.field("upgrade"), required.field("connection")),
        (426, Some("websocket"), Some("upgrade"))
    );
    let mut over_h2 = harness.connect_h2(OUTSIDER).await;
    let (response, _) = over_h2.send_request(h2_request("GET /upgrade-required", &[]), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers().get("upgrade")), (426, None));
    assert_eq!(client.send_request(request_text("GET /to-the-end", "")).await.text(), "until the end");
    assert_eq!(
        client.send_request(request_text("GET /", "")).await.text(),
        "hello",
        "the client's connection has outlived the gateway's"
    );
}

#[tokio::test]
async fn large_bodies_pass_whole_in_both_directions() {
    const SIZE: usize = 20_000_000;
    let harness = Harness::start().await;
    let path = format!("GET /large?{SIZE}");
    let mut client = harness.connect_h1(OUTSIDER).await;
    let response = client.send_request(request_text(&path, "")).await;
    assert!(
        response.body.len() == SIZE && response.body.iter().enumerate().all(|(at, byte)| *byte == pattern_byte(at))
    );

    let mut client = harness.connect_h2(OUTSIDER).await;
    let (response, _) = client.send_request(h2_request(&path, &[]), true).unwrap();
    let body = read_whole_body(response.await.unwrap().body_mut()).await.unwrap();
    assert!(body.len() == SIZE && body.iter().enumerate().all(|(at, byte)| *byte == pattern_byte(at)));

    let upload: Vec<u8> = (0..SIZE / 4).map(pattern_byte).collect();
    let mut client = harness.connect_h1(OUTSIDER).await;
    let head = request_text("POST /echo", &format!("Content-Length: {}\r\n", upload.len()));
    client.send(head).await.unwrap();
    assert!(client.send_request(&upload).await.body == upload);
    client.send(request_text("POST /echo", "Transfer-Encoding: chunked\r\n")).await.unwrap();
    for block in upload.chunks(100_001) {
        client.send(format!("{:X}\r\n", block.len())).await.unwrap();
        client.send(block).await.unwrap();
        client.send("\r\n").await.unwrap();
    }
    assert!(client.send_request("0\r\n\r\n").await.body == upload);
}

#[tokio::test]
async fn an_upload_and_its_response_flow_at_once_over_h2() {
    let harness = Harness::start().await;
    let mut client = harness.connect_h2(OUTSIDER).await;
    let (response, mut stream) = client.send_request(h2_request("POST /echo", &[]), false).unwrap();
    for _ in 0..64 {
        stream.send_data(Bytes::from(vec![7; 10_000]), false).unwrap();
    }
    stream.send_data(Bytes::new(), true).unwrap();
    assert_eq!(read_whole_body(response.await.unwrap().body_mut()).await.unwrap().len(), 640_000);
    assert_eq!(harness.gateway.requests()[0].field("transfer-encoding"), Some("chunked"));
}

#[tokio::test]
async fn a_client_that_does_not_read_applies_backpressure_to_the_gateway() {
    const SIZE: usize = 200_000_000;
    let harness = Harness::start().await;
    let before = resident_bytes();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = harness.connect_h1(OUTSIDER).await;
        client.send(request_text(&format!("GET /large?{SIZE}"), "")).await.unwrap();
        assert_eq!(client.read_head().await.unwrap().status(), 200);
        clients.push(client);
        let mut client = harness.connect_h2(OUTSIDER).await;
        let (response, _) = client.send_request(h2_request(&format!("GET /large?{SIZE}"), &[]), true).unwrap();
        std::mem::forget(response.await.unwrap());
    }
    // These requests of another client give the sidecar time to read from the gateway, and show
    // that the stalled downloads do not delay others.
    for _ in 0..200 {
        assert_eq!(harness.send_request(crate::harness::Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 150_000_000, "{grown} bytes for eight stalled downloads");
}

/// Returns the resident memory of this process, in bytes (proc_pid_statm(5)).
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
