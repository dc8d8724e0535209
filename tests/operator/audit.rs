//! The audit log of a running sidecar.

use std::io::{Read, Write};
use std::path::Path;

use serde_json::Value;

use crate::harness::{Harness, loopgate};

fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn lane_decisions_and_refusals_are_recorded_at_every_log_level_and_the_file_rotates() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let sidecar = Harness::start(&["--log-level=loopgate::app=info,error", &format!("--audit-log={}", path.display())]);
    let mut client = sidecar.connect_blocking();
    client
        .write_all(
            b"GET /secret-path HTTP/1.1\r\nHost: a\r\nHost: b\r\nAuthorization: Bearer hunter2\r\n\
              Connection: close\r\n\r\n",
        )
        .unwrap();
    let _ = client.read_to_end(&mut Vec::new());
    sidecar
        .process()
        .wait_until("both events are written", std::time::Duration::from_secs(10), || events(&path).len() >= 2);
    let recorded = events(&path);
    assert_eq!((&recorded[0]["kind"], &recorded[0]["lane"]), (&"lane".into(), &"external".into()), "{recorded:?}");
    assert_eq!((&recorded[1]["kind"], &recorded[1]["at"]), (&"refusal".into(), &"request".into()), "{recorded:?}");
    assert_eq!(recorded[0]["connection"], recorded[1]["connection"]);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("secret-path"), "{text}");
    assert!(!sidecar.process().output().contains("loopgate::audit"), "the log has audit events");

    std::fs::rename(&path, directory.path().join("audit.1")).unwrap();
    let output = loopgate(["reload", &format!("--admin={}", sidecar.admin_address())]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let _client = crate::admin::connect(&sidecar);
    sidecar.wait_for_status(|status| status["lanes"]["external"] == 1);
    sidecar
        .process()
        .wait_until("the new file has an event", std::time::Duration::from_secs(10), || !events(&path).is_empty());
}

#[test]
fn an_audit_log_that_can_not_be_opened_is_an_error() {
    let output =
        loopgate(["run", "--docker=off", "--listen=127.0.0.1:0", "--audit-log=/nowhere/audit.jsonl"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("loopgate: opening the audit log /nowhere/audit.jsonl: "), "{error}");
}

#[test]
fn a_full_disk_is_logged_and_stops_nothing() {
    let sidecar = Harness::start(&["--audit-log=/dev/full"]);
    let _client = crate::admin::connect(&sidecar);
    sidecar.wait_for_status(|status| status["lanes"]["external"] == 1);
    let has_logged = || sidecar.process().output().contains("can't write the audit log");
    sidecar.process().wait_until("the error is logged", std::time::Duration::from_secs(10), has_logged);
}
