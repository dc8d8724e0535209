//! `/metrics` by the rules of promtool's linter and of OpenMetrics.

use std::collections::{BTreeMap, BTreeSet};

use crate::sidecar::Sidecar;

/// The only labels there are; none has a value that a client chooses.
const LABELS: [&str; 7] = ["lane", "le", "proof", "protocol", "reason", "status", "version"];

#[test]
fn metrics_are_named_by_the_conventions_and_have_no_unbounded_label() {
    let sidecar = Sidecar::start(&[]);
    let answer = sidecar.get("/metrics", "localhost");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let (mut kinds, mut helped) = (BTreeMap::new(), BTreeSet::new());
    for line in body.lines().filter_map(|line| line.strip_prefix("# ")) {
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("TYPE"), Some(name), Some(kind)) => assert!(kinds.insert(name, kind).is_none(), "{name} is there twice"),
            (Some("HELP"), Some(name), Some(help)) => assert!(helped.insert(name) && help.ends_with('.'), "{line}"),
            (Some("UNIT"), Some(name), Some(unit)) => assert!(name.ends_with(unit), "{line}"),
            _ => assert_eq!(line, "EOF"),
        }
    }
    for (name, kind) in &kinds {
        assert!(helped.contains(name), "{name} has no help");
        assert!(name.starts_with("loopgate_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        assert!(matches!(*kind, "counter" | "gauge" | "histogram" | "info"), "{name} is a {kind}");
        for unusual in ["_total", "_count", "_sum", "_bucket", "_milliseconds", "_ms", "_kilobytes", "_minutes", "_hours", "_percent"] {
            assert!(!name.ends_with(unusual), "{name}");
        }
        assert!(!name.contains(kind), "{name} says its type");
    }
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let base = ["_total", "_bucket", "_sum", "_count", "_info"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        let kind = kinds.get(base).or_else(|| kinds.get(name)).unwrap_or_else(|| panic!("{name} has no type"));
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{name}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        for label in labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split_once('=')).map(|(label, _)| label) {
            assert!(LABELS.contains(&label), "{line}");
        }
    }
    for wanted in ["loopgate_ready 1", "loopgate_gateway_up 1", "loopgate_listeners 1", "loopgate_certificate_problem 0"] {
        assert!(body.lines().any(|line| line == wanted), "{wanted} is not in\n{body}");
    }
}
