//! Each way in which a request can end has one label, the same in the access log, in the metrics, and in the spans of
//! builds that send them. Another test compares the labels here with those of the code and the documentation.

mod bad_bodies;
mod closed_connections;
mod labels;
mod refused_heads;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::SinkExt;
use loopgate_test_support::fake_gateway::FakeGateway;
use loopgate_test_support::raw_h2::{END_HEADERS, END_STREAM, HEADERS, Outcome, RawH2, frame, request_block};
use loopgate_test_support::raw_http::RawHttp;
use loopgate_test_support::sidecar::{Launch, Sidecar, SidecarWithGateway, free_address};
use loopgate_test_support::tasks::Tasks;
use loopgate_test_support::tls_client::Tls;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::Message;

use crate::expiry::{authority, short_lived};
use crate::faults::with_tls_switch;
use crate::harness::{
    Harness, OUTSIDER, Protocol, TRUSTED_PROXY, h2_request, read_whole_body, request_text, start_process,
};

/// Labels, and how often.
type Counts = BTreeMap<String, u64>;

/// What every test here starts a sidecar with, and then compares.
struct Ends {
    admin: String,
    #[cfg(feature = "otel")]
    collector: crate::otel::Collector,
}

impl Ends {
    async fn new() -> Self {
        Self {
            admin: format!("--admin={}", free_address()),
            #[cfg(feature = "otel")]
            collector: crate::otel::Collector::start().await,
        }
    }

    /// `more`, and the flags that log and record requests.
    fn flags(&self, more: &[&str]) -> Vec<String> {
        let mut flags = vec!["--access-log".to_owned(), self.admin.clone(), "--gateway-wait=0s".into()];
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        #[cfg(feature = "otel")]
        flags.push(format!("--otel-endpoint=http://{}", self.collector.address));
        flags
    }

    async fn process(&self, more: &[&str], config: &str) -> SidecarWithGateway {
        let flags = self.flags(more);
        start_process(&flags.iter().map(String::as_str).collect::<Vec<_>>(), config).await
    }

    /// Waits until as many requests have ended as `wanted` says, and compares their labels in the
    /// log and in the metrics; returns the lines of the access log.
    async fn check_counts(&self, sidecar: &Sidecar, wanted: &Counts) -> Vec<Value> {
        let lines = wait_for_ends(sidecar, wanted.values().sum()).await;
        assert_eq!(&count_logged(&lines), wanted, "in the log: {lines:#?}");
        assert_eq!(&count_in_metrics(sidecar), wanted, "in the metrics");
        // What is refused, and what fails at the gateway, is counted by reason as well.
        const OTHERS: [&str; 8] = [
            "complete",
            "upgraded",
            "client_gone",
            "connection_closed",
            "client_stalled",
            "revoked",
            "drain_timeout",
            "drain_aborted",
        ];
        let mut reasons = wanted.clone();
        reasons.retain(|label, _| !OTHERS.contains(&label.as_str()));
        let families = ["loopgate_requests_refused_total{", "loopgate_gateway_errors_total{"];
        assert_eq!(in_metrics(sidecar, &families, "reason"), reasons, "by reason");
        lines
    }

    /// Stops the sidecar, and compares the spans with `wanted`.
    async fn check_spans(self, sidecar: &Sidecar, wanted: &Counts) {
        sidecar.process().signal(Signal::SIGTERM);
        assert!(sidecar.process().wait_for_exit().await.success());
        #[cfg(feature = "otel")]
        {
            let mut errors = Counts::new();
            for span in self.collector.spans() {
                let end = span.error_type();
                *errors.entry(end.unwrap_or("none").to_owned()).or_default() += 1;
                // What a client did wrong is no error of the span.
                let status = span.attributes.iter().find(|(key, _)| key == "http.response.status_code");
                let is_clients = status.is_some_and(|(_, status)| status.starts_with('4'));
                assert_eq!(span.error.as_deref(), end.filter(|_| !is_clients), "{span:?}");
            }
            let mut expected = Counts::new();
            for (label, count) in wanted {
                let is_error = !matches!(label.as_str(), "complete" | "upgraded");
                *expected.entry(if is_error { label.clone() } else { "none".into() }).or_default() += count;
            }
            assert_eq!(errors, expected, "in the spans");
        }
        #[cfg(not(feature = "otel"))]
        let _ = wanted;
    }
}

/// The lines of the access log.
fn access_log(sidecar: &Sidecar) -> Vec<Value> {
    let lines = sidecar.process().log_lines();
    lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["target"] == "loopgate::access")
        .collect()
}

