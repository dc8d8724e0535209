//! What differs on a rootless engine: where its clients come from, and what it can't list.
//! `tests/run engines` has one.

use crate::check::{check, ids};
use crate::container::Container;
use crate::engine::Engine;
use crate::harness::{Deployment, is_agent, is_external};

/// Sends a request through the published port from outside all containers; returns the gateway's
/// response.
fn request_through_published_port(engine: &Engine, deployment: &Deployment) -> String {
    let port = deployment.gateway.published_port(18443);
    // The host of a rootless engine's containers is in its network namespace.
    let host = Container::idle("host").option("--network=host").mount(deployment.state.name(), "/state");
    let host = engine.run(host);
    let to = format!("gateway:{port}:127.0.0.1:{port}");
    let url = format!("https://gateway:{port}/");
    host.exec(["curl", "--silent", "--show-error", "--cacert", "/state/ca.pem", "--connect-to", &to, &url])
}

#[test]
#[ignore = "needs a rootless engine: tests/run engines"]
fn clients_of_a_published_port_are_external_and_own_addresses_as_agents_are_warned_about() {
    let engine = Engine::start().expect("an engine with the images");
    let deployment = Deployment::start_with(&engine, &[], |gateway| gateway.publish(18443));
    let gateway_address = deployment.gateway.ip(&deployment.network);
    let response = request_through_published_port(&engine, &deployment);
    assert!(
        is_external(&response, gateway_address) || is_external(&response, deployment.network.gateway()),
        "{response}"
    );
    assert!(!deployment.sidecar.logs().contains("own_addresses"), "{}", deployment.sidecar.logs());
    drop(deployment);

    let deployment = Deployment::start_with(&engine, &["--own-addresses", "agent"], |gateway| gateway.publish(18443));
    deployment.sidecar.wait_for_log("listen.own_addresses is agent in a user namespace");
    let report = check(&deployment.sidecar, &["--own-addresses", "agent"]);
    assert!(ids(&report).contains("own-addresses-shared"), "{report:#}");
}

#[test]
#[ignore = "needs a rootless engine whose containers have no control groups: tests/run engines"]
fn an_agent_whose_processes_cant_be_listed_is_told_why_and_can_prove_itself_by_a_file() {
    let engine = Engine::start().expect("an engine with the images");
    let deployment =
        Deployment::start_with(&engine, &["--agent-proof", "process", "--agent-proof", "file"], |gateway| gateway);
    let agent = engine.run(deployment.attested_loopgate("agent", ["exec", "--wait", "3s", "--", "true"]));
    assert_eq!(agent.wait_for_exit(), 1, "{}", agent.logs());
    assert!(
        agent.logs().contains("can't read the proof through Docker; the sidecar's log has the reason"),
        "{}",
        agent.logs()
    );
    deployment.sidecar.wait_for_log("it did not create a cgroup");

    let by_file = engine.run(deployment.attested("by-file").env("LOOPGATE_PROOF", "file"));
    let ask = "curl --silent --show-error http://127.0.0.1:18789/";
    let response = by_file.exec(["/loopgate", "exec", "--", "sh", "-c", ask]);
    assert!(is_agent(&response), "{response}");
}
