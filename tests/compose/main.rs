//! `loopgate compose` on typical projects. `tests/data/compose/KIND/compose.yaml` is a project,
//! `config.json` the output of `docker compose config` for it, and each other file an output of
//! loopgate. `TEST_BLESS=1` updates the outputs and `config.json`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Each kind of project, with loopgate's arguments and the file with the expected output.
const TABLE: &[(&str, &[&str], &str)] = &[
    ("official-2026.2", &[], "override.yaml"),
    ("official-2026.2", &["--in-gateway"], "in-gateway.yaml"),
    ("official-2026.2", &["--check"], "check.txt"),
    ("official-2026.2", &["--full", "--tls-name", "claw.example.com", "--image", "loopgate"], "full.yaml"),
    ("official-2026.9", &[], "override.yaml"),
    ("coolify", &[], "override.yaml"),
    ("unraid", &[], "override.yaml"),
    ("traefik-labels", &[], "override.yaml"),
    ("cloudflare-tunnel", &[], "override.yaml"),
    ("tailscale-namespace", &[], "override.yaml"),
    ("host-network", &[], "override.yaml"),
    ("caddy-front", &[], "override.yaml"),
    ("nginx-front", &[], "override.yaml"),
    ("own-user-external-network", &[], "override.yaml"),
    ("hardened-two-networks", &[], "override.yaml"),
    ("caddy-labels", &[], "override.yaml"),
    ("default-bridge", &[], "override.yaml"),
    ("backend-beside", &["--agent", "app"], "override.yaml"),
    ("node-host", &[], "override.yaml"),
    ("node-host", &["--agent", "builder"], "agent.yaml"),
    ("sandboxes", &["--gateway-user", "1000:999"], "override.yaml"),
    ("token-on-the-command-line", &[], "override.yaml"),
    ("two-gateways", &[], "override.yaml"),
    ("two-gateways", &["--gateway-service", "bob"], "bob.yaml"),
];
/// A text that every secret in the projects contains.
const SECRET: &str = "-secret";

/// The directory with a directory for each kind of project.
fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/compose")
}

/// Every kind of project, once.
fn project_kinds() -> BTreeSet<&'static str> {
    TABLE.iter().map(|(kind, ..)| *kind).collect()
}

