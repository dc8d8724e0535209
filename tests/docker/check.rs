//! `loopgate check` in a real gateway's network namespace: its findings about the engine, agents
//! and the certificate, and that these are gone after the printed remedies.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::container::{Container, Running};
use crate::engine::{Engine, eventually, is_podman};
use crate::filter::{filter_with, socket};
use crate::harness::{Deployment, PROJECT};

const FILTERED: &str = "unix:///run/docker-filter/docker.sock";

/// Runs `loopgate check` in `container` with these flags; returns its report.
pub fn check(container: &Running, flags: &[&str]) -> Value {
    let output = container.try_exec(["/loopgate", "check", "--json"].iter().chain(flags));
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Runs a check in the sidecar's container, with the engine behind the filter.
fn check_in_sidecar(deployment: &Deployment, flags: &[&str]) -> Value {
    check(&deployment.sidecar, &[&["--docker", FILTERED], flags].concat())
}

/// Returns the ids of the findings in `report`.
pub fn ids(report: &Value) -> BTreeSet<&str> {
    report["findings"].as_array().unwrap().iter().map(|finding| finding["id"].as_str().unwrap()).collect()
}

/// Returns what a finding has seen, and its remedy. Other tests may have containers on the same
/// engine, so more may be seen than those of the test.
fn seen_and_remedy(report: &Value, id: &str) -> (String, Value) {
    let finding = report["findings"].as_array().unwrap().iter().find(|finding| finding["id"] == id);
    let finding = finding.unwrap_or_else(|| panic!("no {id} in {report:#}"));
    let seen: Vec<&str> = finding["seen"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    (seen.join("\n"), finding["remedy"].clone())
}

/// Fails unless the remedy contains `words`.
fn assert_remedy(remedy: &Value, words: &str) {
    assert!(remedy["what"].as_str().unwrap().contains(words), "{remedy}");
}

#[test]
fn a_missing_unfiltered_or_too_strict_socket_is_reported_and_the_filter_is_not() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let in_gateways_namespace = |name: &str| Container::idle(name).with_loopgate().in_namespace_of(&deployment.gateway);

    let bare = engine.run(in_gateways_namespace("bare"));
    let (seen, remedy) = seen_and_remedy(&check(&bare, &[]), "docker-missing");
    assert!(seen.contains("no socket at"), "{seen}");
    assert_remedy(&remedy, "--docker off");
    assert!(!ids(&check(&bare, &["--docker", "off"])).iter().any(|id| id.starts_with("docker-")));

    let wide = engine.run(in_gateways_namespace("wide").mount(socket(), "/var/run/docker.sock"));
    let (seen, remedy) = seen_and_remedy(&check(&wide, &[]), "docker-too-wide");
    assert!(seen.starts_with("GET /containers/{id}/archive gets through to the engine (400)"), "{seen}");
    assert_remedy(&remedy, "docker/socket-filter");

    let outsider = engine
        .run(in_gateways_namespace("outsider").mount(socket(), "/var/run/docker.sock").option("--user=10001:10001"));
    let (seen, remedy) = seen_and_remedy(&check(&outsider, &[]), "docker-unreachable");
    assert!(seen.contains("no permission to use /var/run/docker.sock"), "{seen}");
    assert_remedy(&remedy, "group_add");

    // Filters that refuse one necessary request. If it is that for events, the engine counts as
    // unreachable. If it is one that is seldom needed, it is reported as forbidden.
    let shipped =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docker/socket-filter/haproxy-unix.cfg")).unwrap();
    for (line, id, path) in [
        ("    http-request allow if get listing\n", "docker-unreachable", "/events"),
        ("    http-request allow if get top !query\n", "docker-forbidden", "/containers/{id}/top"),
    ] {
        let _attested = engine.run(deployment.attested("attested"));
        assert!(shipped.contains(line));
        let (socket, config) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(config.path().join("haproxy-unix.cfg"), shipped.replace(line, "")).unwrap();
        let _filter = filter_with(&engine, socket.path(), config.path());
        let narrow = engine.run(in_gateways_namespace("narrow").mount(socket.path(), "/run/docker-filter"));
        let (seen, remedy) = seen_and_remedy(&check(&narrow, &["--docker", FILTERED]), id);
        assert!(seen.contains(path) && seen.contains("403"), "{seen}");
        assert_remedy(
            &remedy,
            if id == "docker-forbidden" { "permit exactly that path" } else { "mount the directory of the socket" },
        );
    }

    let report = check_in_sidecar(&deployment, &[]);
    assert!(!ids(&report).iter().any(|id| id.starts_with("docker-")), "{report:#}");
    assert!(
        report.to_string().contains("it refuses the request that was tried and that loopgate does not need"),
        "{report:#}"
    );
}

#[test]
fn containers_with_wrong_labels_or_forgeable_addresses_are_reported_until_repaired() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    // Docker's containers have this capability by default, Podman's do not.
    let with_raw = |container: Container| if is_podman() { container.option("--cap-add=NET_RAW") } else { container };
    let other_project = deployment
        .client("other-project")
        .label("loopgate.agent", "address")
        .of_project("other-project", "other-project");
    let other_project = engine.run(with_raw(other_project));
    let odd = engine.run(deployment.client("odd").label("loopgate.agent", "yes please").of_project(PROJECT, "odd"));
    let raw = engine.run(with_raw(deployment.agent("raw")));
    deployment.wait_for_agents(1);

    let bridge = deployment.network.gateway().to_string();
    let report = check_in_sidecar(&deployment, &["--trusted-proxy", &bridge]);
    let (seen, remedy) = seen_and_remedy(&report, "agent-other-project");
    assert!(seen.contains(other_project.name()), "{seen}");
    assert_eq!(remedy, json!({"in": "loopgate", "key": "docker.any_project", "value": true}));
    let (seen, _) = seen_and_remedy(&report, "agent-label");
    assert!(seen.contains(odd.name()) && seen.contains("yes please"), "{seen}");
    let (seen, remedy) = seen_and_remedy(&report, "agent-net-raw");
    assert!(seen.contains(raw.name()), "{seen}");
    assert_remedy(&remedy, "cap_drop: [NET_RAW]");
    let (seen, remedy) = seen_and_remedy(&report, "bridge-gateway-trusted");
    assert!(seen.contains(&bridge), "{seen}");
    assert_eq!(remedy, json!({"in": "loopgate", "key": "external.trusted_proxies", "value": []}));

    // The remedies are applied: the container with the wrong label is removed, NET_RAW is dropped,
    // the list of trusted proxies is empty.
    odd.remove();
    raw.remove();
    let _repaired = engine.run(deployment.agent("repaired").option("--cap-drop=NET_RAW"));
    deployment.wait_for_agents(1);
    // A container that starts or stops has no network for a moment.
    let settled = (0..60).any(|_| {
        let report = check_in_sidecar(&deployment, &[]);
        ids(&report).iter().filter(|id| id.starts_with("agent-")).eq(&["agent-other-project"])
    });
    assert!(settled, "{:#}", check_in_sidecar(&deployment, &[]));
    let report_with_any_project = check_in_sidecar(&deployment, &["--any-project"]);
    // With --any-project the container of another project is an agent too, and has NET_RAW.
    assert!(
        seen_and_remedy(&report_with_any_project, "agent-net-raw").0.contains(other_project.name()),
        "{report_with_any_project:#}"
    );
    assert!(
        ["agent-other-project", "agent-label", "bridge-gateway-trusted"]
            .iter()
            .all(|id| !ids(&report_with_any_project).contains(id)),
        "{report_with_any_project:#}"
    );
}