/// Waits for `count` lines of the access log.
async fn wait_for_ends(sidecar: &Sidecar, count: u64) -> Vec<Value> {
    for _ in 0..1000 {
        let lines = access_log(sidecar);
        if lines.len() as u64 >= count {
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

/// The labels in the access log.
fn count_logged(lines: &[Value]) -> Counts {
    let mut ends = Counts::new();
    for line in lines {
        *ends.entry(line["end"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    ends
}

/// The requests that ended, by their label, as the metrics count them.
fn count_in_metrics(sidecar: &Sidecar) -> Counts {
    in_metrics(sidecar, &["loopgate_request_ends_total{"], "end")
}

/// The counts of `families` by `label` that are not 0.
fn in_metrics(sidecar: &Sidecar, families: &[&str], label: &str) -> Counts {
    let text = sidecar.admin_get("/metrics", "127.0.0.1");
    let lines = text.lines().filter_map(|line| families.iter().find_map(|family| line.strip_prefix(family)));
    let mut counts = Counts::new();
    for line in lines {
        let (labels, count) = line.rsplit_once("} ").unwrap();
        let value = labels.split(&format!("{label}=\"")).nth(1).unwrap().split('"').next().unwrap();
        *counts.entry(value.to_owned()).or_default() += count.parse::<u64>().unwrap();
    }
    counts.retain(|_, count| *count > 0);
    counts
}

fn counts(labels: impl IntoIterator<Item = &'static str>) -> Counts {
    let mut counts = Counts::new();
    for label in labels {
        *counts.entry(label.to_owned()).or_default() += 1;
    }
    counts
}

/// Asserts that `wanted` has each of `labels`, and no other.
fn assert_labels(wanted: &Counts, labels: &[&str]) {
    let mut labels = labels.to_vec();
    labels.sort_unstable();
    assert_eq!(wanted.keys().map(String::as_str).collect::<Vec<_>>(), labels);
}

const ENDS_OF_EXCHANGES: [&str; 8] = [
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

const ENDS_OF_A_SHUTDOWN: [&str; 1] = ["drain_timeout"];

#[tokio::test]
async fn what_a_shutdown_cuts_is_logged_as_such() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&["--drain-timeout=300ms"], "").await;
    let mut client = sidecar.connect_h1(OUTSIDER).await;
    client.send(request_text("GET /stalls", "")).await.unwrap();
    sidecar.gateway.wait_for_requests(1).await;
    let wanted = counts(ENDS_OF_A_SHUTDOWN);
    ends.check_spans(&sidecar, &wanted).await;
    assert_eq!(count_logged(&access_log(&sidecar)), wanted);
    sidecar.process().wait_for_log("aborted the connections that were left").await;
}

const ENDS_OF_A_SECOND_SIGNAL: [&str; 1] = ["drain_aborted"];

#[tokio::test]
async fn what_a_second_signal_cuts_is_logged_as_such() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&["--drain-timeout=60s"], "").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = sidecar.connect_h1(OUTSIDER).await;
        client.send(request_text("GET /stalls", "")).await.unwrap();
        clients.push(client);
    }
    let mut h2 = sidecar.connect_h2(OUTSIDER).await;
    let mut responses = Vec::new();
    for path in ["GET /stalls", "GET /stalls", "GET /stalls-halfway", "GET /events"] {
        h2 = h2.ready().await.unwrap();
        responses.push(h2.send_request(h2_request(path, &[]), true).unwrap().0);
    }
    sidecar.gateway.wait_for_requests(8).await;
    sidecar.process().signal(Signal::SIGTERM);
    sidecar.process().wait_for_log("stopping").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let wanted = counts([ENDS_OF_A_SECOND_SIGNAL[0]; 8]);
    ends.check_spans(&sidecar, &wanted).await;
    assert_eq!(count_logged(&access_log(&sidecar)), wanted);
}

const ENDS_OF_A_RELOAD: [&str; 1] = ["revoked"];

#[tokio::test]
async fn what_a_reload_forbids_is_logged_as_such() {
    let ends = Ends::new().await;
    let sidecar = ends.process(&[], "[external]\ndeny = []\n").await;
    let mut h1 = sidecar.connect_h1(OUTSIDER).await;
    h1.send(request_text("GET /held", "")).await.unwrap();
    let mut h2 = sidecar.connect_h2(OUTSIDER).await;
    let (held, _) = h2.send_request(h2_request("GET /held", &[]), true).unwrap();
    while sidecar.gateway.requests().iter().filter(|request| request.start_line().contains("/held")).count() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::write(sidecar.config_file(), format!("[external]\ndeny = [\"{OUTSIDER}\"]\n")).unwrap();
    sidecar.process().signal(Signal::SIGHUP);
    assert!(held.await.is_err());
    let wanted = counts([ENDS_OF_A_RELOAD, ENDS_OF_A_RELOAD].concat());
    ends.check_counts(&sidecar, &wanted).await;
    ends.check_spans(&sidecar, &wanted).await;
}

const ENDS_OF_ANSWERS: [&str; 23] = [
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

const ENDS_OF_LIMITS: [&str; 6] =
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

const ENDS_OF_CERTIFICATES: [&str; 1] = ["certificate_expired"];

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

const ENDS_OF_A_GATEWAY_WITH_TLS: [&str; 1] = ["gateway_tls"];

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
