//! Each way in which a request can end has one label, the same in the access log, in the metrics,
//! and in the spans of builds that send them. Another test compares the labels here with those of
//! the code and the documentation.

mod answers;
mod bad_bodies;
mod closed_connections;
mod cut_by_operator;
mod exchanges;
mod labels;
mod refused_heads;

use std::collections::BTreeMap;
use std::time::Duration;

use loopgate_test_support::sidecar::{Sidecar, SidecarWithGateway, free_address};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::start_process;

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
