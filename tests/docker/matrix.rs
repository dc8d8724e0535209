//! Who is paired silently and who is not, by the real gateway's word, when docker/'s compose files
//! are up: agents are, and others have to be approved, whatever they say about themselves.

use std::process::Command;

use tempfile::TempDir;

use crate::container::Running;
use crate::engine::{Engine, eventually};
use crate::project::{Compose, Project};
use loopgate_test_support::device_client::{DeviceClient, End};

/// Where an agent finds the gateway, by `loopgate exec`, and the gateway's own tools do.
const LOOPBACK: &str = "ws://127.0.0.1:18789";
/// Where strangers find it, with loopgate's CA.
const LOOPGATE: &str = "wss://gateway:18443";
const CA: &str = "/ca/ca.pem";

/// What a stranger could say to be taken for somebody local.
const FORGERIES: [&[(&str, &str)]; 5] = [
    &[("X-Forwarded-For", "127.0.0.1")],
    &[("Forwarded", "for=127.0.0.1;host=localhost;proto=http")],
    &[("Tailscale-User-Login", "admin@example.com")],
    &[("Host", "127.0.0.1:18789")],
    &[("Connection", "Upgrade, X-Forwarded-For, X-Forwarded-Proto")],
];

#[test]
fn compose_pairs_the_agent_alone_silently_also_after_a_restart_of_the_namespaces_owner() {
    let Some((engine, project)) = up(Compose::V2, &["compose.yaml"]) else { return };
    let stranger = engine.run(project.stranger("agents"));
    let local = agents_are_silent(&project);
    let way = || project.client(&stranger, LOOPGATE).ca(CA.as_ref());
    strangers_need_approval(&project, &way, &stranger.ip_on(&project.network("agents")).to_string(), &local);
    a_published_port_makes_nobody_local(&project);

    let gateway = project.service("gateway");
    project.service("netns").restart();
    gateway.restart();
    // A device that was paired before is known again, whoever it is.
    eventually("the approved stranger is back", || is_in(way().identity(DEVICE.as_ref())).then_some(()));
    eventually("the agent is back", || is_in(project.client(&project.service("agent"), LOOPBACK)).then_some(()));
    way().connect().pairing_request();
}

#[test]
fn behind_caddy_strangers_need_approval_and_are_known_by_their_own_address() {
    let Some((engine, project)) = up(Compose::V2, &["compose.yaml", "compose.caddy.yaml"]) else { return };
    let caddy = project.service("caddy");
    let root = ["cat", "/data/caddy/pki/authorities/local/root.crt"];
    let root = eventually("Caddy has a CA", || Some(caddy.try_exec(root)).filter(|cat| cat.status.success()));
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("root.crt");
    std::fs::write(&file, root.stdout).unwrap();
    let stranger = engine.run(project.stranger("public").mount(&file, "/front.crt"));
    let address = caddy.ip_on(&project.network("public")).to_string();
    // Its site is `localhost` where nobody says otherwise.
    behind_a_front(&project, &stranger, &|| {
        project.client(&stranger, "wss://localhost").at(&address).ca("/front.crt".as_ref())
    });
}

#[test]
fn behind_traefik_strangers_need_approval_and_are_known_by_their_own_address() {
    let Some((engine, project)) = up(Compose::V1, &["compose.yaml", "compose.traefik.yaml"]) else { return };
    // Nobody can check the certificate that Traefik makes for itself.
    let stranger = engine.run(project.stranger("public").env("NODE_TLS_REJECT_UNAUTHORIZED", "0"));
    let address = project.service("traefik").ip_on(&project.network("public")).to_string();
    behind_a_front(&project, &stranger, &|| project.client(&stranger, "wss://localhost").at(&address));
}

/// The device of a stranger that gets approved.
const DEVICE: &str = "/tmp/device.json";

fn up(compose: Compose, files: &[&'static str]) -> Option<(Engine, Project)> {
    Some((Engine::start()?, Project::up(compose, files)?))
}

fn behind_a_front(project: &Project, stranger: &Running, way: &dyn Fn() -> DeviceClient) {
    let local = agents_are_silent(project);
    eventually("the front leads to the gateway", || {
        (!matches!(way().connect(), End::Failed { .. } | End::Refused { .. })).then_some(())
    });
    strangers_need_approval(project, way, &stranger.ip_on(&project.network("public")).to_string(), &local);
    // A way past the front is none: its network is for the two of them.
    let past = project.client(stranger, LOOPGATE).ca(CA.as_ref()).connect();
    assert!(matches!(past, End::Failed { .. }), "{past:?}");
}

/// Gives the scopes that whoever is local gets.
fn agents_are_silent(project: &Project) -> Vec<String> {
    let (gateway, agent) = (project.service("gateway"), project.service("agent"));
    // It listens long before it pairs.
    eventually("the gateway pairs", || is_in(project.client(&gateway, LOOPBACK)).then_some(()));
    let local = project.client(&gateway, LOOPBACK).connect().scopes();
    assert_eq!(project.client(&agent, LOOPBACK).connect().scopes(), local);
    assert_eq!(project.client(&agent, LOOPBACK).headers(FORGERIES[0]).connect().scopes(), local);
    project.client(&agent, LOOPBACK).token("wrong").connect().token_refused();
    // The agent's own node host, to which nobody has said yes either.
    eventually("the node host is paired", || {
        project.openclaw("devices list --json").contains("node-host").then_some(())
    });
    local
}

fn strangers_need_approval(project: &Project, way: &dyn Fn() -> DeviceClient, address: &str, local: &[String]) {
    let request = way().identity(DEVICE.as_ref()).connect().pairing_request();
    let devices = project.openclaw("devices list --json");
    assert!(devices.contains(&format!("\"{address}\"")), "the operator does not see {address}: {devices}");
    for headers in FORGERIES {
        match way().headers(headers).connect() {
            // Caddy has nothing to say for a site that it does not serve.
            End::Refused { status: 200, body } if headers[0].0 == "Host" && body.is_empty() => {}
            end => drop(end.pairing_request()),
        }
    }
    way()
        .headers(FORGERIES[0])
        .without_device()
        .claiming_to_be_the_backend()
        .call("sessions.list")
        .connect()
        .may_not_read();

    project.openclaw(&format!("devices approve {request}"));
    let approved = way().identity(DEVICE.as_ref()).call("sessions.list").connect();
    assert!(matches!(&approved, End::Hello { called: Some(answer), .. } if answer["ok"] == true), "{approved:?}");
    assert_eq!(approved.scopes(), local);
}

/// From the engine's own machine, by HTTP/2 for once.
fn a_published_port_makes_nobody_local(project: &Project) {
    let directory = TempDir::new().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, project.must(&["exec", "-T", "loopgate", "/loopgate", "cert", "export"])).unwrap();
    let modules = project.modules();
    let url = format!("wss://localhost:{}", project.service("netns").published(18443));
    let node = Command::new(modules.join("node/bin/node"));
    DeviceClient::new(node, &modules, &url).token(crate::openclaw::TOKEN).ca(&ca).over_h2().connect().pairing_request();
}

fn is_in(client: DeviceClient) -> bool {
    matches!(client.connect(), End::Hello { .. })
}
