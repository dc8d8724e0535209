//! Requests that loopgate answers in place of the gateway.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use loopgate_test_support::fake_gateway::FakeGateway;
use loopgate_test_support::raw_h2::{END_HEADERS, END_STREAM, HEADERS, Outcome, RawH2, frame, request_block};
use loopgate_test_support::sidecar::Launch;
use loopgate_test_support::tasks::Tasks;
use serde_json::Value;

use super::{Ends, counts};
use crate::expiry::{authority, short_lived};
use crate::faults::with_tls_switch;
use crate::harness::{Harness, OUTSIDER, Protocol, TRUSTED_PROXY, request_text};

pub const ENDS_OF_ANSWERS: [&str; 23] = [
    "missing_host",
    "duplicate_host",
    "bad_host",
    "authority_mismatch",
    "bad_target",
    "connect",
    "trace",
    "bad_length",
    "bad_transfer_encoding",
    "bad_upgrade",
    "path_denied",
    "ambiguous_path",
    "request_body_timeout",
    "bad_body",
    "bad_upgrade_response",
    "gateway_broke_off",
    "gateway_head_too_large",
    "gateway_transfer_encoding",
    "gateway_timeout",
    "gateway_unavailable",
    "too_many_fields",
    "head_too_large",
    "ambiguous_length",
];

