//! Each way in which a request can end has one label, the same in the access log and in the metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::SinkExt;
use loopgate_test_support::sidecar::{SidecarWithGateway, free_address};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{OUTSIDER, Protocol, h2_request, process, request};

/// The lines of the access log.
fn access_log(sidecar: &SidecarWithGateway) -> Vec<Value> {
    let lines = sidecar.process().log();
    lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["target"] == "loopgate::access")
        .collect()
}

/// Waits for `count` lines of the access log.
async fn wait_for_ends(sidecar: &SidecarWithGateway, count: usize) -> Vec<Value> {
    for _ in 0..1000 {
        let lines = access_log(sidecar);
        if lines.len() >= count {
            return lines;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ends: Vec<_> = access_log(sidecar)
        .iter()
        .map(|line| format!("{} {} {}", line["path"], line["protocol"], line["end"]))
        .collect();
    panic!("fewer than {count} lines: {ends:#?}");
}

/// The requests that ended, by their label, as the metrics count them.
fn counted(sidecar: &SidecarWithGateway) -> BTreeMap<String, u64> {
    let text = sidecar.get("/metrics", "127.0.0.1");
    let lines = text.lines().filter_map(|line| line.strip_prefix("loopgate_request_ends_total{"));
    let mut ends = BTreeMap::new();
    for line in lines {
        let (labels, count) = line.rsplit_once("} ").unwrap();
        let end = labels.split("end=\"").nth(1).unwrap().split('"').next().unwrap();
        *ends.entry(end.to_owned()).or_default() += count.parse::<u64>().unwrap();
    }
    ends.retain(|_, count| *count > 0);
    ends
}

#[tokio::test]
async fn every_end_has_one_label_in_the_log_and_in_the_metrics() {
    let admin = format!("--admin={}", free_address());
    let flags = ["--access-log", &admin, "--request-timeout=500ms", "--stall-timeout=1s", "--gateway-wait=0s"];
    let sidecar = process(&flags, "").await;
    let mut expected: Vec<(&str, Option<u64>)> = Vec::new();

    assert_eq!(sidecar.ask(Protocol::H1, OUTSIDER, "GET /", &[]).await.0, 200);
    let (response, _) = sidecar.h2(OUTSIDER).await.send_request(h2_request("GET /large?300000", &[]), true).unwrap();
    assert_eq!(crate::harness::whole(&mut response.await.unwrap().into_body()).await.unwrap().len(), 300_000);
    expected.extend([("complete", Some(5)), ("complete", Some(300_000))]);
    // With trailers, and with interim responses, which are no part of the body.
    for protocol in [Protocol::H1, Protocol::H2] {
        assert_eq!(sidecar.ask(protocol, OUTSIDER, "GET /unnamed-trailers", &[]).await, (200, "body".into()));
        expected.push(("complete", Some(4)));
    }
    let mut client = sidecar.h1(OUTSIDER).await;
    client.send(request("GET /hints", "")).await.unwrap();
    while client.response().await.unwrap().status() != 200 {}
    assert_eq!(sidecar.ask(Protocol::H2, OUTSIDER, "GET /hints", &[]).await.0, 200);
    expected.extend([("complete", Some(2)), ("complete", Some(2))]);

    for protocol in [Protocol::H1, Protocol::H2] {
        let mut socket = sidecar.websocket(protocol, OUTSIDER, "/ws").await;
        socket.send(Message::text("hello")).await.unwrap();
        expected.push(("upgraded", Some(0)));
        assert_eq!(sidecar.ask(protocol, OUTSIDER, "TRACE /", &[]).await.0, 405);
        assert_eq!(sidecar.ask(protocol, OUTSIDER, "POST /dies", &[]).await.0, 502);
        assert_eq!(sidecar.ask(protocol, OUTSIDER, "GET /stalls", &[]).await.0, 504);
        expected.extend([("trace", None), ("gateway_broke_off", None), ("gateway_timeout", None)]);
    }

    // The gateway breaks off inside its response.
    let mut client = sidecar.h1(OUTSIDER).await;
    client.send(request("GET /dies-halfway", "")).await.unwrap();
    assert!(client.rest().await.ends_with(b"half"));
    let (response, _) = sidecar.h2(OUTSIDER).await.send_request(h2_request("GET /dies-halfway", &[]), true).unwrap();
    let _ = crate::harness::whole(&mut response.await.unwrap().into_body()).await.unwrap_err();
    expected.extend([("gateway_cut", Some(4)), ("gateway_cut", Some(4))]);

    // The client closes before there is a response, and in the middle of one.
    let mut client = sidecar.h1(OUTSIDER).await;
    let before = sidecar.gateway.requests().len();
    client.send(request("GET /held", "")).await.unwrap();
    sidecar.gateway.wait_for_requests(before + 1).await;
    drop(client);
    let mut client = sidecar.h1(OUTSIDER).await;
    client.send(request("GET /large?100000000", "")).await.unwrap();
    client.head().await.unwrap();
    drop(client);
    expected.extend([("client_gone", None), ("client_gone", None)]);

    // A client that does not read.
    let mut h1 = sidecar.h1(OUTSIDER).await;
    h1.send(request("GET /large?100000000", "")).await.unwrap();
    expected.push(("client_stalled", None));

    let lines = wait_for_ends(&sidecar, expected.len()).await;
    let mut found: Vec<_> = lines.iter().map(|line| line["end"].as_str().unwrap().to_owned()).collect();
    let mut wanted: Vec<_> = expected.iter().map(|(end, _)| (*end).to_owned()).collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted, "{lines:#?}");
    for (end, bytes) in &expected {
        let Some(bytes) = bytes else { continue };
        assert!(lines.iter().any(|line| line["end"] == *end && line["bytes"] == *bytes), "{end} {bytes}: {lines:#?}");
    }
    // `bytes` are those that the socket took, not those that the gateway sent.
    for line in lines.iter().filter(|line| line["end"] == "client_stalled") {
        assert!((1..100_000_000).contains(&line["bytes"].as_u64().unwrap()), "{line}");
    }
    let mut by_label = BTreeMap::new();
    for end in found {
        *by_label.entry(end).or_insert(0) += 1;
    }
    assert_eq!(counted(&sidecar), by_label);
    let metrics = sidecar.get("/metrics", "127.0.0.1");
    assert!(metrics.contains("loopgate_gateway_errors_total{reason=\"gateway_cut\"} 2"), "{metrics}");
    sidecar.process().wait_for_log("the gateway broke off inside its response").await;
    let _ = h1.stream.read(&mut [0]).await;
}

#[tokio::test]
async fn what_a_shutdown_cuts_is_logged_as_such() {
    let sidecar = process(&["--access-log", "--drain-timeout=300ms"], "").await;
    let mut client = sidecar.h1(OUTSIDER).await;
    client.send(request("GET /stalls", "")).await.unwrap();
    sidecar.gateway.wait_for_requests(1).await;
    sidecar.process().signal(Signal::SIGTERM);
    assert_eq!(sidecar.process().wait_for_exit().await.code(), Some(0));
    let lines = access_log(&sidecar);
    assert_eq!(
        lines.iter().map(|line| line["end"].as_str().unwrap()).collect::<Vec<_>>(),
        ["drain_timeout"],
        "{lines:#?}"
    );
    sidecar.process().wait_for_log("aborted the connections that were left").await;
}

#[tokio::test]
async fn what_a_reload_forbids_is_logged_as_such() {
    let admin = format!("--admin={}", free_address());
    let sidecar = process(&["--access-log", &admin], "[external]\ndeny = []\n").await;
    let mut h1 = sidecar.h1(OUTSIDER).await;
    h1.send(request("GET /held", "")).await.unwrap();
    let mut h2 = sidecar.h2(OUTSIDER).await;
    let (held, _) = h2.send_request(h2_request("GET /held", &[]), true).unwrap();
    while sidecar.gateway.requests().iter().filter(|request| request.start().contains("/held")).count() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::write(sidecar.config_file(), format!("[external]\ndeny = [\"{OUTSIDER}\"]\n")).unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    assert!(held.await.is_err());
    for _ in 0..500 {
        if counted(&sidecar).get("revoked") == Some(&2) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(counted(&sidecar).get("revoked"), Some(&2));
    let revoked =
        access_log(&sidecar).iter().filter(|line| line["end"] == "revoked" && line["path"] == "/held").count();
    assert_eq!(revoked, 2);
}

#[tokio::test]
async fn every_answer_in_place_of_the_gateway_has_its_label_in_response_log_and_metrics() {
    let admin = format!("--admin={}", free_address());
    let flags = ["--access-log", &admin, "--request-timeout=500ms", "--stall-timeout=1s", "--gateway-wait=0s"];
    let sidecar =
        process(&flags, "[[external.paths]]\ndeny = \"/private\"\n[[external.paths]]\nallow = \"/\"\nupgrade = true\n")
            .await;
    let websocket = "Connection: Upgrade\r\nContent-Length: 2\r\n";
    let cases = [
        ("missing_host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("duplicate_host", request("GET /", "Host: b\r\n")),
        ("bad_host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned()),
        ("authority_mismatch", request("GET http://other.example/", "")),
        ("bad_target", request("GET *", "")),
        ("connect", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned()),
        ("trace", request("TRACE /", "")),
        ("bad_length", request("POST /", "Content-Length: 9223372036854775808\r\n")),
        ("bad_upgrade", request("GET /ws", &format!("{websocket}Upgrade: websocket\r\n")) + "xx"),
        ("path_denied", request("GET /private", "")),
        ("ambiguous_path", request("GET /a/%2e%2e/private", "")),
        ("request_body_timeout", request("POST /echo", "Content-Length: 10\r\n")),
        ("bad_body", request("POST /echo", "Transfer-Encoding: chunked\r\n") + "nonsense\r\n"),
        ("gateway_broke_off", request("POST /dies", "Content-Length: 0\r\n")),
        ("gateway_head_too_large", request("GET /large-head?400000", "")),
        ("gateway_timeout", request("GET /stalls", "")),
        ("gateway_unavailable", request("GET /", "")),
    ];
    let mut wanted = BTreeMap::new();
    for (label, text) in &cases {
        if *label == "gateway_unavailable" {
            sidecar.gateway.kill();
        }
        let mut client = sidecar.h1(OUTSIDER).await;
        let response = tokio::time::timeout(Duration::from_secs(10), client.ask(text))
            .await
            .unwrap_or_else(|_| panic!("{label}: no answer"));
        let body: Value =
            serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{label}: {error}: {response:?}"));
        assert_eq!(body["error"]["type"], *label, "{body}");
        *wanted.entry((*label).to_owned()).or_insert(0) += 1;
    }
    let many = vec![("x-many", "1"); 200];
    let (response, _) = sidecar.h2(OUTSIDER).await.send_request(h2_request("GET /", &many), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 431);
    wanted.insert("too_many_fields".to_owned(), 1);
    let lines = wait_for_ends(&sidecar, cases.len() + 1).await;
    let mut logged = BTreeMap::new();
    for line in &lines {
        *logged.entry(line["end"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!((&logged, &counted(&sidecar)), (&wanted, &wanted));
    let capped = process(&["--access-log", "--external-scopes=operator.read"], "").await;
    let (status, body) = capped.ask(Protocol::H1, OUTSIDER, "POST /v1/chat", &[("content-length", "0")]).await;
    assert_eq!((status, body.contains("\"scope_capped\"")), (403, true));
    assert_eq!(wait_for_ends(&capped, 1).await[0]["end"], "scope_capped");
}
