//! The access log's trace id and request id, by which a request's other log lines are found.

use std::io::{Read, Write};

use serde_json::Value;

use crate::admin::connect;
use crate::harness::{Harness, loopgate};

const CLIENTS_TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Sends a request with this `traceparent` to a gateway that doesn't answer, and returns the log
/// lines.
fn log_of_request(flags: &[&str], traceparent: &str) -> Vec<Value> {
    let always = ["--access-log", "--log-format", "json", "--request-timeout", "300ms"];
    let sidecar = Harness::start(&[&always, flags].concat());
    let mut client = connect(&sidecar);
    write!(
        client,
        "GET /here?token=secret HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTraceparent: {traceparent}\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    let _ = client.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    let text = sidecar.process().output();
    assert!(!text.contains("secret"), "{text}");
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn the_access_log_has_the_trace_and_the_id_of_the_error() {
    let is_trace_id = |trace: &str| trace.len() == 32 && trace.bytes().all(|digit| digit.is_ascii_hexdigit());
    for (flags, traceparent, expected) in [
        (&["--traceparent", "make"][..], CLIENTS_TRACEPARENT, Some(&CLIENTS_TRACEPARENT[3..35])),
        (&["--traceparent", "make"], "nonsense", None),
        (&[], CLIENTS_TRACEPARENT, Some("-")),
    ] {
        let lines = log_of_request(flags, traceparent);
        let access =
            lines.iter().find(|line| line["target"] == "loopgate::access").unwrap_or_else(|| panic!("{lines:?}"));
        let trace = access["trace_id"].as_str().unwrap();
        assert!(expected.map_or_else(|| is_trace_id(trace), |expected| trace == expected), "{access}");
        assert_eq!((&access["path"], &access["status"]), (&"/here".into(), &504.into()));
        let error = lines.iter().find(|line| line["level"] == "WARN").unwrap_or_else(|| panic!("{lines:?}"));
        assert_eq!(access["request_id"], error["request_id"]);
    }
}

#[cfg(not(feature = "otel"))]
#[test]
fn a_build_without_opentelemetry_rejects_its_option() {
    let output = loopgate(["run", "--otel-endpoint", "http://127.0.0.1:4318"]).output().unwrap();
    let error_output = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        error_output.contains("--otel-endpoint") && error_output.contains("built without OpenTelemetry"),
        "{error_output}"
    );
}

#[cfg(feature = "otel")]
#[test]
fn an_invalid_collector_address_is_named() {
    for (url, why) in
        [("https://collector:4318", "is not http"), ("collector:4318", "is not a URL"), ("", "is not a URL")]
    {
        let output = loopgate(["run", "--otel-endpoint", url]).output().unwrap();
        let error_output = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{url}");
        assert!(error_output.contains("--otel-endpoint") && error_output.contains(why), "{error_output}");
    }
}
