//! The labels of ends in the code are exactly those that a test causes, and those that are
//! documented.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::answers::{ENDS_OF_A_GATEWAY_WITH_TLS, ENDS_OF_ANSWERS, ENDS_OF_CERTIFICATES, ENDS_OF_LIMITS};
use super::closed_connections::ENDS_OF_CLOSED_CONNECTIONS;
use super::cut_by_operator::{ENDS_OF_A_RELOAD, ENDS_OF_A_SECOND_SIGNAL, ENDS_OF_A_SHUTDOWN};
use super::exchanges::ENDS_OF_EXCHANGES;
use super::refused_heads::ENDS_OF_HEADS;

/// The files with a function `label` for the ways in which a request, or its head, can end.
const SOURCES: [&str; 4] = [
    "src/proxy/request_end.rs",
    "src/proxy/error.rs",
    "src/lane/request_check.rs",
    "src/proxy/downstream/refused_heads.rs",
];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The labels in the functions `label` of the code.
fn labels_in_the_code() -> BTreeSet<String> {
    let mut labels = BTreeSet::new();
    for path in SOURCES {
        let text = read(path);
        let function = text.split(" fn label(").nth(1).unwrap_or_else(|| panic!("no function `label` in {path}"));
        let body = function.split("\n    }").next().unwrap();
        let found: Vec<_> = body.lines().filter_map(|line| line.split_once("=> \"")?.1.split_once('"')).collect();
        assert!(found.len() > 3, "{path}: {found:?}");
        labels.extend(found.iter().map(|(label, _)| (*label).to_owned()));
    }
    labels
}

#[test]
fn every_label_is_provoked_by_a_test() {
    let provoked = [
        &ENDS_OF_EXCHANGES[..],
        &ENDS_OF_A_SHUTDOWN,
        &ENDS_OF_A_SECOND_SIGNAL,
        &ENDS_OF_A_RELOAD,
        &ENDS_OF_ANSWERS,
        &ENDS_OF_LIMITS,
        &ENDS_OF_CERTIFICATES,
        &ENDS_OF_A_GATEWAY_WITH_TLS,
        &ENDS_OF_HEADS,
        &ENDS_OF_CLOSED_CONNECTIONS,
    ];
    let provoked: BTreeSet<_> = provoked.concat().into_iter().map(str::to_owned).collect();
    assert_eq!(labels_in_the_code(), provoked);
}

#[test]
fn every_label_is_documented() {
    let text = read("docs/operations.md");
    let table = text.lines().skip_while(|line| !line.starts_with("| `end` |")).skip(2);
    let documented: BTreeSet<_> = table
        .take_while(|line| line.starts_with('|'))
        .map(|row| row.split('`').nth(1).unwrap_or_else(|| panic!("no label in {row}")).to_owned())
        .collect();
    assert_eq!(labels_in_the_code(), documented);
}
