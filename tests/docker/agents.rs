//! The real OpenClaw, both versions of it: the gateway's own sub-agents, and a command line in another container.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::container::{Container, Running};
use crate::engine::{Engine, Network, eventually, output};
use crate::filter::filter;
use crate::openclaw::{NEW, OLD, TOKEN, gateway_with, openclaw};

/// Who runs the gateway in its image; the sidecar as well, since it writes into the gateway's state directory.
const NODE: u32 = 1000;
const PROJECT: &str = "p";

/// Returns the user of the host that is `user` in a container: with a rootless engine, one of the
/// subordinate ids that begin at `TEST_FIRST_SUBUID`.
fn on_host(user: u32) -> u32 {
    std::env::var("TEST_FIRST_SUBUID").map_or(user, |first| first.parse::<u32>().expect("a number") + user - 1)
}

/// What the containers share, in directories of the host: fresh state, and the one secret that an operator makes.
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
        // Spawning is denied over HTTP unless asked for.
        configuration["gateway"]["tools"] = serde_json::json!({ "allow": ["sessions_spawn"] });
        std::fs::write(shared.path("openclaw.json"), configuration.to_string()).unwrap();
        shared
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// loopgate beside the gateway, with nothing but what the operator of such a gateway gives it.
fn sidecar(gateway: &Running, shared: &Shared) -> Container {
    let arguments = ["run", "--docker", "unix:///run/docker-filter/docker.sock"];
    Container::loopgate("sidecar", arguments)
        .inside(gateway)
        .hardened()
        .option(format!("--user={NODE}:{NODE}"))
        // The filter's socket is this group's.
        .option("--group-add=65532")
        .mount(shared.path("filter"), "/run/docker-filter")
        .mount_writable(shared.path("loopgate"), "/var/lib/loopgate")
        .mount_writable(shared.path("openclaw"), "/openclaw-state")
        .env("LOOPGATE_GATEWAY_STATE_DIR", "/openclaw-state")
        .mount(shared.path("token"), "/run/secrets/gateway_token")
        .env("LOOPGATE_TOKEN_FILE", "/run/secrets/gateway_token")
        .env("LOOPGATE_INHERIT_TOKEN", "true")
}

/// OpenClaw's image with loopgate as its entrypoint, as docker/agent.Dockerfile makes it: no URL,
/// no token, and the CA where it belongs.
fn agent(version: &str, network: &Network, shared: &Shared, script: &str) -> Option<Container> {
    // loopgate, and not an init of the engine's, is its first process.
    let container = openclaw("agent", version)?
        .option("--init=false")
        .with_loopgate()
        .option("--entrypoint=/loopgate")
        .network(network);
    let container =
        container.label("loopgate.agent", "true").of_project(PROJECT, "agent").mount(shared.path("ca"), "/ca");
    Some(container.command(["exec", "--", "sh", "-ec", script]))
}

/// OpenClaw issue #30740 and its remedy, beginning with a gateway that nobody has ever spoken to.
fn a_gateway_on_loopback_serves_its_own_sub_agents_agents_in_containers_and_the_world(version: &str) {
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

    // The user interface, from outside.
    let url = format!("https://localhost:{}/", gateway.published(18443));
    let page = eventually("the Control UI answers", || {
        let curl = output(Command::new("curl").args(["--silent", "--fail", "--cacert"]).arg(&ca).arg(&url))
            .expect("curl can be run");
        curl.status.success().then(|| String::from_utf8_lossy(&curl.stdout).into_owned())
    });
    assert!(page.contains("<html") && page.contains("OpenClaw"), "{page}");

    // The issue's own sub-agent. Only the old version pairs its own device by halves.
    if version == OLD {
        sidecar.says("the gateway's own device is paired for every scope");
    }
    let authorization = format!("Authorization: Bearer {TOKEN}");
    let task = r#"{"tool": "sessions_spawn", "args": {"task": "say hello"}}"#;
    let spawn = ["curl", "--silent", "--header", &authorization, "--json", task, "http://127.0.0.1:18789/tools/invoke"];
    eventually("a sub-agent is spawned", || {
        let spawned = gateway.exec(spawn);
        let answer: Value = serde_json::from_str(&spawned).unwrap_or_else(|error| panic!("{error}: {spawned}"));
        let accepted = answer["result"]["details"]["status"] == "accepted";
        // What the new version may say for a moment after its start: it has to do with models, and
        // not with who is asking.
        assert!(accepted || spawned.contains("Retry the request"), "{spawned}");
        accepted.then_some(())
    });

    // A command line elsewhere, which asks for this scope and that one.
    let script = "openclaw gateway call health && openclaw health && echo all is well";
    let Some(agent) = agent(version, &network, &shared, script) else { return };
    let agent = engine.run(agent);
    assert_eq!(agent.ends(), 0, "{}", agent.logs());
    let said = agent.logs();
    assert!(said.contains("all is well") && !said.contains(TOKEN), "{said}");
    let heard = gateway.logs();
    assert!(!heard.contains("pairing required"), "{heard}");
    sidecar.says("token=true");
    assert!(!sidecar.logs().contains(TOKEN));
}

#[test]
fn openclaw_2026_2_19_works_behind_loopgate_from_a_fresh_state() {
    a_gateway_on_loopback_serves_its_own_sub_agents_agents_in_containers_and_the_world(OLD);
}

#[test]
fn openclaw_2026_9_6_works_behind_loopgate_from_a_fresh_state() {
    a_gateway_on_loopback_serves_its_own_sub_agents_agents_in_containers_and_the_world(NEW);
}
