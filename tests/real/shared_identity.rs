//! The gateway, a command-line client in an agent's container and one on the host share
//! `~/.openclaw`, and so have the same device.

use std::path::Path;

use crate::capped::release_device;
use crate::gateway::{LOOPBACK, OpenClaw, TOKEN};
use crate::openclaw::directory;
use crate::sidecar::{self, WS_URL};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::requirements::{Missing, print_now, run_exclusively};
use loopgate_test_support::sidecar::Sidecar;

#[test]
fn clients_of_openclaw_2026_2_19_that_share_one_identity_work_or_get_the_command_to_run() {
    run_exclusively("real", "one identity for gateway, agent and host, OpenClaw 2026.2.19", || {
        check_shared_identity("2026.2.19")
    });
}

#[test]
fn clients_of_openclaw_2026_9_6_that_share_one_identity_work_or_get_the_command_to_run() {
    run_exclusively("real", "one identity for gateway, agent and host, OpenClaw 2026.9.6", || {
        check_shared_identity("2026.9.6")
    });
}

fn check_shared_identity(version: &'static str) -> Result<(), Missing> {
    let directory = directory(&format!("shared-identity-{version}"));
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, version, &directory)?;
    let _gateway = openclaw.start(&["127.0.0.2"]);
    // The older version has the gateway's device in a file, the newer version in a database.
    let is_old = version.starts_with("2026.2.");
    let device = if is_old { openclaw.state().join("identity/device.json") } else { directory.join("device.json") };
    let use_by = |host, ca: &Path| openclaw.client(host, WS_URL).ca(ca).identity(&device);
    openclaw.client(Host::Gateway, LOOPBACK).identity(&device).connect().scopes();

    print_now("  without gateway.state_dir the host gets the exact command, once");
    let sidecar = sidecar::start(&network, &directory, &[]);
    let ca = sidecar.ca_file();
    use_by(Host::Agent, &ca).connect().scopes();
    let refusal = use_by(Host::External, &ca).connect().refused_by_loopgate();
    release_device(&sidecar, device_named_in(&refusal));
    for host in [Host::External, Host::Agent, Host::External] {
        use_by(host, &ca).connect().scopes();
    }
    command_line(&openclaw, &sidecar, is_old);
    sidecar.stop();

    if is_old {
        print_now("  with gateway.state_dir it is never bound");
        let state = format!("--gateway-state-dir={}", openclaw.state().display());
        let sidecar = sidecar::start(&network, &directory.join("with-state-dir"), &[&state]);
        for host in [Host::Agent, Host::External, Host::Agent] {
            use_by(host, &sidecar.ca_file()).connect().scopes();
        }
        sidecar.stop();
    }
    Ok(())
}

/// The `openclaw` command with the gateway's state, in the agent's container and on the host.
/// `is_released` says whether the gateway's device was released before.
fn command_line(openclaw: &OpenClaw, sidecar: &Sidecar, is_released: bool) {
    print_now("  openclaw gateway call --url, with the gateway's own state, does the same");
    let call = |host| {
        let arguments = ["gateway", "call", "health", "--url", WS_URL, "--token", TOKEN];
        let output = openclaw.run_from(host, &arguments, &sidecar.ca_file());
        let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        if output.status.success() { Ok(()) } else { Err(text) }
    };
    call(Host::Agent).expect("an agent");
    if !is_released {
        let text = call(Host::External).expect_err("its device is bound");
        release_device(sidecar, device_named_in(&text));
    }
    for host in [Host::External, Host::Agent, Host::External] {
        call(host).expect("a device that was released");
    }
}

/// The device in the release command that a refusal contains.
fn device_named_in(refusal: &str) -> &str {
    let (_, rest) = refusal.split_once("(loopgate devices release ").expect("a command");
    rest.split_once(')').expect("a command").0
}
