//! `loopgate check` in a real gateway's place: what it finds of the engine, of agents and of the
//! certificate, and that its remedies, applied as they are printed, leave nothing of that to find.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::container::{Container, Running};
use crate::engine::{Engine, eventually, is_podman};
use crate::filter::{filter_by, socket};
use crate::harness::{Deployment, PROJECT};

const FILTERED: &str = "unix:///run/docker-filter/docker.sock";

/// What a check comes to, in `container`, with these flags.
fn check(container: &Running, flags: &[&str]) -> Value {
    let output = container.try_exec(["/loopgate", "check", "--json"].iter().chain(flags));
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The same where the sidecar is, which sees the engine through the filter.
fn check_beside(deployment: &Deployment, flags: &[&str]) -> Value {
    check(&deployment.sidecar, &[&["--docker", FILTERED], flags].concat())
}

fn ids(report: &Value) -> BTreeSet<&str> {
    report["findings"].as_array().unwrap().iter().map(|finding| finding["id"].as_str().unwrap()).collect()
}

/// All that was seen, since other stories may have containers on the same engine, and what to do about it.
fn found(report: &Value, id: &str) -> (String, Value) {
    let finding = report["findings"].as_array().unwrap().iter().find(|finding| finding["id"] == id);
    let finding = finding.unwrap_or_else(|| panic!("no {id} in {report:#}"));
    let seen: Vec<&str> = finding["seen"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    (seen.join("\n"), finding["remedy"].clone())
}

fn says(remedy: &Value, words: &str) {
    assert!(remedy["what"].as_str().unwrap().contains(words), "{remedy}");
}

#[test]
fn a_socket_that_is_missing_too_wide_or_too_narrow_is_found_and_the_filter_mends_it() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let beside = |name: &str| Container::idle(name).with_loopgate().inside(&deployment.gateway);

    let bare = engine.run(beside("bare"));
    let (seen, remedy) = found(&check(&bare, &[]), "docker-missing");
    assert!(seen.contains("no socket at"), "{seen}");
    says(&remedy, "--docker off");
    assert!(!ids(&check(&bare, &["--docker", "off"])).iter().any(|id| id.starts_with("docker-")));

    let wide = engine.run(beside("wide").mount(socket(), "/var/run/docker.sock"));
    let (seen, remedy) = found(&check(&wide, &[]), "docker-too-wide");
    assert!(seen.starts_with("GET /containers/{id}/archive gets through to the engine (400)"), "{seen}");
    says(&remedy, "docker/socket-filter");

    let stranger = engine.run(beside("stranger").mount(socket(), "/var/run/docker.sock").option("--user=10001:10001"));
    let (seen, remedy) = found(&check(&stranger, &[]), "docker-unreachable");
    assert!(seen.contains("no permission to use /var/run/docker.sock"), "{seen}");
    says(&remedy, "group_add");

    // A filter that lets one request too few through: what is followed is not reached, what is only
    // needed now and then is forbidden.
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
        let _narrow = filter_by(&engine, socket.path(), config.path());
        let asked = engine.run(beside("narrow").mount(socket.path(), "/run/docker-filter"));
        let (seen, remedy) = found(&check(&asked, &["--docker", FILTERED]), id);
        assert!(seen.contains(path) && seen.contains("403"), "{seen}");
        says(
            &remedy,
            if id == "docker-forbidden" { "permit exactly that path" } else { "mount the directory of the socket" },
        );
    }

    let report = check_beside(&deployment, &[]);
    assert!(!ids(&report).iter().any(|id| id.starts_with("docker-")), "{report:#}");
    assert!(report.to_string().contains("it refuses the one request tried that loopgate does not need"), "{report:#}");
}

