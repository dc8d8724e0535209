//! Lanes by the identity of containers, with a real engine and the socket filter.

use std::process::Output;
use std::time::{Duration, Instant};

use crate::container::Container;
use crate::engine::{Engine, eventually, skip};
use crate::harness::{Deployment, PROJECT, is_agent, is_external, request_gateway};

/// The time within which connections of a container that ended must be closed.
const CLOSE_TIME: Duration = Duration::from_secs(1);

#[test]
fn only_a_labelled_container_of_the_gateways_project_is_an_agent() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.agent("agent"));
    let unlabelled = engine.run(deployment.client("unlabelled").of_project(PROJECT, "unlabelled"));
    let foreign =
        engine.run(deployment.client("foreign").label("loopgate.agent", "address").of_project("other", "foreign"));
    let unproven =
        engine.run(deployment.client("unproven").label("loopgate.agent", "true").of_project(PROJECT, "unproven"));
    let sharing =
        engine.run(Container::idle("sharing").in_namespace_of(&agent).mount(deployment.state.name(), "/state"));
    deployment.wait_for_agents(2);
    for agent in [&agent, &sharing] {
        let response = request_gateway(agent, "gateway");
        assert!(is_agent(&response), "{response}");
    }
    for outsider in [&unlabelled, &foreign, &unproven] {
        let response = request_gateway(outsider, "gateway");
        assert!(is_external(&response, outsider.ip(&deployment.network)), "{response}");
    }
    deployment.sidecar.wait_for_log("container or pod is not an agent");
}

#[test]
fn a_container_that_gets_an_agents_address_is_external() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.agent("agent"));
    deployment.wait_for_agents(1);
    assert!(is_agent(&request_gateway(&agent, "gateway")));
    let address = agent.ip(&deployment.network);
    deployment.hold_connections(&agent, 20);

    // The agent can't send anything any more, not even a FIN, so only the engine's event tells that
    // it is gone.
    deployment.network.disconnect(&agent);
    let gone = Instant::now();
    deployment.wait_for_metric("loopgate_downstream_connections_open 0");
    assert!(gone.elapsed() < CLOSE_TIME, "closed after {:?}", gone.elapsed());
    agent.remove();

    let next = engine.run(deployment.client("next").of_project(PROJECT, "next").option(format!("--ip={address}")));
    let response = request_gateway(&next, "gateway");
    assert!(is_external(&response, address), "{response}");
}

#[test]
fn connections_survive_a_restart_of_the_filter() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.agent("agent"));
    deployment.wait_for_agents(1);
    deployment.hold_connections(&agent, 20);

    deployment.filter.stop();
    deployment.wait_for_metric("loopgate_discovery_docker_up 0");
    // After this time, new connections of an agent by address are external.
    deployment.wait_for_agents(0);
    deployment.wait_for_metric("loopgate_downstream_connections_open 20");
    let response = request_gateway(&agent, "gateway");
    assert!(is_external(&response, agent.ip(&deployment.network)), "{response}");

    deployment.filter.start();
    deployment.wait_for_metric("loopgate_discovery_docker_up 1");
    deployment.wait_for_agents(1);
    deployment.wait_for_metric("loopgate_downstream_connections_open 20");
    assert!(is_agent(&request_gateway(&agent, "gateway")));
}

