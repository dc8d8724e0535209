//! `loopgate check` if something is wrong with the engine, the gateway or the files. The engine and
//! the gateway are fakes.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Harness, free_address, loopgate};
use loopgate_test_support::fake_docker::{FakeDocker, container};
use loopgate_test_support::requirements::report_not_run;

/// Runs `loopgate check --json` without blocking the fakes; returns the report and whether the
/// command succeeded.
pub async fn run_check(arguments: &[&str]) -> (Value, bool) {
    let mut command = loopgate([&["check", "--json"], arguments].concat());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (report, output.status.success())
}

pub fn ids(report: &Value) -> BTreeSet<&str> {
    report["findings"].as_array().unwrap().iter().map(|finding| finding["id"].as_str().unwrap()).collect()
}

pub fn finding<'a>(report: &'a Value, id: &str) -> &'a Value {
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["id"] == id)
        .unwrap_or_else(|| panic!("no {id} in {report:#}"))
}

fn docker_url(docker: &FakeDocker) -> String {
    format!("unix://{}", docker.socket().display())
}

/// An address of this machine, by which loopgate finds the container that owns this namespace.
fn own_address() -> String {
    // Connecting a UDP socket sends no packet; it only selects the local address.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    match socket.connect("192.0.2.254:9").and_then(|()| socket.local_addr()) {
        Ok(address) => address.ip().to_string(),
        Err(_) => "127.0.0.1".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfiltered_docker_socket_is_reported() {
    let docker = FakeDocker::start();
    docker.set_response(
        "/containers/loopgate-check/archive",
        400,
        r#"{"message":"bad parameter: 'path' cannot be empty"}"#,
    );
    let (report, _) = run_check(&["--docker", &docker_url(&docker)]).await;
    // The check requests nothing that a socket filter does not have to permit, not even to test the
    // filter.
    for request in docker.requested_paths() {
        let is_fixed_path =
            ["/_ping", "/version", "/events", "/containers/json", "/networks"].contains(&request.as_str());
        let is_containers_path = request
            .strip_prefix("/containers/")
            .and_then(|rest| rest.split_once('/'))
            .is_some_and(|(_, last)| ["json", "top", "archive"].contains(&last));
        assert!(is_fixed_path || is_containers_path || request.starts_with("/networks/"), "{request}");
    }
    let seen = finding(&report, "docker-too-wide")["seen"][0].as_str().unwrap();
    assert!(seen.starts_with("GET /containers/{id}/archive gets through to the engine (400)"), "{seen}");
    docker.set_response("/containers/loopgate-check/archive", 403, "no");
    let (report, _) = run_check(&["--docker", &docker_url(&docker)]).await;
    assert!(!ids(&report).contains("docker-too-wide"), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_too_strict_docker_socket_is_reported() {
    let docker = FakeDocker::start();
    docker.set_response("/containers/json", 403, "no");
    let (report, success) = run_check(&["--docker", &docker_url(&docker)]).await;
    let seen = finding(&report, "docker-unreachable")["seen"][0].as_str().unwrap();
    assert!(seen.contains("refuses GET /containers/json (403") && !success, "{seen}");
    let (report, _) = run_check(&["--docker", "unix:///nowhere/docker.sock"]).await;
    assert!(
        finding(&report, "docker-unreachable")["seen"][0]
            .as_str()
            .unwrap()
            .contains("no socket at /nowhere/docker.sock"),
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_with_wrong_labels_or_forgeable_addresses_are_reported() {
    let own = own_address();
    if own.starts_with("127.") {
        return report_not_run("this machine has only loopback addresses");
    }
    let docker = FakeDocker::start();
    let labels = |project: &str, agent: &str| json!({"com.docker.compose.project": project, "loopgate.agent": agent});
    docker.add_silently(container("netns", json!({"com.docker.compose.project": "claw"}), &[("net", &own)]));
    docker.add_silently(container("foreign", labels("other", "true"), &[("net", "192.0.2.31")]));
    docker.add_silently(container("odd", labels("claw", "yes please"), &[("net", "192.0.2.32")]));
    docker.add_silently(container("robot", labels("claw", "address"), &[("net", "192.0.2.33")]));
    docker.set_inspection(
        "robot",
        json!({"Id": "robot", "HostConfig": {"CapDrop": null, "CapAdd": null, "Privileged": false}}),
    );
    let arguments = |more: &[&'static str]| {
        [vec!["--docker".to_owned(), docker_url(&docker)], more.iter().map(|argument| (*argument).to_owned()).collect()]
            .concat()
    };
    let given = arguments(&["--container", "netns", "--trusted-proxy", "192.0.2.254"]);
    let (report, _) = run_check(&given.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert!(
        finding(&report, "agent-other-project")["seen"][0].as_str().unwrap().starts_with("foreign: "),
        "{report:#}"
    );
    assert!(finding(&report, "agent-label")["seen"][0].as_str().unwrap().starts_with("odd: "), "{report:#}");
    assert!(finding(&report, "agent-net-raw")["seen"][0].as_str().unwrap().starts_with("robot "), "{report:#}");
    assert_eq!(
        finding(&report, "bridge-gateway-trusted")["remedy"],
        json!({"in": "loopgate", "key": "external.trusted_proxies", "value": []})
    );
    // The remedies are applied: the labels are right, NET_RAW is dropped, and the proxy is not
    // trusted.
    docker.add_silently(container("odd", labels("claw", "false"), &[("net", "192.0.2.32")]));
    docker.set_inspection("robot", json!({"Id": "robot", "HostConfig": {"CapDrop": ["NET_RAW"]}}));
    let given = arguments(&["--container", "netns", "--any-project"]);
    let (report, _) = run_check(&given.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let found = ids(&report);
    for id in ["agent-other-project", "agent-label", "agent-net-raw", "bridge-gateway-trusted"] {
        assert!(!found.contains(id), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_services_are_not_mistaken_for_the_gateway() {
    let sidecar = Harness::start(&[]);
    // The sidecar's own listener uses TLS, its admin listener HTTP.
    for (address, id) in [
        (sidecar.address, "gateway-tls"),
        (sidecar.admin_address(), "gateway-unknown"),
        (free_address(), "gateway-down"),
    ] {
        let (report, success) = run_check(&["--docker", "off", "--gateway", &address.to_string()]).await;
        assert!(ids(&report).contains(id) && (!success || id == "gateway-unknown"), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_directory_and_its_certificate_are_checked() {
    let sidecar = Harness::start(&[]);
    let directory = sidecar.state_dir();
    let state = directory.to_str().unwrap();
    let admin = sidecar.admin_address().to_string();
    let listen = sidecar.address.to_string();
    let arguments = ["--docker", "off", "--state-dir", state, "--admin", &admin, "--listen", &listen];
    let (report, _) = run_check(&arguments).await;
    let absent =
        ["state-dir-permissions", "state-dir-owner", "certificate-names", "certificate-expiring", "sidecar-down"];
    assert!(absent.iter().all(|id| !ids(&report).contains(id)), "{report:#}");
    std::fs::set_permissions(Path::new(state).join("ca.key"), PermissionsExt::from_mode(0o644)).unwrap();
    let (report, _) = run_check(&[&arguments[..], &["--tls-name", "gateway.example.com"]].concat()).await;
    let remedy = finding(&report, "state-dir-permissions")["remedy"]["what"].as_str().unwrap();
    assert_eq!(remedy, format!("chmod 600 {state}/ca.key"));
    assert!(
        finding(&report, "certificate-names")["seen"][0].as_str().unwrap().ends_with("is not for gateway.example.com"),
        "{report:#}"
    );
    std::fs::write(Path::new(state).join("server.pem"), "nothing").unwrap();
    let (report, success) = run_check(&arguments).await;
    assert!(ids(&report).contains("certificate-unreadable") && !success, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_or_invalid_configuration_of_the_gateway_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("openclaw.json");
    let arguments = ["--docker", "off", "--admin", "off"];
    let (report, _) = run_check(&arguments).await;
    assert!(ids(&report).contains("openclaw-config-unread"), "{report:#}");
    for content in [None, Some("{gateway: ")] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let (report, success) =
            run_check(&[&arguments[..], &["--openclaw-config", file.to_str().unwrap()]].concat()).await;
        let seen = finding(&report, "openclaw-config")["seen"][0].as_str().unwrap();
        assert!(seen.contains("openclaw.json") && !success, "{seen}");
    }
}

#[test]
fn every_finding_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    let mut places = vec![root.join("tests"), root.join("src/check")];
    while let Some(place) = places.pop() {
        for path in std::fs::read_dir(place).unwrap().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                places.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("catalogue.rs") {
                tests.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let missing: Vec<&str> = loopgate::check::catalogue::ALL
        .iter()
        .map(|kind| kind.id)
        .filter(|id| !tests.contains(&format!("\"{id}\"")))
        .collect();
    assert!(missing.is_empty(), "no test names these findings: {missing:?}");
}

#[test]
fn check_rejects_an_invalid_option() {
    let output = loopgate(["check", "--gateway", "10.0.0.1:1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// Writes a command `openclaw` into `directory`. It appends the path of its configuration and its
/// arguments to the file `calls` there.
fn write_openclaw_command(directory: &Path) {
    let script = format!("#!/bin/sh\necho \"$OPENCLAW_CONFIG_PATH $*\" >>{}/calls\n", directory.display());
    std::fs::write(directory.join("openclaw"), script).unwrap();
    std::fs::set_permissions(directory.join("openclaw"), std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn fix_runs_openclaw_config_set_for_safe_changes_only() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("openclaw.json");
    std::fs::write(&file, "{gateway: {bind: 'lan', auth: {mode: 'none'}, tls: {enabled: true}}}").unwrap();
    let address = free_address();
    let fix = |path: &Path| {
        let mut command =
            loopgate(["check", "--fix", "--docker", "off", "--admin", "off", "--gateway", &address.to_string()]);
        let output = command.arg("--openclaw-config").arg(&file).env("PATH", path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let without = fix(Path::new("/nowhere"));
    assert!(without.contains("there is no command openclaw here"), "{without}");
    for command in
        ["gateway.bind loopback", "gateway.auth.mode token", "gateway.trustedProxies '[\"127.0.0.2\"]' --json"]
    {
        assert!(without.contains(&format!("  openclaw config set {command}\n")), "{without}");
    }
    write_openclaw_command(directory.path());
    let text = fix(directory.path());
    let calls =
        std::fs::read_to_string(directory.path().join("calls")).unwrap_or_else(|error| panic!("{error}: {text}"));
    let mut set: Vec<&str> =
        calls.lines().map(|line| line.strip_prefix(&format!("{} config set ", file.display())).expect(line)).collect();
    set.sort_unstable();
    // The mode of authentication is not among them, because it needs a token first.
    assert_eq!(
        set,
        ["gateway.bind loopback", "gateway.tls.enabled false", "gateway.trustedProxies [\"127.0.0.2\"] --json"],
        "{text}"
    );
}
