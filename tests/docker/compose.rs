//! The compose files of docker/, with both generations of compose.

use std::process::Command;

use crate::container::Running;
use crate::engine::{eventually, is_podman, output};
use crate::image::is_restricted;
use crate::project::{Compose, Project};

/// What a user may start: each a list of files.
const WAYS: [&[&str]; 3] =
    [&["compose.yaml"], &["compose.yaml", "compose.caddy.yaml"], &["compose.yaml", "compose.traefik.yaml"]];

/// What is asked of every container of ours, in the words of `docker inspect`.
const HARDENED: &str = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}}";

#[test]
fn both_generations_of_compose_accept_every_file() {
    for compose in [Compose::V1, Compose::V2] {
        for files in WAYS {
            let Some(mut command) = compose.command() else { break };
            for file in files {
                command.args(["-f", file]);
            }
            let output = output(command.args(["config", "--quiet"])).expect("compose can be run");
            let complaints = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && complaints.is_empty(), "{compose:?} {files:?}: {complaints}");
        }
    }
}

#[test]
fn compose_1_brings_the_gateway_up_behind_loopgate() {
    let Some(project) = Project::up(Compose::V1, &["compose.yaml"]) else { return };
    is_reached_over_tls(&project);
}

#[test]
fn compose_2_brings_the_gateway_up_behind_loopgate_and_it_survives_a_restart_of_the_namespaces_owner() {
    let Some(project) = Project::up(Compose::V2, &["compose.yaml"]) else { return };
    is_reached_over_tls(&project);

    for service in ["netns", "gateway", "loopgate", "socket-filter", "ca", "agent"] {
        let container = project.service(service);
        // Podman lists the capabilities of its own defaults that were dropped, and names an option without its value.
        let expected =
            if is_podman() { ("true", "[no-new-privileges]") } else { ("true [ALL]", "[no-new-privileges:true]") };
        let hardening = container.inspect(HARDENED);
        assert!(hardening.starts_with(expected.0) && hardening.ends_with(expected.1), "{service}: {hardening}");
        if service != "ca" {
            has_no_privileges(&container);
        }
    }
    is_restricted(&project.service("loopgate"));
    // The engine is loopgate's to ask, not the gateway's.
    let gateway = project.service("gateway");
    assert!(!gateway.try_exec(["ls", "/run/docker-filter"]).status.success());

    let loopgate = project.service("loopgate");
    project.service("netns").restart();
    // As compose.yaml says: the gateway can't see that it sits in a dead namespace; loopgate can.
    gateway.restart();
    eventually("loopgate is started again", || (loopgate.restarts() > 0).then_some(()));
    is_reached_over_tls(&project);
}

/// Checks by the kernel's word that no process of the container can get a capability.
fn has_no_privileges(container: &Running) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.inspect("{{.State.Pid}}")))
        .expect("it runs on this machine");
    for line in ["CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.lines().any(|other| other == line), "{}: not {line:?} in {status}", container.name());
    }
}

/// Waits until the published port answers with a certificate of loopgate's CA, and with what the gateway says.
fn is_reached_over_tls(project: &Project) {
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), project.must(&["exec", "-T", "loopgate", "/loopgate", "cert", "export"])).unwrap();
    let url = format!("https://localhost:{}/healthz", project.service("netns").published(18443));
    let answer = eventually("the gateway answers through loopgate", || {
        let curl = output(Command::new("curl").args(["--silent", "--fail", "--cacert"]).arg(ca.path()).arg(&url));
        curl.ok().filter(|curl| curl.status.success())
    });
    assert!(String::from_utf8_lossy(&answer.stdout).contains("\"ok\":true"), "{answer:?}");
}
