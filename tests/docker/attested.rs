//! Attested agents, and those who would like to be one, on a real engine and through the socket's filter.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use loopgate::enrolment_protocol::Reason;
use rcgen::KeyPair;
use tempfile::TempDir;

use crate::container::Running;
use crate::conversation::{Conversation, ShownIn};
use crate::engine::{Engine, docker, eventually};
use crate::harness::{Deployment, PROJECT, is_agent, is_external, seen_by};

/// Enrols by hand out of `container`, and leaves the key and the certificate in a directory, for others to find.
fn stolen_from(container: &Running) -> TempDir {
    let key = KeyPair::generate().unwrap();
    let mut conversation = Conversation::begin(container);
    let proof = conversation.request(&key).unwrap();
    let _shown = ShownIn::new(container, &proof);
    let enrolled = conversation.claim().unwrap();
    let loot = tempfile::tempdir().unwrap();
    std::fs::write(loot.path().join("cert.pem"), enrolled.certificate).unwrap();
    std::fs::write(loot.path().join("key.pem"), key.serialize_pem()).unwrap();
    loot
}

/// What the gateway sees of `client` when it shows the certificate in `/loot`.
fn seen_with_loot(client: &Running) -> String {
    let show =
        ["--cert", "/loot/cert.pem", "--key", "/loot/key.pem", "--cacert", "/state/ca.pem", "https://gateway:18443/"];
    client.exec(["curl", "--silent", "--show-error"].iter().chain(&show))
}

fn copy_into(client: &Running, loot: &Path) {
    docker(&["cp", &format!("{}/.", loot.display()), &format!("{}:/loot", client.name())]);
}

/// `loopgate` in `client` tries to become an agent.
fn tries(client: &Running) -> Output {
    client.try_exec(["/loopgate", "exec", "--wait", "3s", "--", "true"])
}

#[test]
fn a_container_that_may_do_nothing_enrols_and_is_an_agent() {
    let Some(engine) = Engine::start() else { return };
    let deployment =
        Deployment::with(&engine, &["--agent-proof", "process", "--agent-proof", "file"], |gateway| gateway);
    let ask = "curl --silent --show-error http://127.0.0.1:18789/";
    let agent = engine.run(deployment.attested_loopgate("agent", ["exec", "--", "sh", "-c", ask]));
    assert_eq!(agent.ends(), 0, "{}", agent.logs());
    assert!(is_agent(&agent.logs()), "{}", agent.logs());

    // By the name of a file, where the sidecar accepts that; but not where others may write as well.
    let by_file = engine.run(deployment.attested("by-file").option("--cap-drop=ALL").env("LOOPGATE_PROOF", "file"));
    let asked = by_file.try_exec(["/loopgate", "exec", "--", "sh", "-c", ask]);
    assert!(is_agent(&String::from_utf8_lossy(&asked.stdout)), "{asked:?}");
    let shared = tempfile::tempdir().unwrap();
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let on_mount = deployment
        .attested("on-mount")
        .env("LOOPGATE_PROOF", "file")
        .mount_writable(shared.path(), "/var/lib/loopgate-proof");
    let misplaced = engine.run(on_mount).try_exec(["/loopgate", "exec", "--wait", "3s", "--", "true"]);
    assert!(String::from_utf8_lossy(&misplaced.stderr).contains("the proof lies on a mount"), "{misplaced:?}");
    deployment.counts("loopgate_enrolments_total 2");
}

#[test]
fn a_neighbour_that_takes_an_agents_address_is_external_and_can_not_enrol() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.attested_loopgate("agent", ["agent"]));
    agent.says("enrolled");
    let address = agent.ip(&deployment.network);

    let neighbour = engine.run(deployment.client("neighbour").with_loopgate().option("--cap-add=NET_ADMIN"));
    // To whoever asks who has the address it answers from now on; and as it asks for the gateway,
    // the gateway learns that it has it.
    neighbour.exec(["sh", "-c", &format!("ip address flush dev eth0 && ip address add {address}/24 dev eth0")]);
    let ask = ["curl", "--silent", "--max-time", "2", "--cacert", "/state/ca.pem", "https://gateway:18443/"];
    let seen = eventually("the neighbour is taken for the agent", || {
        let output = neighbour.try_exec(ask);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert!(is_external(&seen, address), "{seen}");

    let tried = tries(&neighbour);
    assert_eq!(tried.status.code(), Some(1));
    let said = String::from_utf8_lossy(&tried.stderr).into_owned();
    assert!(said.contains("the proof is not visible in the container that has this address"), "{said}");
    deployment.counts("loopgate_enrolments_total 1");
    assert!(deployment.metrics().contains("loopgate_enrolments_refused_total{reason=\"proof_not_found\"}"));
    deployment.sidecar.says("reason=\"proof_not_found\"");
}

#[test]
fn a_copy_of_an_agents_certificate_is_of_no_use_elsewhere_or_later() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.attested("agent"));
    let loot = stolen_from(&agent);
    copy_into(&agent, loot.path());
    assert!(is_agent(&seen_with_loot(&agent)));
    assert!(
        is_external(&seen_by(&agent, "gateway"), agent.ip(&deployment.network)),
        "without it the label is not enough"
    );

    let other = engine.run(deployment.attested("other"));
    let thief = engine.run(deployment.client("thief"));
    deployment.knows(2);
    for other in [&other, &thief] {
        copy_into(other, loot.path());
        let seen = seen_with_loot(other);
        assert!(is_external(&seen, other.ip(&deployment.network)), "{seen}");
    }

    let address = agent.ip(&deployment.network);
    agent.remove();
    let next = engine.run(deployment.attested("agent").option(format!("--ip={address}")));
    copy_into(&next, loot.path());
    deployment.knows(2);
    let seen = seen_with_loot(&next);
    assert!(is_external(&seen, address), "even if everything about the container is the same: {seen}");
}

#[test]
fn only_a_fresh_proof_in_the_agents_own_container_counts() {
    let Some(engine) = Engine::start() else { return };
    let deployment = Deployment::start(&engine);
    let agent = engine.run(deployment.attested("agent"));
    let other = engine.run(deployment.attested("other"));
    let unlabelled = engine.run(deployment.client("unlabelled").with_loopgate().of_project(PROJECT, "unlabelled"));
    deployment.knows(2);
    let key = KeyPair::generate().unwrap();

    let refused = Conversation::begin(&unlabelled).request(&key).unwrap_err();
    assert_eq!(refused.error, Reason::NotAnAgent);

    for elsewhere in [&unlabelled, &other] {
        let mut conversation = Conversation::begin(&agent);
        let proof = conversation.request(&key).unwrap();
        let _shown = ShownIn::new(elsewhere, &proof);
        assert_eq!(conversation.claim().unwrap_err().error, Reason::ProofNotFound, "{}", elsewhere.name());
    }

    let mut first = Conversation::begin(&agent);
    let proof = first.request(&key).unwrap();
    let _shown = ShownIn::new(&agent, &proof);
    assert!(first.claim().is_ok());
    let mut replay = Conversation::begin(&agent);
    assert_ne!(replay.request(&key).unwrap(), proof, "each connection has a nonce of its own");
    assert_eq!(replay.claim().unwrap_err().error, Reason::ProofNotFound, "what the first one asked for is still shown");
    deployment.counts("loopgate_enrolments_total 1");
}
