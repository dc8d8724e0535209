//! Attested agents, and containers that must not become one, with a real engine and the socket
//! filter.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use loopgate::enrolment_protocol::RefusalReason;
use rcgen::KeyPair;
use tempfile::TempDir;

use crate::container::Running;
use crate::conversation::{Conversation, ShownIn};
use crate::engine::{Engine, docker, eventually};
use crate::harness::{Deployment, PROJECT, is_agent, is_external, request_gateway};

/// Enrols from `container`; returns a directory with the key and the certificate, which the tests
/// copy to other containers.
fn stolen_from(container: &Running) -> TempDir {
    let key = KeyPair::generate().unwrap();
    let mut conversation = Conversation::begin(container);
    let proof = conversation.request(&key).unwrap();
    let _shown = ShownIn::new(container, &proof);
    let enrolled = conversation.claim().unwrap();
    let stolen = tempfile::tempdir().unwrap();
    std::fs::write(stolen.path().join("cert.pem"), enrolled.certificate).unwrap();
    std::fs::write(stolen.path().join("key.pem"), key.serialize_pem()).unwrap();
    stolen
}

/// Sends a request from `client` with the certificate in `/stolen`; returns the gateway's response.
fn request_with_stolen_certificate(client: &Running) -> String {
    let show = [
        "--cert",
        "/stolen/cert.pem",
        "--key",
        "/stolen/key.pem",
        "--cacert",
        "/state/ca.pem",
        "https://gateway:18443/",
    ];
    client.exec(["curl", "--silent", "--show-error"].iter().chain(&show))
}

/// Copies a stolen key and certificate into `client`.
fn copy_into(client: &Running, stolen: &Path) {
    docker(&["cp", &format!("{}/.", stolen.display()), &format!("{}:/stolen", client.name())]);
}

/// Runs `loopgate exec` in `client`, which tries to enrol.
fn try_to_enrol(client: &Running) -> Output {
    client.try_exec(["/loopgate", "exec", "--wait", "3s", "--", "true"])
}

#[test]
fn a_container_without_privileges_enrols_and_is_an_agent() {
    let Some(engine) = Engine::start() else { return };
    let deployment =
        Deployment::start_with(&engine, &["--agent-proof", "process", "--agent-proof", "file"], |gateway| gateway);
    let ask = "curl --silent --show-error http://127.0.0.1:18789/";
    let agent = engine.run(deployment.attested_loopgate("agent", ["exec", "--", "sh", "-c", ask]));
    assert_eq!(agent.wait_for_exit(), 0, "{}", agent.logs());
    assert!(is_agent(&agent.logs()), "{}", agent.logs());

    // A proof in the name of a file, which this sidecar accepts, but not on a mount, where others
    // may write.
    let by_file = engine.run(deployment.attested("by-file").option("--cap-drop=ALL").env("LOOPGATE_PROOF", "file"));
    let output = by_file.try_exec(["/loopgate", "exec", "--", "sh", "-c", ask]);
    assert!(is_agent(&String::from_utf8_lossy(&output.stdout)), "{output:?}");
    let shared = tempfile::tempdir().unwrap();
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let on_mount = deployment
        .attested("on-mount")
        .env("LOOPGATE_PROOF", "file")
        .mount_writable(shared.path(), "/var/lib/loopgate-proof");
    let misplaced = engine.run(on_mount).try_exec(["/loopgate", "exec", "--wait", "3s", "--", "true"]);
    assert!(String::from_utf8_lossy(&misplaced.stderr).contains("the proof lies on a mount"), "{misplaced:?}");
    deployment.wait_for_metric("loopgate_enrolments_total 2");
}

#[test]
fn a_container_that_takes_an_agents_address_is_external_and_cannot_enrol() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.attested_loopgate("agent", ["agent"]));
    agent.wait_for_log("enrolled");
    let address = agent.ip(&deployment.network);

    let neighbour = engine.run(deployment.client("neighbour").with_loopgate().option("--cap-add=NET_ADMIN"));
    // From now on the neighbour answers ARP requests for this address, and its own ARP request
    // makes the gateway send to it.
    neighbour.exec(["sh", "-c", &format!("ip address flush dev eth0 && ip address add {address}/24 dev eth0")]);
    let ask = ["curl", "--silent", "--max-time", "2", "--cacert", "/state/ca.pem", "https://gateway:18443/"];
    let response = eventually("the neighbour gets a response at the agent's address", || {
        let output = neighbour.try_exec(ask);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert!(is_external(&response, address), "{response}");

    let enrolment = try_to_enrol(&neighbour);
    assert_eq!(enrolment.status.code(), Some(1));
    let message = String::from_utf8_lossy(&enrolment.stderr).into_owned();
    assert!(message.contains("the proof is not visible in the container that has this address"), "{message}");
    deployment.wait_for_metric("loopgate_enrolments_total 1");
    assert!(deployment.metrics().contains("loopgate_enrolments_refused_total{reason=\"proof_not_found\"}"));
    deployment.sidecar.wait_for_log("reason=\"proof_not_found\"");
}

#[test]
fn a_copy_of_an_agents_certificate_is_invalid_in_any_other_container() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.attested("agent"));
    let stolen = stolen_from(&agent);
    copy_into(&agent, stolen.path());
    assert!(is_agent(&request_with_stolen_certificate(&agent)));
    assert!(
        is_external(&request_gateway(&agent, "gateway"), agent.ip(&deployment.network)),
        "the label is not enough without the certificate"
    );

    let other = engine.run(deployment.attested("other"));
    let thief = engine.run(deployment.client("thief"));
    deployment.wait_for_agents(2);
    for container in [&other, &thief] {
        copy_into(container, stolen.path());
        let response = request_with_stolen_certificate(container);
        assert!(is_external(&response, container.ip(&deployment.network)), "{response}");
    }

    let address = agent.ip(&deployment.network);
    agent.remove();
    let next = engine.run(deployment.attested("agent").option(format!("--ip={address}")));
    copy_into(&next, stolen.path());
    deployment.wait_for_agents(2);
    let response = request_with_stolen_certificate(&next);
    assert!(is_external(&response, address), "a new container with the same labels and address: {response}");
}

#[test]
fn only_a_fresh_proof_in_the_agents_own_container_is_accepted() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.attested("agent"));
    let other = engine.run(deployment.attested("other"));
    let unlabelled = engine.run(deployment.client("unlabelled").with_loopgate().of_project(PROJECT, "unlabelled"));
    deployment.wait_for_agents(2);
    let key = KeyPair::generate().unwrap();

    let refused = Conversation::begin(&unlabelled).request(&key).unwrap_err();
    assert_eq!(refused.error, RefusalReason::NotAnAgent);

    for wrong_container in [&unlabelled, &other] {
        let mut conversation = Conversation::begin(&agent);
        let proof = conversation.request(&key).unwrap();
        let _shown = ShownIn::new(wrong_container, &proof);
        assert_eq!(conversation.claim().unwrap_err().error, RefusalReason::ProofNotFound, "{}", wrong_container.name());
    }

    let mut first = Conversation::begin(&agent);
    let proof = first.request(&key).unwrap();
    let _shown = ShownIn::new(&agent, &proof);
    first.claim().unwrap();
    let mut replay = Conversation::begin(&agent);
    assert_ne!(replay.request(&key).unwrap(), proof, "the nonce of another connection");
    assert_eq!(
        replay.claim().unwrap_err().error,
        RefusalReason::ProofNotFound,
        "the first connection's proof, which is still shown"
    );
    deployment.wait_for_metric("loopgate_enrolments_total 1");
}