#[test]
fn an_operators_certificate_without_an_address_is_reported_and_loopgates_own_is_updated() {
    let Some(engine) = Engine::start() else { return };
    let (deployment, second) = (Deployment::start(&engine), engine.network());
    // An operator's certificate: a copy of the sidecar's, made before the gateway gets another
    // address.
    let own = engine.volume();
    let copy = "cp /state/server.pem /state/server.key /own/";
    engine
        .run(
            Container::new("copy")
                .mount(deployment.state.name(), "/state")
                .mount_writable(own.name(), "/own")
                .command(["sh", "-c", copy]),
        )
        .wait_for_exit();
    second.connect(&deployment.gateway, &["gateway"]);
    let address = deployment.gateway.ip(&second).to_string();

    let inspector = engine.run(
        Container::idle("inspector")
            .with_loopgate()
            .in_namespace_of(&deployment.gateway)
            .mount(own.name(), "/own")
            .mount(deployment.state.name(), "/var/lib/loopgate"),
    );
    let own_pair = ["--docker", "off", "--tls-cert", "/own/server.pem", "--tls-key", "/own/server.key"];
    let (seen, remedy) = seen_and_remedy(&check(&inspector, &own_pair), "certificate-names");
    assert!(seen.contains(&address), "{seen}");
    assert!(remedy.to_string().contains(&address) || remedy["what"].is_string(), "{remedy}");
    // The sidecar renews its own certificate with the new address.
    eventually("the certificate is for every address", || {
        (!ids(&check(&inspector, &["--docker", "off"])).contains("certificate-names")).then_some(())
    });
}
