//! Exchanges that are complete, or that the gateway or the client breaks off.

use futures_util::SinkExt;
use loopgate_test_support::raw_http::RawHttp;
use loopgate_test_support::sidecar::SidecarWithGateway;
use loopgate_test_support::tls_client::Tls;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::Message;

use super::{Ends, assert_labels, counts};
use crate::harness::{OUTSIDER, Protocol, h2_request, read_whole_body, request_text};

pub const ENDS_OF_EXCHANGES: [&str; 8] = [
    "complete",
    "upgraded",
    "trace",
    "gateway_broke_off",
    "gateway_timeout",
    "gateway_cut",
    "client_gone",
    "client_stalled",
];

#[tokio::test]
async fn every_end_has_one_label_in_the_log_and_in_the_metrics() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&["--request-timeout=500ms", "--stall-timeout=1s"], "").await;

    let mut expected = Vec::new();
    expected.extend(whole_responses(&sidecar).await);
    for protocol in [Protocol::H1, Protocol::H2] {
        expected.extend(trailers_upgrades_and_errors(&sidecar, protocol).await);
    }
    expected.extend(responses_that_the_gateway_cuts(&sidecar).await);
    expected.extend(clients_that_leave(&sidecar).await);
    let (mut stalled, end) = client_that_does_not_read(&sidecar).await;
    expected.push(end);

    let wanted = counts(expected.iter().map(|(end, _)| *end));
    assert_labels(&wanted, &ENDS_OF_EXCHANGES);
    let lines = ends.check_counts(&sidecar, &wanted).await;
    assert_bytes(&lines, &expected);
    sidecar.process().wait_for_log("the gateway broke off inside its response").await;
    let _ = stalled.stream.read(&mut [0]).await;
    ends.check_spans(&sidecar, &wanted).await;
}

/// The label of a request's end, and the bytes of its body that the access log must state.
type End = (&'static str, Option<u64>);

/// Asserts that `lines` state the bytes of each of `expected`.
fn assert_bytes(lines: &[Value], expected: &[End]) {
    for (end, bytes) in expected {
        let Some(bytes) = bytes else { continue };
        assert!(lines.iter().any(|line| line["end"] == *end && line["bytes"] == *bytes), "{end} {bytes}: {lines:#?}");
    }
    // `bytes` are those that the socket took, not those that the gateway sent.
    for line in lines.iter().filter(|line| line["end"] == "client_stalled") {
        assert!((1..100_000_000).contains(&line["bytes"].as_u64().unwrap()), "{line}");
    }
}

/// Small and large ones, and some after interim responses, which are no part of the body.
async fn whole_responses(sidecar: &SidecarWithGateway) -> [End; 4] {
    assert_eq!(sidecar.send_request(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
    let (response, _) =
        sidecar.connect_h2(OUTSIDER).await.send_request(h2_request("GET /large?300000", &[]), true).unwrap();
    assert_eq!(read_whole_body(&mut response.await.unwrap().into_body()).await.unwrap().len(), 300_000);

    let mut client = sidecar.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /hints", "")).await.unwrap();
    while client.read_response().await.unwrap().status() != 200 {}
    assert_eq!(sidecar.send_request(Protocol::H2, OUTSIDER, "GET /hints", &[]).await.0, 200);
    [("complete", Some(5)), ("complete", Some(300_000)), ("complete", Some(2)), ("complete", Some(2))]
}

async fn trailers_upgrades_and_errors(sidecar: &SidecarWithGateway, protocol: Protocol) -> [End; 5] {
    assert_eq!(sidecar.send_request(protocol, OUTSIDER, "GET /unnamed-trailers", &[]).await, (200, "body".into()));
    let mut socket = sidecar.open_websocket(protocol, OUTSIDER, "/ws").await;
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(sidecar.send_request(protocol, OUTSIDER, "TRACE /", &[]).await.0, 405);
    assert_eq!(sidecar.send_request(protocol, OUTSIDER, "POST /dies", &[]).await.0, 502);
    assert_eq!(sidecar.send_request(protocol, OUTSIDER, "GET /stalls", &[]).await.0, 504);
    [
        ("complete", Some(4)),
        ("upgraded", Some(0)),
        ("trace", None),
        ("gateway_broke_off", None),
        ("gateway_timeout", None),
    ]
}

async fn responses_that_the_gateway_cuts(sidecar: &SidecarWithGateway) -> [End; 2] {
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /dies-halfway", "")).await.unwrap();
    assert!(client.read_rest().await.ends_with(b"half"));

    let (response, _) =
        sidecar.connect_h2(OUTSIDER).await.send_request(h2_request("GET /dies-halfway", &[]), true).unwrap();
    let _ = read_whole_body(&mut response.await.unwrap().into_body()).await.unwrap_err();
    [("gateway_cut", Some(4)), ("gateway_cut", Some(4))]
}

/// One closes before there is a response, the other in the middle of one.
async fn clients_that_leave(sidecar: &SidecarWithGateway) -> [End; 2] {
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    let before = sidecar.gateway.requests().len();
    client.send(request_text("GET /held", "")).await.unwrap();
    sidecar.gateway.wait_for_requests(before + 1).await;
    drop(client);

    let mut client = sidecar.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /large?100000000", "")).await.unwrap();
    client.read_head().await.unwrap();
    drop(client);
    [("client_gone", None), ("client_gone", None)]
}

async fn client_that_does_not_read(sidecar: &SidecarWithGateway) -> (RawHttp<Tls>, End) {
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /large?100000000", "")).await.unwrap();
    (client, ("client_stalled", None))
}
