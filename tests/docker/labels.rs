//! Labels with the real OpenClaw gateway: of the containers on its network, only the labelled one
//! of the gateway's own project is paired silently.

use std::path::Path;
use std::process::Command;

use crate::container::{Container, Running};
use crate::engine::{Engine, eventually};
use crate::harness::{Deployment, PROJECT};
use crate::openclaw::{IMAGE, NEW, OLD, TOKEN, gateway, install_dir};
use loopgate_test_support::device_client::{DeviceClient, End, SCRIPT};

fn only_the_labelled_container_of_the_gateways_own_project_is_paired_silently(version: &str) {
    let Some(engine) = Engine::start() else { return };
    let (Some(gateway), Some(tree)) = (gateway(version), install_dir(version)) else { return };
    let deployment = Deployment::with_gateway(&engine, &[], gateway);
    // The user is root, because only root can read the CA in the sidecar's state directory.
    let equipped = |container: Container| {
        let container = container.image(IMAGE).option("--user=0:0").option("--tmpfs=/tmp");
        engine.run(container.mount(&tree, "/openclaw").mount(SCRIPT, SCRIPT))
    };
    let labelled = equipped(deployment.agent("labelled"));
    let unlabelled = equipped(deployment.client("unlabelled").of_project(PROJECT, "unlabelled"));
    let other_project = equipped(
        deployment
            .client("other-project")
            .label("loopgate.agent", "address")
            .of_project("other-project", "other-project"),
    );
    deployment.wait_for_agents(1);

    // The gateway listens long before it pairs devices.
    eventually("the gateway pairs", || matches!(client(&labelled).connect(), End::Hello { .. }).then_some(()));
    assert!(client(&labelled).connect().scopes().contains(&"operator.admin".to_owned()));
    for outsider in [&unlabelled, &other_project] {
        client(outsider).connect().pairing_request();
        client(outsider)
            .headers(&[("X-Forwarded-For", "127.0.0.1"), ("Host", "localhost")])
            .connect()
            .pairing_request();
    }
}

/// A client in `container` with a new device, the right token and loopgate's CA.
fn client(container: &Running) -> DeviceClient {
    let mut node = Command::new("docker");
    node.args(["exec", container.name(), "node"]);
    DeviceClient::new(node, Path::new("/openclaw/node_modules"), "wss://gateway:18443")
        .token(TOKEN)
        .ca("/state/ca.pem".as_ref())
}

#[test]
fn on_openclaw_2026_2_19_only_the_labelled_container_is_paired_silently() {
    only_the_labelled_container_of_the_gateways_own_project_is_paired_silently(OLD);
}

#[test]
fn on_openclaw_2026_9_6_only_the_labelled_container_is_paired_silently() {
    only_the_labelled_container_of_the_gateways_own_project_is_paired_silently(NEW);
}
