//! The compose files of docker/ with the real gateway: agents are paired silently, and other
//! clients have to be approved, whatever headers they send.

use std::process::Command;

use tempfile::TempDir;

use crate::container::Running;
use crate::engine::{Engine, eventually};
use crate::project::{Compose, Project};
use loopgate_test_support::device_client::{DeviceClient, End};

/// The gateway's URL for agents with `loopgate exec`, and for the gateway's own tools.
const LOOPBACK: &str = "ws://127.0.0.1:18789";
/// loopgate's URL for other clients.
const LOOPGATE: &str = "wss://gateway:18443";
/// loopgate's CA in the container of another client.
const CA: &str = "/ca/ca.pem";

/// Headers that a client could send to be treated as local.
const FORGERIES: [&[(&str, &str)]; 5] = [
    &[("X-Forwarded-For", "127.0.0.1")],
    &[("Forwarded", "for=127.0.0.1;host=localhost;proto=http")],
    &[("Tailscale-User-Login", "admin@example.com")],
    &[("Host", "127.0.0.1:18789")],
    &[("Connection", "Upgrade, X-Forwarded-For, X-Forwarded-Proto")],
];

#[test]
fn only_the_agent_is_paired_silently_also_after_a_restart_of_the_namespaces_owner() {
    let Some((engine, project)) = start_project(Compose::V2, &["compose.yaml"]) else { return };
    let outsider = engine.run(project.outsider("agents"));
    let local = agents_are_paired_silently(&project);
    let through = || project.client(&outsider, LOOPGATE).ca(CA.as_ref());
    outsiders_need_approval(&project, &through, &outsider.ip_on(&project.network("agents")).to_string(), &local);
    clients_of_a_published_port_need_approval(&project);

    let gateway = project.service("gateway");
    project.service("netns").restart();
    gateway.restart();
    // Paired devices stay paired after the restart.
    eventually("the approved outsider is back", || is_paired(through().identity(DEVICE.as_ref())).then_some(()));
    eventually("the agent is back", || is_paired(project.client(&project.service("agent"), LOOPBACK)).then_some(()));
    through().connect().pairing_request();
}

#[test]
fn behind_caddy_external_clients_need_approval_and_are_known_by_their_own_address() {
    let Some((engine, project)) = start_project(Compose::V2, &["compose.yaml", "compose.caddy.yaml"]) else { return };
    let caddy = project.service("caddy");
    let root = ["cat", "/data/caddy/pki/authorities/local/root.crt"];
    let root = eventually("Caddy has a CA", || Some(caddy.try_exec(root)).filter(|cat| cat.status.success()));
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("root.crt");
    std::fs::write(&file, root.stdout).unwrap();
    let outsider = engine.run(project.outsider("public").mount(&file, "/front.crt"));
    let address = caddy.ip_on(&project.network("public")).to_string();
    // Caddy's site is `localhost` by default.
    behind_a_front(&project, &outsider, &|| {
        project.client(&outsider, "wss://localhost").at(&address).ca("/front.crt".as_ref())
    });
}

#[test]
fn behind_traefik_external_clients_need_approval_and_are_known_by_their_own_address() {
    let Some((engine, project)) = start_project(Compose::V1, &["compose.yaml", "compose.traefik.yaml"]) else { return };
    // Traefik's self-signed certificate can't be verified.
    let outsider = engine.run(project.outsider("public").env("NODE_TLS_REJECT_UNAUTHORIZED", "0"));
    let address = project.service("traefik").ip_on(&project.network("public")).to_string();
    behind_a_front(&project, &outsider, &|| project.client(&outsider, "wss://localhost").at(&address));
}

/// The file of the device that gets approved.
const DEVICE: &str = "/tmp/device.json";

/// Starts these files with Docker Compose.
fn start_project(compose: Compose, files: &[&'static str]) -> Option<(Engine, Project)> {
    Some((Engine::start()?, Project::start(compose, files)?))
}

/// Tests agents and other clients of a project whose front `through` connects to.
fn behind_a_front(project: &Project, outsider: &Running, through: &dyn Fn() -> DeviceClient) {
    let local = agents_are_paired_silently(project);
    eventually("the front leads to the gateway", || {
        (!matches!(through().connect(), End::Failed { .. } | End::Refused { .. })).then_some(())
    });
    outsiders_need_approval(project, through, &outsider.ip_on(&project.network("public")).to_string(), &local);
    // The client can't reach loopgate without the front, because only the front is on loopgate's
    // network.
    let past = project.client(outsider, LOOPGATE).ca(CA.as_ref()).connect();
    assert!(matches!(past, End::Failed { .. }), "{past:?}");
}

/// Tests that agents are paired silently; returns the scopes of local clients.
fn agents_are_paired_silently(project: &Project) -> Vec<String> {
    let (gateway, agent) = (project.service("gateway"), project.service("agent"));
    // The gateway listens long before it pairs devices.
    eventually("the gateway pairs", || is_paired(project.client(&gateway, LOOPBACK)).then_some(()));
    let local = project.client(&gateway, LOOPBACK).connect().scopes();
    assert_eq!(project.client(&agent, LOOPBACK).connect().scopes(), local);
    assert_eq!(project.client(&agent, LOOPBACK).headers(FORGERIES[0]).connect().scopes(), local);
    project.client(&agent, LOOPBACK).token("wrong").connect().token_refused();
    // The agent's node host is paired without an approval too.
    eventually("the node host is paired", || {
        project.openclaw("devices list --json").contains("node-host").then_some(())
    });
    local
}

fn outsiders_need_approval(project: &Project, through: &dyn Fn() -> DeviceClient, address: &str, local: &[String]) {
    let request = through().identity(DEVICE.as_ref()).connect().pairing_request();
    let devices = project.openclaw("devices list --json");
    assert!(devices.contains(&format!("\"{address}\"")), "the operator does not see {address}: {devices}");
    for headers in FORGERIES {
        match through().headers(headers).connect() {
            // Caddy responds with an empty body for a site that it does not serve.
            End::Refused { status: 200, body } if headers[0].0 == "Host" && body.is_empty() => {}
            end => drop(end.pairing_request()),
        }
    }
    through()
        .headers(FORGERIES[0])
        .without_device()
        .claiming_to_be_the_backend()
        .call("sessions.list")
        .connect()
        .may_not_read();

    project.openclaw(&format!("devices approve {request}"));
    let approved = through().identity(DEVICE.as_ref()).call("sessions.list").connect();
    assert!(matches!(&approved, End::Hello { called: Some(answer), .. } if answer["ok"] == true), "{approved:?}");
    assert_eq!(approved.scopes(), local);
}

/// A client on the engine's machine, over HTTP/2.
fn clients_of_a_published_port_need_approval(project: &Project) {
    let directory = TempDir::new().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, project.compose(&["exec", "-T", "loopgate", "/loopgate", "cert", "export"])).unwrap();
    let modules = project.modules();
    let url = format!("wss://localhost:{}", project.service("netns").published_port(18443));
    let node = Command::new(modules.join("node/bin/node"));
    DeviceClient::new(node, &modules, &url).token(crate::openclaw::TOKEN).ca(&ca).over_h2().connect().pairing_request();
}

fn is_paired(client: DeviceClient) -> bool {
    matches!(client.connect(), End::Hello { .. })
}