#[test]
fn a_network_that_the_gateway_joins_gets_a_listener_a_name_and_agents_without_a_restart() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let other = engine.network();
    let agent = engine.run(
        Container::idle("agent")
            .network(&other)
            .label("loopgate.agent", "address")
            .of_project(PROJECT, "agent")
            .mount(deployment.state.name(), "/state"),
    );
    deployment.wait_for_agents(0);
    other.connect(&deployment.gateway, &["side-door"]);
    deployment.wait_for_agents(1);
    // The certificate with the new name takes a moment.
    let url = "https://side-door:18443/";
    let ask = || -> Output { agent.try_exec(["curl", "--silent", "--cacert", "/state/ca.pem", url]) };
    let response = eventually("the gateway can be reached by its new name", || {
        let output = ask();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert!(is_agent(&response), "{response}");
    assert_eq!(deployment.sidecar.restart_count(), 0);

    other.disconnect(&deployment.gateway);
    deployment.wait_for_agents(0);
    assert!(!ask().status.success());
}

#[test]
fn every_client_of_a_published_port_is_external() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start_with(&engine, &[], |gateway| gateway.publish(18443));
    let port = deployment.gateway.published_port(18443).to_string();
    let bridge = deployment.network.gateway();
    let through = deployment.engine.run(deployment.agent("agent"));
    deployment.wait_for_agents(1);
    let url = format!("https://gateway:{port}/");
    let response = through.exec([
        "curl",
        "--silent",
        "--cacert",
        "/state/ca.pem",
        "--connect-to",
        &format!("::{bridge}:{port}"),
        &url,
    ]);
    assert!(is_external(&response, bridge), "even an agent: {response}");

    let host = engine.run(Container::idle("host").option("--network=host").mount(deployment.state.name(), "/state"));
    let response = host.exec([
        "curl",
        "--silent",
        "--cacert",
        "/state/ca.pem",
        "--connect-to",
        &format!("::127.0.0.1:{port}"),
        &url,
    ]);
    assert!(is_external(&response, bridge), "the host itself: {response}");
    // For a client with an address of the host that is not a bridge's, Docker keeps that address.
    let addresses = host.exec(["ip", "-4", "-oneline", "address", "show", "scope", "global"]);
    let words = addresses.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let other = words
        .filter(|words| !["docker", "br-", "veth"].iter().any(|bridges| words[1].starts_with(bridges)))
        .map(|words| words[3].to_owned())
        .next();
    let Some(other) = other.as_deref().and_then(|net| net.split('/').next()) else {
        return skip("the host has no address but those of Docker's bridges");
    };
    let response = host.exec([
        "curl",
        "--silent",
        "--cacert",
        "/state/ca.pem",
        "--connect-to",
        &format!("::{other}:{port}"),
        &url,
    ]);
    assert!(is_external(&response, other), "the host by another address: {response}");
}

#[test]
fn the_sidecar_returns_after_the_namespaces_owner_restarts_or_stops_for_a_while() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.agent("agent"));
    deployment.wait_for_agents(1);
    let back = |times: u32| {
        eventually("the sidecar has restarted", || (deployment.sidecar.restart_count() == times).then_some(()));
        deployment.wait_until_ready();
        deployment.wait_for_agents(1);
        assert!(is_agent(&request_gateway(&agent, "gateway")));
    };
    deployment.gateway.restart();
    back(1);

    deployment.gateway.stop();
    deployment.sidecar.wait_for_log("lost the interfaces of this network namespace");
    // While the owner is stopped, the sidecar waits. If it exited at once, the engine would restart
    // it within this time.
    let sidecar = &deployment.sidecar;
    assert!(stays_true_for(Duration::from_secs(3), || sidecar.is_running() && sidecar.restart_count() == 1));
    deployment.gateway.start();
    back(2);
    assert_eq!(deployment.sidecar.inspect("{{.State.ExitCode}}"), "0", "the sidecar does not run");
    deployment.sidecar.wait_for_log("the owner now runs in a different network namespace");
}

#[test]
fn the_sidecar_returns_after_the_namespaces_owner_crashes_repeatedly() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start_with(&engine, &[], |gateway| gateway.option("--restart=always"));
    for _ in 0..3 {
        let restarts = deployment.gateway.restart_count();
        deployment.gateway.crash();
        eventually("the engine restarts the gateway", || {
            (deployment.gateway.restart_count() > restarts && deployment.gateway.is_running()).then_some(())
        });
    }
    eventually("the sidecar has restarted", || (deployment.sidecar.restart_count() > 0).then_some(()));
    deployment.wait_until_ready();
}

/// Polls `condition` for `time`, and returns whether it was always true.
fn stays_true_for(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if !condition() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    true
}