/// Returns whether to update the expected outputs.
fn is_blessing() -> bool {
    std::env::var_os("TEST_BLESS").is_some()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `loopgate compose` with the project on standard input.
fn loopgate(kind: &str, arguments: &[&str]) -> Output {
    let config = fs::File::open(data_dir().join(kind).join("config.json")).expect("config.json");
    Command::new(env!("CARGO_BIN_EXE_loopgate"))
        .arg("compose")
        .args(arguments)
        .stdin(config)
        .output()
        .expect("loopgate can be run")
}

/// The output in the form of the expected files: standard output, then the exit status and standard
/// error.
fn output_text(output: &Output) -> String {
    let status = output.status.code().expect("an exit status");
    let error_lines: String = text(&output.stderr).lines().map(|line| format!("# {line}\n")).collect();
    // The filter's configuration is the content of another file, so it is left out.
    let filter = |line: &str| {
        if line.starts_with("      FILTER: ") {
            "      FILTER: docker/socket-filter/haproxy-unix.cfg".into()
        } else {
            line.to_owned()
        }
    };
    let written: String = text(&output.stdout).lines().map(|line| filter(line) + "\n").collect();
    format!("{written}# --- standard error, and exit status {status}\n{error_lines}")
}

#[test]
fn every_kind_of_project_gets_the_expected_output() {
    let mut wrong = Vec::new();
    for (kind, arguments, file) in TABLE {
        let path = data_dir().join(kind).join(file);
        let answer = output_text(&loopgate(kind, arguments));
        if is_blessing() {
            fs::write(&path, answer).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != answer {
            wrong.push(format!("{kind} {arguments:?} differs from {file}:\n{answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_secret_is_ever_written() {
    let mut arguments: Vec<&[&str]> = vec![&["--check"], &["--full"], &["--in-gateway"]];
    arguments.extend(TABLE.iter().map(|(_, arguments, _)| *arguments));
    for kind in project_kinds() {
        let config = fs::read_to_string(data_dir().join(kind).join("config.json")).unwrap();
        for arguments in &arguments {
            let answer = output_text(&loopgate(kind, arguments));
            assert!(!answer.contains(SECRET), "{kind} {arguments:?}: {answer}");
        }
        // The error for a truncated text doesn't contain a secret either.
        for end in (1..config.len()).step_by(97).filter(|end| config.is_char_boundary(*end)) {
            let mut child = Command::new(env!("CARGO_BIN_EXE_loopgate"))
                .arg("compose")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(&config.as_bytes()[..end]).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(
                output.status.code() == Some(2) && !output_text(&output).contains(SECRET),
                "{kind} cut at {end}: {}",
                output_text(&output)
            );
        }
    }
}

#[test]
fn docker_compose_merges_every_override_as_intended() {
    if !is_compose_installed() {
        return;
    }
    for kind in project_kinds() {
        let config = data_dir().join(kind).join("config.json");
        let current = run_compose_config(kind, &["compose.yaml"]).expect("a valid project");
        if is_blessing() {
            fs::write(&config, &current).unwrap();
        }
        let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(
            parsed(&current),
            parsed(&fs::read_to_string(&config).unwrap()),
            "{kind}/config.json is out of date"
        );
    }
    let mut merged = 0;
    for (kind, arguments, file) in TABLE.iter().filter(|(.., file)| file.ends_with(".yaml")) {
        if fs::read_to_string(data_dir().join(kind).join(file)).unwrap().starts_with("# ---") {
            continue;
        }
        let before: Value =
            serde_json::from_str(&fs::read_to_string(data_dir().join(kind).join("config.json")).unwrap()).unwrap();
        let after = run_compose_config(kind, &["compose.yaml", file])
            .unwrap_or_else(|why| panic!("{kind} {arguments:?}: {why}"));
        assert_gateway_behind_loopgate(&format!("{kind} {file}"), &before, &serde_json::from_str(&after).unwrap());
        merged += 1;
    }
    assert!(merged >= 20, "{merged} overrides were merged");
}

/// Fails unless the merged project `after` has its gateway behind loopgate.
fn assert_gateway_behind_loopgate(kind: &str, before: &Value, after: &Value) {
    let services = after["services"].as_object().unwrap();
    let loopgate = &services["loopgate"];
    let gateway_namespace = loopgate["network_mode"].as_str().unwrap();
    assert_eq!((&loopgate["read_only"], &loopgate["cap_drop"]), (&true.into(), &serde_json::json!(["ALL"])), "{kind}");
    let old = before["services"].as_object().unwrap();
    let starts_gateway =
        |service: &Value| service.to_string().contains("\"gateway\"") || service.to_string().contains("gateway --bind");
    let (name, gateway) = services
        .iter()
        .filter(|(name, _)| old.contains_key(*name))
        .find(|(name, service)| {
            service["network_mode"] == gateway_namespace && (starts_gateway(service) || *name == "openclaw")
                || gateway_namespace == format!("service:{name}")
        })
        .unwrap_or_else(|| panic!("{kind}: the gateway is in {gateway_namespace}"));
    let line = gateway["command"].to_string();
    assert!(!line.contains("--force") && !line.contains("lan\"") && !line.contains("--bind lan"), "{kind}: {line}");
    assert_ne!(gateway["environment"]["OPENCLAW_GATEWAY_BIND"], "lan", "{kind}");
    if gateway_namespace != "service:netns" {
        return;
    }
    // Settings that only the container that owns a network namespace can have were moved to
    // `netns`.
    for (name, service) in services.iter().filter(|(_, service)| service["network_mode"] == gateway_namespace) {
        for key in ["ports", "networks", "hostname", "extra_hosts", "dns", "expose", "mac_address"] {
            assert!(service.get(key).is_none(), "{kind}: {name} still has {key}");
        }
    }
    let netns = &services["netns"];
    let published = |service: &Value| -> BTreeSet<String> {
        let ports = service["ports"].as_array().cloned().unwrap_or_default();
        ports.iter().map(|port| format!("{} {} {}", port["host_ip"], port["published"], port["protocol"])).collect()
    };
    assert!(published(&old[name]).is_subset(&published(netns)), "{kind}: a port is no longer published");
    let ports = netns["ports"].as_array().cloned().unwrap_or_default();
    assert!(!ports.iter().any(|port| port["target"] == 18789), "{kind}: a port leads to the gateway itself");
    for (network, settings) in old[name]["networks"].as_object().into_iter().flatten() {
        let aliases = netns["networks"][network]["aliases"].as_array().cloned().unwrap_or_default();
        assert!(aliases.contains(&name.as_str().into()), "{kind}: {name} can't be found on {network}");
        assert_eq!(netns["networks"][network]["ipv4_address"], settings["ipv4_address"], "{kind}");
    }
}

#[test]
fn the_shipped_override_is_what_loopgate_writes_for_openclaws_own_file() {
    if !is_compose_installed() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let official = root.join("tests/docker/official.yaml");
    let temporary_directory = tempfile::tempdir().unwrap();
    let merged = |files: &[&Path]| -> String {
        let mut command = Command::new("docker");
        command.args(["compose", "--project-name", "claw", "--project-directory", "/srv/project"]);
        for file in files {
            command.arg("--file").arg(file);
        }
        command
            .env("OPENCLAW_CONFIG_DIR", "/srv/state")
            .env("OPENCLAW_WORKSPACE_DIR", "/srv/work")
            .env("OPENCLAW_GATEWAY_TOKEN", "x");
        let output = command.args(["config", "--format", "json"]).output().expect("docker can be run");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let config = temporary_directory.path().join("config.json");
    fs::write(&config, merged(&[&official])).unwrap();
    let written = temporary_directory.path().join("override.yaml");
    let output = Command::new(env!("CARGO_BIN_EXE_loopgate")).arg("compose").arg(&config).output().unwrap();
    fs::write(&written, output.stdout).unwrap();
    let services = |file: &Path| -> Value {
        let mut merged: Value = serde_json::from_str(&merged(&[&official, file])).unwrap();
        // The shipped override publishes only the first port, and takes additional names from a
        // variable.
        merged["services"]["netns"]["ports"].as_array_mut().unwrap().truncate(1);
        merged["services"]["loopgate"]["environment"]["LOOPGATE_TLS_NAME"].take();
        // The shipped override also builds the images.
        for service in merged["services"].as_object_mut().unwrap().values_mut() {
            service.as_object_mut().unwrap().remove("build");
        }
        merged["services"].take()
    };
    assert_eq!(services(&root.join("docker/compose.loopgate.yaml")), services(&written));
}

#[test]
fn compose_1_merges_the_override_for_the_gateways_own_namespace() {
    let installed = Command::new("docker-compose").arg("version").output().is_ok_and(|output| output.status.success());
    if !installed {
        return report_skipped("docker-compose is not installed");
    }
    let directory = data_dir().join("official-2026.2");
    // Compose 1 accepts `name` only with a version.
    let project = fs::read_to_string(directory.join("compose.yaml")).unwrap().replace("name: openclaw\n", "");
    let temporary_directory = tempfile::tempdir().unwrap();
    fs::write(temporary_directory.path().join("compose.yaml"), project).unwrap();
    fs::copy(directory.join("in-gateway.yaml"), temporary_directory.path().join("override.yaml")).unwrap();
    let output = Command::new("docker-compose")
        .args(["-f", "compose.yaml", "-f", "override.yaml", "config"])
        .current_dir(temporary_directory.path())
        .output()
        .expect("docker-compose can be run");
    let merged = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        merged.contains("service:openclaw-gateway") && merged.contains("loopback") && !merged.contains("- lan"),
        "{merged}"
    );
}

/// Returns whether `docker compose` is installed; if not, prints that the test is not run.
fn is_compose_installed() -> bool {
    let installed =
        Command::new("docker").args(["compose", "version"]).output().is_ok_and(|output| output.status.success());
    if !installed {
        report_skipped("`docker compose` is not installed");
    }
    installed
}

/// Prints that a test is not run, to the standard error that libtest does not capture. Fails if
/// `CI` is `true`.
fn report_skipped(why: &str) {
    let line = format!(
        "NOT RUN: {}: {why}; tests/setup/compose.sh installs it",
        std::thread::current().name().unwrap_or("a test")
    );
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{line}");
    writeln!(std::io::stderr().lock(), "{line}").expect("standard error");
}

/// The output of `docker compose config --format json` for these files of a project, or its error.
fn run_compose_config(kind: &str, files: &[&str]) -> Result<String, String> {
    let mut command = Command::new("docker");
    command.args(["compose", "--project-directory", "/srv/project"]);
    for file in files {
        command.args(["--file", file]);
    }
    let output = command
        .args(["config", "--format", "json"])
        .current_dir(data_dir().join(kind))
        .env("COMPOSE_PROFILES", "*")
        .env_remove("LOOPGATE_IMAGE")
        .env_remove("OPENCLAW_GATEWAY_TOKEN")
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