#[tokio::test]
async fn every_answer_in_place_of_the_gateway_has_its_label_in_response_log_and_metrics() {
    let ends = Ends::new().await;
    let flags = ["--request-timeout=500ms", "--stall-timeout=1s"];
    let paths = "[[external.paths]]\ndeny = \"/private\"\n[[external.paths]]\nallow = \"/\"\nupgrade = true\n";
    let sidecar = ends.process(&flags, paths).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let cases = [
        ("missing_host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("duplicate_host", request_text("GET /", "Host: b\r\n")),
        ("bad_host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned()),
        ("authority_mismatch", request_text("GET http://other.example/", "")),
        ("bad_target", request_text("GET *", "")),
        ("connect", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned()),
        ("trace", request_text("TRACE /", "")),
        ("bad_length", request_text("POST /", "Content-Length: 9223372036854775808\r\n")),
        ("bad_transfer_encoding", request_text("POST /", "Transfer-Encoding: gzip, chunked\r\n") + "0\r\n\r\n"),
        ("bad_upgrade", request_text("GET /ws", &format!("{upgrade}Content-Length: 2\r\n")) + "xx"),
        ("path_denied", request_text("GET /private", "")),
        ("ambiguous_path", request_text("GET /a/%2e%2e/private", "")),
        ("request_body_timeout", request_text("POST /echo", "Content-Length: 10\r\n")),
        ("bad_body", request_text("POST /echo", "Transfer-Encoding: chunked\r\n") + "nonsense\r\n"),
        ("bad_upgrade_response", request_text("GET /ws-unproven", "")),
        ("gateway_broke_off", request_text("POST /dies", "Content-Length: 0\r\n")),
        ("gateway_head_too_large", request_text("GET /large-head?400000", "")),
        ("gateway_transfer_encoding", request_text("GET /coded/200?gzip,+chunked", "")),
        ("gateway_timeout", request_text("GET /stalls", "")),
        ("gateway_unavailable", request_text("GET /", "")),
    ];
    for (label, text) in &cases {
        if *label == "gateway_unavailable" {
            sidecar.gateway.kill();
        }
        let mut client = sidecar.connect_h1(OUTSIDER).await;
        let response = tokio::time::timeout(Duration::from_secs(10), client.send_request(text))
            .await
            .unwrap_or_else(|_| panic!("{label}: no answer"));
        let body: Value =
            serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{label}: {error}: {response:?}"));
        assert_eq!(body["error"]["type"], *label, "{body}");
        if response.field("connection") == Some("close") {
            assert!(client.ends_cleanly().await, "{label}: without a close_notify");
        } else {
            assert!(!matches!(response.status(), 400 | 405), "{response:?}");
        }
    }
    let long = "y".repeat(70_000);
    for (label, status, fields) in [
        ("too_many_fields", 431, vec![("x-many", "1"); 200]),
        ("head_too_large", 431, vec![("x-long", long.as_str())]),
        ("ambiguous_length", 400, vec![("content-length", "0"); 2]),
    ] {
        let (answered, body) = sidecar.send_request(Protocol::H2, OUTSIDER, "GET /", &fields).await;
        assert!(answered == status && body.contains(&format!("\"{label}\"")), "{answered} {body}");
    }
    let wanted = counts(ENDS_OF_ANSWERS);
    ends.check_counts(&sidecar, &wanted).await;
    ends.check_spans(&sidecar, &wanted).await;
}

pub const ENDS_OF_LIMITS: [&str; 6] =
    ["client_denied", "scope_capped", "too_many_requests", "out_of_files", "client_gone", "complete"];

#[tokio::test]
async fn what_rules_and_limits_refuse_has_its_label() {
    const DENIED: [(&str, &str); 1] = [("x-forwarded-for", "203.0.113.9")];
    let ends = Ends::new().await;
    let trusted = format!("--trusted-proxy={TRUSTED_PROXY}/32");
    let flags = ["--gateway-requests=2", "--external-scopes=operator.read", trusted.as_str()];
    let sidecar = ends.process(&flags, "[external]\ndeny = [\"203.0.113.9\"]\n").await;
    let type_of = |body: &str| serde_json::from_str::<Value>(body).unwrap()["error"]["type"].clone();
    let (status, read_body) = sidecar.send_request(Protocol::H1, TRUSTED_PROXY, "GET /", &DENIED).await;
    assert_eq!((status, type_of(&read_body)), (403, "client_denied".into()));
    let (status, read_body) =
        sidecar.send_request(Protocol::H1, OUTSIDER, "POST /v1/chat", &[("content-length", "0")]).await;
    assert_eq!((status, type_of(&read_body)), (403, "scope_capped".into()));

    // Of two requests at the gateway, one client may have one.
    let mut held = sidecar.connect_h1(OUTSIDER).await;
    held.send(request_text("GET /held", "")).await.unwrap();
    sidecar.gateway.wait_for_requests(1).await;
    let (status, read_body) = sidecar.send_request(Protocol::H2, OUTSIDER, "GET /", &[]).await;
    assert_eq!((status, type_of(&read_body)), (503, "too_many_requests".into()));
    drop(held);

    // No file can be opened any more; those that are open stay so.
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    assert_eq!(client.send_request(request_text("GET /to-the-end", "")).await.status(), 200);
    let limit = |soft: &str| {
        let pid = sidecar.process().id().to_string();
        let status = std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:")]).status();
        assert!(status.unwrap().success());
    };
    limit("3");
    let response = client.send_request(request_text("POST /", "Content-Length: 0\r\n")).await;
    assert_eq!((response.status(), type_of(&response.text())), (503, "out_of_files".into()));
    limit("256");
    let wanted = counts(ENDS_OF_LIMITS);
    ends.check_counts(&sidecar, &wanted).await;
    ends.check_spans(&sidecar, &wanted).await;
}

pub const ENDS_OF_CERTIFICATES: [&str; 1] = ["certificate_expired"];

#[tokio::test]
async fn a_request_after_the_clients_certificate_has_expired_has_its_label() {
    let (ca, issuer) = authority();
    let ends = Ends::new().await;
    let sidecar = ends.process(&[&format!("--client-ca={}", ca.path().display())], "").await;
    let mut client = RawH2::connect(&short_lived(&sidecar, &issuer), OUTSIDER, &[]).await;
    // It is asked to end, and sends a request all the same: it has not answered the PING yet.
    let outcome = client.send_until(&[], |outcome| outcome.graceful_goaway || outcome.is_over()).await;
    assert!(outcome.graceful_goaway, "{outcome:?}");
    let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &request_block("GET", "/", &[]));
    let outcome = client.send_until(&bytes, Outcome::is_decided).await;
    assert_eq!(outcome.heads.len(), 1, "{outcome:?}");
    let wanted = counts(ENDS_OF_CERTIFICATES);
    let lines = ends.check_counts(&sidecar, &wanted).await;
    assert_eq!(lines[0]["status"], 421);
    ends.check_spans(&sidecar, &wanted).await;
}

pub const ENDS_OF_A_GATEWAY_WITH_TLS: [&str; 1] = ["gateway_tls"];

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_speaks_tls_has_its_label() {
    let ends = Ends::new().await;
    let (server, plain, tasks) = (Harness::start().await, FakeGateway::start().await, Tasks::default());
    let is_tls = Arc::new(AtomicBool::new(true));
    let gateway = with_tls_switch(server.sidecar.tls_addresses()[0], plain.address, is_tls, &tasks).await;
    let flags = ends.flags(&[]);
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let sidecar = Launch::new().gateway(gateway).flags(&flags).start_async().await;
    assert_eq!(sidecar.send_request(Protocol::H2, OUTSIDER, "GET /", &[]).await.0, 502);
    let wanted = counts(ENDS_OF_A_GATEWAY_WITH_TLS);
    ends.check_counts(&sidecar, &wanted).await;
    ends.check_spans(&sidecar, &wanted).await;
}
