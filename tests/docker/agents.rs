//! Both versions of the real OpenClaw: the gateway's own sub-agents, and the command line in
//! another container.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::container::{Container, Running};
use crate::engine::{Engine, Network, eventually, output};
use crate::filter::filter;
use crate::openclaw::{NEW, OLD, TOKEN, gateway_with, openclaw};

/// The user of the gateway, and of the sidecar, because it writes into the gateway's state
/// directory.
const NODE: u32 = 1000;
const PROJECT: &str = "p";

/// Returns the user of the host that is `user` in a container: with a rootless engine, one of the
/// subordinate ids that begin at `TEST_FIRST_SUBUID`.
fn on_host(user: u32) -> u32 {
    std::env::var("TEST_FIRST_SUBUID").map_or(user, |first| first.parse::<u32>().expect("a number") + user - 1)
}

/// The directory that the containers share: an empty state, and the gateway's token.
struct Shared(TempDir);

impl Shared {
    fn new() -> Self {
        let shared = Self(tempfile::tempdir().unwrap());
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(shared.0.path(), open.clone()).unwrap();
        for directory in ["openclaw", "loopgate", "ca", "filter"] {
            let path = shared.path(directory);
            std::fs::create_dir(&path).unwrap();
            std::fs::set_permissions(&path, open.clone()).unwrap();
        }
        for owned in ["openclaw", "loopgate"] {
            chown(shared.path(owned), Some(on_host(NODE)), Some(on_host(NODE))).unwrap();
        }
        std::fs::write(shared.path("token"), TOKEN).unwrap();
        let template = concat!(env!("CARGO_MANIFEST_DIR"), "/docker/openclaw.json");
        let mut configuration: Value = serde_json::from_slice(&std::fs::read(template).unwrap()).unwrap();
        // The gateway refuses to spawn sub-agents over HTTP unless the tool is allowed.
        configuration["gateway"]["tools"] = serde_json::json!({ "allow": ["sessions_spawn"] });
        std::fs::write(shared.path("openclaw.json"), configuration.to_string()).unwrap();
        shared
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// The sidecar, with the options that an operator sets for such a gateway.
fn sidecar(gateway: &Running, shared: &Shared) -> Container {
    let arguments = ["run", "--docker", "unix:///run/docker-filter/docker.sock"];
    Container::loopgate("sidecar", arguments)
        .in_namespace_of(gateway)
        .hardened()
        .option(format!("--user={NODE}:{NODE}"))
        // The group of the filter's socket.
        .option("--group-add=65532")
        .mount(shared.path("filter"), "/run/docker-filter")
        .mount_writable(shared.path("loopgate"), "/var/lib/loopgate")
        .mount_writable(shared.path("openclaw"), "/openclaw-state")
        .env("LOOPGATE_GATEWAY_STATE_DIR", "/openclaw-state")
        .mount(shared.path("token"), "/run/secrets/gateway_token")
        .env("LOOPGATE_TOKEN_FILE", "/run/secrets/gateway_token")
        .env("LOOPGATE_INHERIT_TOKEN", "true")
}

/// OpenClaw's image with loopgate as its entrypoint, like that of docker/agent.Dockerfile. It has
/// neither the gateway's URL nor the token, only the CA.
fn agent(version: &str, network: &Network, shared: &Shared, script: &str) -> Option<Container> {
    // loopgate is the first process, and not the engine's init.
    let container = openclaw("agent", version)?
        .option("--init=false")
        .with_loopgate()
        .option("--entrypoint=/loopgate")
        .network(network);
    let container =
        container.label("loopgate.agent", "true").of_project(PROJECT, "agent").mount(shared.path("ca"), "/ca");
    Some(container.command(["exec", "--", "sh", "-ec", script]))
}

/// OpenClaw issue #30740 and its remedy, starting from a gateway without any state.
fn a_gateway_on_loopback_serves_sub_agents_agents_in_containers_and_outsiders(version: &str) {
    let Some(engine) = Engine::start() else { return };
    let shared = Shared::new();
    let Some(gateway) = gateway_with(version, &shared.path("openclaw.json")) else { return };
    let network = engine.network();
    let _filter = filter(&engine, &shared.path("filter"));
    let gateway = gateway.network(&network).alias("gateway").of_project(PROJECT, "gateway").publish(18443);
    let gateway = gateway.mount_writable(shared.path("openclaw"), "/state").env("OPENCLAW_STATE_DIR", "/state");
    let gateway = engine.run(gateway);
    let sidecar = engine.run(sidecar(&gateway, &shared));
    eventually("the sidecar is ready", || {
        sidecar.try_exec(["/loopgate", "healthcheck"]).status.success().then_some(())
    });
    let ca = shared.path("ca").join("ca.pem");
    std::fs::write(&ca, sidecar.exec(["/loopgate", "cert", "export"])).unwrap();

    // The Control UI, from this machine.
    let url = format!("https://localhost:{}/", gateway.published_port(18443));
    let page = eventually("the Control UI answers", || {
        let curl = output(Command::new("curl").args(["--silent", "--fail", "--cacert"]).arg(&ca).arg(&url))
            .expect("curl can be run");
        curl.status.success().then(|| String::from_utf8_lossy(&curl.stdout).into_owned())
    });
    assert!(page.contains("<html") && page.contains("OpenClaw"), "{page}");

    // The sub-agent of the issue. The old version pairs its own device for only some of the scopes,
    // so loopgate pairs it.
    if version == OLD {
        sidecar.wait_for_log("the gateway's own device is paired for every scope");
    }
    let authorization = format!("Authorization: Bearer {TOKEN}");
    let task = r#"{"tool": "sessions_spawn", "args": {"task": "say hello"}}"#;
    let spawn = ["curl", "--silent", "--header", &authorization, "--json", task, "http://127.0.0.1:18789/tools/invoke"];
    eventually("a sub-agent is spawned", || {
        let spawned = gateway.exec(spawn);
        let answer: Value = serde_json::from_str(&spawned).unwrap_or_else(|error| panic!("{error}: {spawned}"));
        let accepted = answer["result"]["details"]["status"] == "accepted";
        // The new version may answer "Retry the request" for a moment after its start, until it has
        // its models.
        assert!(accepted || spawned.contains("Retry the request"), "{spawned}");
        accepted.then_some(())
    });

    // The command line in another container, with two commands that need different scopes.
    let script = "openclaw gateway call health && openclaw health && echo all is well";
    let Some(agent) = agent(version, &network, &shared, script) else { return };
    let agent = engine.run(agent);
    assert_eq!(agent.wait_for_exit(), 0, "{}", agent.logs());
    let agents_log = agent.logs();
    assert!(agents_log.contains("all is well") && !agents_log.contains(TOKEN), "{agents_log}");
    let gateways_log = gateway.logs();
    assert!(!gateways_log.contains("pairing required"), "{gateways_log}");
    sidecar.wait_for_log("inherits_token=true");
    assert!(!sidecar.logs().contains(TOKEN));
}

#[test]
fn openclaw_2026_2_19_works_behind_loopgate_from_a_fresh_state() {
    a_gateway_on_loopback_serves_sub_agents_agents_in_containers_and_outsiders(OLD);
}

#[test]
fn openclaw_2026_9_6_works_behind_loopgate_from_a_fresh_state() {
    a_gateway_on_loopback_serves_sub_agents_agents_in_containers_and_outsiders(NEW);
}
