//! The compose files of docker/ with both generations of Docker Compose.

use std::process::Command;

use crate::container::Running;
use crate::engine::{eventually, is_podman, output};
use crate::image::is_restricted;
use crate::project::{Compose, Project};

/// The combinations of files that a user may start.
const FILE_SETS: [&[&str]; 3] =
    [&["compose.yaml"], &["compose.yaml", "compose.caddy.yaml"], &["compose.yaml", "compose.traefik.yaml"]];

/// The template of `docker inspect` for the hardening of a container.
const HARDENING: &str = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}}";

#[test]
fn both_generations_of_compose_accept_every_file() {
    for compose in [Compose::V1, Compose::V2] {
        for files in FILE_SETS {
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
fn compose_1_starts_the_gateway_behind_loopgate() {
    let Some(project) = Project::start(Compose::V1, &["compose.yaml"]) else { return };
    wait_for_gateway_over_tls(&project);
}

#[test]
fn compose_2_starts_the_gateway_behind_loopgate_and_it_survives_a_restart_of_the_namespaces_owner() {
    let Some(project) = Project::start(Compose::V2, &["compose.yaml"]) else { return };
    wait_for_gateway_over_tls(&project);

    for service in ["netns", "gateway", "loopgate", "socket-filter", "ca", "agent"] {
        let container = project.service(service);
        // Podman lists the capabilities of its own defaults that were dropped, and names an option
        // without its value.
        let expected =
            if is_podman() { ("true", "[no-new-privileges]") } else { ("true [ALL]", "[no-new-privileges:true]") };
        let hardening = container.inspect(HARDENING);
        assert!(hardening.starts_with(expected.0) && hardening.ends_with(expected.1), "{service}: {hardening}");
        if service != "ca" {
            assert_no_privileges(&container);
        }
    }
    is_restricted(&project.service("loopgate"));
    // The gateway must not reach the socket of the filter.
    let gateway = project.service("gateway");
    assert!(!gateway.try_exec(["ls", "/run/docker-filter"]).status.success());

    let loopgate = project.service("loopgate");
    project.service("netns").restart();
    // As compose.yaml says, the gateway must be restarted too. loopgate notices that its interfaces
    // are gone, and exits.
    gateway.restart();
    eventually("loopgate is started again", || (loopgate.restart_count() > 0).then_some(()));
    wait_for_gateway_over_tls(&project);
}

/// Fails unless, according to /proc, no process of the container can get a capability.
fn assert_no_privileges(container: &Running) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.inspect("{{.State.Pid}}")))
        .expect("the container runs on this machine");
    for line in ["CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.lines().any(|other| other == line), "{}: not {line:?} in {status}", container.name());
    }
}

/// Waits until the gateway answers on the published port, with a certificate of loopgate's CA.
fn wait_for_gateway_over_tls(project: &Project) {
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), project.compose(&["exec", "-T", "loopgate", "/loopgate", "cert", "export"])).unwrap();
    let url = format!("https://localhost:{}/healthz", project.service("netns").published_port(18443));
    let answer = eventually("the gateway answers through loopgate", || {
        let curl = output(Command::new("curl").args(["--silent", "--fail", "--cacert"]).arg(ca.path()).arg(&url));
        curl.ok().filter(|curl| curl.status.success())
    });
    assert!(String::from_utf8_lossy(&answer.stdout).contains("\"ok\":true"), "{answer:?}");
}
