//! sslyze and testssl.sh scan the sidecar's TLS.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{output, print_now, python, run};
use loopgate_test_support::backend::Backend;
use loopgate_test_support::sidecar::{Launch, Sidecar};

/// Findings of testssl.sh that are accepted. A private CA has neither a revocation list nor a CAA
/// record (its certificates are short-lived instead), and `engine_problem` is about testssl.sh's
/// own OpenSSL.
const ACCEPTED: &[&str] = &["cert_revocation", "DNS_CAArecord", "engine_problem"];

#[test]
fn sslyze_finds_no_weakness() {
    let Some(python) = python() else { return };
    run(sslyze(&python));
}

async fn sslyze(python: &Path) {
    let backend = Backend::start().await;
    let sidecar = Launch::new().gateway(backend.address).start();
    let target = format!("localhost:{}", sidecar.address.port());
    let json = tempfile::NamedTempFile::new().unwrap();
    let mut sslyze = Command::new(python);
    // The default checks with Mozilla's "intermediate" configuration, and two additional ones.
    sslyze
        .args(["-m", "sslyze", "--mozilla_config=intermediate", "--early_data", "--resum", "--json_out"])
        .arg(json.path())
        .arg(&target);
    let printed = output(&mut sslyze);
    let report: Value = serde_json::from_reader(json.as_file()).unwrap_or_else(|error| panic!("{error}: {printed}"));
    let server = &report["server_scan_results"][0];
    assert_eq!(server["scan_status"], "COMPLETED", "{printed}");
    assert_eq!(
        server["connectivity_result"]["client_auth_requirement"], "DISABLED",
        "a certificate is requested although no option needs one"
    );
    let result_of = |check: &str, field: &str| -> Value {
        let check = &server["scan_result"][check];
        assert_eq!(check["status"], "COMPLETED", "{check}");
        check["result"][field].clone()
    };
    for old in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"] {
        assert_eq!(result_of(&format!("{old}_cipher_suites"), "is_tls_version_supported"), false, "{old}");
    }
    for new in ["tls_1_2", "tls_1_3"] {
        let check = format!("{new}_cipher_suites");
        assert_eq!(result_of(&check, "is_tls_version_supported"), true, "{new}");
        for accepted in result_of(&check, "accepted_cipher_suites").as_array().unwrap() {
            let name = accepted["cipher_suite"]["name"].as_str().unwrap();
            assert!(name.contains("GCM") || name.contains("CHACHA20"), "{name} is no AEAD");
            assert!(!accepted["ephemeral_key"].is_null(), "{name} has no forward secrecy");
        }
    }
    let expected: &[(&str, &str, Value)] = &[
        ("tls_1_3_early_data", "supports_early_data", false.into()),
        ("tls_compression", "supports_compression", false.into()),
        ("session_renegotiation", "supports_secure_renegotiation", true.into()),
        ("session_renegotiation", "client_renegotiations_success_count", 0.into()),
        ("session_renegotiation", "is_vulnerable_to_client_renegotiation_dos", false.into()),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection", false.into()),
        ("heartbleed", "is_vulnerable_to_heartbleed", false.into()),
        ("robot", "robot_result", "NOT_VULNERABLE_RSA_NOT_SUPPORTED".into()),
        ("tls_fallback_scsv", "supports_fallback_scsv", true.into()),
        ("tls_extended_master_secret", "supports_ems_extension", true.into()),
    ];
    for (check, field, value) in expected {
        assert_eq!(result_of(check, field), *value, "{check}");
    }
    // Mozilla's configuration requires a public CA. This is its only requirement that a private CA
    // can't meet.
    let (_, compliance) = printed
        .split_once("COMPLIANCE AGAINST TLS CONFIGURATION")
        .unwrap_or_else(|| panic!("no section on compliance: {printed}"));
    let complaints: Vec<_> = compliance.lines().map(str::trim).filter(|line| line.starts_with("* ")).collect();
    print_now(format_args!("  sslyze, against Mozilla's intermediate configuration: {complaints:?}"));
    assert!(
        complaints.iter().all(|complaint| complaint.starts_with("* certificate_path_validation")),
        "{complaints:#?}"
    );
    sidecar.stop();
}

#[test]
fn testssl_finds_no_weakness() {
    if python().is_none() {
        return;
    }
    run(testssl());
}

async fn testssl() {
    let backend = Backend::start().await;
    let sidecar = Launch::new().gateway(backend.address).start();
    let mut findings = scan(&sidecar);
    // A warning means that testssl.sh could not carry out a check. It runs once more; a second
    // warning fails the test.
    if findings
        .iter()
        .any(|finding| finding["severity"] == "WARN" && !ACCEPTED.contains(&finding["id"].as_str().unwrap_or_default()))
    {
        print_now("  second run, because a check was not carried out");
        findings = scan(&sidecar);
    }
    let of = |id: &str| {
        findings.iter().find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("no {id} in {findings:#?}"))
    };
    for id in ["SSLv2", "SSLv3", "TLS1", "TLS1_1"] {
        assert!(of(id)["finding"].as_str().unwrap().contains("not offered"), "{id}");
    }
    assert!(of("TLS1_3")["finding"].as_str().unwrap().contains("offered"));
    assert_eq!(of("secure_client_renego")["severity"], "OK");
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let weak: Vec<_> =
        findings.iter().filter(|finding| !["OK", "INFO"].contains(&text(finding, "severity").as_str())).collect();
    for finding in &weak {
        let accepted = if ACCEPTED.contains(&text(finding, "id").as_str()) { " (accepted)" } else { "" };
        print_now(format_args!(
            "  {}: {} {}{accepted}",
            text(finding, "id"),
            text(finding, "severity"),
            text(finding, "finding")
        ));
    }
    let count = |severity: &str| findings.iter().filter(|finding| finding["severity"] == severity).count();
    print_now(format_args!("  testssl.sh: {} findings are OK, {} for information", count("OK"), count("INFO")));
    assert!(weak.iter().all(|finding| ACCEPTED.contains(&text(finding, "id").as_str())), "{weak:#?}");
    sidecar.stop();
}

/// Runs testssl.sh, and returns its findings.
fn scan(sidecar: &Sidecar) -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("testssl.json");
    let mut testssl = Command::new("testssl");
    // All groups of checks (protocols, ciphers, forward secrecy, preference, certificate,
    // vulnerabilities) except HTTP headers, because those are the gateway's.
    testssl
        .args(["--warnings", "off", "--quiet", "--color", "0", "-p", "-s", "-f", "-P", "-S", "-U", "--add-ca"])
        .arg(sidecar.ca_file());
    let printed = output(testssl.arg("--jsonfile").arg(&json).arg(format!("localhost:{}", sidecar.address.port())));
    let report = std::fs::read_to_string(&json).unwrap_or_else(|error| panic!("{error}: {printed}"));
    serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {printed}"))
}
