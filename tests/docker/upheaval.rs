//! Restarts, new addresses and expired certificates break at most one connection of a client in an
//! agent's container.

use std::net::IpAddr;
use std::time::SystemTime;

use crate::container::Running;
use crate::engine::{Engine, docker, eventually};
use crate::harness::{Deployment, is_agent};

/// Sends a request from a client in `agent`, which may connect twice; returns the gateway's
/// response.
fn request_through_agent(agent: &Running) -> String {
    let patience = ["--max-time", "60", "--retry", "1", "--retry-all-errors"];
    agent.exec(["curl", "--silent", "--show-error"].iter().chain(&patience).chain(&["http://127.0.0.1:18789/"]))
}

/// The address with the last number `last` in the subnet of `address`.
fn with_last_number(address: IpAddr, last: u8) -> String {
    let text = address.to_string();
    format!("{}.{last}", text.rsplit_once('.').expect("an IPv4 address").0)
}

#[test]
fn after_restarts_and_new_addresses_the_client_only_has_to_connect_again() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.attested_loopgate("agent", ["agent"]));
    agent.wait_for_log("enrolled");
    assert!(is_agent(&request_through_agent(&agent)));

    deployment.sidecar.restart();
    let response = request_through_agent(&agent);
    assert!(is_agent(&response), "after the sidecar's restart: {response}");
    assert_eq!(agent.logs().matches("enrolled").count(), 1, "the agent enrolled again");

    let gateway = deployment.gateway.ip(&deployment.network);
    deployment.network.disconnect(&deployment.gateway);
    docker(&[
        "network",
        "connect",
        "--alias",
        "gateway",
        "--ip",
        &with_last_number(gateway, 201),
        deployment.network.name(),
        deployment.gateway.name(),
    ]);
    // The sidecar listens at the new address before the engine has reported the network.
    eventually("the agent is one when the gateway has another address", || {
        is_agent(&request_through_agent(&agent)).then_some(())
    });

    agent.restart();
    agent.wait_for_log("local clients may connect");
    let response = request_through_agent(&agent);
    assert!(is_agent(&response), "after its own restart: {response}");

    let address = agent.ip(&deployment.network);
    agent.remove();
    let new_address = format!("--ip={}", with_last_number(address, 202));
    let agent = engine.run(deployment.attested_loopgate("agent", ["agent"]).option(new_address));
    agent.wait_for_log("local clients may connect");
    let response = request_through_agent(&agent);
    assert!(is_agent(&response), "as another container at another address: {response}");
}

#[test]
fn a_certificate_is_renewed_in_time_or_after_it_has_expired() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start_with(&engine, &["--agent-certificate-life", "1m"], |gateway| gateway);
    let agent = engine.run(deployment.attested_loopgate("agent", ["agent"]));
    let paused = engine.run(deployment.attested_loopgate("sleeper", ["agent"]));
    for agent in [&agent, &paused] {
        agent.wait_for_log("enrolled");
        assert!(is_agent(&request_through_agent(agent)));
    }
    let enrolled = SystemTime::now();
    docker(&["pause", paused.name()]);
    deployment.hold_connections_with(&agent, 5, "http://127.0.0.1:18789/hold");

    deployment.wait_for_metric("loopgate_enrolments_total 3");
    assert!(is_agent(&request_through_agent(&agent)));
    eventually("the paused agent's certificate has expired", || {
        (enrolled.elapsed().unwrap().as_secs() > 60).then_some(())
    });
    deployment.wait_for_metric("loopgate_downstream_connections_open 5");
    docker(&["unpause", paused.name()]);
    let response = request_through_agent(&paused);
    assert!(is_agent(&response), "{response}");
}
