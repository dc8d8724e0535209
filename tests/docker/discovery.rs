//! Lanes by Docker identity, on a real engine and through the socket's filter.

use std::process::Output;
use std::time::{Duration, Instant};

use crate::container::Container;
use crate::engine::{Engine, eventually, skip};
use crate::house::{House, PROJECT, is_agent, is_external, seen_by};

/// How soon a container that ended must have lost its connections.
const SOON: Duration = Duration::from_secs(1);

#[test]
fn only_a_labelled_container_of_the_gateways_project_is_an_agent() {
    let Some(engine) = Engine::start() else { return };
    let house = House::start(&engine);
    let agent = engine.run(house.agent("agent"));
    let unlabelled = engine.run(house.client("unlabelled").of_project(PROJECT, "unlabelled"));
    let foreign = engine.run(house.client("foreign").label("loopgate.agent", "address").of_project("other", "foreign"));
    let unproven = engine.run(house.client("unproven").label("loopgate.agent", "true").of_project(PROJECT, "unproven"));
    let sharing = engine.run(Container::idle("sharing").inside(&agent).mount(house.state.name(), "/state"));
    house.knows(2);
    for agent in [&agent, &sharing] {
        let seen = seen_by(agent, "gateway");
        assert!(is_agent(&seen), "{seen}");
    }
    for stranger in [&unlabelled, &foreign, &unproven] {
        let seen = seen_by(stranger, "gateway");
        assert!(is_external(&seen, stranger.ip(&house.network)), "{seen}");
    }
    house.sidecar.says("labelled container is not an agent");
}

#[test]
fn who_gets_an_agents_address_gets_nothing_else_of_it() {
    let Some(engine) = Engine::start() else { return };
    let house = House::start(&engine);
    let agent = engine.run(house.agent("agent"));
    house.knows(1);
    assert!(is_agent(&seen_by(&agent, "gateway")));
    let address = agent.ip(&house.network);
    house.holds(&agent, 20);

    // Nothing comes from it any more, not even a goodbye: there is only the engine's word.
    house.network.disconnect(&agent);
    let gone = Instant::now();
    house.counts("loopgate_downstream_connections_open 0");
    assert!(gone.elapsed() < SOON, "closed after {:?}", gone.elapsed());
    agent.remove();

    let next = engine.run(house.client("next").of_project(PROJECT, "next").option(format!("--ip={address}")));
    let seen = seen_by(&next, "gateway");
    assert!(is_external(&seen, address), "{seen}");
}

#[test]
fn a_filter_that_restarts_costs_nobody_a_connection() {
    let Some(engine) = Engine::start() else { return };
    let house = House::start(&engine);
    let agent = engine.run(house.agent("agent"));
    house.knows(1);
    house.holds(&agent, 20);

    house.filter.stop();
    house.counts("loopgate_discovery_docker_up 0");
    // Long enough for an agent by address to be let in no more.
    house.knows(0);
    house.counts("loopgate_downstream_connections_open 20");
    let seen = seen_by(&agent, "gateway");
    assert!(is_external(&seen, agent.ip(&house.network)), "{seen}");

    house.filter.start();
    house.counts("loopgate_discovery_docker_up 1");
    house.knows(1);
    house.counts("loopgate_downstream_connections_open 20");
    assert!(is_agent(&seen_by(&agent, "gateway")));
}