#[test]
fn containers_that_are_no_agents_or_might_be_forged_are_named_and_mended() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    // In Docker's default set, but not in Podman's.
    let with_raw = |container: Container| if is_podman() { container.option("--cap-add=NET_RAW") } else { container };
    let elsewhere =
        deployment.client("elsewhere").label("loopgate.agent", "address").of_project("elsewhere", "elsewhere");
    let elsewhere = engine.run(with_raw(elsewhere));
    let odd = engine.run(deployment.client("odd").label("loopgate.agent", "yes please").of_project(PROJECT, "odd"));
    let raw = engine.run(with_raw(deployment.agent("raw")));
    deployment.knows(1);

    let bridge = deployment.network.gateway().to_string();
    let report = check_beside(&deployment, &["--trusted-proxy", &bridge]);
    let (seen, remedy) = found(&report, "agent-other-project");
    assert!(seen.contains(elsewhere.name()), "{seen}");
    assert_eq!(remedy, json!({"in": "loopgate", "key": "docker.any_project", "value": true}));
    let (seen, _) = found(&report, "agent-label");
    assert!(seen.contains(odd.name()) && seen.contains("yes please"), "{seen}");
    let (seen, remedy) = found(&report, "agent-net-raw");
    assert!(seen.contains(raw.name()), "{seen}");
    says(&remedy, "cap_drop: [NET_RAW]");
    let (seen, remedy) = found(&report, "bridge-gateway-trusted");
    assert!(seen.contains(&bridge), "{seen}");
    assert_eq!(remedy, json!({"in": "loopgate", "key": "external.trusted_proxies", "value": []}));

    // Each remedy, applied: the label is mended, NET_RAW dropped, the list emptied.
    odd.remove();
    raw.remove();
    let _mended = engine.run(deployment.agent("mended").option("--cap-drop=NET_RAW"));
    deployment.knows(1);
    // A container that comes or goes is without a network for a moment.
    let settled = (0..60).any(|_| {
        let report = check_beside(&deployment, &[]);
        ids(&report).iter().filter(|id| id.starts_with("agent-")).eq(&["agent-other-project"])
    });
    assert!(settled, "{:#}", check_beside(&deployment, &[]));
    let left = check_beside(&deployment, &["--any-project"]);
    // Whose label counts now has NET_RAW as well, and is told so.
    assert!(found(&left, "agent-net-raw").0.contains(elsewhere.name()), "{left:#}");
    assert!(
        ["agent-other-project", "agent-label", "bridge-gateway-trusted"].iter().all(|id| !ids(&left).contains(id)),
        "{left:#}"
    );
}

#[test]
fn a_certificate_that_misses_an_address_is_found_and_the_one_that_loopgate_makes_does_not() {
    let Some(engine) = Engine::start() else { return };
    let (deployment, second) = (Deployment::start(&engine), engine.network());
    // The operator's own pair, made for the addresses of yesterday.
    let own = engine.volume();
    let copy = "cp /state/server.pem /state/server.key /own/";
    engine
        .run(
            Container::new("copy")
                .mount(deployment.state.name(), "/state")
                .mount_writable(own.name(), "/own")
                .command(["sh", "-c", copy]),
        )
        .ends();
    second.connect(&deployment.gateway, &["gateway"]);
    let address = deployment.gateway.ip(&second).to_string();

    let looker = engine.run(
        Container::idle("looker")
            .with_loopgate()
            .inside(&deployment.gateway)
            .mount(own.name(), "/own")
            .mount(deployment.state.name(), "/var/lib/loopgate"),
    );
    let own_pair = ["--docker", "off", "--tls-cert", "/own/server.pem", "--tls-key", "/own/server.key"];
    let (seen, remedy) = found(&check(&looker, &own_pair), "certificate-names");
    assert!(seen.contains(&address), "{seen}");
    assert!(remedy.to_string().contains(&address) || remedy["what"].is_string(), "{remedy}");
    // The sidecar's own is made anew with the address, by itself.
    eventually("the certificate is for every address", || {
        (!ids(&check(&looker, &["--docker", "off"])).contains("certificate-names")).then_some(())
    });
}
