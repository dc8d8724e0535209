//! `agents.unpair`: the real gateway removes a device's pairing after its container was removed.

use crate::capped::{Engine, assert_bound, id_of, release_device, wait_until, wait_until_external};
use crate::gateway::{LOOPBACK, OpenClaw, TOKEN};
use crate::openclaw::directory;
use crate::sidecar::{self, WS_URL};
use loopgate_test_support::network::{Host, Network};
use loopgate_test_support::requirements::{Missing, print_now, run_exclusively};

#[test]
fn the_device_of_a_removed_container_is_unpaired_on_openclaw_2026_2_19() {
    run_exclusively("real", "agents.unpair, OpenClaw 2026.2.19", || check_unpairing("2026.2.19"));
}

#[test]
fn the_device_of_a_removed_container_is_unpaired_on_openclaw_2026_9_6() {
    run_exclusively("real", "agents.unpair, OpenClaw 2026.9.6", || check_unpairing("2026.9.6"));
}

fn check_unpairing(version: &'static str) -> Result<(), Missing> {
    let directory = directory(&format!("unpair-{version}"));
    let network = Network::new()?;
    let openclaw = OpenClaw::new(&network, version, &directory)?;
    let _gateway = openclaw.start(&["127.0.0.2"]);
    let engine = Engine::start(None);
    let token_file = directory.join("token");
    std::fs::write(&token_file, TOKEN).expect("a file");
    let token_flag = format!("--token-file={}", token_file.display());
    let engine_flag = engine.docker_flag();
    let flags = [engine_flag.as_str(), "--unpair", token_flag.as_str()];
    let sidecar = sidecar::start_without_agents(&network, &directory, &flags);
    let ca = sidecar.ca_file();
    let through = |host| openclaw.client(host, WS_URL).ca(&ca);

    let [agents_device, outsiders_device] = ["agents.json", "outsiders.json"].map(|file| directory.join(file));
    let token = through(Host::Agent).identity(&agents_device).connect().device_token();
    let request = through(Host::External).identity(&outsiders_device).connect().pairing_request();
    openclaw.approve(&request);
    through(Host::External).identity(&outsiders_device).connect().scopes();
    let device = id_of(&agents_device);
    let paired = || openclaw.paired_devices();
    let before = paired();
    assert!(before.contains(&device), "{before:?}");

    print_now("  a container that is only stopped keeps its device's pairing");
    engine.stop_agent();
    wait_until_external(&through);
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert!(paired().contains(&device));
    engine.start_agent(None);
    wait_until(|| through(Host::Agent).identity(&agents_device).token(&token).connect().is_accepted());

    print_now("  if the container is removed, its device's pairing is removed, and no other");
    engine.stop_agent();
    engine.remove_agent();
    wait_until(|| !paired().contains(&device));
    let expected: Vec<String> = before.into_iter().filter(|other| *other != device).collect();
    let after = paired();
    assert!(expected.iter().all(|other| after.contains(other)), "{after:?}");
    through(Host::External).identity(&outsiders_device).connect().scopes();
    assert_bound(through(Host::External).identity(&agents_device).token(&token));

    print_now("  its token is refused by the gateway, on loopback too");
    openclaw.client(Host::Gateway, LOOPBACK).identity(&agents_device).token(&token).connect().not_accepted();

    print_now("  a new container with the same name and device is paired again, until it is removed too");
    engine.start_agent(None);
    wait_until(|| through(Host::Agent).identity(&agents_device).connect().is_accepted());
    engine.stop_agent();
    engine.remove_agent();
    wait_until(|| !paired().contains(&device));

    print_now("  a device that is released has to be approved like any other");
    release_device(&sidecar, &device);
    through(Host::External).identity(&agents_device).token(&token).connect().not_accepted();
    through(Host::External).identity(&agents_device).connect().pairing_request();
    sidecar.stop();
    Ok(())
}