#[test]
fn a_network_that_the_gateway_joins_has_a_door_a_name_and_agents_with_no_restart() {
    let Some(engine) = Engine::start() else { return };
    let house = House::start(&engine);
    let other = engine.network();
    let agent = engine.run(
        Container::idle("agent")
            .network(&other)
            .label("loopgate.agent", "address")
            .of_project(PROJECT, "agent")
            .mount(house.state.name(), "/state"),
    );
    house.knows(0);
    other.connect(&house.gateway, &["side-door"]);
    house.knows(1);
    // The certificate with the new name takes a moment.
    let url = "https://side-door:18443/";
    let ask = || -> Output { agent.try_exec(["curl", "--silent", "--cacert", "/state/ca.pem", url]) };
    let seen = eventually("it can be reached by its new name", || {
        let output = ask();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert!(is_agent(&seen), "{seen}");
    assert_eq!(house.sidecar.restarts(), 0);

    other.disconnect(&house.gateway);
    house.knows(0);
    assert!(!ask().status.success());
}

#[test]
fn through_a_published_port_everybody_is_external() {
    let Some(engine) = Engine::start() else { return };
    let house = House::with(&engine, &[], |gateway| gateway.publish(18443));
    let port = house.gateway.published(18443).to_string();
    let bridge = house.network.gateway();
    let through = house.engine.run(house.agent("agent"));
    house.knows(1);
    let url = format!("https://gateway:{port}/");
    let seen = through.exec(["curl", "--silent", "--cacert", "/state/ca.pem", "--connect-to", &format!("::{bridge}:{port}"), &url]);
    assert!(is_external(&seen, bridge), "even an agent: {seen}");

    let host = engine.run(Container::idle("host").option("--network=host").mount(house.state.name(), "/state"));
    let seen = host.exec(["curl", "--silent", "--cacert", "/state/ca.pem", "--connect-to", &format!("::127.0.0.1:{port}"), &url]);
    assert!(is_external(&seen, bridge), "the host itself: {seen}");
    // From an address of the host's that is no bridge's, Docker shows that very address.
    let addresses = host.exec(["ip", "-4", "-oneline", "address", "show", "scope", "global"]);
    let words = addresses.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let other = words
        .filter(|words| !["docker", "br-", "veth"].iter().any(|bridges| words[1].starts_with(bridges)))
        .map(|words| words[3].to_owned())
        .next();
    let Some(other) = other.as_deref().and_then(|net| net.split('/').next()) else {
        return skip("the host has no address but those of Docker's bridges");
    };
    let seen = host.exec(["curl", "--silent", "--cacert", "/state/ca.pem", "--connect-to", &format!("::{other}:{port}"), &url]);
    assert!(is_external(&seen, other), "the host by another address: {seen}");
}

#[test]
fn an_owner_that_restarts_or_stops_for_a_while_gets_its_sidecar_back() {
    let Some(engine) = Engine::start() else { return };
    let house = House::start(&engine);
    let agent = engine.run(house.agent("agent"));
    house.knows(1);
    let back = |times: u32| {
        eventually("the sidecar is attached anew", || (house.sidecar.restarts() == times).then_some(()));
        house.is_ready();
        house.knows(1);
        assert!(is_agent(&seen_by(&agent, "gateway")));
    };
    house.gateway.restart();
    back(1);

    house.gateway.stop();
    house.sidecar.says("lost its interfaces");
    // Well beyond what an engine would forgive a sidecar that exits at once.
    assert!(holds_for(Duration::from_secs(3), || house.sidecar.is_running() && house.sidecar.restarts() == 1));
    house.gateway.start();
    back(2);
    assert_eq!(house.sidecar.inspect("{{.State.ExitCode}}"), "0", "it runs");
    house.sidecar.says("exiting, so that the restart policy");
}

#[test]
fn an_owner_that_crashes_again_and_again_gets_its_sidecar_back_once_it_stays() {
    let Some(engine) = Engine::start() else { return };
    let house = House::with(&engine, &[], |gateway| gateway.option("--restart=always"));
    for _ in 0..3 {
        let lives = house.gateway.restarts();
        house.gateway.crash();
        eventually("the engine starts it again", || (house.gateway.restarts() > lives && house.gateway.is_running()).then_some(()));
    }
    eventually("the sidecar is attached anew", || (house.sidecar.restarts() > 0).then_some(()));
    house.is_ready();
}

/// Says whether something stays so for a while: the one thing that no event tells.
fn holds_for(while_: Duration, mut so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + while_;
    while Instant::now() < end {
        if !so() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    true
}
