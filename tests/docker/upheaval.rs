//! What a client in an agent's container notices of restarts, removals and time: one broken connection at most.

use std::net::IpAddr;
use std::time::SystemTime;

use crate::container::Running;
use crate::engine::{Engine, docker, eventually};
use crate::harness::{Deployment, is_agent};

/// What the gateway sees of a client in `agent`, which may have to connect twice.
fn seen_of(agent: &Running) -> String {
    let patience = ["--max-time", "60", "--retry", "1", "--retry-all-errors"];
    agent.exec(["curl", "--silent", "--show-error"].iter().chain(&patience).chain(&["http://127.0.0.1:18789/"]))
}

/// Another address of the subnet that `address` is in.
fn moved(address: IpAddr, last: u8) -> String {
    let text = address.to_string();
    format!("{}.{last}", text.rsplit_once('.').expect("an IPv4 address").0)
}

#[test]
fn whatever_is_restarted_or_moves_the_client_only_connects_again() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.attested_loopgate("agent", ["agent"]));
    agent.says("enrolled");
    assert!(is_agent(&seen_of(&agent)));

    deployment.sidecar.restart();
    let seen = seen_of(&agent);
    assert!(is_agent(&seen), "after the sidecar's restart: {seen}");
    assert_eq!(agent.logs().matches("enrolled").count(), 1, "the certificate is still good");

    let gateway = deployment.gateway.ip(&deployment.network);
    deployment.network.disconnect(&deployment.gateway);
    docker(&[
        "network",
        "connect",
        "--alias",
        "gateway",
        "--ip",
        &moved(gateway, 201),
        deployment.network.name(),
        deployment.gateway.name(),
    ]);
    let seen = seen_of(&agent);
    assert!(is_agent(&seen), "when the gateway has another address: {seen}");

    agent.restart();
    agent.says("local clients may connect");
    let seen = seen_of(&agent);
    assert!(is_agent(&seen), "after its own restart: {seen}");

    let address = agent.ip(&deployment.network);
    agent.remove();
    let elsewhere = format!("--ip={}", moved(address, 202));
    let agent = engine.run(deployment.attested_loopgate("agent", ["agent"]).option(elsewhere));
    agent.says("local clients may connect");
    let seen = seen_of(&agent);
    assert!(is_agent(&seen), "as another container at another address: {seen}");
}

#[test]
fn a_certificate_is_renewed_in_time_or_when_it_has_run_out() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::with(&engine, &["--agent-certificate-life", "1m"], |gateway| gateway);
    let agent = engine.run(deployment.attested_loopgate("agent", ["agent"]));
    let sleeper = engine.run(deployment.attested_loopgate("sleeper", ["agent"]));
    for agent in [&agent, &sleeper] {
        agent.says("enrolled");
        assert!(is_agent(&seen_of(agent)));
    }
    let enrolled = SystemTime::now();
    docker(&["pause", sleeper.name()]);
    deployment.hold_connections_with(&agent, 5, "http://127.0.0.1:18789/hold");

    deployment.wait_for_metric("loopgate_enrolments_total 3");
    assert!(is_agent(&seen_of(&agent)));
    eventually("the sleeper's certificate has run out", || (enrolled.elapsed().unwrap().as_secs() > 60).then_some(()));
    deployment.wait_for_metric("loopgate_downstream_connections_open 5");
    docker(&["unpause", sleeper.name()]);
    let seen = seen_of(&sleeper);
    assert!(is_agent(&seen), "{seen}");
}
