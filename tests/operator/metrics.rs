//! `/metrics` follows the rules of promtool's linter and of OpenMetrics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use loopgate::labels::{LaneKind, Protocol};
use loopgate::metrics::enrolment::EnrolmentMetrics;
use loopgate::metrics::health::{Health, ProofLabels};
use loopgate::metrics::traffic::Traffic;
use loopgate::metrics::{AcceptRefusal, DiscoveryMetrics, ListenerMetrics, count_reason};
use prometheus_client::registry::Registry;

use crate::harness::Harness;

/// The text of all metrics. Families that would be absent without a value have one.
pub fn all_metrics() -> String {
    let (traffic, listener_metrics, health) = (Traffic::default(), ListenerMetrics::default(), Health::default());
    for family in [
        &traffic.connections_denied,
        &traffic.handshake_failures,
        &traffic.connections_overdue,
        &traffic.requests_refused,
        &traffic.gateway_errors,
    ] {
        count_reason(family, "reason");
    }
    traffic.count_response(LaneKind::Agent, Protocol::H2, 200, Duration::ZERO);
    let enrolments = EnrolmentMetrics::default();
    count_reason(&enrolments.attempts_refused, "reason");
    listener_metrics.count_refusal(AcceptRefusal::ClientRate);
    health.agents.get_or_create(&ProofLabels { proof: "address" }).set(1);
    let mut registry = Registry::with_prefix("loopgate");
    traffic.register(&mut registry);
    listener_metrics.register(&mut registry);
    health.register(&mut registry);
    enrolments.register(&mut registry);
    let discovery = DiscoveryMetrics::default();
    discovery.register(&mut registry);
    discovery.register_docker(&mut registry);
    discovery.register_kubernetes(&mut registry);
    loopgate::tls::register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

/// All labels that metrics may have. A client can't choose the value of any of them.
const LABELS: [&str; 8] = ["end", "lane", "le", "proof", "protocol", "reason", "status", "version"];

#[test]
fn metrics_follow_the_naming_conventions_and_have_no_unbounded_label() {
    let sidecar = Harness::start(&[]);
    let answer = sidecar.admin_get("/metrics", "localhost");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    for wanted in
        ["loopgate_ready 1", "loopgate_gateway_up 1", "loopgate_listeners 1", "loopgate_certificate_problem 0"]
    {
        assert!(body.lines().any(|line| line == wanted), "{wanted} is not in\n{body}");
    }
    lint(body);
    lint(&all_metrics());
    let names = |text: &str| {
        text.lines().filter(|line| line.starts_with("# TYPE")).map(ToOwned::to_owned).collect::<BTreeSet<_>>()
    };
    let missing: Vec<_> = names(body).difference(&names(&all_metrics())).cloned().collect();
    assert_eq!(missing, [] as [String; 0], "metrics of the sidecar that are not in `all_metrics`");
}

fn lint(body: &str) {
    assert!(body.ends_with("# EOF\n"), "{body}");
    let (mut kinds, mut with_help) = (BTreeMap::new(), BTreeSet::new());
    for line in body.lines().filter_map(|line| line.strip_prefix("# ")) {
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("TYPE"), Some(name), Some(kind)) => {
                assert!(kinds.insert(name, kind).is_none(), "{name} has two types")
            }
            (Some("HELP"), Some(name), Some(help)) => assert!(with_help.insert(name) && help.ends_with('.'), "{line}"),
            (Some("UNIT"), Some(name), Some(unit)) => assert!(name.ends_with(unit), "{line}"),
            _ => assert_eq!(line, "EOF"),
        }
    }
    for (name, kind) in &kinds {
        assert!(with_help.contains(name), "{name} has no help");
        assert!(name.starts_with("loopgate_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        assert!(matches!(*kind, "counter" | "gauge" | "histogram" | "info"), "{name} is a {kind}");
        for unusual in [
            "_total",
            "_count",
            "_sum",
            "_bucket",
            "_milliseconds",
            "_ms",
            "_kilobytes",
            "_minutes",
            "_hours",
            "_percent",
        ] {
            assert!(!name.ends_with(unusual), "{name}");
        }
        assert!(!name.contains(kind), "{name} says its type");
    }
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let base = ["_total", "_bucket", "_sum", "_count", "_info"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        let kind = kinds.get(base).or_else(|| kinds.get(name)).unwrap_or_else(|| panic!("{name} has no type"));
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{name}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        for label in
            labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split_once('=')).map(|(label, _)| label)
        {
            assert!(LABELS.contains(&label), "{line}");
        }
    }
}

/// A family without a value is absent from the output, so `all_metrics` must give each one a value.
#[test]
fn every_registered_metric_is_in_all_metrics() {
    let files = std::fs::read_dir(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/metrics")).unwrap();
    let text: String = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    let calls = text
        .split("registry.register")
        .skip(1)
        .filter_map(|call| call.split_once('('))
        .map(|(_, arguments)| arguments.trim_start());
    let names: Vec<&str> = calls.filter_map(|arguments| arguments.strip_prefix('"')?.split('"').next()).collect();
    assert!(names.len() > 40, "{names:?}");
    let line = all_metrics();
    for name in names {
        assert!(line.contains(&format!("# TYPE loopgate_{name}")), "{name} is not in `all_metrics`");
    }
}

#[test]
fn alerts_and_the_dashboard_use_existing_metrics() {
    let metrics = all_metrics();
    let names: BTreeSet<String> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .flat_map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "histogram" => "_bucket",
                _ => "",
            };
            [format!("{name}{suffix}")]
        })
        .collect();
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring");
    for file in ["alerts.yaml", "dashboard.json"] {
        let text = std::fs::read_to_string(directory.join(file)).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let used: BTreeSet<&str> = words.filter(|word| word.starts_with("loopgate_")).collect();
        assert!(used.len() > 5, "{file}");
        for name in used {
            assert!(names.contains(name), "{file} uses {name}, which does not exist");
        }
        if file.ends_with(".json") {
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
    }
}
